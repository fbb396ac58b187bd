package maps

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// world makes random snapshots, each some steps from the last. Small numbers, so that names, addresses and ports meet again.
type world struct {
	*rand.Rand
	generation uint64
	workloads  map[int]model.Workload
	services   map[int]model.Service
	endpoints  map[int]model.Endpoint
	policies   map[int]model.AuthorizationPolicy
	bypasses   map[int]model.Bypass
	out        Health
	node       model.Locality
}

const (
	someWorkloads = 12
	someServices  = 8
	someEndpoints = 40
	somePolicies  = 8
)

func newWorld(seed uint64) *world {
	return &world{
		Rand: rand.New(rand.NewPCG(seed, 1)), workloads: make(map[int]model.Workload), services: make(map[int]model.Service),
		endpoints: make(map[int]model.Endpoint), policies: make(map[int]model.AuthorizationPolicy), bypasses: make(map[int]model.Bypass),
		out: make(Health), node: model.Locality{Region: "r0", Zone: "z0", Node: "n0"},
	}
}

func (w *world) namespace(i int) string { return fmt.Sprintf("ns%d", i%3) }

func (w *world) step() {
	switch i := w.IntN(someEndpoints); w.IntN(12) {
	case 0, 1:
		i %= someWorkloads
		w.toggle(func() { w.workloads[i] = w.workload(i) }, func() { delete(w.workloads, i) })
	case 2, 3:
		i %= someServices
		w.toggle(func() { w.services[i] = w.service(i) }, func() { delete(w.services, i) })
	case 4, 5, 6, 7:
		w.toggle(func() { w.endpoints[i] = w.endpoint(i) }, func() { delete(w.endpoints, i) })
	case 8:
		i %= somePolicies
		w.toggle(func() { w.policies[i] = w.policy(i) }, func() { delete(w.policies, i) })
	case 9:
		i %= 3
		w.toggle(func() { w.bypasses[i] = w.bypass(i) }, func() { delete(w.bypasses, i) })
	default:
		name := model.Name{Namespace: w.namespace(i), Name: fmt.Sprintf("e%d", i)}
		w.toggle(func() { w.out[name] = struct{}{} }, func() { delete(w.out, name) })
	}
}

func (w *world) toggle(set, unset func()) {
	if w.IntN(4) > 0 {
		set()
	} else {
		unset()
	}
}

func (w *world) place() model.Locality {
	return model.Locality{Region: fmt.Sprintf("r%d", w.IntN(2)), Zone: fmt.Sprintf("z%d", w.IntN(2)), Node: fmt.Sprintf("n%d", w.IntN(2))}
}

func (w *world) limits() model.Limits {
	if w.IntN(2) == 0 {
		return model.Limits{}
	}
	return model.Limits{MaxConnections: w.Uint32N(3), ConnectionsPerSecond: w.Uint32N(3)}
}

func (w *world) workload(i int) model.Workload {
	m := model.Workload{
		Name: model.Name{Namespace: w.namespace(i), Name: fmt.Sprintf("w%d", i)}, Identity: w.identity(), Locality: w.place(), Limits: w.limits(),
		Labels: map[string]string{"app": fmt.Sprintf("a%d", w.IntN(3))},
	}
	if w.IntN(2) == 0 {
		m.Cgroup = fmt.Sprintf("/c%d/w", i)
	}
	// Addresses go from one to another: each has one owner at a time.
	taken := make(map[netip.Addr]bool)
	for j, other := range w.workloads {
		for _, a := range other.Addresses {
			taken[a] = taken[a] || j != i
		}
	}
	number := byte(w.IntN(someWorkloads))
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, number}), netip.MustParseAddr(fmt.Sprintf("fd00::%d", number))} {
		if !taken[a] && w.IntN(4) > 0 {
			m.Addresses = append(m.Addresses, a)
		}
	}
	return m
}

func (w *world) identity() string {
	return [...]string{"", "mesh/a", "mesh/b", "other/a", "other/c"}[w.IntN(5)]
}

