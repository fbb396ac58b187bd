package maps

import (
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// TestEndpointStates has each endpoint of a service in one state, and says of which there are how many.
func TestEndpointStates(t *testing.T) {
	far := model.Locality{Region: "q", Zone: "z", Subzone: "s", Node: "n"}
	e := func(name string, change func(*model.Endpoint)) model.Endpoint {
		made := endpointAt(name, "10.1.0.1")
		if change != nil {
			change(&made)
		}
		return made
	}
	health := func(h model.Health) func(*model.Endpoint) { return func(e *model.Endpoint) { e.Health = h } }
	at := func(l model.Locality) func(*model.Endpoint) { return func(e *model.Endpoint) { e.Locality = l } }
	priority := func(e *model.Endpoint) { e.Priority = 1 }
	six := func(e *model.Endpoint) { e.Addresses = ip("fd01::1") }
	both := func(s *model.Service) { s.Addresses = ip("10.96.0.1", "fd00::1") }
	strict := func(s *model.Service) { s.LocalityMode, s.LocalityScope = model.LocalityStrict, model.ScopeZone }
	failover := func(s *model.Service) { s.LocalityMode = model.LocalityFailover }
	for _, c := range []struct {
		name      string
		service   func(*model.Service)
		endpoints []model.Endpoint
		out       []string
		want      EndpointCounts
		lacks     bool
	}{
		{name: "none", lacks: true},
		{name: "all", endpoints: []model.Endpoint{e("a", nil), e("b", nil)}, want: EndpointCounts{StateEligible: 2}},
		{
			name: "one of each health", endpoints: []model.Endpoint{e("a", nil), e("b", health(model.Unhealthy)), e("c", health(model.Draining)), e("d", nil)},
			out: []string{"d"}, want: EndpointCounts{StateEligible: 1, StateUnhealthy: 1, StateDraining: 1, StateEjected: 1}, lacks: true,
		},
		{
			name: "what its health says is told of one that is ejected as well", endpoints: []model.Endpoint{e("a", health(model.Unhealthy)), e("b", health(model.Draining))},
			out: []string{"a", "b"}, want: EndpointCounts{StateUnhealthy: 1, StateDraining: 1}, lacks: true,
		},
		{name: "all ejected", endpoints: []model.Endpoint{e("a", nil), e("b", nil)}, out: []string{"a", "b"}, want: EndpointCounts{StateEjected: 2}, lacks: true},
		{
			name: "a lower priority", endpoints: []model.Endpoint{e("a", nil), e("b", priority), e("c", priority)},
			want: EndpointCounts{StateEligible: 1, StateStandby: 2},
		},
		{
			name: "the lower priority is out", endpoints: []model.Endpoint{e("a", nil), e("b", priority), e("c", priority)}, out: []string{"a"},
			want: EndpointCounts{StateEligible: 2, StateEjected: 1}, lacks: true,
		},
		{
			name: "farther away", service: failover, endpoints: []model.Endpoint{e("a", nil), e("b", at(far))},
			want: EndpointCounts{StateEligible: 1, StateStandby: 1},
		},
		{
			name: "beyond a strict locality, whether it is out or not", service: strict, endpoints: []model.Endpoint{e("a", nil), e("b", at(far)), e("c", at(far))},
			out: []string{"c"}, want: EndpointCounts{StateEligible: 1, StateExcluded: 2},
		},
		{
			name: "nobody within a strict locality", service: strict, endpoints: []model.Endpoint{e("b", at(far))}, want: EndpointCounts{StateExcluded: 1},
		},
		{
			name: "weight 0", endpoints: []model.Endpoint{e("a", nil), e("b", func(e *model.Endpoint) { e.Weight = 0 })},
			want: EndpointCounts{StateEligible: 1, StateExcluded: 1},
		},
		{name: "another family", endpoints: []model.Endpoint{e("a", nil), e("b", six)}, want: EndpointCounts{StateEligible: 1, StateExcluded: 1}},
		{name: "a family each", service: both, endpoints: []model.Endpoint{e("a", nil), e("b", six)}, want: EndpointCounts{StateEligible: 2}},
		{
			name: "on standby in one family, serving in the other", service: both,
			endpoints: []model.Endpoint{e("a", nil), e("b", func(e *model.Endpoint) { e.Priority, e.Addresses = 1, ip("10.1.0.2", "fd01::1") })},
			want:      EndpointCounts{StateEligible: 2},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := model.Service{Name: cart, Addresses: ip("10.96.0.1"), Ports: []model.Port{{Port: 80}}}
			if c.service != nil {
				c.service(&s)
			}
			out := make(Health)
			for _, name := range c.out {
				out[model.Name{Namespace: "shop", Name: name}] = struct{}{}
			}
			mesh, err := Compile(&model.Snapshot{Node: here, Services: []model.Service{s}, Endpoints: c.endpoints}, out, DefaultSizes())
			if err != nil {
				t.Fatal(err)
			}
			if have := mesh.Services[0].Endpoints; have != c.want || have.Lacks() != c.lacks {
				t.Errorf("%v (lacks: %v), want %v (lacks: %v)", have, have.Lacks(), c.want, c.lacks)
			}
		})
	}
}

// TestEndpointStatesFollow has a compiler that remembers count anew what changed.
func TestEndpointStatesFollow(t *testing.T) {
	c := NewCompiler(DefaultSizes())
	snapshot := shop(nil, "e1", "e2")
	one := Health{model.Name{Namespace: "shop", Name: "e1"}: {}}
	for i, step := range []struct {
		out  Health
		want EndpointCounts
	}{
		{nil, EndpointCounts{StateEligible: 2}}, {one, EndpointCounts{StateEligible: 1, StateEjected: 1}}, {nil, EndpointCounts{StateEligible: 2}},
	} {
		mesh, err := c.Compile(snapshot, step.out)
		if err != nil {
			t.Fatal(err)
		}
		if have := mesh.Services[0].Endpoints; have != step.want {
			t.Errorf("step %d: %v, want %v", i, have, step.want)
		}
	}
}
