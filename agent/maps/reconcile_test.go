package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

func (w *world) sizes() Sizes {
	return Sizes{
		Workloads: 64, Addresses: 64, Frontends: 64, Pools: 64, Backends: 256, Slots: 64 << 10, Limits: 32, PolicySets: 32, PolicyEntries: 4096,
	}
}

// tree is a cgroup hierarchy.
type tree struct {
	mu     sync.Mutex
	ids    map[string]uint64
	levels uint64
}

func (c *tree) resolve(path string) (uint64, int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.ids[path]
	if !ok {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return id, strings.Count(path, "/"), nil
}

func (c *tree) make(path string, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		delete(c.ids, path)
	} else {
		c.ids[path] = id
	}
}

func newTest(t testing.TB, sizes Sizes, c *tree) (*Maps, *Reconciler) {
	t.Helper()
	m := NewMemory(sizes)
	return m, reconcilerOf(t, m, sizes, c)
}

func reconcilerOf(t testing.TB, m *Maps, sizes Sizes, c *tree) *Reconciler {
	t.Helper()
	if c == nil {
		c = &tree{}
	}
	r, err := NewReconciler(m, Options{Sizes: sizes, Resolve: c.resolve, SetLevels: func(levels uint64) error { c.levels = levels; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func apply(t testing.TB, r *Reconciler, s *model.Snapshot, h Health) *Mesh {
	t.Helper()
	mesh, err := Compile(s, h, r.o.Sizes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Apply(mesh); err != nil {
		t.Fatal(err)
	}
	return mesh
}

func noDrift(t testing.TB, r *Reconciler, mesh *Mesh) {
	t.Helper()
	exactOccupancy(t, r)
	lines, err := r.Drift(mesh)
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) > 0 {
		t.Fatalf("drift:\n%s", strings.Join(lines, "\n"))
	}
}

// allFree says what is in use of maps that should hold nothing.
func allFree(r *Reconciler) error {
	for name, used := range map[string]uint32{
		"workloads": r.free.workloads.used(), "pools": r.free.pools.used(), "tables": r.free.tables.used(), "backends": r.free.backends.used(),
		"limits": r.free.limits.used(), "sets": r.free.sets.used(), "classes": r.free.classes.used(),
		"slots": uint32(len(r.m.Slots)) - r.free.slots.free,
	} {
		if used != 0 {
			return fmt.Errorf("%d of %s are in use", used, name)
		}
	}
	if n := len(r.free.slots.sizes); n != 1 {
		return fmt.Errorf("free slots are in %d pieces", n)
	}
	have, err := r.m.read()
	if err != nil {
		return err
	}
	if n := len(have.frontends) + len(have.addresses) + len(have.cgroups) + len(have.sources) + len(have.blocks) + len(have.ports); n > 0 {
		return fmt.Errorf("%d entries are left: %+v", n, have)
	}
	return nil
}

// reader does what programs do, and looks for what cannot be.
type reader struct {
	m *Maps
	// Each run is one program: grace waits for those that run.
	running sync.RWMutex
	picks   atomic.Uint64
	refused atomic.Uint64
	wanted  sync.Map // *Pool by wantedKey
}

// wantedKey is of a table: what it holds is what the mesh of its generation says.
type wantedKey struct {
	generation uint64
	service    model.Name
	ipv6       bool
	port       uint16
}

type wantedPool struct {
	*Pool
	chosen map[netip.AddrPort]bool
	limit  bool
}

func (p *reader) want(mesh *Mesh) {
	for _, s := range mesh.Services {
		for _, pool := range s.Pools {
			w := wantedPool{pool, make(map[netip.AddrPort]bool), s.Limit != bpf.Limit{}}
			for _, slot := range pool.Slots {
				w.chosen[s.Backends[slot&always].Address] = true
			}
			p.wanted.Store(wantedKey{mesh.Generation, s.Name, pool.IPv6, pool.Port}, w)
		}
	}
}

// check compares a table with the mesh of its generation.
func (p *reader) check(t *bpf.Table, key bpf.Frontend, names *Names) (wantedPool, error) {
	service, ok := names.Service(t.Service)
	if !ok {
		return wantedPool{}, fmt.Errorf("service %d has no name", t.Service)
	}
	v, ok := p.wanted.Load(wantedKey{t.Generation, *service, !netip.AddrFrom16(key.Addr).Is4In6(), key.Port})
	if !ok {
		return wantedPool{}, fmt.Errorf("generation %d has no %v", t.Generation, service)
	}
	w := v.(wantedPool)
	if t.Algorithm != w.Algorithm || t.Size != w.Size || (t.Limit != 0) != w.limit {
		return w, fmt.Errorf("table is %+v, and wanted %+v", t, w.Pool)
	}
	return w, nil
}

// grace lets the programs end that run: the lock waits for them, and those that begin meanwhile wait for it.
func (p *reader) grace() error {
	p.running.Lock()
	defer p.running.Unlock()
	return nil
}

// legal is what a backend of a service can look like, by what endpoint() makes.
func legal(service uint32, names *Names, b *bpf.Backend, tag uint32, index uint32) error {
	name, ok := names.Backend(index, tag)
	if !ok {
		return fmt.Errorf("backend %d with tag %d has no name", index, tag)
	}
	s, ok := names.Service(service)
	if !ok || name.Service != *s {
		return fmt.Errorf("backend %d of %v was chosen for service %d, %v", index, name, service, s)
	}
	if name.Address != netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port) {
		return fmt.Errorf("backend %d is called %v, and is at %v:%d", index, name, b.Addr, b.Port)
	}
	return nil
}

// connect follows a frontend to a backend, with a choice for each random number.
func (p *reader) connect(key bpf.Frontend, names *Names, random uint32) error {
	p.running.RLock()
	defer p.running.RUnlock()
	pool, ok, _ := p.m.Frontends.Get(key)
	if !ok {
		return nil
	}
	table := atomic.LoadUint32(&p.m.Pools[pool].Table)
	if table == 0 {
		return fmt.Errorf("pool %d has no table", pool)
	}
	t := p.m.Tables[table]
	if t.Pool != pool || t.Generation == 0 || t.Service == 0 {
		return fmt.Errorf("table %d of pool %d: %+v", table, pool, t)
	}
	if t.Limit != 0 {
		if l := loadLimit(&p.m.Limits[t.Limit]); l == (bpf.Limit{}) {
			return fmt.Errorf("limit %d of table %d limits nothing", t.Limit, table)
		}
	}
	want, err := p.check(&t, key, names)
	if err != nil {
		return err
	}
	if t.Size == 0 {
		p.refused.Add(1)
		return nil
	}
	choice := uint32(uint64(random) * uint64(t.Size) >> 32)
	var backend uint32
	switch t.Algorithm {
	case bpf.Random, bpf.LeastConnections:
		first, second := p.m.Slots[t.FirstSlot+2*choice], p.m.Slots[t.FirstSlot+2*choice+1]
		if backend = uint32(first); first>>32 != always && random*2654435761 >= uint32(first>>32) {
			backend = uint32(second)
		}
	default:
		backend = uint32(p.m.Slots[t.FirstSlot+choice])
	}
	if backend == 0 {
		return fmt.Errorf("table %d has an empty slot", table)
	}
	b := loadBackend(&p.m.Backends[backend])
	if err := legal(t.Service, names, &b, b.Tag, backend); err != nil {
		return fmt.Errorf("table %d generation %d: %w", table, t.Generation, err)
	}
	if address := netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port); !want.chosen[address] {
		return fmt.Errorf("table %d generation %d: %v is none of %v", table, t.Generation, address, want.chosen)
	}
	if b.Workload != 0 {
		w := loadWorkload(&p.m.Workloads[b.Workload])
		if w.PolicySet != 0 {
			if p.m.PolicySets[w.PolicySet].Generation == 0 {
				return fmt.Errorf("workload %d has set %d, which was never written", b.Workload, w.PolicySet)
			}
			for _, dry := range []bool{false, true} {
				judge(p.m, w.PolicySet, 0, peer{address: netip.MustParseAddr("10.0.0.5"), port: 80}, dry) // panics where an entry lacks
			}
		}
	}
	p.picks.Add(1)
	return nil
}

// TestApplyUnderReaders makes random changes while programs read: they see no mix, what is held afterwards is the mesh, and in the end all is free.
func TestApplyUnderReaders(t *testing.T) {
	steps := 400
	if testing.Short() {
		steps = 60
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(seed)
			cgroups := &tree{ids: make(map[string]uint64)}
			m := NewMemory(w.sizes())
			p := &reader{m: m}
			m.Grace = p.grace
			r := reconcilerOf(t, m, w.sizes(), cgroups)
			compiler := NewCompiler(w.sizes())
			stop := make(chan struct{})
			var readers sync.WaitGroup
			for n := range 2 {
				readers.Go(func() { p.run(t, r.names, uint64(n), stop) })
			}
			defer func() {
				close(stop)
				readers.Wait()
			}()
			// On a busy machine the readers may hardly run: then it goes on until they have.
			for n := 0; n < steps || n < 100*steps && (p.picks.Load() == 0 || p.refused.Load() == 0); n++ {
				for range 1 + w.IntN(4) {
					w.step()
				}
				w.cgroup(cgroups)
				mesh, err := compiler.Compile(w.snapshot(), w.out)
				if err != nil {
					t.Fatal(err)
				}
				p.want(mesh)
				if w.IntN(8) == 0 { // without what the compiler remembers: the difference is the same
					if mesh, err = Compile(w.snapshot(), w.out, w.sizes()); err != nil {
						t.Fatal(err)
					}
					p.want(mesh)
				}
				if _, err := r.Apply(mesh); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Rescan(); err != nil {
					t.Fatal(err)
				}
				noDrift(t, r, mesh)
				if _, err := r.Dump(); err != nil {
					t.Fatal(err)
				}
			}
			apply(t, r, &model.Snapshot{Generation: 1}, nil)
			if err := allFree(r); err != nil {
				t.Error(err)
			}
			if p.picks.Load() == 0 || p.refused.Load() == 0 {
				t.Errorf("%d picks and %d refusals: nothing was tested", p.picks.Load(), p.refused.Load())
			}
			if cgroups.levels != 0 {
				t.Errorf("levels %x are left", cgroups.levels)
			}
		})
	}
}

