package maps

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// shop is a service with the endpoints that are named, each at an address of its own.
func shop(change func(*model.Snapshot), names ...string) *model.Snapshot {
	s := &model.Snapshot{
		Generation: 1,
		Services: []model.Service{{
			Name: cart, Addresses: ip("10.96.0.1"), Ports: []model.Port{{Name: "http", Port: 80, TargetPort: 8080}}, DrainTimeout: time.Minute,
			Limits: model.Limits{MaxConnections: 5},
		}},
		Workloads: []model.Workload{{Name: cart, Identity: "i", Cgroup: "/shop/cart", Addresses: ip("10.1.0.1")}},
	}
	for _, name := range names {
		e := endpointAt(name, "10.1.0."+name[1:])
		e.Workload = cart
		s.Endpoints = append(s.Endpoints, e)
	}
	if change != nil {
		change(s)
	}
	return s
}

var small = Sizes{Workloads: 4, Addresses: 4, Frontends: 4, Pools: 4, Backends: 4, Slots: 32, Limits: 2, PolicySets: 2, PolicyEntries: 64}

func backendOf(r *Reconciler, endpoint string) *backendState {
	for _, b := range r.services[cart].backends {
		if b.key.endpoint.Name == endpoint {
			return b
		}
	}
	return nil
}

func TestDraining(t *testing.T) {
	m, r := newTest(t, small, nil)
	now := time.Unix(1000, 0)
	r.o.Now = func() time.Time { return now }
	apply(t, r, shop(nil, "e1", "e2"), nil)
	b := backendOf(r, "e1")
	name, _ := r.Names().Backend(b.index, b.tag)
	atomic.StoreUint64(&m.Loads[b.index].Open, 2)
	atomic.StoreUint64(&m.Loads[b.index].Picks, 9)
	if all := r.Draining(); len(all) != 0 {
		t.Errorf("draining: %+v", all)
	}

	// First by its health, then it is gone; it drains since the former.
	apply(t, r, shop(func(s *model.Snapshot) { s.Endpoints[0].Health = model.Draining }, "e1", "e2"), nil)
	want := Draining{
		Service: cart, Endpoint: model.Name{Namespace: "shop", Name: "e1"}, Index: b.index, Tag: b.tag, Address: b.key.address, Open: 2, Since: now,
		Timeout: time.Minute,
	}
	if all := r.Draining(); !slices.Equal(all, []Draining{want}) {
		t.Errorf("draining: %+v", all)
	}
	now = now.Add(time.Second)
	apply(t, r, shop(nil, "e2"), nil)
	want.Removed = true
	if all := r.Draining(); !slices.Equal(all, []Draining{want}) {
		t.Errorf("draining: %+v", all)
	}
	if n, err := r.Reap(); n != 0 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}

	// It comes back as it was.
	mesh := apply(t, r, shop(nil, "e1", "e2"), nil)
	if again := backendOf(r, "e1"); again != b || len(r.Draining()) != 0 || m.Loads[b.index].Picks != 9 {
		t.Errorf("backend %+v, was %+v", again, b)
	}
	noDrift(t, r, mesh)

	// Its index is used again only when it is free, with another tag and no counts; its name is known until then.
	apply(t, r, shop(nil, "e2"), nil)
	for range 3 {
		apply(t, r, shop(nil, "e2", "e3", "e4", "e5"), nil)
		apply(t, r, shop(nil, "e2", "e6", "e7", "e8"), nil)
	}
	if n, ok := r.Names().Backend(b.index, b.tag); !ok || n != name {
		t.Errorf("name %v, was %v", n, name)
	}
	atomic.StoreUint64(&m.Loads[b.index].Open, 0)
	if n, err := r.Reap(); n != 1 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	for i := range 16 {
		apply(t, r, shop(nil, "e2", "e"+string(rune('3'+i%2))), nil)
		apply(t, r, shop(nil, "e2"), nil)
	}
	if n, ok := r.Names().Backend(b.index, b.tag); ok {
		t.Errorf("a name for a tag that is gone: %v", n)
	}
	if have := m.Backends[b.index].Tag; have < b.tag+1 {
		t.Errorf("tag %d, was %d", have, b.tag)
	}
	if have := m.Loads[b.index]; have != (bpf.Load{}) {
		t.Errorf("counts of the last: %+v", have)
	}
}

