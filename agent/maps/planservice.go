package maps

import (
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

func (p *plan) planServices() error {
	r := p.r
	kept := 0
	for _, want := range p.mesh.Services {
		state := r.services[want.Name]
		if state != nil {
			kept++
			state.seen = r.epoch
			if state.compiled == want {
				continue
			}
		} else {
			state = &serviceState{name: want.Name, seen: r.epoch} // it gets its id when it is written
		}
		s, err := p.planService(state, want)
		if err != nil {
			return err
		}
		p.services = append(p.services, s)
	}
	if kept == len(r.services) {
		return nil
	}
	for _, s := range r.services {
		if s.seen != r.epoch {
			p.goneServices = append(p.goneServices, s)
		}
	}
	return nil
}

func (p *plan) planService(state *serviceState, want *Service) (*servicePlan, error) {
	limit, err := p.limit("service", want.Name, want.Limit)
	if err != nil {
		return nil, err
	}
	s := &servicePlan{state: state, old: state.compiled, want: want, limit: limit, fresh: make(map[*backendState]bool)}
	if err := p.planBackends(s); err != nil {
		return nil, err
	}
	for _, pool := range want.Pools {
		old := state.pool(pool)
		if old != nil && old.limit == limit && s.same(old.want, pool) {
			s.pools, s.tables = append(s.pools, old), append(s.tables, tableState{})
			continue
		}
		if old == nil {
			i, _, err := index(p.r.free.pools, "pools", "mesh.max_pools")
			if err != nil {
				return nil, err
			}
			p.pools = append(p.pools, i)
			old = &poolState{index: i}
		}
		t, err := p.table(uint32(len(pool.Slots)))
		if err != nil {
			return nil, err
		}
		s.pools, s.tables = append(s.pools, old), append(s.tables, t)
	}
	return s, nil
}

func (p *plan) table(slots uint32) (tableState, error) {
	free := &p.r.free
	i, _, err := index(free.tables, "tables", "mesh.max_pools")
	if err != nil {
		return tableState{}, err
	}
	slotRange, ok := free.slots.take(slots)
	if !ok {
		free.tables.give(i)
		size := uint32(len(p.r.m.Slots))
		return tableState{}, &FullError{Map: "slots", Used: size - free.slots.free, Size: size, Wanted: slots, Key: "mesh.max_slots"}
	}
	t := tableState{i, slotRange}
	p.tables = append(p.tables, t)
	return t, nil
}

// pool returns the one that a service has for a port in a family.
func (s *serviceState) pool(want *Pool) *poolState {
	for _, p := range s.pools {
		if p.want.IPv6 == want.IPv6 && p.want.Port == want.Port {
			return p
		}
	}
	return nil
}

// same tells whether a table would be the same as the one that there is.
func (s *servicePlan) same(have, want *Pool) bool {
	if have.Algorithm != want.Algorithm || have.Size != want.Size || len(have.Slots) != len(want.Slots) {
		return false
	}
	for i, slot := range want.Slots {
		if slot>>32 != have.Slots[i]>>32 || s.backends[slot&always] != s.state.backends[have.Slots[i]&always] {
			return false
		}
	}
	return true
}

// planBackends finds those that there are, those that drain, and makes the others.
func (p *plan) planBackends(s *servicePlan) error {
	type key struct {
		endpoint model.Name
		address  netip.AddrPort
	}
	have := make(map[key]*backendState, len(s.state.backends))
	for _, b := range s.state.backends {
		have[key{b.key.endpoint, b.key.address}] = b
	}
	for _, want := range s.want.Backends {
		if b, ok := have[key{want.Endpoint, want.Address}]; ok {
			s.backends = append(s.backends, b)
			continue
		}
		full := backendKey{s.want.Name, want.Endpoint, want.Address}
		if b, ok := p.r.draining[full]; ok {
			s.backends = append(s.backends, b)
			continue
		}
		i, _, err := index(p.r.free.backends, "backends", "mesh.max_backends")
		if err != nil {
			return err
		}
		p.backends = append(p.backends, i)
		b := &backendState{key: full, index: i}
		s.backends = append(s.backends, b)
		s.fresh[b] = true
	}
	return nil
}
