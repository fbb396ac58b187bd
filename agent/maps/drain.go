package maps

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Draining is a backend that gets no new connection and has old ones.
type Draining struct {
	Service  model.Name
	Endpoint model.Name
	Index    uint32
	Tag      uint32
	Address  netip.AddrPort // port 0: any
	Open     uint64
	Since    time.Time
	Timeout  time.Duration // the service's; 0: they end by themselves
	Removed  bool          // gone from the mesh, and not only said to drain
}

// Draining lists the backends that drain, by service, endpoint and address.
func (r *Reconciler) Draining() []Draining {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Draining
	add := func(b *backendState) {
		if open := atomic.LoadUint64(&r.m.Loads[b.index].Open); open > 0 && !b.since.IsZero() {
			all = append(all, Draining{
				Service: b.key.service, Endpoint: b.key.endpoint, Index: b.index, Tag: b.tag, Address: b.key.address, Open: open, Since: b.since,
				Timeout: b.timeout, Removed: b.gone,
			})
		}
	}
	for _, b := range r.draining {
		add(b)
	}
	for _, b := range r.pending.backends {
		add(b)
	}
	for _, s := range r.services {
		for _, b := range s.backends {
			add(b)
		}
	}
	slices.SortFunc(all, func(a, b Draining) int {
		return cmp.Or(compareNames(a.Service, b.Service), compareNames(a.Endpoint, b.Endpoint), a.Address.Compare(b.Address))
	})
	return all
}

// VerdictCount is how often a rule decided.
type VerdictCount struct {
	Rule    *RuleName // nil: no rule did, but that there are policies
	Verdict uint8     // bpf.VerdictAllow or bpf.VerdictDeny
	Dry     bool      // of dry-run policies
	Count   uint64
}

type verdictKey struct {
	rule    *RuleName
	verdict uint8
	dry     bool
}

// Verdicts returns the counts by rule, of all sets that there ever were: each only grows.
func (r *Reconciler) Verdicts() ([]VerdictCount, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, err := r.m.Verdicts.All()
	if err != nil {
		return nil, err
	}
	sets := make(map[uint32]*PolicySet, len(r.sets))
	for _, s := range r.sets {
		sets[s.index] = s.set
	}
	for _, s := range r.pending.sets {
		sets[s.index] = s.set
	}
	sums := make(map[verdictKey]uint64, len(r.counted))
	for key, count := range r.counted {
		sums[key] = count
	}
	for key, count := range all {
		if set := sets[key.PolicySet]; set != nil && !set.unknown {
			sums[r.verdict(set, key)] += count
		}
	}
	counts := make([]VerdictCount, 0, len(sums))
	for key, count := range sums {
		counts = append(counts, VerdictCount{Rule: key.rule, Verdict: key.verdict, Dry: key.dry, Count: count})
	}
	slices.SortFunc(counts, compareVerdicts)
	return counts, nil
}

func compareVerdicts(a, b VerdictCount) int {
	return cmp.Or(compareRules(a.Rule, b.Rule), cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(toWord(a.Dry), toWord(b.Dry)))
}

func compareRules(a, b *RuleName) int {
	switch {
	case a == b:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Or(compareNames(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Action, b.Action),
		cmp.Compare(toWord(a.DryRun), toWord(b.DryRun)))
}

func (r *Reconciler) verdict(set *PolicySet, key bpf.VerdictKey) verdictKey {
	v := verdictKey{verdict: key.Verdict, dry: key.Dry != 0}
	if int(key.Rule) < len(set.Rules) {
		v.rule = r.names.rule(set.Rules[key.Rule])
	}
	return v
}