func TestLimitsDrain(t *testing.T) {
	m, r := newTest(t, small, nil)
	apply(t, r, shop(nil, "e1"), nil)
	l := r.services[cart].limit
	put := func(open uint64) {
		s := bpf.LimitState{}
		s.Counts.Open, s.Counts.RejectedOpen = open, 7
		if err := m.LimitStates.Put([]uint32{l.index}, []bpf.LimitState{s}); err != nil {
			t.Fatal(err)
		}
	}
	put(3)
	// A bound changes where it is, and what stands against it stays.
	mesh := apply(t, r, shop(func(s *model.Snapshot) { s.Services[0].Limits.MaxConnections = 6 }, "e1"), nil)
	if r.services[cart].limit != l || m.Limits[l.index].MaxOpen != 6 {
		t.Errorf("limit %+v, %+v", r.services[cart].limit, m.Limits[l.index])
	}
	noDrift(t, r, mesh)
	table := r.services[cart].pools[0].table.index
	// A service without a limit has another table; while connections count against it, the limit is not another's.
	none := func(s *model.Snapshot) { s.Services[0].Limits = model.Limits{} }
	apply(t, r, shop(none, "e1"), nil)
	if r.services[cart].pools[0].table.index == table {
		t.Error("the table names a limit that is gone")
	}
	if r.limits["service shop/cart"] != l {
		t.Error("the limit was freed")
	}
	// It is taken up again.
	apply(t, r, shop(nil, "e1"), nil)
	if r.services[cart].limit != l || l.gone {
		t.Errorf("limit %+v", r.services[cart].limit)
	}
	apply(t, r, shop(none, "e1"), nil)
	put(0)
	if n, err := r.Reap(); n != 1 || err != nil {
		t.Errorf("reaped %d, %v", n, err)
	}
	text, ok := r.Names().Limit(l.index)
	if !ok || *text != "service shop/cart" {
		t.Errorf("limit %d is called %v", l.index, text)
	}
	for range 8 { // until its index is used again
		apply(t, r, shop(nil, "e1"), nil)
		apply(t, r, shop(none, "e1"), nil)
	}
	if s, _, _ := m.LimitStates.Get(l.index); s.Counts.RejectedOpen != 0 {
		t.Errorf("counts of the last: %+v", s.Counts)
	}
}

