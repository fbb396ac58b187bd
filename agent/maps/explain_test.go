package maps

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// TestExplain asks about a mesh in which each endpoint is left out for another reason.
func TestExplain(t *testing.T) {
	name := func(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }
	address := func(a string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(a)} }
	endpoint := func(n, a string, change func(*model.Endpoint)) model.Endpoint {
		e := model.Endpoint{Name: name(n), Service: name("cart"), Addresses: address(a), Weight: 1}
		if change != nil {
			change(&e)
		}
		return e
	}
	s := &model.Snapshot{
		Generation: 7,
		Workloads: []model.Workload{
			{Name: name("web"), Identity: "web", Addresses: address("10.0.0.1"), Limits: model.Limits{MaxConnections: 10}},
			{Name: name("rogue"), Identity: "rogue", Addresses: address("10.0.0.2")},
			{Name: name("cart-1"), Identity: "cart", Addresses: address("10.1.0.1")},
		},
		Services: []model.Service{{
			Name: name("cart"), Addresses: address("10.96.0.1"), Ports: []model.Port{{Name: "tcp", Port: 80, TargetPort: 8080}},
			Balancer: model.RoundRobin, Limits: model.Limits{MaxConnections: 5},
		}},
		Endpoints: []model.Endpoint{
			{Name: name("cart-1"), Service: name("cart"), Workload: name("cart-1"), Weight: 1},
			endpoint("cart-2", "10.1.0.2", func(e *model.Endpoint) { e.Health = model.Draining }),
			endpoint("cart-3", "10.1.0.3", func(e *model.Endpoint) { e.Weight = 0 }),
			endpoint("cart-4", "10.1.0.4", func(e *model.Endpoint) { e.Priority = 2 }),
			endpoint("cart-5", "fd00::5", nil),
			endpoint("cart-6", "10.1.0.6", nil),
			endpoint("cart-7", "10.1.0.7", func(e *model.Endpoint) { e.Health = model.Unhealthy }),
		},
		Policies: []model.AuthorizationPolicy{{
			Name: name("web-only"), Action: model.Allow,
			Rules: []model.Rule{{From: []model.Source{{Identities: []string{"web"}}}}},
		}},
	}
	sizes := Sizes{100, 100, 100, 100, 100, 1000, 100, 100, 1000}
	m, r := newTest(t, sizes, nil)
	out := Health{name("cart-6"): {}}
	apply(t, r, s, out)
	now := uint64(0)
	ask := func(from, to string) *Explanation {
		t.Helper()
		q := &Question{Dialled: netip.MustParseAddrPort(to), NowNS: now, Out: map[model.Name]string{name("cart-6"): "outlier"}}
		if from != "" {
			q.Addresses = []netip.Addr{netip.MustParseAddr(from)}
		}
		e, err := r.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	got := ask("10.0.0.1", "10.96.0.1:80")
	if got.Client.Workload != "shop/web" || got.Service != "shop/cart" || got.Outcome != "ok" || got.Generation != 7 || got.Algorithm != "round_robin" {
		t.Errorf("web: %+v", got)
	}
	want := map[string]string{
		"shop/cart-1": "", "shop/cart-2": "drains", "shop/cart-3": "weight is 0", "shop/cart-4": "priority", "shop/cart-5": "no address of IPv4",
		"shop/cart-6": "out of service: outlier", "shop/cart-7": "unhealthy",
	}
	if len(got.Endpoints) != len(want) {
		t.Errorf("endpoints: %+v", got.Endpoints)
	}
	for _, e := range got.Endpoints {
		because := want[e.Endpoint]
		if e.Eligible != (because == "") || !strings.Contains(e.Because, because) || e.Eligible != (e.Share == 1) {
			t.Errorf("%+v, want %q", e, because)
		}
		if e.Eligible && (e.Address != "10.1.0.1:8080" || e.Policy == nil || e.Policy.Verdict != "allow" || !strings.Contains(e.Policy.Rule, "shop/web-only rule 0")) {
			t.Errorf("%+v with %+v", e, e.Policy)
		}
	}
	if len(got.Limits) != 2 || got.Limits[0].Name != "workload shop/web" || got.Limits[1].Name != "service shop/cart" || got.Limits[1].MaxOpen != 5 {
		t.Errorf("limits: %+v", got.Limits)
	}
	for _, c := range []struct{ from, to, outcome, because string }{
		{"10.0.0.2", "10.96.0.1:80", "denied", "none of their rules matches"},
		{"", "10.96.0.1:80", "denied", "none of their rules matches"},
		{"10.0.0.2", "10.1.0.1:8080", "denied", "none of their rules matches"},
		{"10.0.0.1", "10.1.0.1:8080", "ok", "as it is"},
		{"10.0.0.2", "8.8.8.8:53", "ok", "as it is"},
		{"10.0.0.1", "[fd00::5]:8080", "ok", "as it is"},
	} {
		if got := ask(c.from, c.to); got.Outcome != c.outcome || !strings.Contains(got.Because, c.because) {
			t.Errorf("%q to %s: %+v", c.from, c.to, got)
		}
	}
	// A limit that is reached.
	for i := range m.Limits {
		if m.Limits[i].MaxOpen == 5 {
			var state bpf.LimitState
			state.Counts.Open = 5
			if err := m.LimitStates.Put([]uint32{uint32(i)}, []bpf.LimitState{state}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := ask("10.0.0.1", "10.96.0.1:80"); got.Outcome != "circuit_open" || got.Because != "service shop/cart is reached" {
		t.Errorf("at the limit: %+v", got)
	}
	// A rate that is used up, and the moment at which there is a token again.
	for i := range m.Limits {
		if m.Limits[i].MaxOpen != 5 {
			continue
		}
		m.Limits[i].PerSecond, m.Limits[i].Burst = 10, 3
		for _, c := range []struct {
			tokens, filled, now uint64
			want                uint32
			outcome             string
		}{
			{0, 0, 1e12, 3, "ok"}, // nobody has asked for one yet
			{1e8 - 1, 1e12, 1e12, 0, "rate_limited"},
			{1e8 - 1, 1e12, 1e12 + 1, 1, "ok"},
			{0, 1e12, 1e12 + 2e8, 2, "ok"},
			{1e8, 1e12, 1e12 - 5, 1, "ok"}, // a program has read the clock after us
		} {
			if err := m.LimitStates.Put([]uint32{uint32(i)}, []bpf.LimitState{{TokensNs: c.tokens, FilledNs: c.filled}}); err != nil {
				t.Fatal(err)
			}
			now = c.now
			got := ask("10.0.0.1", "10.96.0.1:80")
			if l := got.Limits[1]; got.Outcome != c.outcome || l.Tokens != c.want || l.Burst != 3 || l.PerSecond != 10 {
				t.Errorf("%+v: %s, %+v", c, got.Outcome, l)
			}
			if c.outcome != "ok" && got.Because != "service shop/cart has let in all of a burst of 3; 10 a second may follow" {
				t.Error(got.Because)
			}
		}
		m.Limits[i].PerSecond = 0
	}
	// None left.
	less := *s
	less.Generation++
	less.Endpoints = append(slices.Clone(s.Endpoints[1:3]), s.Endpoints[4:]...)
	apply(t, r, &less, out)
	if got := ask("10.0.0.1", "10.96.0.1:80"); got.Outcome != "no_endpoint" || got.Generation != 8 {
		t.Errorf("without an endpoint: %+v", got)
	}
}

// TestExplainUnknown asks about what rests on where somebody listens, and on the client's address.
func TestExplainUnknown(t *testing.T) {
	name := func(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }
	s := &model.Snapshot{
		Generation: 1,
		Workloads: []model.Workload{
			{Name: name("web"), Identity: "web", Cgroup: "/web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			{Name: name("free"), Identity: "free", Cgroup: "/free"},
			{Name: name("db"), Identity: "db", Cgroup: "/db"}, // it shares the host's addresses
			{Name: name("files"), Identity: "files", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Labels: map[string]string{"app": "files"}},
		},
		Policies: []model.AuthorizationPolicy{
			{Name: name("web-only"), Action: model.Allow, Selector: map[string]string{}, Rules: []model.Rule{{From: []model.Source{{Identities: []string{"web"}}}}}},
			{Name: name("not-from-ten"), Action: model.Deny, Selector: map[string]string{"app": "files"}, Rules: []model.Rule{{From: []model.Source{{IPBlocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}}}}},
		},
		Bypasses: []model.Bypass{{Name: name("free"), Cgroup: "/free"}},
	}
	const web, free = 101, 102
	m, r := newTest(t, DefaultSizes(), &tree{ids: map[string]uint64{"/web": web, "/free": free}})
	apply(t, r, s, nil)
	db := r.workloads[workloadKey{name: name("db")}].index
	const here, elsewhere = 7, 8
	listen := func(netns uint64, a string, port uint32) {
		key := bpf.Listen{Netns: netns, Addr: as16(netip.MustParseAddr(a)), Port: port}
		if err := m.Listeners.Put([]bpf.Listen{key}, []bpf.Listener{{Workload: db, Refs: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	listen(here, "127.0.0.1", 5432)
	listen(here, "0.0.0.0", 5433)
	listen(elsewhere, "::", 5434)
	known := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for _, c := range []struct {
		name             string
		cgroups          []uint64
		addresses        []netip.Addr
		netns            uint64
		to               string
		outcome, because string
	}{
		{"who listens there, allowed", []uint64{web}, nil, here, "127.0.0.1:5432", "ok", "as it is"},
		{"who listens there, denied", nil, nil, here, "127.0.0.1:5432", "denied", "none of their rules"},
		{"nowhere is here", nil, nil, here, "0.0.0.0:5432", "denied", "none of their rules"},
		{"on all addresses", nil, nil, here, "127.9.9.9:5433", "denied", "none of their rules"},
		{"another namespace's loopback", nil, nil, here, "127.0.0.1:5434", "ok", "as it is"},
		{"a namespace that is not known", nil, nil, 0, "127.0.0.1:5432", "depends", "shop/db listens at that port"},
		{"an address that may be somebody's", nil, nil, here, "192.0.2.1:5434", "depends", "shop/db listens at that port"},
		{"the same, allowed anyway", []uint64{web}, nil, here, "192.0.2.1:5434", "ok", "as it is"},
		{"a port that nobody listens at", nil, nil, here, "192.0.2.1:1", "ok", "as it is"},
		{"an address that is not known", []uint64{web}, nil, here, "10.1.0.1:80", "depends", "rules ask for the client's address"},
		{"an address that is denied", []uint64{web}, known, here, "10.1.0.1:80", "denied", "deny shop/not-from-ten rule 0"},
		{"one who is bypassed, to who judges", []uint64{free}, nil, here, "10.1.0.1:80", "denied", "the server's side judges"},
		{"one who is bypassed, elsewhere", []uint64{free}, nil, here, "192.0.2.1:1", "ok", "is bypassed"},
	} {
		e, err := r.Explain(&Question{Cgroups: c.cgroups, Addresses: c.addresses, Netns: c.netns, Dialled: netip.MustParseAddrPort(c.to)})
		if err != nil {
			t.Fatal(err)
		}
		if e.Outcome != c.outcome || !strings.Contains(e.Because, c.because) {
			t.Errorf("%s: %s: %s, want %s: %s (%+v)", c.name, e.Outcome, e.Because, c.outcome, c.because, e.Policy)
		}
	}
}
