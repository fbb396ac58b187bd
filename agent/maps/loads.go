package maps

import (
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

// LimitLoad is what stands against a limit, what it allows, and what it refused.
type LimitLoad struct {
	Limit string // "service ns/name" or "workload ns/name"
	// Bounds are zero of a limit that is gone from the mesh, and drains: it bounds nobody any more.
	Bounds LimitBounds
	DumpLimitCounts
}

// LimitBounds are what a limit allows. 0 is no bound.
type LimitBounds struct {
	MaxOpen       uint32 // connections, open or connecting
	MaxConnecting uint32 // connections
	PerSecond     uint32 // connections a second
	Burst         uint32 // connections at once, after a rest; 0 without PerSecond
}

// Loads is what changes by itself, connection by connection. Its lists are in no order.
type Loads struct {
	Endpoints []EndpointLoad // those that were ever picked
	Limits    []LimitLoad
}

// Loads reads the counts. Picks and Failed only grow, also while an endpoint gets other addresses, or leaves the mesh and comes back: what is free is
// counted as long as its index is not used again, which is as late as can be. It takes a microsecond for each endpoint that was ever picked, and a
// system call for each limit.
func (r *Reconciler) Loads() (*Loads, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &Loads{Endpoints: r.endpointLoads()}
	for _, s := range r.limits {
		state, _, err := r.m.LimitStates.Get(s.index)
		if err != nil {
			return nil, err
		}
		c := &state.Counts
		load := LimitLoad{Limit: s.text, DumpLimitCounts: DumpLimitCounts{c.Open, c.Connecting, c.RejectedOpen, c.RejectedConnecting, c.RejectedRate}}
		if !s.gone {
			in := loadLimit(&r.m.Limits[s.index])
			load.Bounds = LimitBounds{in.MaxOpen, in.MaxConnecting, in.PerSecond, in.Burst}
		}
		l.Limits = append(l.Limits, load)
	}
	return l, nil
}

// endpointLoads goes over the loads themselves, because those of backends that are gone are there, too.
func (r *Reconciler) endpointLoads() []EndpointLoad {
	type key struct{ endpoint, service model.Name }
	var all []EndpointLoad
	var present []bool // in the mesh, or it drains
	at := make(map[key]int)
	absent := 0
	see := func(i int, gone bool) {
		if !gone && !present[i] {
			present[i] = true
			absent--
		}
	}
	gone := make([]bool, r.free.backends.last+1)
	gone[0] = true
	for _, index := range r.free.backends.free {
		gone[index] = true
	}
	for index := range gone {
		load := &r.m.Loads[index]
		open, picks := atomic.LoadUint64(&load.Open), atomic.LoadUint64(&load.Picks)
		if open == 0 && picks == 0 {
			continue
		}
		name, known := r.names.Backend(uint32(index), r.tags[index])
		if !known {
			continue
		}
		i, found := at[key{name.Endpoint, name.Service}]
		if !found {
			i = len(all)
			at[key{name.Endpoint, name.Service}] = i
			all = append(all, EndpointLoad{Service: name.Service, Endpoint: name.Endpoint})
			present = append(present, false)
			absent++
		}
		e := &all[i]
		e.Open += open
		e.Picks += picks
		e.Failed += atomic.LoadUint64(&load.Failed)
		see(i, gone[index])
	}
	// One that was picked, left and came back may have none yet where it is now.
	for index := 0; index < len(gone) && absent > 0; index++ {
		if gone[index] {
			continue
		}
		if name, known := r.names.Backend(uint32(index), r.tags[index]); known {
			if i, found := at[key{name.Endpoint, name.Service}]; found {
				see(i, false)
			}
		}
	}
	kept := all[:0]
	for i := range all {
		if present[i] {
			kept = append(kept, all[i])
		}
	}
	return kept
}
