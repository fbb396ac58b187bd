// Package live measures what the real agent costs real connections: workloads in cgroups of their own, with and without an agent, in turns.
// The method is in bench/README.md.
package live

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/workload"
)

// Source measures the figures live.*. Root only.
type Source struct {
	// Only picks workloads by name; empty is all.
	Only []string
}

// Name implements figure.Source.
func (Source) Name() string { return "live" }

// work is a workload of the experiment: what a slice is, and under which conditions.
type work struct {
	name       string
	kind       workload.Kind // empty for none
	conditions []condition
	units      int
	unit       string
	open       int
	pace       time.Duration
	rounds     int
	quick      int            // rounds of a quick run
	settings   map[string]any // of the agents, besides the condition's
}

var works = []work{
	{name: "churn", kind: workload.Churn, conditions: []condition{bare, aa, metrics, logging, full}, units: 2000, rounds: 60, quick: 25},
	{name: "keepalive", kind: workload.Keepalive, conditions: []condition{bare, aa, metrics, full}, units: 6000, rounds: 60, quick: 25},
	{name: "bulk", kind: workload.Bulk, conditions: []condition{bare, aa, metrics, full}, units: 256, rounds: 60, quick: 25},
	{
		name: "fanout", kind: workload.Fanout, conditions: []condition{bare, aa, metrics, full}, units: 2000, open: 10_000,
		pace: 10 * time.Millisecond, rounds: 15, quick: 5, settings: map[string]any{"report_interval": "1s"},
	},
}

// run is one measurement under way.
type run struct {
	options figure.Options
	place   *place
	self    string
	random  *rand.Rand
	burn    map[string]time.Duration // by condition, in each unit of work: an injected slowdown
}

func newRun(o figure.Options) (*run, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := newPlace()
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return &run{options: o, place: p, self: self, random: rand.New(rand.NewPCG(o.Seed, 0))}, nil
}

// Measure implements figure.Source.
func (s Source) Measure(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	r, err := newRun(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.place.close()) }()
	for _, w := range works {
		if !s.picks(w.name) {
			continue
		}
		if o.Quick {
			w.rounds = w.quick
		}
		stands, samples, err := r.rounds(ctx, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		figures = append(figures, w.figures(stands, samples)...)
	}
	if s.picks(idleName) {
		idle, err := r.idle(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", idleName, err)
		}
		figures = append(figures, idle...)
	}
	return figures, nil
}

func (s Source) picks(name string) bool {
	for _, only := range s.Only {
		if only == name {
			return true
		}
	}
	return len(s.Only) == 0
}

// rounds runs a workload: a slice of each condition in each round. It returns samples by condition and round. Everything that it started has ended.
func (r *run) rounds(ctx context.Context, w work) (_ []*stand, _ [][]sample, err error) {
	defer func() { err = errors.Join(err, r.place.clear()) }()
	stands := make([]*stand, len(w.conditions))
	for i, c := range w.conditions {
		if stands[i], err = r.startStand(ctx, c, w, i); err != nil {
			return nil, nil, err
		}
	}
	if err := r.fillCPUs(); err != nil {
		return nil, nil, err
	}
	command := workload.Command{Units: w.units, Open: w.open, Pace: w.pace}
	// Not measured: first connections, caches, and what the agent reads of a process that is new to it.
	for _, s := range stands {
		if _, err := s.do(ctx, workload.Command{Units: min(w.units, 500), Open: w.open}, true); err != nil {
			return nil, nil, err
		}
		if s.agent == nil {
			continue
		}
		if _, err := s.agent.arrived(ctx, 2*s.ended); err != nil {
			return nil, nil, fmt.Errorf("agent of %s: %w", s.name, err)
		}
		if err := s.agent.stop(); err != nil {
			return nil, nil, err
		}
	}
	samples := make([][]sample, len(stands))
	begin := time.Now()
	for range w.rounds {
		for _, i := range r.random.Perm(len(stands)) {
			one, err := stands[i].slice(ctx, command, w.open == 0)
			if err != nil {
				return nil, nil, err
			}
			samples[i] = append(samples[i], one)
		}
	}
	fmt.Fprintf(r.options.Log, "%-10s %d rounds of %d conditions in %v\n", w.name, w.rounds, len(stands), time.Since(begin).Round(time.Second/10))
	for _, s := range stands {
		if w.open > 0 {
			if _, err := s.do(ctx, workload.Command{}, false); err != nil {
				return nil, nil, err
			}
			s.ended += w.open
		}
		if s.agent == nil {
			continue
		}
		if err := errors.Join(s.agent.goOn(), s.agent.verify(ctx, s.ended)); err != nil {
			return nil, nil, fmt.Errorf("the account of %s does not close: %w", s.name, err)
		}
	}
	return stands, samples, nil
}
