package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// cgroup is one that exists.
type cgroup struct {
	id    uint64
	level int
}

// maxLevel is the deepest that has a bit.
const maxLevel = 63

// addLevel tells whether the programs can look at one more depth, and makes it one of levels then.
func addLevel(levels *uint64, level int) bool {
	with := *levels | 1<<level
	if bits.OnesCount64(with) > bpf.IdentityLevels {
		return false
	}
	*levels = with
	return true
}

func errLevels(path string) error {
	return fmt.Errorf("enter cgroup %s: workloads have cgroups at %d other depths, which is all that is looked at; give it another depth", path, bpf.IdentityLevels)
}

func (r *Reconciler) resolve(path string) (cgroup, error) {
	id, level, err := r.o.Resolve(path)
	if err != nil {
		return cgroup{}, fmt.Errorf("resolve cgroup %s: %w", path, err)
	}
	if level < 0 || level > maxLevel {
		return cgroup{}, fmt.Errorf("resolve cgroup %s: it is %d levels deep, and can be %d", path, level, maxLevel)
	}
	return cgroup{id, level}, nil
}

// enter makes the hashes as the reconciler's state is now, where the plan changes it.
func (p *plan) enter() error {
	r := p.r
	frontends, addresses := make(map[bpf.Frontend]uint32), make(map[bpf.Address]uint32)
	leave := func(s *Service) {
		if s != nil {
			for _, f := range s.Frontends {
				frontends[frontendKey(f.Address)] = 0
			}
		}
	}
	leaveWorkload := func(w *Workload) {
		if w != nil {
			for _, a := range w.Addresses {
				addresses[bpf.Address{Addr: as16(a)}] = 0
			}
		}
	}
	for _, s := range p.goneServices {
		leave(s.compiled)
	}
	for _, s := range p.services {
		leave(s.old)
	}
	for _, s := range p.services {
		s.state.enterFrontends(frontends)
	}
	for _, w := range p.gone {
		leaveWorkload(w.compiled)
	}
	for _, w := range p.workloads {
		leaveWorkload(w.old)
	}
	for _, w := range p.workloads {
		w.state.enterAddresses(addresses)
	}
	return r.enterThese(frontends, addresses, &p.changes)
}

func (s *serviceState) enterFrontends(into map[bpf.Frontend]uint32) {
	for _, f := range s.compiled.Frontends {
		into[frontendKey(f.Address)] = s.pools[f.Pool].index
	}
}

func (s *workloadState) enterAddresses(into map[bpf.Address]uint32) {
	for _, a := range s.compiled.Addresses {
		into[bpf.Address{Addr: as16(a)}] = s.index
	}
}

// enterAll does the same for all that there is, whatever the hashes hold: after a change of them failed.
func (r *Reconciler) enterAll(changes *Changes) error {
	var errs [3]error
	r.frontends, errs[0] = r.m.Frontends.All()
	r.addresses, errs[1] = r.m.Addresses.All()
	r.cgroups, errs[2] = r.m.Cgroups.All()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	frontends, addresses := make(map[bpf.Frontend]uint32), make(map[bpf.Address]uint32)
	for key := range r.frontends {
		frontends[key] = 0
	}
	for key := range r.addresses {
		addresses[key] = 0
	}
	for _, s := range r.services {
		s.enterFrontends(frontends)
	}
	for _, w := range r.workloads {
		w.enterAddresses(addresses)
	}
	return r.enterThese(frontends, addresses, changes)
}

// enterThese changes what is not so yet; 0 is of keys that go. Who somebody is comes before what is dialled.
func (r *Reconciler) enterThese(frontends map[bpf.Frontend]uint32, addresses map[bpf.Address]uint32, changes *Changes) error {
	r.stale = true
	if err := update(r.m.Addresses, r.addresses, addresses, changes); err != nil {
		return err
	}
	if err := r.enterCgroups(changes); err != nil {
		return err
	}
	if err := update(r.m.Frontends, r.frontends, frontends, changes); err != nil {
		return err
	}
	r.stale = false
	return nil
}

// update makes a hash as wanted, of which 0 is of keys that go, and have as the hash.
func update[K comparable](h Hash[K, uint32], have, wanted map[K]uint32, changes *Changes) error {
	var puts, deletes pairs[K, uint32]
	for key, value := range wanted {
		switch had, ok := have[key]; {
		case value == 0 && ok:
			deletes.add(key, 0)
		case value != 0 && had != value:
			puts.add(key, value)
		}
	}
	if err := puts.put(h); err != nil {
		return err
	}
	for i, key := range puts.keys {
		have[key] = puts.values[i]
	}
	if err := deletes.delete(h); err != nil {
		return err
	}
	for _, key := range deletes.keys {
		delete(have, key)
	}
	changes.Puts += len(puts.keys)
	changes.Deletes += len(deletes.keys)
	return nil
}

// enterCgroups enters those that are resolved. The programs look at a depth before there is anything, and as long as there is.
func (r *Reconciler) enterCgroups(changes *Changes) error {
	kept, wanted := make(map[uint64]uint32), make(map[uint64]uint32)
	var levels uint64
	paths := make(map[string]cgroup, len(r.resolved))
	for _, w := range r.workloads {
		if c, ok := r.resolved[w.compiled.Cgroup]; ok {
			paths[w.compiled.Cgroup] = c
			wanted[c.id] = w.index
			levels |= 1 << c.level
		}
	}
	r.resolved = paths
	// Those that go come first, so that depths of both never add up.
	for id, index := range r.cgroups {
		if kept[id] = index; wanted[id] == 0 {
			kept[id] = 0
		}
	}
	if err := update(r.m.Cgroups, r.cgroups, kept, changes); err != nil {
		return err
	}
	if err := r.setLevels(levels); err != nil {
		return err
	}
	return update(r.m.Cgroups, r.cgroups, wanted, changes)
}

func (r *Reconciler) setLevels(levels uint64) error {
	if levels == r.levels {
		return nil
	}
	if err := r.o.SetLevels(levels); err != nil {
		return fmt.Errorf("set levels of cgroups: %w", err)
	}
	r.levels = levels
	return nil
}

// Rescan looks again for the cgroups of workloads: some appear after the mesh, or are made anew. It tells whether anything changed. Call it every
// second, or when cgroups are made.
func (r *Reconciler) Rescan() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.repair(); err != nil {
		return false, err
	}
	errs := r.resolveAll()
	var changes Changes
	r.stale = true
	if err := r.enterCgroups(&changes); err != nil {
		return true, errors.Join(append(errs, err)...)
	}
	r.stale = false
	return changes.Puts+changes.Deletes > 0, errors.Join(errs...)
}

// resolveAll finds the cgroups of all workloads anew. One at a depth too many is left out.
func (r *Reconciler) resolveAll() (errs []error) {
	found := make(map[string]cgroup)
	var levels uint64
	var fresh []string
	for _, w := range r.workloads {
		path := w.compiled.Cgroup
		if path == "" {
			continue
		}
		known, was := r.resolved[path]
		switch c, err := r.resolve(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
			if was {
				found[path] = known
				levels |= 1 << known.level
			}
		case was && known.level == c.level:
			found[path] = c
			levels |= 1 << c.level
		default:
			found[path] = c
			fresh = append(fresh, path)
		}
	}
	slices.Sort(fresh)
	for _, path := range fresh {
		if !addLevel(&levels, found[path].level) {
			delete(found, path)
			errs = append(errs, errLevels(path))
		}
	}
	r.resolved = found
	return errs
}