func (p *reader) run(t *testing.T, names *Names, seed uint64, stop chan struct{}) {
	w := newWorld(seed)
	for {
		select {
		case <-stop:
			return
		default:
		}
		key := bpf.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(w.IntN(someServices))}).As16(), Port: []uint16{80, 0}[w.IntN(2)]}
		if w.IntN(2) == 0 {
			key.Addr = netip.MustParseAddr(fmt.Sprintf("fd00:96::%d", w.IntN(someServices))).As16()
		}
		if err := p.connect(key, names, w.Uint32()); err != nil {
			t.Error(err)
			return
		}
	}
}

// cgroup makes one, takes one away, or makes one anew.
func (w *world) cgroup(c *tree) {
	path := fmt.Sprintf("/c%d/w", w.IntN(someWorkloads))
	if w.IntN(4) == 0 {
		path = fmt.Sprintf("/alone%d", w.IntN(3))
	}
	if w.IntN(3) == 0 {
		c.make(path, 0)
	} else {
		c.make(path, 1+w.Uint64N(1<<40))
	}
}

// TestApplyFails lets the kernel fail at random places: what was there before is in force, or parts of both are, and the next Apply does the rest.
func TestApplyFails(t *testing.T) {
	for seed := range uint64(10) {
		w := newWorld(seed)
		on := false
		cgroups := &tree{ids: make(map[string]uint64)}
		m := NewMemory(w.sizes())
		meddle(m, func(elements int) (int, error) {
			if on && w.IntN(3) == 0 {
				return elements / 2, errInjected
			}
			return elements, nil
		})
		r := reconcilerOf(t, m, w.sizes(), cgroups)
		var last *Mesh
		failures, partly := 0, 0
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
			_, err = r.Apply(mesh)
			on = false
			switch {
			case err == nil:
				noDrift(t, r, mesh)
			case errors.Is(err, ErrPartly):
				partly++
				if err := r.repair(); err != nil {
					t.Fatal(err)
				}
				noDrift(t, r, mesh)
			case errors.Is(err, errInjected):
				failures++
				if last != nil {
					if err := r.repair(); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := r.Apply(mesh); err != nil {
					t.Fatal(err)
				}
			default:
				t.Fatal(err)
			}
			last = mesh
		}
		if failures == 0 || partly == 0 {
			t.Errorf("%d and %d failures: nothing was tested", failures, partly)
		}
		apply(t, r, &model.Snapshot{Generation: 1}, nil)
		if err := allFree(r); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}
