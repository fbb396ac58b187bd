// Package kernel measures what Sidelight's programs cost in the kernel: instructions and runs for each connection, which no noise moves, and
// time.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/bench/figure"
)

// Source measures them. All its connections are on loopback, made by one thread that is both ends, so both ends are in each figure that is "a
// connection".
type Source struct{}

// Name is kernel.
func (Source) Name() string { return "kernel" }

// Measure needs root.
func (Source) Measure(ctx context.Context, o figure.Options) ([]figure.Figure, error) {
	var figures []figure.Figure
	for _, part := range []func(context.Context, figure.Options) ([]figure.Figure, error){counts, sweeps, times, latencies} {
		some, err := part(ctx, o)
		if err != nil {
			return nil, err
		}
		figures = append(figures, some...)
	}
	return figures, nil
}

// counts are those figures that are the same each time.
func counts(ctx context.Context, _ figure.Options) (figures []figure.Figure, err error) {
	stop, err := datapath.Measure() // it counts runs only then
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, o := range []options{{counted: true}, {counted: true, noFirstBytes: true}, {counted: true, traced: true}} {
		some, err := countsWith(ctx, o)
		if err != nil {
			return nil, err
		}
		figures = append(figures, some...)
	}
	return figures, nil
}

func countsWith(ctx context.Context, o options) (figures []figure.Figure, err error) {
	s, err := openMesh(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	suffix := ""
	if o.noFirstBytes {
		suffix = "_no_first_bytes"
	} else if o.traced {
		suffix = "_traced"
	}
	var churned, kept cost
	for _, c := range []struct {
		name   string
		script script
		family int
		into   *cost
		once   bool // the same with and without the first bytes, and of little interest with trace ids
	}{
		{"churn_ipv4", churn, 4, &churned, false},
		{"churn_ipv6", churn, 6, nil, false},
		{"refused_ipv4", refused, 4, nil, true},
		{"refused_ipv6", refused, 6, nil, true},
		{"keepalive_ipv4", keepalive, 4, &kept, false},
	} {
		if c.once && suffix != "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		one, err := s.one(c.script, c.family)
		if err != nil {
			return nil, err
		}
		if c.into != nil {
			*c.into = one
		}
		if c.script == keepalive {
			continue
		}
		name := "kernel." + c.name + suffix
		figures = append(figures,
			figure.Figure{Name: name + ".instructions", Unit: "1", Value: float64(one.instructions), Note: "executed for one connection, without those of helpers"},
			figure.Figure{Name: name + ".runs", Unit: "1", Value: float64(one.runs), Note: "of programs for one connection"},
			figure.Figure{Name: name + ".ring_bytes", Unit: "bytes", Value: float64(one.bytes), Note: "of events for one connection"})
	}
	return append(figures, figure.Figure{
		Name: "kernel.requests" + suffix + ".runs", Unit: "1", Value: float64(kept.runs) - float64(churned.runs),
		Note: fmt.Sprintf("of programs for %d requests more on a connection", keepaliveRequests-1),
	}), nil
}

// one returns what one connection costs. What a batch costs besides, such as its listener, is in both of two batches, and a timer that fired in between,
// because the machine was busy, in the fewest of several pairs.
func (s *session) one(of script, family int) (c cost, err error) {
	const more, pairs = 20, 5
	var all []cost
	for range pairs {
		few, err := s.cost(of, family, 1)
		if err != nil {
			return c, err
		}
		many, err := s.cost(of, family, 1+more)
		if err != nil {
			return c, err
		}
		all = append(all, cost{
			runs: (many.runs - few.runs) / more, instructions: (many.instructions - few.instructions) / more, bytes: (many.bytes - few.bytes) / more,
		})
	}
	slices.SortFunc(all, func(a, b cost) int { return int(a.instructions) - int(b.instructions) })
	return all[0], nil
}

// sweeps counts the instructions of a sweep for each socket.
func sweeps(context.Context, figure.Options) (figures []figure.Figure, err error) {
	s, err := openMesh(options{counted: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	const connections = 100
	if err := s.process.make(hold, 4, connections); err != nil {
		return nil, err
	}
	if _, _, err := s.sweep(); err != nil {
		return nil, err
	}
	quiet, told, err := s.sweep()
	if err != nil {
		return nil, err
	}
	if told != 0 {
		return nil, fmt.Errorf("a sweep told of %d sockets on which nothing had happened", told)
	}
	if err := s.process.make(move, 4, 0); err != nil {
		return nil, err
	}
	busy, told, err := s.sweep()
	if err != nil {
		return nil, err
	}
	if told != 2*connections {
		return nil, fmt.Errorf("a sweep told of %d sockets, want %d", told, 2*connections)
	}
	return []figure.Figure{
		{Name: "kernel.sweep.quiet.instructions", Unit: "1", Value: float64(quiet / (2 * connections)), Note: "executed for a socket of which there is nothing new"},
		{Name: "kernel.sweep.busy.instructions", Unit: "1", Value: float64(busy / (2 * connections)), Note: "executed for a socket that moved bytes"},
	}, nil
}

// batch is how many connections are timed at a time: short, so that most batches see nothing of what else the machine does.
const batch = 50

// times is what the kernel measured of the programs, less what it measured of empty ones at the same hooks.
func times(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	stop, err := datapath.Measure()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	s, err := openMesh(options{beside: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var samples []float64
	for range rounds(o) + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, err := s.cost(churn, 4, batch)
		if err != nil {
			return nil, err
		}
		measuring := float64(c.emptyTime) / float64(c.emptyRuns) * float64(c.runs)
		samples = append(samples, (float64(c.time)-measuring)/(2*batch))
	}
	// Of some in a row the least: whatever else the machine does adds to a time, and takes nothing away. The very first warms up.
	var least []float64
	for some := range slices.Chunk(samples[1:], 5) {
		least = append(least, slices.Min(some))
	}
	return []figure.Figure{{
		Name: "kernel.churn_ipv4.end.time", Unit: "ns", Samples: least,
		Note: "of programs for one end of a connection, whole life, less that of empty programs at the same hooks",
	}}, nil
}

func rounds(o figure.Options) int {
	if o.Quick {
		return 100
	}
	return 1000
}

// latencies compare the connections of one thread without programs with those under the floors and under ours: nothing in them but system
// calls. What is between two lines is what the step from one to the other costs.
func latencies(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	ours := func(o options) func(string) (*attached, error) {
		return func(cgroup string) (*attached, error) { return attachMesh(cgroup, o) }
	}
	conditions := []struct {
		name   string
		attach func(string) (*attached, error)
	}{
		{"bare", nil},
		{"aa", nil},
		{"floor_hooks", attachFloor(floorHooks)},
		{"floor_callbacks", attachFloor(floorCallbacks)},
		{"floor", attachFloor(floorState)},
		{"mesh_silent", ours(options{noFirstBytes: true, silent: true})},
		{"mesh_no_first_bytes", ours(options{noFirstBytes: true})},
		{"mesh", ours(options{})},
		{"mesh_traced", ours(options{traced: true})},
	}
	var sessions []*session
	defer func() {
		for _, s := range sessions {
			err = errors.Join(err, s.close())
		}
	}()
	for _, c := range conditions {
		s, err := open(c.attach)
		if err != nil {
			return nil, err
		}
		sessions = append(sessions, s)
	}
	shuffled := rand.New(rand.NewPCG(o.Seed, 0))
	samples := make([][]float64, len(sessions))
	for range rounds(o) + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, i := range shuffled.Perm(len(sessions)) {
			s := sessions[i]
			start := time.Now()
			if err := s.process.make(churn, 4, batch); err != nil {
				return nil, err
			}
			samples[i] = append(samples[i], float64(time.Since(start))/batch/1000)
			if s.ring == nil {
				continue
			}
			if _, err := s.drain(); err != nil {
				return nil, err
			}
		}
	}
	for i, c := range conditions[1:] {
		figures = append(figures, figure.Figure{
			Name: "kernel.churn_ipv4." + c.name + ".latency", Unit: "us", Samples: samples[i+1][1:], Base: samples[0][1:],
			Note: "one thread that is both ends: no switches, no wake-ups",
		})
	}
	return figures, nil
}