func (w *world) service(i int) model.Service {
	s := model.Service{
		Name: model.Name{Namespace: w.namespace(i), Name: fmt.Sprintf("s%d", i)}, Balancer: model.Balancer(w.IntN(4)), Limits: w.limits(),
		LocalityMode: model.LocalityMode(w.IntN(3)), LocalityScope: model.Scope(1 + w.IntN(4)),
		Ports: []model.Port{{Name: "http", Port: 80, TargetPort: 8080}},
	}
	taken := make(map[netip.Addr]bool)
	for j, other := range w.services {
		for _, a := range other.Addresses {
			taken[a] = taken[a] || j != i
		}
	}
	number := byte(w.IntN(someServices))
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, number}), netip.MustParseAddr(fmt.Sprintf("fd00:96::%d", number))} {
		if !taken[a] && w.IntN(4) > 0 {
			s.Addresses = append(s.Addresses, a)
		}
	}
	if w.IntN(2) == 0 {
		s.Ports = append(s.Ports, model.Port{Name: "any"})
	}
	return s
}

func (w *world) endpoint(i int) model.Endpoint {
	e := model.Endpoint{
		Name:     model.Name{Namespace: w.namespace(i), Name: fmt.Sprintf("e%d", i)},
		Service:  model.Name{Namespace: w.namespace(i % someServices), Name: fmt.Sprintf("s%d", i%someServices)},
		Weight:   w.Uint32N(4),
		Priority: w.Uint32N(2), Health: model.Health(max(0, w.IntN(6)-3)), Locality: w.place(),
	}
	if w.IntN(2) == 0 {
		n := w.IntN(someWorkloads)
		e.Workload = model.Name{Namespace: w.namespace(n), Name: fmt.Sprintf("w%d", n)}
	}
	if e.Workload == (model.Name{}) || w.IntN(3) == 0 {
		e.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd01::%d", i))}
	}
	if w.IntN(4) == 0 {
		e.Port = 9000
	}
	return e
}

func (w *world) bypass(i int) model.Bypass {
	b := model.Bypass{Name: model.Name{Namespace: w.namespace(i), Name: fmt.Sprintf("b%d", i)}}
	switch w.IntN(3) {
	case 0:
		b.Selector = map[string]string{"app": "a0"}
	case 1:
		b.Cgroup = fmt.Sprintf("/alone%d", i)
	default:
		b.Cgroup = fmt.Sprintf("/c%d/w", w.IntN(someWorkloads))
	}
	return b
}

func (w *world) policy(i int) model.AuthorizationPolicy {
	p := model.AuthorizationPolicy{
		Name: model.Name{Namespace: w.namespace(i), Name: fmt.Sprintf("p%d", i)}, Mesh: w.IntN(4) == 0, Action: model.Action(w.IntN(2)),
		DryRun: w.IntN(4) == 0,
	}
	if w.IntN(2) == 0 {
		p.Selector = map[string]string{"app": fmt.Sprintf("a%d", w.IntN(3))}
	}
	for range w.IntN(3) {
		var r model.Rule
		for range w.IntN(3) {
			r.From = append(r.From, w.source())
		}
		for range w.IntN(3) {
			r.To = append(r.To, model.Operation{Ports: w.ports(), NotPorts: w.ports()})
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}

func (w *world) source() model.Source {
	identities := []string{"*", "mesh/*", "*/a", "mesh/a", "other/c", "nobody"}
	namespaces := []string{"*", "ns*", "*1", "ns0", "ns2", "nowhere"}
	return model.Source{
		Identities: some(w, identities), NotIdentities: some(w, identities), Namespaces: some(w, namespaces), NotNamespaces: some(w, namespaces),
		IPBlocks: some(w, blocks), NotIPBlocks: some(w, blocks),
	}
}

var blocks = func() (all []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.4/30", "10.0.0.5/32", "192.168.0.0/16", "::/0", "::/64", "fd00::/8", "fd00::4/126", "fd00::5/128",
		"::ffff:10.1.0.0/112",
	} {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}()

func some[T any](w *world, from []T) (chosen []T) {
	for range max(0, w.IntN(5)-2) {
		chosen = append(chosen, from[w.IntN(len(from))])
	}
	return chosen
}

func (w *world) ports() []uint16 { return some(w, []uint16{80, 443, 8080, 9000}) }

func values[T any](all map[int]T) (list []T) {
	for i := range 64 {
		if v, ok := all[i]; ok {
			list = append(list, v)
		}
	}
	return list
}

func (w *world) snapshot() *model.Snapshot {
	w.generation++
	return &model.Snapshot{
		Generation: w.generation, Node: w.node, Workloads: values(w.workloads), Services: values(w.services), Endpoints: values(w.endpoints),
		Policies: values(w.policies), Bypasses: values(w.bypasses),
	}
}
