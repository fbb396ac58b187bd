package maps

import "testing"

// exactOccupancy holds what the reconciler says is in use against the hashes themselves.
func exactOccupancy(t testing.TB, r *Reconciler) {
	t.Helper()
	used := r.Occupancy()
	for name, count := range map[string]func() (int, error){
		"cgroups":        func() (int, error) { all, err := r.m.Cgroups.All(); return len(all), err },
		"addresses":      func() (int, error) { all, err := r.m.Addresses.All(); return len(all), err },
		"frontends":      func() (int, error) { all, err := r.m.Frontends.All(); return len(all), err },
		"policy_sources": func() (int, error) { all, err := r.m.PolicySources.All(); return len(all), err },
		"policy_blocks":  func() (int, error) { all, err := r.m.PolicyBlocks.All(); return len(all), err },
		"policy_ports":   func() (int, error) { all, err := r.m.PolicyPorts.All(); return len(all), err },
	} {
		n, err := count()
		if err != nil {
			t.Fatal(err)
		}
		if used[name] != uint64(n) {
			t.Errorf("%d entries of %s are in use by Occupancy, and there are %d", used[name], name, n)
		}
	}
}
