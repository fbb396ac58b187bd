// Package live measures what the real agent costs real connections: workloads in cgroups of their own, with and without an agent, in turns.
// The method is in bench/README.md.
package live

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
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
	units      int            // of work in a slice
	open       int            // connections that stay
	pace       time.Duration  // of a fanout
	running    bool           // agents run all the time: the work gives them nothing to do
	rounds     int            // with the same processes
	epochs     int            // of so many rounds
	quick      int            // epochs of a quick run; 0: not in it
	settings   map[string]any // of the agents, besides the condition's
}

var works = []work{
	{name: "churn", kind: workload.Churn, conditions: []condition{bare, aa, metrics, logging, full}, units: 1000, rounds: 2, epochs: 50, quick: 10},
	{name: "web", kind: workload.Web, conditions: []condition{bare, aa, metrics, logging, full}, units: 400, rounds: 2, epochs: 20},
	{name: "keepalive", kind: workload.Keepalive, conditions: []condition{bare, aa, metrics, full}, units: 1000, open: 1, running: true, rounds: 12, epochs: 50, quick: 18},
	{name: "bulk", kind: workload.Bulk, conditions: []condition{bare, aa, metrics, full}, units: 32, open: 1, running: true, rounds: 12, epochs: 50, quick: 18},
	{
		name: "fanout", kind: workload.Fanout, conditions: []condition{bare, aa, metrics, full}, units: 1200, open: 10_000,
		pace: 10 * time.Millisecond, rounds: 3, epochs: 4, quick: 1, settings: map[string]any{"report_interval": "1s"},
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
			w.epochs = w.quick
		}
		if w.epochs == 0 {
			continue
		}
		// Under these loads an agent keeps the budget that it has by default by telling less; what all of it costs is measured. Idle agents have it.
		w.settings = maps.Clone(w.settings)
		if w.settings == nil {
			w.settings = make(map[string]any)
		}
		w.settings["budget"] = map[string]string{"cpu": "off", "memory": "off"}
		session, err := r.session(ctx, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		figures = append(figures, session.figures()...)
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

// MeasureAgain implements figure.Again.
func (s Source) MeasureAgain(ctx context.Context, o figure.Options, names []string) ([]figure.Figure, error) {
	s.Only = nil
	for _, name := range names {
		if parts := strings.Split(name, "."); len(parts) > 1 {
			s.Only = append(s.Only, parts[1])
		}
	}
	return s.Measure(ctx, o)
}

func (s Source) picks(name string) bool {
	return len(s.Only) == 0 || slices.Contains(s.Only, name)
}
