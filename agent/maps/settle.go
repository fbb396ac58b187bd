package maps

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// settle waits until no program can hold what is pending, and frees it: but backends and limits that connections count against, which drain. It can
// be called again after an error.
func (r *Reconciler) settle() error {
	g := &r.pending
	if r.held {
		return nil
	}
	r.endRetirement(r.o.Now())
	if g.empty() {
		return nil
	}
	if err := r.m.Grace(); err != nil {
		return fmt.Errorf("free what was replaced: %w", err)
	}
	if err := r.deleteEntries(); err != nil {
		return fmt.Errorf("free what was replaced: %w", err)
	}
	for _, s := range g.sets {
		r.free.sets.give(s.index)
	}
	for _, c := range g.classes {
		r.free.classes.give(r.classes[c])
		delete(r.classes, c)
	}
	for _, i := range g.workloads {
		r.free.workloads.give(i)
	}
	for _, i := range g.pools {
		atomic.StoreUint32(&r.m.Pools[i].Table, 0)
		r.free.pools.give(i)
	}
	for _, t := range g.tables {
		r.free.tables.give(t.index)
		r.free.slots.give(t.slots)
	}
	for _, b := range g.backends {
		r.draining[b.key] = b
	}
	// Limits that are gone are in limits still, and reap finds them there.
	*g = garbage{}
	_, err := r.reap()
	return err
}

// endRetirement lets classes go whose time is over. Until then policies know them: who connected as one of such a class may be under way, with its number in
// its ticket (bpf/lib/inbound.h), for longer than programs run.
func (r *Reconciler) endRetirement(now time.Time) {
	for c, until := range r.retired {
		if !now.Before(until) {
			r.pending.classes = append(r.pending.classes, c)
			delete(r.retired, c)
		}
	}
}

// deleteEntries takes out those of sets and of classes that are gone.
func (r *Reconciler) deleteEntries() error {
	g := &r.pending
	var gone entries
	for _, s := range g.sets {
		gone.addSet(s)
	}
	for _, c := range g.classes {
		number := r.classes[c]
		for _, s := range r.sets {
			if rules, ok := s.sources[number]; ok {
				gone.addSource(s, number, rules)
			}
		}
	}
	if err := gone.delete(r.m); err != nil {
		return err
	}
	for _, c := range g.classes {
		for _, s := range r.sets {
			delete(s.sources, r.classes[c])
		}
	}
	return r.foldVerdicts()
}

// Reap frees what is gone from the mesh and has no connections any more. It returns how many backends and limits these were. Call it every second
// or so.
func (r *Reconciler) Reap() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.repair(); err != nil {
		return 0, err
	}
	return r.reap()
}

// Hold is for while the counts of what connections hold are not all there: nothing that they could stand against is used again. Call it before Recover.
func (r *Reconciler) Hold(hold bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = hold
}

// reap looks at what no program can choose any more: what stands against it only goes down.
func (r *Reconciler) reap() (int, error) {
	freed := 0
	if r.held {
		return 0, nil
	}
	for key, b := range r.draining {
		if atomic.LoadUint64(&r.m.Loads[b.index].Open) == 0 {
			delete(r.draining, key)
			atomic.StoreUint32(&r.m.Backends[b.index].Service, 0)
			r.free.backends.give(b.index)
			freed++
		}
	}
	for text, s := range r.limits {
		if !s.gone {
			continue
		}
		state, ok, err := r.m.LimitStates.Get(s.index)
		if err != nil {
			return freed, err
		}
		if !ok || state.Counts.Open == 0 && state.Counts.Connecting == 0 {
			delete(r.limits, text)
			r.free.limits.give(s.index)
			freed++
		}
	}
	return freed, nil
}

// foldVerdicts keeps the counts of sets that are gone, and takes them out of the kernel's map.
func (r *Reconciler) foldVerdicts() error {
	if len(r.pending.sets) == 0 {
		return nil
	}
	sets := make(map[uint32]*PolicySet, len(r.pending.sets))
	for _, s := range r.pending.sets {
		sets[s.index] = s.set
	}
	all, err := r.m.Verdicts.All()
	if err != nil {
		return err
	}
	var gone []bpf.VerdictKey
	for key := range all {
		if sets[key.PolicySet] != nil {
			gone = append(gone, key)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := r.m.Verdicts.Delete(gone); err != nil {
		return err
	}
	for _, key := range gone {
		if sets[key.PolicySet].unknown {
			continue
		}
		r.counted[r.verdict(sets[key.PolicySet], key)] += all[key]
	}
	return nil
}
