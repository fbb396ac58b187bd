package userspace

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
)

// Source measures the user-space side by replay. It needs no privileges.
type Source struct{}

// Name is that of the source.
func (Source) Name() string { return "userspace" }

// extent is how much is measured.
type extent struct {
	rounds      int
	ends        int   // of a sample
	connections []int // open ends
	edges       []int
}

var (
	full  = extent{rounds: 40, ends: 20_000, connections: []int{1_000, 10_000, 100_000, 1_000_000}, edges: []int{10, 100, 1_000, 10_000, 100_000}}
	quick = extent{rounds: 15, ends: 10_000, connections: []int{1_000, 100_000}, edges: []int{10, 1_000}}
)

// heldConnections is the number of open ends whose memory has a budget.
const heldConnections = 100_000

// Measure implements figure.Source.
func (Source) Measure(ctx context.Context, o figure.Options) ([]figure.Figure, error) {
	m := measurement{ctx: ctx, log: o.Log, extent: full, random: rand.New(rand.NewPCG(o.Seed, 0))}
	if o.Quick {
		m.extent = quick
	}
	if m.log == nil {
		m.log = io.Discard
	}
	// One core does it all, as if the outputs were functions that are called: side by side on the two threads of one core they would slow each other
	// down, and the figure would be of that.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, step := range []func() error{m.costs, m.connections, m.edges} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("measure user space: %w", err)
		}
	}
	return m.figures, nil
}

type measurement struct {
	ctx context.Context
	log io.Writer
	extent
	random  *rand.Rand
	gauge   gauge
	figures []figure.Figure
}

func (m *measurement) add(f figure.Figure) {
	f.Name = "userspace." + f.Name
	m.figures = append(m.figures, f)
}

// outputs are what is measured, each with what comes before it.
var outputs = []struct {
	name    string
	outputs Outputs
	record  string // what one end adds to the one before
	without int    // the index of the one before
	note    string
}{
	{"edges", Outputs{}, "event", 0, "to the edge table"},
	{"json", Outputs{JSON: true}, "line", 0, "to the edge table and as a line of JSON"},
	{"logs", Outputs{Logs: true}, "record", 0, "to the edge table and as a log record in OTLP bytes"},
	{"spans", Outputs{Logs: true, Spans: true}, "span", 2, "to the edge table, as a log record and as a span in OTLP bytes"},
}

// costs measures CPU time and allocations of a connection's end.
func (m *measurement) costs() error {
	fmt.Fprintln(m.log, "userspace: the cost of a connection's end")
	costs := make([]cost, len(outputs)) // of all rounds
	of := make([]sampled, 0, len(outputs))
	for _, o := range outputs {
		s, err := newSubject(Typical, o.outputs)
		if err != nil {
			return err
		}
		defer s.agent.Close()
		of = append(of, sampled{subject: s})
	}
	if err := m.sample(of, func(i int, c cost) {
		costs[i].ends += c.ends
		costs[i].events += c.events
		costs[i].allocations += c.allocations
		costs[i].bytes += c.bytes
	}); err != nil {
		return err
	}
	for i, o := range outputs {
		m.add(figure.Figure{Name: o.name + ".cpu", Unit: "us", Note: "CPU time of a connection's end, " + o.note, Samples: of[i].samples})
		per := func(total func(cost) uint64) float64 {
			if i == 0 {
				return round(float64(total(costs[i])) / float64(costs[i].events))
			}
			before := costs[o.without]
			return round(float64(total(costs[i]))/float64(costs[i].ends) - float64(total(before))/float64(before.ends))
		}
		m.add(figure.Figure{Name: o.name + ".allocations", Unit: "1", Note: "for one " + o.record, Value: per(func(c cost) uint64 { return c.allocations })})
		m.add(figure.Figure{Name: o.name + ".bytes", Unit: "bytes", Note: "allocated for one " + o.record, Value: per(func(c cost) uint64 { return c.bytes })})
	}
	perEnd := float64(costs[0].events) / float64(costs[0].ends)
	rate := figure.Figure{Name: "edges.events", Unit: "1/s", Better: figure.Higher, Note: "events a second and core, to the edge table"}
	for _, us := range of[0].samples {
		rate.Samples = append(rate.Samples, perEnd/us*1e6)
	}
	m.add(rate)
	return nil
}

