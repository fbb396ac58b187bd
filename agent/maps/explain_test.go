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
	ask := func(from, to string) *Explanation {
		t.Helper()
		q := &Question{Dialled: netip.MustParseAddrPort(to), Out: map[model.Name]string{name("cart-6"): "outlier"}}
		if from != "" {
			q.Address = netip.MustParseAddr(from)
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
	// None left.
	less := *s
	less.Generation++
	less.Endpoints = append(slices.Clone(s.Endpoints[1:3]), s.Endpoints[4:]...)
	apply(t, r, &less, out)
	if got := ask("10.0.0.1", "10.96.0.1:80"); got.Outcome != "no_endpoint" || got.Generation != 8 && got.Generation != 7 {
		t.Errorf("without an endpoint: %+v", got)
	}
}
