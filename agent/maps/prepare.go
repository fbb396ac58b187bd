package maps

import (
	"errors"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// pairs are elements of a hash.
type pairs[K comparable, V any] struct {
	keys   []K
	values []V
}

func (p *pairs[K, V]) add(key K, value V) {
	p.keys, p.values = append(p.keys, key), append(p.values, value)
}

func (p *pairs[K, V]) put(h Hash[K, V]) error {
	if len(p.keys) == 0 {
		return nil
	}
	return h.Put(p.keys, p.values)
}

func (p *pairs[K, V]) delete(h Hash[K, V]) error {
	if len(p.keys) == 0 {
		return nil
	}
	return h.Delete(p.keys)
}

// entries are those of policy sets. Nothing asks for them before a workload refers to the set, or is of the class.
type entries struct {
	sources pairs[bpf.PolicySource, bpf.Rules]
	blocks  pairs[bpf.PolicyBlock, bpf.Rules]
	ports   pairs[bpf.PolicyPort, bpf.Rules]
}

func (e *entries) put(m *Maps) error {
	if err := e.sources.put(m.PolicySources); err != nil {
		return err
	}
	if err := e.blocks.put(m.PolicyBlocks); err != nil {
		return err
	}
	return e.ports.put(m.PolicyPorts)
}

func (e *entries) delete(m *Maps) error {
	return errors.Join(e.sources.delete(m.PolicySources), e.blocks.delete(m.PolicyBlocks), e.ports.delete(m.PolicyPorts))
}

func (e *entries) addSource(s *setState, class uint32, rules bpf.Rules) {
	e.sources.add(bpf.PolicySource{Set: s.index, Source: class}, rules)
}

// addSet adds all that a set has.
func (e *entries) addSet(s *setState) {
	for class, rules := range s.sources {
		e.addSource(s, class, rules)
	}
	for _, b := range s.set.Blocks {
		e.blocks.add(blockKey(s.index, b.Block), b.Rules)
	}
	for _, port := range s.set.Ports {
		e.ports.add(bpf.PolicyPort{Set: s.index, Port: uint32(port.Port)}, port.Rules)
	}
}

// prepare writes what can fail and nothing refers to: entries of policy sets, and counts of limits.
func (p *plan) prepare() error {
	r := p.r
	for _, s := range p.sets {
		s.sources[bpf.SourceOther] = s.set.Other
		// Also for those that go: until they are gone, they may meet a new set.
		s.enter(Class{}, 0)
		for c, i := range r.classes {
			s.enter(c, i)
		}
		for c, i := range p.newClasses {
			s.enter(c, i)
		}
		p.entries.addSet(s)
	}
	for _, s := range r.sets {
		for c, i := range p.newClasses {
			if rules := s.set.Source(c); rules != s.set.Other {
				p.entries.addSource(s, i, rules)
			}
		}
	}
	p.changes.Puts += len(p.entries.sources.keys) + len(p.entries.blocks.keys) + len(p.entries.ports.keys)
	if len(p.resetLimits) > 0 {
		if err := r.m.LimitStates.Put(p.resetLimits, make([]bpf.LimitState, len(p.resetLimits))); err != nil {
			return err
		}
	}
	return p.entries.put(r.m)
}

// enter notes the rules of a class, if it needs an entry.
func (s *setState) enter(c Class, number uint32) {
	if rules := s.set.Source(c); rules != s.set.Other {
		s.sources[number] = rules
	}
}

// undo gives back all that a plan took. After an error it has done nothing yet, and repair will do it.
func (p *plan) undo() error {
	if err := p.entries.delete(p.r.m); err != nil {
		p.r.failed = p
		return err
	}
	p.r.failed = nil
	free := &p.r.free
	for _, i := range p.backends {
		free.backends.give(i)
	}
	for _, i := range p.indices {
		free.workloads.give(i)
	}
	for _, i := range p.pools {
		free.pools.give(i)
	}
	for _, t := range p.tables {
		free.tables.give(t.index)
		free.slots.give(t.slots)
	}
	for _, s := range p.sets {
		free.sets.give(s.index)
	}
	for _, i := range p.newClasses {
		free.classes.give(i)
	}
	for _, s := range p.newLimits {
		free.limits.give(s.index)
	}
	return nil
}