func TestUnchangedPools(t *testing.T) {
	m, r := newTest(t, DefaultSizes(), nil)
	two := func(s *model.Snapshot) {
		s.Services[0].Ports = append(s.Services[0].Ports, model.Port{Port: 443, TargetPort: 1})
	}
	mesh, err := Compile(shop(two, "e1", "e2"), nil, DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	changes, err := r.Apply(mesh)
	if want := (Changes{Tables: 2, Slots: 8, Backends: 4, Workloads: 1, Limits: 1, References: 6, Puts: 3}); err != nil || changes != want {
		t.Errorf("changes %+v, %v", changes, err)
	}
	id := r.services[cart].id
	pools := r.services[cart].pools
	atomic.StoreUint64(&m.Turns[pools[0].index], 5)
	for _, c := range []struct {
		name   string
		change func(*model.Snapshot)
		want   Changes
	}{
		{"nothing", nil, Changes{}},
		{"a target port", func(s *model.Snapshot) { s.Services[0].Ports[1].TargetPort = 2 }, Changes{Tables: 1, Slots: 4, Backends: 2, References: 3}},
		{"a limit", func(s *model.Snapshot) {
			s.Services[0].Ports[1].TargetPort = 2
			s.Services[0].Limits.MaxConnecting = 1
		}, Changes{References: 1}},
		{"an address of the service", func(s *model.Snapshot) {
			s.Services[0].Addresses = ip("10.96.0.2")
		}, Changes{Tables: 1, Slots: 4, Backends: 2, References: 4, Puts: 2, Deletes: 2}},
		{"an identity", func(s *model.Snapshot) {
			s.Services[0].Addresses = ip("10.96.0.2")
			s.Workloads[0].Identity = "j"
		}, Changes{Workloads: 1, References: 4, Puts: 1}}, // its backends follow
		{"a policy", func(s *model.Snapshot) {
			s.Services[0].Addresses = ip("10.96.0.2")
			s.Workloads[0].Identity = "j"
			s.Policies = []model.AuthorizationPolicy{{Name: cart}}
		}, Changes{PolicySets: 1, References: 1, Puts: 3}},
	} {
		mesh, err := Compile(shop(func(s *model.Snapshot) {
			two(s)
			s.Generation = 2
			if c.change != nil {
				c.change(s)
			}
		}, "e1", "e2"), nil, DefaultSizes())
		if err != nil {
			t.Fatal(err)
		}
		if have, err := r.Apply(mesh); err != nil || have != c.want {
			t.Errorf("%s: changes %+v, %v", c.name, have, err)
		}
		noDrift(t, r, mesh)
	}
	if r.services[cart].id != id || r.services[cart].pools[0] != pools[0] || m.Turns[pools[0].index] != 5 {
		t.Error("the first pool is another")
	}
	if g := m.Tables[pools[0].table.index].Generation; g != 1 {
		t.Errorf("the first pool's table is of generation %d", g)
	}
	// Of the same name, but not the same.
	apply(t, r, &model.Snapshot{}, nil)
	apply(t, r, shop(nil, "e1"), nil)
	if again := r.services[cart].id; again == id {
		t.Errorf("id %d is used again", again)
	}
	if name, ok := r.Names().Service(id); !ok || *name != cart {
		t.Errorf("service %d is called %v", id, name)
	}
}

// TestFull leaves no room: nothing changes, and it is not an error of the mesh.
func TestFull(t *testing.T) {
	m, r := newTest(t, small, nil)
	names := [][]string{{"e1", "e2", "e3", "e4"}, {"e5", "e6", "e7", "e8"}, {"e9", "e10", "e11", "e12"}}
	for _, n := range names[:2] {
		apply(t, r, shop(nil, n...), nil)
		for _, b := range r.services[cart].backends {
			m.Loads[b.index].Open = 1
		}
	}
	before := apply(t, r, shop(nil, names[1]...), nil)
	mesh, err := Compile(shop(nil, names[2]...), nil, small)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Apply(mesh)
	var full *FullError
	if !errors.As(err, &full) || err.Error() != "map backends has no room for 1 more, with 8 of 8 in use; wait for what drains, or raise mesh.max_backends" {
		t.Fatal(err)
	}
	noDrift(t, r, before)
	if r.free.tables.used() != 1 || r.free.slots.free != 56 {
		t.Errorf("%d tables and %d slots are left", r.free.tables.used(), r.free.slots.free)
	}
	for i := range m.Loads {
		m.Loads[i].Open = 0
	}
	if _, err := r.Reap(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Apply(mesh); err != nil {
		t.Fatal(err)
	}
	noDrift(t, r, mesh)
	large, err := Compile(shop(nil, "e1", "e2", "e3", "e4", "e5"), nil, DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	var size *SizeError
	if _, err := r.Apply(large); !errors.As(err, &size) {
		t.Errorf("error %v", err)
	}
}

func TestCgroups(t *testing.T) {
	c := &tree{ids: map[string]uint64{"/backup": 7}}
	m, r := newTest(t, small, c)
	var told []uint64
	r.o.SetLevels = func(levels uint64) error {
		held, err := m.Cgroups.All()
		told = append(told, levels, uint64(len(held)))
		return err
	}
	bypass := func(s *model.Snapshot) { s.Bypasses = []model.Bypass{{Name: cart, Cgroup: "/backup"}} }
	mesh := apply(t, r, shop(bypass), nil)
	rescan := func(want bool) {
		t.Helper()
		if changed, err := r.Rescan(); changed != want || err != nil {
			t.Errorf("changed %t, %v", changed, err)
		}
		noDrift(t, r, mesh)
	}
	holds := func(id uint64, name string) {
		t.Helper()
		index, _, _ := m.Cgroups.Get(id)
		if n, ok := r.Names().Workload(index); name != "" && (!ok || n.Name.Name != name) || name == "" && index != 0 {
			t.Errorf("cgroup %d is %d, %v", id, index, n)
		}
	}
	rescan(false)
	holds(7, "cart")
	if m.Workloads[r.workloads[workloadKey{cart, true}].index].Flags != bpf.WorkloadBypass {
		t.Error("not bypassed")
	}
	c.make("/shop/cart", 8)
	rescan(true)
	holds(8, "cart")
	c.make("/shop/cart", 9) // made anew
	rescan(true)
	holds(8, "")
	holds(9, "cart")
	c.make("/shop/cart", 0)
	rescan(true)
	holds(9, "")
	// Levels before there is a cgroup, and until there is none; beside each how many there were then.
	if want := []uint64{1 << 1, 0, 1<<1 | 1<<2, 1, 1 << 1, 1}; !slices.Equal(told, want) {
		t.Errorf("levels %v", told)
	}
	// Nine depths: as part of a mesh they are refused, and one that appears later is left out.
	deep := func(n int) *model.Snapshot {
		s := &model.Snapshot{Generation: 9}
		for i := range n {
			path := strings.Repeat("/x", i+1)
			s.Workloads = append(s.Workloads, model.Workload{Name: model.Name{Namespace: "deep", Name: string(rune('a' + i))}, Cgroup: path})
		}
		return s
	}
	for i := range 9 {
		c.make(strings.Repeat("/x", i+1), uint64(20+i))
	}
	sizes := small
	sizes.Workloads = 9
	m = NewMemory(sizes)
	r = reconcilerOf(t, m, sizes, c)
	mesh = apply(t, r, deep(8), nil)
	too, err := Compile(deep(9), nil, sizes)
	if err != nil {
		t.Fatal(err)
	}
	const nine = "enter cgroup /x/x/x/x/x/x/x/x/x: workloads have cgroups at 8 other depths, which is all that is looked at; give it another depth"
	if _, err := r.Apply(too); err == nil || err.Error() != nine {
		t.Error(err)
	}
	noDrift(t, r, mesh)
	c.make(strings.Repeat("/x", 9), 0)
	mesh = apply(t, r, deep(9), nil)
	c.make(strings.Repeat("/x", 9), 28)
	if changed, err := r.Rescan(); changed || err == nil || err.Error() != nine {
		t.Error(changed, err)
	}
	noDrift(t, r, mesh)
	// And eight others at once.
	c.make("/x", 0)
	rescan(true)
	mesh = apply(t, r, &model.Snapshot{Generation: 10, Workloads: deep(9).Workloads[1:]}, nil)
	noDrift(t, r, mesh)
	if c.levels != 0x3fc {
		t.Errorf("levels %x", c.levels)
	}

	r.o.Resolve = func(string) (uint64, int, error) { return 1, 64, nil }
	if _, err := r.Rescan(); err == nil || !strings.Contains(err.Error(), "it is 64 levels deep, and can be 63") {
		t.Error(err)
	}
}

func TestVerdicts(t *testing.T) {
	m, r := newTest(t, small, nil)
	policy := func(rules ...model.Rule) func(*model.Snapshot) {
		return func(s *model.Snapshot) {
			s.Policies = []model.AuthorizationPolicy{{Name: cart, Rules: rules}}
		}
	}
	count := func(rule uint16, verdict uint8, n uint64) {
		set := r.workloads[workloadKey{name: cart}].set.index
		if err := m.Verdicts.Put([]bpf.VerdictKey{{PolicySet: set, Rule: rule, Verdict: verdict}}, []uint64{n}); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, r, shop(policy(model.Rule{})), nil)
	count(0, bpf.VerdictAllow, 5)
	count(bpf.NoRule, bpf.VerdictDeny, 1)
	set := r.workloads[workloadKey{name: cart}].set
	name, _ := r.Names().Rule(set.index, 0)
	apply(t, r, shop(policy(model.Rule{}, model.Rule{})), nil) // another set
	count(0, bpf.VerdictAllow, 2)
	count(1, bpf.VerdictAllow, 3)
	for range 2 {
		have, err := r.Verdicts()
		if err != nil {
			t.Fatal(err)
		}
		second, _ := r.Names().Rule(r.workloads[workloadKey{name: cart}].set.index, 1)
		want := []VerdictCount{{nil, bpf.VerdictDeny, false, 1}, {name, bpf.VerdictAllow, false, 7}, {second, bpf.VerdictAllow, false, 3}}
		if !slices.Equal(have, want) {
			t.Errorf("%+v", have)
		}
	}
	if held, _ := m.Verdicts.All(); len(held) != 2 {
		t.Errorf("the kernel has %v", held)
	}
	if n, ok := r.Names().Rule(set.index, 0); !ok || n != name {
		t.Errorf("rule of a set that is gone: %v", n)
	}
}

func TestDriftFindsAll(t *testing.T) {
	c := &tree{ids: map[string]uint64{"/shop/cart": 7}}
	m, r := newTest(t, small, c)
	mesh := apply(t, r, shop(func(s *model.Snapshot) {
		s.Policies = []model.AuthorizationPolicy{{Name: cart, Rules: []model.Rule{{To: []model.Operation{{Ports: []uint16{80}}}}}}}
	}, "e1"), nil)
	noDrift(t, r, mesh)
	one := func(k bpf.Frontend, v uint32) { _ = m.Frontends.Put([]bpf.Frontend{k}, []uint32{v}) }
	for _, damage := range []struct {
		do, undo func()
		want     string
	}{
		{func() { m.Pools[1].Table = 0 }, func() { m.Pools[1].Table = 1 }, "service shop/cart port 80 ipv4 pool 1 table: is 0, should be 1"},
		{func() { m.Tables[1].Service = 9 }, func() { m.Tables[1].Service = 1 }, "service shop/cart port 80 ipv4 pool 1 table 1: is"},
		{func() { m.Slots[0]++ }, func() { m.Slots[0]-- }, "service shop/cart port 80 ipv4 pool 1: 1 of 2 slots differ, the first is 0"},
		{func() { m.Backends[1].Port++ }, func() { m.Backends[1].Port-- }, "service shop/cart endpoint shop/e1 10.1.0.1:8080 backend 1: is"},
		{func() { m.Workloads[1].PolicySet = 0 }, func() { m.Workloads[1].PolicySet = 1 }, "workload shop/cart: is"},
		{func() { m.Limits[1].MaxOpen++ }, func() { m.Limits[1].MaxOpen-- }, "service shop/cart limit: is"},
		{func() { m.PolicySets[1].HasAllow = 0 }, func() { m.PolicySets[1].HasAllow = 1 }, "policy set 1: is"},
		{func() { one(bpf.Frontend{Port: 7}, 3) }, func() { _ = m.Frontends.Delete([]bpf.Frontend{{Port: 7}}) }, "frontend [::]:7: extra, is 3"},
		{
			func() { _ = m.Frontends.Delete([]bpf.Frontend{frontendKey(mesh.Services[0].Frontends[0].Address)}) },
			func() { one(frontendKey(mesh.Services[0].Frontends[0].Address), 1) }, "frontend 10.96.0.1:80: missing, should be 1",
		},
		{func() { _ = m.Cgroups.Delete([]uint64{7}) }, func() { _ = m.Cgroups.Put([]uint64{7}, []uint32{1}) }, "cgroup 7: missing, should be 1"},
		{
			func() { _ = m.PolicyPorts.Put([]bpf.PolicyPort{{Set: 1, Port: 80}}, []bpf.Rules{{}}) },
			func() {
				_ = m.PolicyPorts.Put([]bpf.PolicyPort{{Set: 1, Port: 80}}, []bpf.Rules{{Words: [4]uint64{1}}})
			}, "policy set 1 port 80: is",
		},
	} {
		damage.do()
		lines, err := r.Drift(mesh)
		if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], damage.want) {
			t.Errorf("drift %q, %v; want %q", lines, err, damage.want)
		}
		damage.undo()
	}
	noDrift(t, r, mesh)
	if lines, err := r.Drift(&Mesh{}); err != nil || len(lines) == 0 {
		t.Errorf("drift from another mesh: %q, %v", lines, err)
	}
}

func TestDump(t *testing.T) {
	c := &tree{ids: map[string]uint64{"/shop/cart": 7}}
	m, r := newTest(t, small, c)
	apply(t, r, shop(func(s *model.Snapshot) {
		s.Endpoints[1].Weight = 3
		s.Policies = []model.AuthorizationPolicy{{Name: cart, Rules: []model.Rule{{
			From: []model.Source{{Identities: []string{"i"}}}, To: []model.Operation{{Ports: []uint16{80}}},
		}}}}
	}, "e1", "e2"), nil)
	m.Loads[1] = bpf.Load{Open: 1, Picks: 2, Failed: 3}
	dump, err := r.Dump()
	if err != nil {
		t.Fatal(err)
	}
	have, err := json.MarshalIndent(dump, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "dump.json", append(have, '\n'))
}