// round leaves hundredths: what the runtime allocates by itself now and then is less.
func round(v float64) float64 { return math.Round(v*100) / 100 }

type sampled struct {
	*subject
	samples []float64 // us of an end
}

// sample plays each subject once a round, in an order shuffled anew, each beside the gauge. A sample is in microseconds of the machine as it
// was when the gauge was quickest.
func (m *measurement) sample(of []sampled, each func(int, cost)) error {
	type raw struct{ cost, gauge float64 }
	all := make([][]raw, len(of))
	best := math.Inf(1)
	for range m.rounds {
		for _, i := range m.random.Perm(len(of)) {
			if err := m.ctx.Err(); err != nil {
				return err
			}
			gauge := m.gauge.run()
			c, err := of[i].play(m.ends)
			if err != nil {
				return err
			}
			speed := float64(gauge+m.gauge.run()) / 2
			best = min(best, speed)
			all[i] = append(all[i], raw{c.cpuPerEnd(), speed})
			if each != nil {
				each(i, c)
			}
		}
	}
	for i := range of {
		for _, r := range all[i] {
			of[i].samples = append(of[i].samples, r.cost*best/r.gauge)
		}
	}
	fmt.Fprintf(m.log, "userspace: the gauge's best is %v\n", time.Duration(best))
	return nil
}

// connections measures how cost and memory grow with the connections that are open.
func (m *measurement) connections() error {
	for _, n := range m.extent.connections {
		fmt.Fprintf(m.log, "userspace: %d open ends\n", n)
		s, err := newSubject(Typical, Outputs{})
		if err != nil {
			return err
		}
		before := heap()
		if err := opened(Typical, n, s.agent.Play); err != nil {
			return err
		}
		each := (heap() - before) / float64(n)
		if n == heldConnections {
			m.add(figure.Figure{Name: "connection.memory", Unit: "bytes", Note: "of an open connection's end, of 100,000", Value: math.Round(each)})
		}
		if n >= 10_000 { // fewer find room in the table that the stream has made
			m.add(figure.Figure{Name: fmt.Sprintf("growth.connections_%d.memory", n), Unit: "bytes", Note: "of an open connection's end", Value: math.Round(each)})
		}
		of := []sampled{{subject: s}}
		if err := m.sample(of, nil); err != nil {
			return err
		}
		m.add(figure.Figure{
			Name: fmt.Sprintf("growth.connections_%d.cpu", n), Unit: "us", Samples: of[0].samples,
			Note: "CPU time of a connection's end, to the edge table",
		})
		if err := s.agent.Close(); err != nil {
			return err
		}
	}
	return nil
}

// edges measures how cost and memory grow with the edges.
func (m *measurement) edges() error {
	for _, n := range m.extent.edges {
		fmt.Fprintf(m.log, "userspace: %d edges\n", n)
		load := Typical
		load.Edges = n
		load.Connections = max(load.Connections, n/2+n/20) // each edge has some
		agent, err := NewAgent(load, Outputs{})
		if err != nil {
			return err
		}
		s := &subject{agent: agent, stream: NewStream(load)}
		before := heap()
		if err := s.warm(); err != nil {
			return err
		}
		each := (heap() - before) / float64(agent.Edges.Counts().Edges)
		if n >= 1000 { // of fewer, what is not of edges is most of it
			m.add(figure.Figure{Name: fmt.Sprintf("growth.edges_%d.memory", n), Unit: "bytes", Note: "of an edge", Value: math.Round(each)})
		}
		of := []sampled{{subject: s}}
		if err := m.sample(of, nil); err != nil {
			return err
		}
		m.add(figure.Figure{
			Name: fmt.Sprintf("growth.edges_%d.cpu", n), Unit: "us", Samples: of[0].samples,
			Note: "CPU time of a connection's end, to the edge table",
		})
		if err := s.agent.Close(); err != nil {
			return err
		}
	}
	return nil
}
