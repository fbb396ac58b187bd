package maps

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// compareNames orders as names are printed by parts: namespace, then name.
func compareNames(a, b model.Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// sortedBy returns the numbers of elements in the order of their names.
func sortedBy[T any](all []T, name func(*T) model.Name) []int32 {
	order := make([]int32, len(all))
	sorted := true
	for i := range all {
		order[i] = int32(i)
		sorted = sorted && (i == 0 || compareNames(name(&all[i-1]), name(&all[i])) <= 0)
	}
	if !sorted {
		slices.SortStableFunc(order, func(a, b int32) int { return compareNames(name(&all[a]), name(&all[b])) })
	}
	return order
}

// rules are what decides over workloads from without: policies, and who is bypassed.
type rules struct {
	policies []*policy // sorted by name
	bypasses []model.Bypass
	sets     map[string]*PolicySet // by key, all that are or were in use since policies changed
}

// sameWorkload leaves out what the kernel does not hear of.
func sameWorkload(a, b *model.Workload) bool {
	return a.Name == b.Name && a.Identity == b.Identity && a.Cgroup == b.Cgroup && a.Limits == b.Limits &&
		slices.Equal(a.Addresses, b.Addresses) && sameLabels(a.Labels, b.Labels)
}

func sameBypass(a, b model.Bypass) bool {
	return a.Name == b.Name && a.Cgroup == b.Cgroup && sameLabels(a.Selector, b.Selector)
}

// newRules keeps what it can of the last.
func newRules(s *model.Snapshot, last *rules) *rules {
	r := &rules{sets: make(map[string]*PolicySet)}
	known := make(map[model.Name]*policy)
	if last != nil {
		for _, p := range last.policies {
			known[p.Name] = p
		}
	}
	for _, i := range sortedBy(s.Policies, func(p *model.AuthorizationPolicy) model.Name { return p.Name }) {
		p := known[s.Policies[i].Name]
		if p == nil || !sameRules(&p.AuthorizationPolicy, &s.Policies[i]) {
			p = newPolicy(s.Policies[i])
		}
		r.policies = append(r.policies, p)
	}
	for _, i := range sortedBy(s.Bypasses, func(b *model.Bypass) model.Name { return b.Name }) {
		r.bypasses = append(r.bypasses, s.Bypasses[i])
	}
	if last == nil {
		return r
	}
	r.sets = last.sets
	if slices.Equal(r.policies, last.policies) && slices.EqualFunc(r.bypasses, last.bypasses, sameBypass) {
		return last
	}
	return r
}

// bypassed tells whether a Bypass is about a workload: one by labels only within its namespace.
func (r *rules) bypassed(w *model.Workload) bool {
	return slices.ContainsFunc(r.bypasses, func(b model.Bypass) bool {
		return b.Cgroup != "" && b.Cgroup == w.Cgroup ||
			len(b.Selector) > 0 && b.Name.Namespace == w.Name.Namespace && selects(b.Selector, w.Labels)
	})
}

// setOf returns the set of the policies that select a workload; nil if none does.
func (r *rules) setOf(w *model.Workload) (*PolicySet, error) {
	var selected []*policy
	var key []byte
	for _, p := range r.policies {
		// A Deny without rules says nothing.
		if p.selects(w) && (len(p.Rules) > 0 || p.Action == model.Allow) {
			selected = append(selected, p)
			key = append(key, p.key[:]...)
		}
	}
	if len(selected) == 0 {
		return nil, nil
	}
	if s, ok := r.sets[string(key)]; ok {
		return s, nil
	}
	s, err := newPolicySet(selected, w.Name)
	if err != nil {
		return nil, err
	}
	r.sets[s.key] = s
	return s, nil
}

func (r *rules) workload(w *model.Workload) (*Workload, error) {
	set, err := r.setOf(w)
	if err != nil {
		return nil, err
	}
	c := &Workload{
		Name: w.Name, Identity: w.Identity, Class: Class{Identity: w.Identity, Namespace: w.Name.Namespace}, Cgroup: w.Cgroup,
		Bypass: r.bypassed(w), Limit: limitOf(w.Limits), Set: set, inputs: w,
	}
	for _, a := range w.Addresses {
		c.Addresses = append(c.Addresses, a.Unmap())
	}
	if len(c.Addresses) > 0 {
		c.Affinity = affinity(c.Addresses[0])
	}
	return c, nil
}

// alone are the bypassed cgroups that no workload has.
func (r *rules) alone(cgroups map[string]model.Name) []*Workload {
	var all []*Workload
	seen := make(map[string]bool)
	for _, b := range r.bypasses {
		if _, ok := cgroups[b.Cgroup]; ok || b.Cgroup == "" || seen[b.Cgroup] {
			continue
		}
		seen[b.Cgroup] = true
		all = append(all, &Workload{Name: b.Name, Alone: true, Cgroup: b.Cgroup, Bypass: true})
	}
	return all
}

// owners finds out who has a cgroup or an address, of which each has one.
type owners struct {
	cgroups   map[string]model.Name
	addresses map[netip.Addr]model.Name
}

func (o *owners) add(w *Workload) error {
	if w.Cgroup != "" {
		if other, ok := o.cgroups[w.Cgroup]; ok {
			return fmt.Errorf("workloads %v and %v have the same cgroup %s; give it to one", other, w.Name, w.Cgroup)
		}
		o.cgroups[w.Cgroup] = w.Name
	}
	for _, a := range w.Addresses {
		if other, ok := o.addresses[a]; ok {
			return fmt.Errorf("workloads %v and %v have the same address %v; give it to one", other, w.Name, a)
		}
		o.addresses[a] = w.Name
	}
	return nil
}
