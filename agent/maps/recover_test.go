package maps

import (
	"errors"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// applied tells whether an Apply came to its end.
func applied(t *testing.T, r *Reconciler, mesh *Mesh) (alive bool) {
	t.Helper()
	defer func() {
		switch died := recover(); died {
		case nil:
		case errKilled:
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

func recoveredOf(t *testing.T, m *Maps, sizes Sizes, c *tree, mesh *Mesh, before ...*Mesh) *Reconciler {
	t.Helper()
	r := reconcilerOf(t, m, sizes, c)
	if err := r.Recover(mesh, before...); err != nil {
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
		cgroups := &tree{ids: make(map[string]uint64)}
		m := NewMemory(w.sizes())
		meddle(m, func(elements int) (int, error) {
			if on && w.IntN(12) == 0 {
				return w.IntN(elements + 1), errKilled
			}
			return elements, nil
		})
		var uses []use
		last := new(Mesh)
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
				var before []*Mesh
				if w.IntN(2) == 0 { // it is known what was in force
					before = []*Mesh{mesh, last}
				}
				if w.IntN(2) == 0 { // and the mesh has changed meanwhile
					w.step()
					if mesh, err = Compile(w.snapshot(), w.out, w.sizes()); err != nil {
						t.Fatal(err)
					}
				}
				r = recoveredOf(t, m, w.sizes(), cgroups, mesh, before...)
				if _, err := r.Apply(mesh); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := r.Rescan(); err != nil && !strings.Contains(err.Error(), "depths") {
				t.Fatal(err)
			}
			noDrift(t, r, mesh)
			last = mesh
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

// TestRecoverKeepsPolicies ends reconcilers while identities, policies and addresses change, also while none runs: at each moment of what the next one
// does everybody is judged by what is, or was since, in force.
func TestRecoverKeepsPolicies(t *testing.T) {
	const allKinds, deniedShare = 3, 20
	judged, denied, kills := 0, 0, 0
	for seed := range uint64(20) {
		w := newWorld(seed)
		var force []*model.Snapshot // those that may be in force, or parts of them
		var meshes []*Mesh          // the same
		deadly := false
		var m *Maps
		look := func() {
			for range 20 {
				from, to := netip.AddrFrom4([4]byte{10, 0, 0, byte(w.IntN(someWorkloads))}), netip.AddrFrom4([4]byte{10, 0, 0, byte(w.IntN(someWorkloads))})
				port := []uint16{80, 443, 9000}[w.IntN(allKinds)]
				have := judgeBetween(m, from, to, port)
				want := legalBetween(force, from, to, port)
				if judged++; have == bpf.VerdictDeny {
					denied++
				}
				if !want[have] {
					t.Fatalf("seed %d: %v to %v port %d has verdict %d, want one of %v", seed, from, to, port, have, want)
				}
			}
		}
		cgroups := &tree{}
		m = NewMemory(w.sizes())
		meddle(m, func(elements int) (int, error) {
			look()
			if deadly && w.IntN(12) == 0 {
				return w.IntN(elements + 1), errKilled
			}
			return elements, nil
		})
		change := func() *Mesh {
			for range 6 {
				w.step()
			}
			for i := range w.workloads { // who is who, and nothing else
				if w.IntN(4) == 0 {
					who := w.workloads[i]
					who.Identity = w.identity()
					w.workloads[i] = who
				}
			}
			s := w.snapshot()
			mesh, err := Compile(s, nil, w.sizes())
			if err != nil {
				t.Fatal(err)
			}
			force, meshes = append(force, s), append(meshes, mesh)
			return mesh
		}
		inForce := func() { force, meshes = force[len(force)-1:], meshes[len(meshes)-1:] }
		force, meshes = append(force, new(model.Snapshot)), append(meshes, new(Mesh))
		r := reconcilerOf(t, m, w.sizes(), cgroups)
		for range 60 {
			mesh := change()
			deadly = true
			alive := applied(t, r, mesh)
			deadly = false
			if !alive || w.IntN(3) == 0 {
				if !alive {
					kills++
				} else {
					inForce()
				}
				mesh = change()
				r = recoveredOf(t, m, w.sizes(), cgroups, mesh, meshes...)
				if _, err := r.Apply(mesh); err != nil {
					t.Fatal(err)
				}
			}
			inForce()
			look()
			noDrift(t, r, mesh)
		}
	}
	if kills < 100 || denied < judged/deniedShare {
		t.Errorf("%d kills, %d of %d denied: little was tested", kills, denied, judged)
	}
}

// judgeBetween does what the kernel does for a connection between two addresses.
func judgeBetween(m *Maps, from, to netip.Addr, port uint16) uint8 {
	client, _, _ := m.Addresses.Get(bpf.Address{Addr: from.As16()})
	server, _, _ := m.Addresses.Get(bpf.Address{Addr: to.As16()})
	return judge(m, m.Workloads[server].PolicySet, m.Workloads[client].Source, peer{address: from, port: port}, false)
}

// legalBetween are the verdicts of any mix of snapshots: one says whose an address is, and another who that is and what the policies are.
func legalBetween(all []*model.Snapshot, from, to netip.Addr, port uint16) map[uint8]bool {
	clients := []peer{}
	for owner := range ownersOf(all, from) {
		p := peer{address: from, port: port}
		if owner.workload != nil {
			p.identity, p.namespace = owner.workload.Identity, owner.workload.Name.Namespace
		}
		clients = append(clients, p)
	}
	legal := make(map[uint8]bool)
	for owner := range ownersOf(all, to) {
		for _, client := range clients {
			if owner.workload == nil {
				legal[bpf.VerdictNone] = true
			} else {
				legal[istio(owner.snapshot.Policies, owner.workload, client, false)] = true
			}
		}
	}
	return legal
}

type owner struct {
	snapshot *model.Snapshot
	workload *model.Workload // nil: nobody
}

// ownersOf are the workloads of an address, in each snapshot that has them.
func ownersOf(all []*model.Snapshot, a netip.Addr) iter.Seq[owner] {
	return func(yield func(owner) bool) {
		for _, s := range all {
			i := slices.IndexFunc(s.Workloads, func(w model.Workload) bool { return slices.Contains(w.Addresses, a) })
			if i < 0 {
				if !yield(owner{s, nil}) {
					return
				}
				continue
			}
			for _, other := range all {
				j := slices.IndexFunc(other.Workloads, func(w model.Workload) bool { return w.Name == s.Workloads[i].Name })
				if j >= 0 && !yield(owner{other, &other.Workloads[j]}) {
					return
				}
			}
		}
	}
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
		snapshot.Bypasses = slices.DeleteFunc(snapshot.Bypasses, func(b model.Bypass) bool { _, ok := cgroups.ids[b.Cgroup]; return b.Cgroup != "" && !ok })
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
		if changes != (Changes{}) {
			t.Errorf("seed %d: changes %+v; %d services, %d workloads", seed, changes, len(before.Services), len(before.Workloads))
		}
		noDrift(t, again, mesh)
	}
}
