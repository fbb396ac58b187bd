package maps

import (
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// write fills elements of arrays that nothing refers to, and makes the reconciler's own state as the kernel's will be. It cannot fail.
func (p *plan) write() {
	r := p.r
	if len(r.retired) > 0 {
		for _, c := range p.mesh.Classes {
			delete(r.retired, c)
		}
	}
	for c, i := range p.newClasses {
		r.classes[c] = i
		for _, s := range r.sets {
			s.enter(c, i)
		}
	}
	for _, s := range p.sets {
		r.sets[s.set.key] = s
		r.m.PolicySets[s.index] = s.set.value(s.generation)
		r.names.setRules(s.index, s.set.Rules)
	}
	for text, s := range p.newLimits {
		r.limits[text] = s
		r.m.Limits[s.index] = s.limit
		r.names.setLimit(s.index, text)
	}
	for path, c := range p.newCgroups {
		r.resolved[path] = c
	}
	for _, w := range p.workloads {
		if w.index != w.state.index {
			r.m.Workloads[w.index] = bpf.Workload{
				PolicySet: w.set.at(), Source: r.classes[w.want.Class], Limit: w.limit.at(), Affinity: w.want.Affinity, Flags: w.want.flags(),
				Name: w.want.key().hash(), Class: w.want.Class.hash(),
			}
			p.changes.Workloads++
		}
		r.names.setWorkload(w.index, WorkloadName{w.want.Name, w.want.Identity})
	}
	for _, s := range p.services {
		p.writeService(s)
	}
	p.changes.PolicySets, p.changes.Limits = len(p.sets), len(p.newLimits)
}

func toWord(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func (p *plan) writeService(s *servicePlan) {
	r := p.r
	if s.state.id == 0 {
		r.lastID++
		s.state.id = r.lastID
		r.names.setService(s.state.id, s.want.Name)
	}
	for i, b := range s.backends {
		if !s.fresh[b] {
			continue
		}
		want := s.want.Backends[i]
		r.tags[b.index]++
		b.tag = r.tags[b.index]
		// Written once more in flip, when all workloads have their indices.
		b.workload, b.weight = nil, want.Weight
		clearLoad(&r.m.Loads[b.index])
		r.m.Backends[b.index] = bpf.Backend{
			Addr: as16(want.Address.Addr()), Port: want.Address.Port(), Tag: b.tag, Weight: want.Weight, Service: s.state.id,
			Name: hashName(seedEndpoint, want.Endpoint),
		}
		p.changes.Backends++
	}
	for i, t := range s.tables {
		if t.index == 0 {
			continue
		}
		want := s.want.Pools[i]
		for j, slot := range want.Slots {
			r.m.Slots[int(t.slots.start)+j] = slot&^always | uint64(s.backends[slot&always].index)
		}
		r.m.Tables[t.index] = bpf.Table{
			Generation: p.mesh.Generation, Service: s.state.id, Algorithm: want.Algorithm, FirstSlot: t.slots.start, Size: want.Size,
			Limit: s.limit.at(), Pool: s.pools[i].index, Name: hashName(seedService, s.want.Name), Port: uint32(want.Port), Ipv6: toWord(want.IPv6),
		}
		p.changes.Tables++
		p.changes.Slots += len(want.Slots)
	}
}

// clearLoad is atomic only because programs may read the same words for a metric.
func clearLoad(l *bpf.Load) {
	for _, field := range []*uint64{&l.Open, &l.Picks, &l.Failed} {
		atomic.StoreUint64(field, 0)
	}
}

// flip changes words that programs follow, each atomically, and notes what nothing refers to any more. It cannot fail.
func (p *plan) flip() {
	r := p.r
	for s, limit := range p.setLimits {
		s.gone = false
		p.setLimit(s, limit)
	}
	for _, w := range p.workloads {
		p.flipWorkload(w)
	}
	now := r.o.Now()
	for _, s := range p.services {
		p.flipService(s, now)
	}
	// What is left of the names that are gone.
	for _, s := range p.goneServices {
		delete(r.services, s.name)
		for _, pool := range s.pools {
			p.dropPool(pool)
		}
		for _, b := range s.backends {
			p.dropBackend(b, now)
		}
		p.dropLimit(s.limit, nil)
		r.names.dropService(s.id)
	}
	for _, w := range p.gone {
		delete(r.workloads, w.compiled.key())
		r.pending.workloads = append(r.pending.workloads, w.index)
		p.dropLimit(w.limit, nil)
	}
	for _, s := range p.goneSets {
		delete(r.sets, s.set.key)
		r.pending.sets = append(r.pending.sets, s)
	}
	until := now.Add(r.o.Retire)
	for _, c := range p.goneClasses {
		r.retired[c] = until
	}
}

// store is of one word.
func (p *plan) store(word *uint32, value uint32) {
	if atomic.LoadUint32(word) != value {
		atomic.StoreUint32(word, value)
		p.changes.References++
	}
}

// setLimit changes a limit where it is, because what stands against it stays: each bound is a word of its own.
func (p *plan) setLimit(s *limitState, limit bpf.Limit) {
	at := &p.r.m.Limits[s.index]
	p.store(&at.MaxOpen, limit.MaxOpen)
	p.store(&at.MaxConnecting, limit.MaxConnecting)
	p.store(&at.PerSecond, limit.PerSecond)
	p.store(&at.Burst, limit.Burst)
	s.limit = limit
}

// dropLimit lets one drain that nothing has any more.
func (p *plan) dropLimit(old, now *limitState) {
	if old != nil && old != now && !old.gone {
		old.gone = true
		p.r.pending.limits = append(p.r.pending.limits, old)
	}
}

func (p *plan) flipWorkload(w *workloadPlan) {
	r := p.r
	state := w.state
	switch {
	case state.compiled == nil:
		r.workloads[w.want.key()] = state
	case w.index != state.index:
		r.pending.workloads = append(r.pending.workloads, state.index)
	default:
		at := &r.m.Workloads[state.index]
		p.store(&at.PolicySet, w.set.at())
		p.store(&at.Limit, w.limit.at())
	}
	p.dropLimit(state.limit, w.limit)
	moved := w.index != state.index
	state.compiled, state.index, state.set, state.limit = w.want, w.index, w.set, w.limit
	if moved {
		for b := range state.backends {
			p.store(&r.m.Backends[b.index].Workload, state.index)
		}
	}
}

func (p *plan) flipService(s *servicePlan, now time.Time) {
	r := p.r
	state := s.state
	kept := make(map[*backendState]bool, len(s.backends))
	for i, b := range s.backends {
		kept[b] = true
		p.flipBackend(b, &s.want.Backends[i], s.want.DrainTimeout, now)
		// One that drained may have been of an earlier service of the name.
		p.store(&r.m.Backends[b.index].Service, state.id)
	}
	pools := make(map[*poolState]bool, len(s.pools))
	for i, pool := range s.pools {
		pools[pool] = true
		pool.want, pool.limit = s.want.Pools[i], s.limit
		if t := s.tables[i]; t.index != 0 {
			if pool.table.index != 0 {
				r.pending.tables = append(r.pending.tables, pool.table)
			} else {
				atomic.StoreUint64(&r.m.Turns[pool.index], 0)
			}
			pool.table = t
			p.store(&r.m.Pools[pool.index].Table, t.index)
		}
	}
	for _, pool := range state.pools {
		if !pools[pool] {
			p.dropPool(pool)
		}
	}
	for _, b := range state.backends {
		if !kept[b] {
			p.dropBackend(b, now)
		}
	}
	p.dropLimit(state.limit, s.limit)
	r.services[s.want.Name] = state
	state.compiled, state.limit, state.pools, state.backends = s.want, s.limit, s.pools, s.backends
}

// flipBackend changes what may change of a backend while it is in use.
func (p *plan) flipBackend(b *backendState, want *Backend, timeout time.Duration, now time.Time) {
	r := p.r
	if b.gone {
		b.gone = false
		delete(r.draining, b.key)
		b.since = time.Time{}
	}
	b.timeout = timeout
	switch {
	case !want.Draining:
		b.since = time.Time{}
	case b.since.IsZero():
		b.since = now
	}
	w := p.workload(want.Workload)
	if b.workload != w {
		b.link(w)
	}
	at := &r.m.Backends[b.index]
	p.store(&at.Workload, w.at())
	b.weight = want.Weight
	p.store(&at.Weight, want.Weight)
	r.names.setBackend(b.index, b.tag, BackendName{b.key.service, b.key.endpoint, want.Workload, b.key.address})
}

// link makes a backend one of a workload, so that it follows its index.
func (b *backendState) link(w *workloadState) {
	if b.workload != nil {
		delete(b.workload.backends, b)
	}
	if b.workload = w; w != nil {
		w.backends[b] = struct{}{}
	}
}

func (p *plan) dropPool(pool *poolState) {
	p.r.pending.pools = append(p.r.pending.pools, pool.index)
	p.r.pending.tables = append(p.r.pending.tables, pool.table)
}

// dropBackend lets one drain. Its workload is no longer followed: nobody chooses it.
func (p *plan) dropBackend(b *backendState, now time.Time) {
	b.link(nil)
	b.gone = true
	if b.since.IsZero() {
		b.since = now
	}
	p.r.pending.backends = append(p.r.pending.backends, b)
}
