package maps

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// killed is what ends a reconciler in the midst of something.
type killed struct{}

// mortal is a hash whose user dies at some of its changes, before, after, or halfway.
type mortal[K comparable, V any] struct {
	Hash[K, V]
	dies func() bool
}

func (h mortal[K, V]) Put(keys []K, values []V) error {
	if h.dies() {
		n := rand.IntN(len(keys) + 1)
		if n > 0 {
			_ = h.Hash.Put(keys[:n], values)
		}
		panic(killed{})
	}
	return h.Hash.Put(keys, values)
}

func (h mortal[K, V]) Delete(keys []K) error {
	if h.dies() {
		_ = h.Hash.Delete(keys[:rand.IntN(len(keys)+1)])
		panic(killed{})
	}
	return h.Hash.Delete(keys)
}

// applied tells whether an Apply came to its end.
func applied(t *testing.T, r *Reconciler, mesh *Mesh) (alive bool) {
	t.Helper()
	defer func() {
		switch died := recover(); died.(type) {
		case nil:
		case killed:
			alive = false
		default:
			panic(died)
		}
	}()
	if _, err := r.Apply(mesh); err != nil {
		t.Fatal(err)
	}
	return true
}

func recoveredOf(t *testing.T, m *Maps, sizes Sizes, c *tree, mesh *Mesh) *Reconciler {
	t.Helper()
	r := reconcilerOf(t, m, sizes, c)
	if err := r.Recover(mesh); err != nil {
		t.Fatal(err)
	}
	return r
}

// use is a connection that counts against a backend.
type use struct {
	index   uint32
	backend bpf.Backend
}

// TestRecover ends reconcilers at random moments, and has others go on with what they left: what is there then is the mesh, nothing is in use that is
// not, and an index that a connection counts against stays what it was.
func TestRecover(t *testing.T) {
	restarts, kills := 0, 0
	for seed := range uint64(12) {
		w := newWorld(seed)
		on := false
		dies := func() bool { return on && w.IntN(12) == 0 }
		cgroups := &tree{ids: make(map[string]uint64)}
		m := NewMemory(w.sizes())
		m.Frontends = mortal[bpf.Frontend, uint32]{m.Frontends, dies}
		m.Addresses = mortal[bpf.Address, uint32]{m.Addresses, dies}
		m.Cgroups = mortal[uint64, uint32]{m.Cgroups, dies}
		m.PolicySources = mortal[bpf.PolicySource, bpf.Rules]{m.PolicySources, dies}
		m.PolicyBlocks = mortal[bpf.PolicyBlock, bpf.Rules]{m.PolicyBlocks, dies}
		m.PolicyPorts = mortal[bpf.PolicyPort, bpf.Rules]{m.PolicyPorts, dies}
		m.Grace = func() error {
			if dies() {
				panic(killed{})
			}
			return nil
		}
		var uses []use
		r := reconcilerOf(t, m, w.sizes(), cgroups)
		for range 150 {
			for range 3 {
				w.step()
			}
			w.cgroup(cgroups)
			mesh, err := Compile(w.snapshot(), w.out, w.sizes())
			if err != nil {
				t.Fatal(err)
			}
			on = true
			alive := applied(t, r, mesh)
			on = false
			if !alive || w.IntN(5) == 0 {
				restarts++
				if !alive {
					kills++
				}
				if w.IntN(2) == 0 { // and the mesh has changed meanwhile
					w.step()
					if mesh, err = Compile(w.snapshot(), w.out, w.sizes()); err != nil {
						t.Fatal(err)
					}
				}
				r = recoveredOf(t, m, w.sizes(), cgroups, mesh)
				if _, err := r.Apply(mesh); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := r.Rescan(); err != nil && !strings.Contains(err.Error(), "depths") {
				t.Fatal(err)
			}
			noDrift(t, r, mesh)
			uses = w.connections(t, m, uses)
		}
		for _, u := range uses {
			m.Loads[u.index].Open--
		}
		apply(t, r, &model.Snapshot{Generation: 1}, nil)
		r = recoveredOf(t, m, w.sizes(), cgroups, new(Mesh))
		apply(t, r, &model.Snapshot{Generation: 1}, nil)
		if _, err := r.Reap(); err != nil {
			t.Fatal(err)
		}
		if err := allFree(r); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	if kills < 50 || restarts-kills < 50 {
		t.Errorf("%d restarts, %d of them after a kill: little was tested", restarts, kills)
	}
}

// connections opens some and ends some, and looks whether what they count against is what it was.
func (w *world) connections(t *testing.T, m *Maps, uses []use) []use {
	t.Helper()
	kept := uses[:0]
	for _, u := range uses {
		now := m.Backends[u.index]
		now.Weight, now.Workload, now.Service = u.backend.Weight, u.backend.Workload, u.backend.Service
		if now != u.backend {
			t.Fatalf("backend %d with an open connection was %+v and is %+v", u.index, u.backend, now)
		}
		if m.Loads[u.index].Open == 0 {
			t.Fatalf("backend %d has an open connection and counts none", u.index)
		}
		if w.IntN(3) == 0 {
			m.Loads[u.index].Open--
			continue
		}
		kept = append(kept, u)
	}
	for i := range m.Pools {
		table := m.Pools[i].Table
		if table == 0 || w.IntN(3) > 0 {
			continue
		}
		if tb := &m.Tables[table]; tb.Size > 0 {
			index := uint32(m.Slots[tb.FirstSlot])
			m.Loads[index].Open++
			kept = append(kept, use{index, m.Backends[index]})
		}
	}
	return kept
}

// TestRecoverChangesNothing restarts with the same mesh: nothing is written.
func TestRecoverChangesNothing(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(seed)
		cgroups := &tree{ids: make(map[string]uint64)}
		m, r := newTest(t, w.sizes(), cgroups)
		for range 100 {
			w.step()
			w.cgroup(cgroups)
		}
		snapshot := w.snapshot()
		// What nothing leads to cannot be recognised, and nobody can tell.
		snapshot.Services = slices.DeleteFunc(snapshot.Services, func(s model.Service) bool { return len(s.Addresses) == 0 })
		snapshot.Workloads = slices.DeleteFunc(snapshot.Workloads, func(w model.Workload) bool { return len(w.Addresses) == 0 })
		before := apply(t, r, snapshot, w.out)
		mesh, err := Compile(snapshot, w.out, w.sizes())
		if err != nil {
			t.Fatal(err)
		}
		if errors.Join(r.resolveAll()...) != nil {
			continue // cgroups at too many depths: which are left out is not determined
		}
		again := recoveredOf(t, m, w.sizes(), cgroups, mesh)
		changes, err := again.Apply(mesh)
		if err != nil {
			t.Fatal(err)
		}
		// Of two that are the same to whoever looks at the maps one can be taken for the other.
		if changes.Tables+changes.Slots+changes.Backends+changes.Limits+changes.PolicySets > 0 {
			t.Errorf("seed %d: changes %+v; %d services, %d workloads", seed, changes, len(before.Services), len(before.Workloads))
		}
		noDrift(t, again, mesh)
	}
}
