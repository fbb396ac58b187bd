package maps

// Occupancy returns how many entries of each map are in use, those that drain among them. It takes no look at the kernel.
func (r *Reconciler) Occupancy() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	used := map[string]uint64{
		"workloads": uint64(r.free.workloads.used()), "pools": uint64(r.free.pools.used()), "tables": uint64(r.free.tables.used()),
		"slots": uint64(len(r.m.Slots)) - uint64(r.free.slots.free), "backends": uint64(r.free.backends.used()),
		"limits": uint64(r.free.limits.used()), "policy_sets": uint64(r.free.sets.used()),
		"frontends": uint64(len(r.frontends)), "addresses": uint64(len(r.addresses)), "cgroups": uint64(len(r.cgroups)),
	}
	for _, s := range r.sets {
		used["policy_sources"] += uint64(len(s.sources))
		used["policy_blocks"] += uint64(len(s.set.Blocks))
		used["policy_ports"] += uint64(len(s.set.Ports))
	}
	return used
}
