package maps

import (
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// load makes the maps of the mesh, and no programs.
func load(t testing.TB, sizes Sizes) (*Kernel, *bpf.Objects) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	spec, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	objects := &bpf.Objects{}
	fields := reflect.ValueOf(objects).Elem()
	entries := sizes.MaxEntries()
	entries["listeners"] = 1024
	for i := range fields.NumField() {
		kind := fields.Type().Field(i)
		for j := range kind.Type.NumField() {
			name := kind.Type.Field(j).Tag.Get("ebpf")
			if _, ok := entries[name]; !ok {
				continue
			}
			m := spec.Maps[name]
			m.MaxEntries = entries[name]
			made, err := ebpf.NewMap(m)
			if err != nil {
				t.Fatalf("make map %s: %v", name, err)
			}
			t.Cleanup(func() { made.Close() })
			fields.Field(i).Field(j).Set(reflect.ValueOf(made))
			delete(entries, name)
		}
	}
	if len(entries) > 0 {
		t.Fatalf("the object has none of %v", entries)
	}
	k, err := NewKernel(objects)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(k.Close(), k.Close()); err != nil {
			t.Error(err)
		}
	})
	return k, objects
}

// TestKernel applies random meshes to the kernel's own maps.
func TestKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes grace periods")
	}
	w := newWorld(11)
	cgroups := &tree{ids: make(map[string]uint64)}
	k, _ := load(t, w.sizes())
	r := reconcilerOf(t, &k.Maps, w.sizes(), cgroups)
	compiler := NewCompiler(w.sizes())
	for range 60 {
		for range 5 {
			w.step()
		}
		w.cgroup(cgroups)
		mesh, err := compiler.Compile(w.snapshot(), w.out)
		if err != nil {
			t.Fatal(err)
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
		if _, err := r.Verdicts(); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, r, &model.Snapshot{Generation: 1}, nil)
	if err := allFree(r); err != nil {
		t.Error(err)
	}
}

// TestKernelArrays looks at what is mapped by the other way, that of system calls.
func TestKernelArrays(t *testing.T) {
	sizes := small
	k, objects := load(t, sizes)
	if len(k.Pools) != 9 || len(k.Slots) != 64 {
		t.Errorf("%d pools and %d slots", len(k.Pools), len(k.Slots))
	}
	k.Pools[3].Table = 77
	k.Slots[5] = 88
	k.Turns[3] = 89
	k.Workloads[2] = bpf.Workload{Source: 99, Flags: 1}
	k.PolicySets[2] = bpf.PolicySet{Generation: 1, HasDryAllow: 1}
	k.Backends[4] = bpf.Backend{Port: 80, Weight: 7}
	k.Loads[4] = bpf.Load{Open: 1, Failed: 2}
	k.Limits[3] = bpf.Limit{MaxOpen: 4, Burst: 5}
	k.Tables[1] = bpf.Table{Generation: 5, Pool: 6}
	same(t, objects.Pools, 3, k.Pools[3].Table)
	same(t, objects.Slots, 5, k.Slots[5])
	same(t, objects.Turns, 3, k.Turns[3])
	same(t, objects.Workloads, 2, k.Workloads[2])
	same(t, objects.PolicySets, 2, k.PolicySets[2])
	same(t, objects.Backends, 4, k.Backends[4])
	same(t, objects.Loads, 4, k.Loads[4])
	same(t, objects.Limits, 3, k.Limits[3])
	same(t, objects.Tables, 1, k.Tables[1])
	state := bpf.LimitState{TokensNs: 3}
	state.Counts.Open = 4
	if err := k.LimitStates.Put([]uint32{2}, []bpf.LimitState{state}); err != nil {
		t.Fatal(err)
	}
	if have, ok, err := k.LimitStates.Get(2); err != nil || !ok || have != state {
		t.Errorf("%+v, %t, %v", have, ok, err)
	}
	if _, ok, err := k.LimitStates.Get(1000); ok || err != nil {
		t.Errorf("an index beyond: %t, %v", ok, err)
	}
	start := time.Now()
	if err := k.Grace(); err != nil {
		t.Fatal(err)
	}
	t.Logf("a grace period took %v", time.Since(start))
	if err := k.Frontends.Delete([]bpf.Frontend{{Port: 1}, {Port: 2}}); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	if err := k.Frontends.Put([]bpf.Frontend{{Port: 2}, {Port: 3}}, []uint32{2, 3}); err != nil {
		t.Error(err)
	}
	if err := k.Frontends.Delete([]bpf.Frontend{{Port: 1}, {Port: 2}, {Port: 4}, {Port: 3}}); err != nil {
		t.Error(err)
	}
	if all, err := k.Frontends.All(); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	block := bpf.PolicyBlock{PrefixBits: 32 + 104, Set: 5, Addr: as16(ip("10.0.0.0")[0])}
	if err := k.PolicyBlocks.Put([]bpf.PolicyBlock{{PrefixBits: 32, Set: 5}, block}, []bpf.Rules{{Words: [4]uint64{1}}, {Words: [4]uint64{2}}}); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]uint64{"10.1.2.3": 2, "11.1.2.3": 1, "fd00::1": 1} {
		key := bpf.PolicyBlock{PrefixBits: 32 + 128, Set: 5, Addr: as16(ip(address)[0])}
		if rules, ok, err := k.PolicyBlocks.Get(key); err != nil || !ok || rules.Words[0] != want {
			t.Errorf("%s: %v, %t, %v", address, rules, ok, err)
		}
	}
}

func same[T comparable](t *testing.T, m *ebpf.Map, index uint32, want T) {
	t.Helper()
	var have T
	if err := m.Lookup(index, &have); err != nil || have != want {
		t.Errorf("%v at %d: %+v, %v; want %+v", m, index, have, err, want)
	}
}
