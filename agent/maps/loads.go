package maps

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// EndpointLoad is what the kernel counts of an endpoint of the mesh, over all of its backends: its ports and families, and addresses that it had before.
type EndpointLoad struct {
	Service  model.Name
	Endpoint model.Name
	Open     uint64 // open or connecting
	Picks    uint64
	Failed   uint64 // connects that failed
}

// LimitLoad is what stands against a limit, and what it refused.
type LimitLoad struct {
	Limit string // "service ns/name" or "workload ns/name"
	DumpLimitCounts
}

// Loads is what changes by itself, connection by connection.
type Loads struct {
	Endpoints []EndpointLoad // that were ever picked, by service and endpoint
	Limits    []LimitLoad    // by name
}

type endpointKey struct{ service, endpoint model.Name }

type endpointSum struct {
	EndpointLoad
	present bool // it is in the mesh, or drains
}

// Loads reads the counts. Picks and Failed only grow, also while an endpoint gets other addresses, or leaves the mesh and comes back: what is free is
// counted as long as its index is not used again, which is as late as can be. Of 50,000 endpoints it takes some ten milliseconds, and one system call for each
// limit.
func (r *Reconciler) Loads() (*Loads, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sums := r.endpointSums()
	l := &Loads{Endpoints: make([]EndpointLoad, 0, len(sums))}
	for _, s := range sums {
		if s.present {
			l.Endpoints = append(l.Endpoints, s.EndpointLoad)
		}
	}
	slices.SortFunc(l.Endpoints, func(a, b EndpointLoad) int {
		return cmp.Or(compareNames(a.Service, b.Service), compareNames(a.Endpoint, b.Endpoint))
	})
	for _, s := range r.limits {
		state, _, err := r.m.LimitStates.Get(s.index)
		if err != nil {
			return nil, err
		}
		c := &state.Counts
		l.Limits = append(l.Limits, LimitLoad{s.text, DumpLimitCounts{c.Open, c.Connecting, c.RejectedOpen, c.RejectedConnecting, c.RejectedRate}})
	}
	slices.SortFunc(l.Limits, func(a, b LimitLoad) int { return cmp.Compare(a.Limit, b.Limit) })
	return l, nil
}

// endpointSums goes over the loads themselves, because those of what is gone are there, too.
func (r *Reconciler) endpointSums() map[endpointKey]*endpointSum {
	sums := make(map[endpointKey]*endpointSum)
	services := make(map[model.Name]struct{})
	for i := range r.free.backends.last + 1 {
		load := &r.m.Loads[i]
		open, picks := atomic.LoadUint64(&load.Open), atomic.LoadUint64(&load.Picks)
		if open == 0 && picks == 0 {
			continue
		}
		name, known := r.names.Backend(i, r.tags[i])
		if !known {
			continue
		}
		key := endpointKey{name.Service, name.Endpoint}
		s := sums[key]
		if s == nil {
			s = &endpointSum{EndpointLoad: EndpointLoad{Service: name.Service, Endpoint: name.Endpoint}}
			sums[key] = s
			services[name.Service] = struct{}{}
		}
		s.Open += open
		s.Picks += picks
		s.Failed += atomic.LoadUint64(&load.Failed)
	}
	see := func(b *backendState) {
		if s := sums[endpointKey{b.key.service, b.key.endpoint}]; s != nil {
			s.present = true
		}
	}
	for name := range services {
		if s := r.services[name]; s != nil {
			for _, b := range s.backends {
				see(b)
			}
		}
	}
	for _, b := range r.draining {
		see(b)
	}
	for _, b := range r.pending.backends {
		see(b)
	}
	return sums
}
