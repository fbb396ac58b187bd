// Package mesh measures what the mesh costs: a connect through a service against one without, however large the mesh is, and against other ways to
// have services; and how long a change of it takes.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
)

// Source measures that. Rivals that are not on this machine are in Absent after Measure.
type Source struct {
	absent map[string]string
	burn   time.Duration // wasted in each connect() through a service: what the gate's own test injects
}

// Name is mesh.
func (*Source) Name() string { return "mesh" }

// Absent returns the beginnings of the names of figures that cannot be measured on this machine, with the reason, after Measure.
func (s *Source) Absent() map[string]string { return s.absent }

// part is figures that are measured together.
type part = func(context.Context, figure.Options) ([]figure.Figure, error)

func (s *Source) parts() []part { return []part{counts, applies, s.frontends, s.flats, s.rivals} }

// Measure needs root.
func (s *Source) Measure(ctx context.Context, o figure.Options) ([]figure.Figure, error) {
	return measure(ctx, o, s.parts())
}

func measure(ctx context.Context, o figure.Options, parts []part) (figures []figure.Figure, err error) {
	for _, f := range parts {
		some, err := f(ctx, o)
		if err != nil {
			return nil, err
		}
		figures = append(figures, some...)
	}
	return figures, nil
}

// MeasureAgain measures those groups again that have one of the figures.
func (s *Source) MeasureAgain(ctx context.Context, o figure.Options, names []string) ([]figure.Figure, error) {
	of := func(prefixes ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
		})
	}
	var parts []part
	if of("mesh.apply.") {
		parts = append(parts, applies)
	}
	if of("mesh.aa.", "mesh.frontend.", "mesh.outside.") {
		parts = append(parts, s.frontends)
	}
	if of("mesh.flat.", "mesh.spread.") {
		parts = append(parts, s.flats)
	}
	if of("mesh.rival.") {
		parts = append(parts, s.rivals)
	}
	o.Seed++
	return measure(ctx, o, parts)
}

// plan is how often conditions are compared.
type plan struct {
	openings int // how often all of them are set up anew: a block of the bootstrap each
	rounds   int // of each opening
}

// all is what was measured, by the names of conditions.
type all map[string]*samples

// compare measures conditions in turns.
func (s *Source) compare(ctx context.Context, seed uint64, p plan, conditions []condition) (all, error) {
	shuffled := rand.New(rand.NewPCG(seed, 0))
	measured := make(all)
	for range p.openings {
		if err := s.compareOnce(ctx, shuffled, p.rounds, conditions, measured); err != nil {
			return nil, err
		}
	}
	return measured, nil
}

func (s *Source) compareOnce(ctx context.Context, shuffled *rand.Rand, rounds int, conditions []condition, into all) (err error) {
	g, absent, err := open(conditions, shuffled)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	for kind, reason := range absent {
		if s.absent == nil {
			s.absent = make(map[string]string)
		}
		s.absent["mesh.rival."+kind+"."] = reason
	}
	if err := g.measure(ctx, rounds, shuffled); err != nil {
		return err
	}
	for _, l := range g.all {
		if into[l.name] == nil {
			into[l.name] = new(samples)
		}
		sum := into[l.name]
		sum.connect, sum.reached = append(sum.connect, l.connect...), append(sum.reached, l.reached...)
	}
	return nil
}

// frontends compares connects without a mesh, with one that has nothing to say of them, and through a service.
func (s *Source) frontends(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	p := plan{8, 20}
	if !o.Quick {
		p = plan{30, 40}
	}
	m, err := s.compare(ctx, o.Seed, p, []condition{
		{name: "plain", observed: true},
		{name: "aa", observed: true},
		{name: "outside", observed: true, mesh: shape{1, 1}, direct: true},
		{name: "frontend", observed: true, mesh: shape{1, 1}, burn: s.burn},
	})
	if err != nil {
		return nil, err
	}
	for _, c := range []struct{ name, note string }{
		{"aa", "the harness's own check: the same twice"},
		{"frontend", "connect() through a service, to the same without a mesh; both observed, at both ends"},
		{"outside", "connect() to what is no service, with a mesh, to the same without one; both observed"},
	} {
		name := "mesh." + c.name + ".connect"
		figures = append(figures,
			figure.Figure{Name: name, Unit: "ns", Samples: m[c.name].connect, Base: m["plain"].connect, Block: p.rounds, Note: c.note},
			figure.Figure{
				Name: name + ".added", Unit: "ns", Samples: combine(m[c.name].connect, -1, m["plain"].connect), Block: p.rounds,
				Note: "the differences within rounds: " + c.note,
			})
	}
	return figures, nil
}

