// Package restart measures what connections notice of an agent that ends and of the next one that begins, and beside it what they notice of a proxy
// that hands its sockets over.
package restart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
)

// Source measures that. HAProxy is in Absent after Measure if it is not on this machine.
type Source struct{ absent map[string]string }

// Name is restart.
func (*Source) Name() string { return "restart" }

// Absent returns the beginnings of the names of figures that cannot be measured on this machine, with the reason, after Measure.
func (s *Source) Absent() map[string]string { return s.absent }

// before is how long it is looked at connections before something happens, and after for how long afterwards.
const (
	before = time.Second
	after  = 300 * time.Millisecond
)

// way is something that happens to whoever has the service.
type way struct {
	name string
	note string
	load *driver
	do   func(context.Context) error
	gap  func() (time.Duration, error) // for how long there was no agent, in all; nil: there is no such thing
	all  outcome
}

// outcome is what came of it, a sample a round.
type outcome struct {
	longest, normal, took, gap []float64
	connections, failed        int
}

// Measure needs root.
func (s *Source) Measure(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	rounds := 3
	if !o.Quick {
		rounds = 20
	}
	mesh, err := startSidelight(ctx, o.Agent)
	defer func() { err = errors.Join(err, mesh.close()) }()
	if err != nil {
		return nil, err
	}
	ways := []*way{
		{name: "none", note: "nothing happens", load: mesh.driver, do: func(ctx context.Context) error { return wait(ctx, 500*time.Millisecond) }},
		{name: "stop", note: "the agent is stopped, and another started", load: mesh.driver, do: mesh.stop, gap: mesh.unattended},
		{name: "kill", note: "the agent is killed, and another started", load: mesh.driver, do: mesh.kill, gap: mesh.unattended},
		{name: "takeover", note: "another agent takes over", load: mesh.driver, do: mesh.takeOver, gap: mesh.unattended},
	}
	s.absent = make(map[string]string)
	if _, err := os.Stat(mesh.otherLayout()); err != nil {
		s.absent["restart.layout."] = "there is no " + mesh.otherLayout()
	} else {
		ways = append(ways, &way{name: "layout", note: "an agent whose maps have another layout takes over, and one that has them as before again", load: mesh.driver, do: mesh.layout, gap: mesh.unattendedHalf})
	}
	if _, err := exec.LookPath("haproxy"); err != nil {
		s.absent["restart.haproxy."] = "haproxy is not installed"
	} else {
		rival, err := startProxy(ctx)
		defer func() { err = errors.Join(err, rival.close()) }()
		if err != nil {
			return nil, err
		}
		ways = append(ways, &way{name: "haproxy", note: "HAProxy is reloaded, with the same service", load: rival.driver, do: rival.reload})
	}
	shuffled := rand.New(rand.NewPCG(o.Seed, 0))
	for range rounds {
		shuffled.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
		for _, w := range ways {
			if err := w.once(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	connections, failed := 0, 0
	for _, w := range ways {
		figures = append(figures, w.figures()...)
		if w.load == mesh.driver {
			connections += w.all.connections
			failed += w.all.failed
		}
	}
	slices.SortFunc(figures, func(a, b figure.Figure) int { return cmp.Compare(a.Name, b.Name) })
	return figures, mesh.verify(ctx, connections, failed)
}

func (w *way) once(ctx context.Context) error {
	gapBefore := time.Duration(0)
	if w.gap != nil {
		var err error
		if gapBefore, err = w.gap(); err != nil {
			return err
		}
	}
	if err := w.load.begin(); err != nil {
		return err
	}
	if err := wait(ctx, before); err != nil {
		return err
	}
	began := monotonic()
	if err := w.do(ctx); err != nil {
		return err
	}
	took := monotonic() - began
	if err := wait(ctx, after); err != nil {
		return err
	}
	r, err := w.load.end()
	if err != nil {
		return err
	}
	normal, longest, err := r.split(began)
	if err != nil {
		return err
	}
	a := &w.all
	a.normal, a.longest, a.took = append(a.normal, normal), append(a.longest, longest), append(a.took, float64(took)/1e6)
	a.connections += len(r.Connections)
	for _, n := range r.Failed {
		a.failed += n
		a.connections += n
	}
	if w.gap == nil {
		return nil
	}
	gap, err := w.gap()
	a.gap = append(a.gap, float64(gap-gapBefore)/1e6)
	return err
}

// split returns the 99th percentile of the connections that had ended when something began to happen, and the longest one after that, in us.
func (r *report) split(began int64) (normal, longest float64, err error) {
	var quiet []int64
	for _, c := range r.Connections {
		if c.At+c.Took < began {
			quiet = append(quiet, c.Took)
		} else {
			longest = max(longest, float64(c.Took)/1e3)
		}
	}
	if len(quiet) < 100 || longest == 0 {
		return 0, 0, fmt.Errorf("%d connections before it, the longest one after it %v us: too few to say anything", len(quiet), longest)
	}
	slices.Sort(quiet)
	return float64(quiet[len(quiet)*99/100]) / 1e3, longest, nil
}

func (w *way) figures() []figure.Figure {
	name, a := "restart."+w.name+".", &w.all
	figures := []figure.Figure{
		{Name: name + "failed", Unit: "1", Value: float64(a.failed), Note: fmt.Sprintf("%s: connections that failed, of %d", w.note, a.connections)},
		{Name: name + "longest", Unit: "us", Samples: a.longest, Base: a.normal, Note: w.note + ": the longest connection meanwhile, to the 99th percentile of those before"},
		{Name: name + "longest.time", Unit: "us", Samples: a.longest, Note: w.note + ": the longest connection meanwhile"},
		{Name: name + "took", Unit: "ms", Samples: a.took, Note: w.note + ": how long that takes"},
	}
	if w.gap != nil {
		figures = append(figures, figure.Figure{Name: name + "gap", Unit: "ms", Samples: a.gap, Note: w.note + ": time without an agent"})
	}
	return figures
}
