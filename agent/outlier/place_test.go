package outlier

import (
	"net/netip"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// TestPlaces resolves where endpoints are.
func TestPlaces(t *testing.T) {
	addresses := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	v4 := func(text string) place { return place{v4: netip.MustParseAddrPort(text)} }
	http := []model.Port{{Name: "http", Port: 80, TargetPort: 8080}}
	tests := []struct {
		name      string
		ports     []model.Port
		endpoint  model.Endpoint
		want      place
		checkable bool
	}{
		{"target port", http, model.Endpoint{Addresses: addresses("10.0.0.1")}, v4("10.0.0.1:8080"), true},
		{"no target port", []model.Port{{Port: 80}}, model.Endpoint{Addresses: addresses("10.0.0.1")}, v4("10.0.0.1:80"), true},
		{"the endpoint's port", http, model.Endpoint{Addresses: addresses("10.0.0.1"), Port: 9}, v4("10.0.0.1:9"), true},
		{
			"the endpoint's for that port", http,
			model.Endpoint{Addresses: addresses("10.0.0.1"), Port: 9, Ports: map[string]uint16{"http": 7, "": 6}},
			v4("10.0.0.1:7"), true,
		},
		{
			"the first that is not any port",
			[]model.Port{{Name: "all"}, {Name: "a", Port: 81}, {Name: "b", Port: 82}},
			model.Endpoint{Addresses: addresses("10.0.0.1")},
			v4("10.0.0.1:81"), true,
		},
		{"any port", []model.Port{{}}, model.Endpoint{Addresses: addresses("10.0.0.1")}, v4("10.0.0.1:0"), false},
		{"any port, and the endpoint's", []model.Port{{}}, model.Endpoint{Addresses: addresses("10.0.0.1"), Port: 9}, v4("10.0.0.1:9"), true},
		{"no address", http, model.Endpoint{}, place{}, false},
		{"no such workload", http, model.Endpoint{Workload: name("nobody")}, place{}, false},
		{
			"both families, the first of each", http,
			model.Endpoint{Addresses: addresses("fd00::2", "10.0.0.1", "fd00::1", "10.0.0.2")},
			place{v4: netip.MustParseAddrPort("10.0.0.1:8080"), v6: netip.MustParseAddrPort("[fd00::2]:8080")},
			true,
		},
		{"v4-mapped", http, model.Endpoint{Addresses: addresses("::ffff:10.0.0.1")}, v4("10.0.0.1:8080"), true},
		{
			"the workload's addresses", http,
			model.Endpoint{Workload: name("db-1")},
			place{v4: netip.MustParseAddrPort("10.9.0.1:8080"), v6: netip.MustParseAddrPort("[fd09::1]:8080")},
			true,
		},
		{"its own rather than those", http, model.Endpoint{Workload: name("db-1"), Addresses: addresses("10.0.0.1")}, v4("10.0.0.1:8080"), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := test.endpoint
			e.Name, e.Service = name("a"), name("db")
			snapshot := &model.Snapshot{
				Services:  []model.Service{{Name: name("unwanted")}, {Name: name("db"), Ports: test.ports}},
				Workloads: []model.Workload{{Name: name("db-1"), Addresses: addresses("10.9.0.1", "fd09::1")}},
				Endpoints: []model.Endpoint{{Name: name("b"), Service: name("unwanted")}, {Name: name("c"), Service: name("missing")}, e},
			}
			var got []place
			visit(snapshot, func(s *model.Service) bool { return s.Name == name("db") }, func(_ *model.Endpoint, _ *model.Service, at place) {
				got = append(got, at)
			})
			if len(got) != 1 || got[0] != test.want || got[0].checkable() != test.checkable {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}
