package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

func ip(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

var (
	cart = model.Name{Namespace: "shop", Name: "cart"}
	here = model.Locality{Region: "r", Zone: "z", Subzone: "s", Node: "n"}
)

func endpointAt(name, address string, change ...func(*model.Endpoint)) model.Endpoint {
	e := model.Endpoint{Name: model.Name{Namespace: "shop", Name: name}, Service: cart, Addresses: ip(address), Weight: 1, Locality: here}
	for _, c := range change {
		c(&e)
	}
	return e
}

// chosen are the backends of a pool as text, in the order of their first slot.
func chosen(s *Service, p *Pool) (all []string) {
	for _, slot := range p.Slots {
		b := s.Backends[slot&always]
		if text := fmt.Sprintf("%s=%v", b.Endpoint.Name, b.Address); !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	return all
}

// TestServices compares what pools choose from, by family and port: "4:80 a=10.1.0.1:8080 ...".
func TestServices(t *testing.T) {
	in := func(l model.Locality) func(*model.Endpoint) { return func(e *model.Endpoint) { e.Locality = l } }
	priority := func(p uint32) func(*model.Endpoint) { return func(e *model.Endpoint) { e.Priority = p } }
	weight := func(w uint32) func(*model.Endpoint) { return func(e *model.Endpoint) { e.Weight = w } }
	health := func(h model.Health) func(*model.Endpoint) { return func(e *model.Endpoint) { e.Health = h } }
	a, b := endpointAt("a", "10.1.0.1"), endpointAt("b", "10.1.0.2")
	ranked := []model.Endpoint{endpointAt("a", "10.1.0.1", priority(2)), endpointAt("b", "10.1.0.2", priority(1))}
	http := []model.Port{{Name: "http", Port: 80, TargetPort: 8080}}
	strict := func(s model.Scope) func(*model.Service) {
		return func(m *model.Service) { m.LocalityMode, m.LocalityScope = model.LocalityStrict, s }
	}
	failover := func(m *model.Service) { m.LocalityMode = model.LocalityFailover }
	places := []model.Endpoint{
		endpointAt("node", "10.1.0.1"), endpointAt("subzone", "10.1.0.2", in(model.Locality{Region: "r", Zone: "z", Subzone: "s", Node: "m"})),
		endpointAt("zone", "10.1.0.3", in(model.Locality{Region: "r", Zone: "z", Subzone: "t", Node: "n"})),
		endpointAt("region", "10.1.0.4", in(model.Locality{Region: "r", Zone: "y", Subzone: "s", Node: "n"})),
		endpointAt("world", "10.1.0.5", in(model.Locality{Region: "q", Zone: "z", Subzone: "s", Node: "n"})),
	}
	for _, c := range []struct {
		name      string
		service   func(*model.Service)
		endpoints []model.Endpoint
		out       []string
		node      model.Locality
		want      string
	}{
		{"one", nil, []model.Endpoint{a}, nil, here, "4:80 a=10.1.0.1:8080"},
		{"none", nil, nil, nil, here, "4:80"},
		{"sorted by name", nil, []model.Endpoint{b, a}, nil, here, "4:80 a=10.1.0.1:8080 b=10.1.0.2:8080"},
		{"of another service", nil, []model.Endpoint{endpointAt("a", "10.1.0.1", func(e *model.Endpoint) { e.Service.Name = "x" })}, nil, here, "4:80"},
		{
			"both families", func(s *model.Service) { s.Addresses = ip("10.96.0.1", "fd00::1", "10.96.0.2") },
			[]model.Endpoint{a, endpointAt("c", "fd01::1"), endpointAt("d", "fd01::2", func(e *model.Endpoint) {
				e.Addresses = ip("fd01::2", "::ffff:10.1.0.4", "10.1.0.9")
			})},
			nil, here, "4:80 a=10.1.0.1:8080 d=10.1.0.4:8080; 6:80 c=[fd01::1]:8080 d=[fd01::2]:8080",
		},
		{"no endpoint of a family", func(s *model.Service) { s.Addresses = ip("fd00::1") }, []model.Endpoint{a}, nil, here, "6:80"},
		{
			"ports", func(s *model.Service) {
				s.Ports = []model.Port{{Name: "http", Port: 80, TargetPort: 8080}, {Name: "same", Port: 443}, {Name: "any"}}
			},
			[]model.Endpoint{
				a, endpointAt("b", "10.1.0.2", func(e *model.Endpoint) { e.Port = 9 }),
				endpointAt("c", "10.1.0.3", func(e *model.Endpoint) { e.Port, e.Ports = 9, map[string]uint16{"http": 7} }),
			},
			nil, here,
			"4:80 a=10.1.0.1:8080 b=10.1.0.2:9 c=10.1.0.3:7; 4:443 a=10.1.0.1:443 b=10.1.0.2:9 c=10.1.0.3:9; 4:0 a=10.1.0.1:0 b=10.1.0.2:9 c=10.1.0.3:9",
		},
		{"unhealthy", nil, []model.Endpoint{endpointAt("a", "10.1.0.1", health(model.Unhealthy)), b}, nil, here, "4:80 b=10.1.0.2:8080"},
		{"draining", nil, []model.Endpoint{endpointAt("a", "10.1.0.1", health(model.Draining)), b}, nil, here, "4:80 b=10.1.0.2:8080"},
		{"out", nil, []model.Endpoint{a, b}, []string{"a"}, here, "4:80 b=10.1.0.2:8080"},
		{"all out", nil, []model.Endpoint{a, b}, []string{"a", "b"}, here, "4:80"},
		{"weight 0", nil, []model.Endpoint{a, endpointAt("b", "10.1.0.2", weight(0))}, nil, here, "4:80 a=10.1.0.1:8080"},
		{"priority", nil, ranked, nil, here, "4:80 b=10.1.0.2:8080"},
		{"priority out", nil, ranked, []string{"b"}, here, "4:80 a=10.1.0.1:8080"},
		{"strict node", strict(model.ScopeNode), places, nil, here, "4:80 node=10.1.0.1:8080"},
		{"strict subzone", strict(model.ScopeSubzone), places, nil, here, "4:80 node=10.1.0.1:8080 subzone=10.1.0.2:8080"},
		{"strict zone", strict(model.ScopeZone), places, []string{"node", "subzone"}, here, "4:80 zone=10.1.0.3:8080"},
		{"strict region", strict(model.ScopeRegion), places, []string{"node", "subzone", "zone"}, here, "4:80 region=10.1.0.4:8080"},
		{"strict, none", strict(model.ScopeRegion), places[4:], nil, here, "4:80"},
		{"strict, node without zone", strict(model.ScopeZone), places, nil, model.Locality{Region: "r"}, "4:80"},
		{"strict node, node without zone", strict(model.ScopeNode), places[:1], nil, model.Locality{Region: "r", Node: "n"}, "4:80 node=10.1.0.1:8080"},
		{
			"strict before priority", strict(model.ScopeNode),
			[]model.Endpoint{endpointAt("far", "10.1.0.9", in(model.Locality{Region: "q"})), endpointAt("near", "10.1.0.1", priority(5))},
			nil, here, "4:80 near=10.1.0.1:8080",
		},
		{"failover to the node", failover, places, nil, here, "4:80 node=10.1.0.1:8080"},
		{"failover to the subzone", failover, places, []string{"node"}, here, "4:80 subzone=10.1.0.2:8080"},
		{"failover to the zone", failover, places, []string{"node", "subzone"}, here, "4:80 zone=10.1.0.3:8080"},
		{"failover to the region", failover, places, []string{"node", "subzone", "zone"}, here, "4:80 region=10.1.0.4:8080"},
		{"failover to the world", failover, places, []string{"node", "subzone", "zone", "region"}, here, "4:80 world=10.1.0.5:8080"},
		{
			"failover within a priority", failover,
			[]model.Endpoint{endpointAt("near", "10.1.0.1", priority(1)), places[4]},
			nil, here, "4:80 world=10.1.0.5:8080",
		},
		{"failover of a node that is nowhere", failover, places[3:], nil, model.Locality{}, "4:80 region=10.1.0.4:8080 world=10.1.0.5:8080"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := model.Service{Name: cart, Addresses: ip("10.96.0.1"), Ports: http, Balancer: model.RoundRobin}
			if c.service != nil {
				c.service(&s)
			}
			out := make(Health)
			for _, name := range c.out {
				out[model.Name{Namespace: "shop", Name: name}] = struct{}{}
			}
			mesh, err := Compile(&model.Snapshot{Node: c.node, Services: []model.Service{s}, Endpoints: c.endpoints}, out, DefaultSizes())
			if err != nil {
				t.Fatal(err)
			}
			var pools []string
			for _, p := range mesh.Services[0].Pools {
				family := map[bool]string{true: "6", false: "4"}[p.IPv6]
				pools = append(pools, strings.Join(append([]string{fmt.Sprintf("%s:%d", family, p.Port)}, chosen(mesh.Services[0], p)...), " "))
			}
			if have := strings.Join(pools, "; "); have != c.want {
				t.Errorf("\nhave %s\nwant %s", have, c.want)
			}
		})
	}
}

func TestFrontends(t *testing.T) {
	s := model.Service{Name: cart, Addresses: ip("10.96.0.1", "::ffff:10.96.0.2", "fd00::1"), Ports: []model.Port{{Port: 80}, {Port: 0}}}
	mesh, err := Compile(&model.Snapshot{Services: []model.Service{s}}, nil, DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, f := range mesh.Services[0].Frontends {
		p := mesh.Services[0].Pools[f.Pool]
		have = append(have, fmt.Sprintf("%v to %s %d", f.Address, familyText(p.IPv6), p.Port))
	}
	want := []string{
		"10.96.0.1:80 to ipv4 80", "10.96.0.2:80 to ipv4 80", "10.96.0.1:0 to ipv4 0", "10.96.0.2:0 to ipv4 0",
		"[fd00::1]:80 to ipv6 80", "[fd00::1]:0 to ipv6 0",
	}
	if !slices.Equal(have, want) {
		t.Errorf("%q", have)
	}
}

func TestWorkloads(t *testing.T) {
	app := map[string]string{"app": "x"}
	s := &model.Snapshot{
		Workloads: []model.Workload{
			{Name: model.Name{Namespace: "b", Name: "w"}, Identity: "i", Addresses: ip("10.0.0.1", "fd00::1"), Labels: app},
			{Name: model.Name{Namespace: "a", Name: "w"}, Identity: "i", Cgroup: "/a", Limits: model.Limits{ConnectionsPerSecond: 5}, Labels: app},
			{
				Name: model.Name{Namespace: "a", Name: "v"}, Identity: "i", Cgroup: "/a/v", Addresses: ip("::ffff:10.0.0.2"),
				Limits: model.Limits{ConnectionsPerSecond: 5, Burst: 9},
			},
		},
		Bypasses: []model.Bypass{
			{Name: model.Name{Namespace: "a", Name: "w"}, Cgroup: "/backup"},
			{Name: model.Name{Namespace: "a", Name: "x"}, Cgroup: "/a/v"},
			{Name: model.Name{Namespace: "b", Name: "again"}, Cgroup: "/backup"},
			{Name: model.Name{Namespace: "b", Name: "labels"}, Selector: app},
		},
	}
	mesh, err := Compile(s, nil, DefaultSizes())
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, w := range mesh.Workloads {
		have = append(have, fmt.Sprintf("%v %t %v %q %v %t %d %d %t",
			w.Name, w.Alone, w.Class, w.Cgroup, w.Addresses, w.Bypass, w.Limit.PerSecond, w.Limit.Burst, w.Affinity != 0))
	}
	want := []string{
		`a/v false {i a} "/a/v" [10.0.0.2] true 5 9 true`,
		`a/w false {i a} "/a" [] false 5 5 false`,
		`a/w true { } "/backup" [] true 0 0 false`,
		`b/w false {i b} "" [10.0.0.1 fd00::1] true 0 0 true`,
	}
	if !slices.Equal(have, want) {
		t.Errorf("\n%s", strings.Join(have, "\n"))
	}
	if len(mesh.Classes) != 2 || mesh.Usage.Limits != 2 || mesh.Usage.Workloads != 4 || mesh.Usage.Addresses != 3 {
		t.Errorf("classes %v, usage %+v", mesh.Classes, mesh.Usage)
	}
}

func TestSizes(t *testing.T) {
	allow := model.AuthorizationPolicy{
		Name: model.Name{Namespace: "n", Name: "p"}, Mesh: true,
		Rules: []model.Rule{{To: []model.Operation{{Ports: []uint16{1, 2, 3}}}}},
	}
	s := &model.Snapshot{
		Services: []model.Service{{
			Name: cart, Addresses: ip("10.0.0.1", "10.0.0.2", "fd00::1"), Ports: []model.Port{{Port: 1}, {Port: 2}}, Limits: model.Limits{MaxConnections: 1},
		}},
		Endpoints: []model.Endpoint{endpointAt("a", "10.1.0.1"), endpointAt("b", "fd01::2")},
		Workloads: []model.Workload{{Name: cart, Addresses: ip("10.0.0.1", "10.0.0.2")}, {Name: model.Name{Name: "x"}, Labels: map[string]string{"a": "b"}}},
		Policies: []model.AuthorizationPolicy{allow, {
			Name: model.Name{Namespace: "n", Name: "q"}, Mesh: true, Selector: map[string]string{"a": "b"}, Rules: allow.Rules,
		}},
	}
	// Exactly what it takes, and one less of each.
	exact := Sizes{Workloads: 2, Addresses: 2, Frontends: 6, Pools: 4, Backends: 4, Slots: 8, Limits: 1, PolicySets: 2, PolicyEntries: 8}
	mesh, err := Compile(s, nil, exact)
	if err != nil || Sizes(mesh.Usage) != exact {
		t.Fatalf("%v, usage %+v", err, mesh)
	}
	less := exact
	for _, c := range []struct {
		size *uint32
		want string
	}{
		{&less.Workloads, "the mesh has 2 workloads, and the kernel's workloads and cgroups have room for 1; " +
			"raise mesh.max_workloads"},
		{&less.Addresses, "the mesh has 2 addresses of workloads, and the kernel's addresses have room for 1; " +
			"raise mesh.max_addresses"},
		{&less.Frontends, "the mesh has 6 frontends (addresses of services times their ports), and the kernel's frontends have room for 5; " +
			"raise mesh.max_frontends"},
		{&less.Pools, "the mesh has 4 pools (ports of services times families), and the kernel's pools and tables have room for 3; " +
			"raise mesh.max_pools"},
		{&less.Backends, "the mesh has 4 backends (endpoints times ports times families), and the kernel's backends have room for 3; " +
			"raise mesh.max_backends"},
		{&less.Slots, "the mesh has 8 slots of tables, and the kernel's slots have room for 7; " +
			"raise mesh.max_slots"},
		{&less.Limits, "the mesh has 1 services and workloads with limits, and the kernel's limits have room for 0; " +
			"raise mesh.max_limits"},
		{&less.PolicySets, "the mesh has 2 distinct lists of policies that select a workload, and the kernel's policy_sets have room for 1; " +
			"raise mesh.max_policy_sets"},
		{&less.PolicyEntries, "the mesh has 8 entries of policy sets, and the kernel's policy_sources, policy_blocks, policy_ports and " +
			"verdicts have room for 7; raise mesh.max_policy_entries"},
	} {
		less = exact
		*c.size--
		_, err := Compile(s, nil, less)
		var size *SizeError
		if err == nil || err.Error() != c.want || !errors.As(err, &size) {
			t.Errorf("error %v\nwant  %s", err, c.want)
		}
	}
	if err := DefaultSizes().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Sizes{}).Validate(); err == nil || !strings.Contains(err.Error(), "mesh.max_slots is 0; it is from 1 to 67108864") {
		t.Error(err)
	}
}

func TestConflicts(t *testing.T) {
	other := model.Name{Namespace: "shop", Name: "other"}
	for want, s := range map[string]*model.Snapshot{
		"services shop/cart and shop/other have the same frontend 10.0.0.1:80; give it to one": {Services: []model.Service{
			{Name: other, Addresses: ip("::ffff:10.0.0.1"), Ports: []model.Port{{Port: 80}}},
			{Name: cart, Addresses: ip("10.0.0.1"), Ports: []model.Port{{Port: 80}}},
		}},
		"two services are called shop/cart":  {Services: []model.Service{{Name: cart}, {Name: cart}}},
		"two workloads are called shop/cart": {Workloads: []model.Workload{{Name: cart}, {Name: cart}}},
		"workloads shop/cart and shop/other have the same address fd00::1; give it to one": {Workloads: []model.Workload{
			{Name: cart, Addresses: ip("fd00::1")}, {Name: other, Addresses: ip("fd00::1")},
		}},
		"workloads shop/cart and shop/other have the same cgroup /a; give it to one": {Workloads: []model.Workload{
			{Name: cart, Cgroup: "/a"}, {Name: other, Cgroup: "/a"},
		}},
		"service shop/cart: unknown balancer 9": {Services: []model.Service{{Name: cart, Balancer: 9, Addresses: ip("10.0.0.1")}}},
	} {
		if _, err := Compile(s, nil, DefaultSizes()); err == nil || err.Error() != want {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
}

// TestCompilerRemembers compares one that remembers with one that does not, and looks at what it did not compute again.
func TestCompilerRemembers(t *testing.T) {
	w := newWorld(7)
	c := NewCompiler(w.sizes())
	var last *Mesh
	same, kept := 0, 0
	for range 100 {
		w.step()
		s := w.snapshot()
		have, err := c.Compile(s, w.out)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Compile(s, w.out, w.sizes())
		if err != nil {
			t.Fatal(err)
		}
		if have.Usage != want.Usage {
			t.Fatalf("usage %+v, want %+v", have.Usage, want.Usage)
		}
		// Whatever one applied, the other does not change.
		_, r := newTest(t, w.sizes(), nil)
		if _, err := r.Apply(have); err != nil {
			t.Fatal(err)
		}
		if changes, err := r.Apply(want); err != nil || changes != (Changes{}) {
			t.Fatalf("the difference is %+v, %v", changes, err)
		}
		noDrift(t, r, want)
		if last != nil {
			for _, s := range have.Services {
				same++
				if slices.Contains(last.Services, s) {
					kept++
				}
			}
		}
		last = have
	}
	if kept < same*3/4 {
		t.Errorf("%d of %d services were not computed again", kept, same)
	}
}

func TestAffinityIsFixed(t *testing.T) {
	if have := affinity(netip.MustParseAddr("10.0.0.1")); have != 0xf1a6ea11 {
		t.Errorf("%#x", have)
	}
	if affinity(netip.MustParseAddr("::ffff:10.0.0.1")) != affinity(netip.MustParseAddr("10.0.0.1")) {
		t.Error("the same address has two hashes")
	}
}

func TestLimitOf(t *testing.T) {
	for _, c := range []struct {
		limits model.Limits
		want   bpf.Limit
	}{
		{model.Limits{}, bpf.Limit{}},
		{model.Limits{MaxConnections: 1, MaxConnecting: 2}, bpf.Limit{MaxOpen: 1, MaxConnecting: 2}},
		{model.Limits{ConnectionsPerSecond: 3}, bpf.Limit{PerSecond: 3, Burst: 3}},
		{model.Limits{ConnectionsPerSecond: 3, Burst: 4}, bpf.Limit{PerSecond: 3, Burst: 4}},
		{model.Limits{Burst: 4}, bpf.Limit{}},
	} {
		if have := limitOf(c.limits); have != c.want {
			t.Errorf("%+v: %+v, want %+v", c.limits, have, c.want)
		}
	}
}