// combine adds the second, times a factor, to the first.
func combine(samples []float64, factor float64, more []float64) []float64 {
	sum := make([]float64, len(samples))
	for i := range sum {
		sum[i] = samples[i] + factor*more[i]
	}
	return sum
}

// flats compares the same connect in smaller and larger meshes, and connects that are spread over them.
func (s *Source) flats(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	p := plan{3, 12}
	if !o.Quick {
		p = plan{10, 60}
	}
	m, err := s.compare(ctx, o.Seed, p, []condition{
		{name: "plain", observed: true},
		{name: "plain_1000", like: "plain", targets: 1000},
		{name: "plain_50000", like: "plain", targets: 50000},
		{name: "services_1", observed: true, mesh: shape{1, 1}},
		{name: "services_1000", observed: true, mesh: shape{1000, 1}, targets: 1},
		{name: "services_50000", observed: true, mesh: shape{50000, 1}, targets: 1},
		{name: "endpoints_1000", observed: true, mesh: shape{1, 1000}},
		{name: "spread_1000", like: "services_1000", targets: 1000},
		{name: "spread_50000", like: "services_50000", targets: 50000},
	})
	if err != nil {
		return nil, err
	}
	one := m["services_1"].connect
	// What the kernel itself takes longer when it is now this, now that address.
	kernel := func(spread string) []float64 { return combine(m[spread].connect, -1, m["plain"].connect) }
	for _, c := range []struct {
		figure, condition string
		base              []float64
		note              string
	}{
		{"flat.services_1000", "services_1000", one, "connect() through one service among so many, to the same where it is alone"},
		{"flat.services_50000", "services_50000", one, "connect() through one service among so many, to the same where it is alone"},
		{
			"flat.endpoints_1000", "endpoints_1000", combine(one, 1, kernel("plain_1000")),
			"connect() through a service with so many endpoints, to one with one and what so many addresses cost without a mesh",
		},
		{
			"spread.services_1000", "spread_1000", combine(one, 1, kernel("plain_1000")),
			"connect() through all of so many services in turn, to one alone and what so many addresses cost without a mesh: caches that are cold",
		},
		{
			"spread.services_50000", "spread_50000", combine(one, 1, kernel("plain_50000")),
			"connect() through all of so many services in turn, to one alone and what so many addresses cost without a mesh: caches that are cold",
		},
	} {
		figures = append(figures, figure.Figure{
			Name: "mesh." + c.figure + ".connect", Unit: "ns", Samples: m[c.condition].connect, Base: c.base, Block: p.rounds, Note: c.note,
		})
	}
	return figures, nil
}

// rivals compares a connect through a service with the same services by other means. All services are dialled in turn.
func (s *Source) rivals(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	p := plan{3, 12}
	if !o.Quick {
		p = plan{10, 40}
	}
	var pairs [][3]string // what of ours stands against which rival, and its kind
	conditions := []condition{{name: "bare"}, {name: "aa"}}
	for _, c := range []struct {
		services int
		kinds    []string
	}{
		{1, []string{nftables, iptables, haproxy}},
		{1000, []string{nftables, iptables, haproxy}},
		{10000, []string{nftables}},
	} {
		services := fmt.Sprintf("services_%d", c.services)
		conditions = append(conditions, condition{name: services, observed: true, mesh: shape{c.services, rivalEndpoints}})
		for _, kind := range c.kinds {
			name := kind + "." + services
			r := &rival{kind: kind, services: c.services}
			conditions = append(conditions, condition{name: name, observed: true, rival: r}, condition{name: name + ".unobserved", rival: r})
			pairs = append(pairs, [3]string{name, services, kind}, [3]string{name + ".unobserved", services, kind})
		}
	}
	m, err := s.compare(ctx, o.Seed, p, conditions)
	if err != nil {
		return nil, err
	}
	add := func(name string, samples, base *samples, note string) {
		name = "mesh.rival." + name
		figures = append(figures,
			figure.Figure{
				Name: name + ".connect", Unit: "ns", Samples: samples.connect, Base: base.connect, Block: p.rounds, Note: note + ": connect() alone",
			},
			figure.Figure{
				Name: name + ".reached", Unit: "ns", Samples: samples.reached, Base: base.reached, Block: p.rounds,
				Note: note + ": from before connect() until the first byte of the endpoint's is here",
			})
	}
	add("aa", m["aa"], m["bare"], "the harness's own check: the same twice, without services and unobserved")
	for _, pair := range pairs {
		if s.absent["mesh.rival."+pair[2]+"."] != "" {
			continue
		}
		note := "by the mesh, to by " + pair[2] + "; both observed"
		if strings.HasSuffix(pair[0], ".unobserved") {
			note = "by the mesh and observed, to by " + pair[2] + " and not observed"
		}
		add(pair[0], m[pair[1]], m[pair[0]], note)
	}
	return figures, nil
}
