package maps

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Compile says what of a snapshot the kernel has to hold. It is an error if that exceeds the sizes, or if two services have one frontend or two
// workloads one address or cgroup.
func Compile(s *model.Snapshot, h Health, sizes Sizes) (*Mesh, error) {
	return NewCompiler(sizes).Compile(s, h)
}

// Compiler is Compile that remembers the last mesh: what has not changed is not computed again. Not safe for concurrent use.
type Compiler struct {
	sizes Sizes
	last  *Mesh
	node  model.Locality
	rules *rules
}

// NewCompiler returns a compiler that remembers nothing yet.
func NewCompiler(sizes Sizes) *Compiler { return &Compiler{sizes: sizes, last: &Mesh{}} }

// Compile is as the function Compile. After an error it remembers what it did before.
func (c *Compiler) Compile(s *model.Snapshot, h Health) (*Mesh, error) {
	m := &Mesh{Generation: s.Generation}
	r := newRules(s, c.rules)
	workloads := make(map[model.Name]int32, len(s.Workloads))
	for i := range s.Workloads {
		workloads[s.Workloads[i].Name] = int32(i)
	}
	if err := c.compileWorkloads(m, s, r); err != nil {
		return nil, err
	}
	if err := c.compileServices(m, s, h, workloads); err != nil {
		return nil, err
	}
	m.use()
	if err := m.fit(c.sizes); err != nil {
		return nil, err
	}
	c.last, c.node, c.rules = m, s.Node, r
	if len(r.sets) > len(m.Sets) {
		clear(r.sets)
		for _, s := range m.Sets {
			r.sets[s.key] = s
		}
	}
	return m, nil
}

func (c *Compiler) compileWorkloads(m *Mesh, s *model.Snapshot, r *rules) error {
	have := owners{make(map[string]model.Name), make(map[netip.Addr]model.Name, len(s.Workloads))}
	last := c.last.Workloads
	m.Workloads = make([]*Workload, 0, len(s.Workloads))
	for _, i := range sortedBy(s.Workloads, func(w *model.Workload) model.Name { return w.Name }) {
		in := &s.Workloads[i]
		for len(last) > 0 && compareNames(last[0].Name, in.Name) < 0 {
			last = last[1:]
		}
		var w *Workload
		for _, l := range last {
			if l.Name != in.Name {
				break
			}
			if !l.Alone && r == c.rules && sameWorkload(l.inputs, in) {
				w = l
			}
		}
		if w == nil {
			own := *in // the snapshot is not held on to
			var err error
			if w, err = r.workload(&own); err != nil {
				return err
			}
		}
		if n := len(m.Workloads); n > 0 && m.Workloads[n-1].Name == w.Name {
			return fmt.Errorf("two workloads are called %v", w.Name)
		}
		if err := have.add(w); err != nil {
			return err
		}
		m.Workloads = append(m.Workloads, w)
	}
	sets, classes := make(map[*PolicySet]bool), make(map[Class]bool)
	for _, w := range m.Workloads {
		if w.Set != nil && !sets[w.Set] {
			sets[w.Set] = true
			m.Sets = append(m.Sets, w.Set)
		}
		if w.Class != (Class{}) && !classes[w.Class] {
			classes[w.Class] = true
			m.Classes = append(m.Classes, w.Class)
		}
	}
	m.Workloads = append(m.Workloads, r.alone(have.cgroups)...)
	slices.SortStableFunc(m.Workloads, func(a, b *Workload) int { return compareNames(a.Name, b.Name) })
	return nil
}

func (c *Compiler) compileServices(m *Mesh, s *model.Snapshot, h Health, workloads map[model.Name]int32) error {
	endpoints := groupEndpoints(s)
	last := c.last.Services
	frontends := make(map[netip.AddrPort]model.Name, len(s.Services))
	m.Services = make([]*Service, 0, len(s.Services))
	for _, i := range sortedBy(s.Services, func(s *model.Service) model.Name { return s.Name }) {
		in := &s.Services[i]
		for len(last) > 0 && compareNames(last[0].Name, in.Name) < 0 {
			last = last[1:]
		}
		next := func(e int32) endpoint {
			var w *model.Workload
			if at, ok := workloads[s.Endpoints[e].Workload]; ok {
				w = &s.Workloads[at]
			}
			_, out := h[s.Endpoints[e].Name]
			return resolve(&s.Endpoints[e], w, out)
		}
		var compiled *Service
		if len(last) > 0 && last[0].Name == in.Name && c.node == s.Node && sameInputs(last[0].inputs, in, endpoints.of(i), next) {
			compiled = last[0]
		} else {
			inputs := &serviceInputs{service: *in}
			for _, e := range endpoints.of(i) {
				inputs.endpoints = append(inputs.endpoints, next(e))
			}
			var err error
			if compiled, err = compileService(inputs, s.Node); err != nil {
				return err
			}
		}
		if n := len(m.Services); n > 0 && m.Services[n-1].Name == in.Name {
			return fmt.Errorf("two services are called %v", in.Name)
		}
		for _, f := range compiled.Frontends {
			if other, ok := frontends[f.Address]; ok {
				return fmt.Errorf("services %v and %v have the same frontend %v; give it to one", other, in.Name, f.Address)
			}
			frontends[f.Address] = in.Name
		}
		m.Services = append(m.Services, compiled)
	}
	return nil
}

func sameInputs(last *serviceInputs, in *model.Service, endpoints []int32, next func(int32) endpoint) bool {
	if !sameService(&last.service, in) || len(last.endpoints) != len(endpoints) {
		return false
	}
	for i, e := range endpoints {
		if now := next(e); !now.equal(&last.endpoints[i]) {
			return false
		}
	}
	return true
}

// groups are the endpoints of each service, sorted by name.
type groups struct {
	first []int32 // by service, and the end
	all   []int32
}

func (g *groups) of(service int32) []int32 { return g.all[g.first[service]:g.first[service+1]] }

// groupEndpoints leaves out those of services that there are not.
func groupEndpoints(s *model.Snapshot) *groups {
	numbers := make(map[model.Name]int32, len(s.Services))
	for i := range s.Services {
		numbers[s.Services[i].Name] = int32(i)
	}
	g := &groups{first: make([]int32, len(s.Services)+1)}
	order := sortedBy(s.Endpoints, func(e *model.Endpoint) model.Name { return e.Name })
	service := make([]int32, len(order))
	for i, e := range order {
		n, ok := numbers[s.Endpoints[e].Service]
		if !ok {
			n = -1
		} else {
			g.first[n+1]++
		}
		service[i] = n
	}
	for i := range s.Services {
		g.first[i+1] += g.first[i]
	}
	g.all = make([]int32, g.first[len(s.Services)])
	at := slices.Clone(g.first)
	for i, e := range order {
		if n := service[i]; n >= 0 {
			g.all[at[n]] = e
			at[n]++
		}
	}
	return g
}
