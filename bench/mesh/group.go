package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// condition is one of those that are compared: how a connection comes to its endpoint.
type condition struct {
	name     string
	observed bool   // by the agent's programs
	mesh     shape  // in them; without services: none
	direct   bool   // the endpoint itself is dialled, not a service
	targets  int    // so many are dialled; 0: all services, or one endpoint
	like     string // the condition whose programs and places it shares: it differs in targets only
	rival    *rival
	burn     time.Duration // wasted in each connect(): what the gate's own test injects
}

// services is how many services there are to be dialled.
func (c *condition) services() int {
	if c.rival != nil {
		return c.rival.services
	}
	return c.mesh.services
}

// samples are of one condition in nanoseconds, one of each round: the medians of slices.
type samples struct{ connect, reached []float64 }

// live is a condition that is set up.
type live struct {
	*condition
	samples
	way         int // of the place
	set         *set
	like        *live        // nil: it has all for itself
	stop        func() error // of the rival
	connections uint64
}

// group is conditions that are measured in one run in turns.
type group struct {
	place *place
	all   []*live
}

// warm connections of a slice find the caches as they will be; the median of count more is its sample.
const (
	warm  = 20
	count = 100
)

// open sets conditions up, in an order that is shuffled, because where the kernel has room for programs depends on it. Those whose rival is not to be
// had here are left out and named in absent, with the reason.
func open(conditions []condition, shuffled *rand.Rand) (g *group, absent map[string]string, err error) {
	g, absent = new(group), make(map[string]string)
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
			g = nil
		}
	}()
	if g.place, err = newPlace(); err != nil {
		return g, nil, err
	}
	for _, i := range shuffled.Perm(len(conditions)) {
		l := &live{condition: &conditions[i]}
		if l.condition.like != "" {
			continue
		}
		err := g.setUp(l)
		var lacks *absentError
		if errors.As(err, &lacks) {
			absent[l.rival.kind] = lacks.Error()
			continue
		}
		g.all = append(g.all, l)
		if err != nil {
			return g, nil, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	for i := range conditions {
		c := &conditions[i]
		if c.like == "" {
			continue
		}
		at := slices.IndexFunc(g.all, func(l *live) bool { return l.name == c.like })
		if at < 0 {
			return g, nil, fmt.Errorf("%s: there is no condition %s", c.name, c.like)
		}
		g.all = append(g.all, &live{condition: c, like: g.all[at], way: g.all[at].way})
	}
	return g, absent, g.place.start()
}

func (g *group) setUp(l *live) error {
	dialled := netip.AddrPortFrom(address(firstService), servicePort)
	if l.services() == 0 || l.direct {
		dialled = netip.AddrPortFrom(address(firstEndpoint), listenPort)
	}
	l.way = len(g.place.ways)
	cgroup, ns, err := g.place.add(way{First: dialled, Burn: l.burn})
	if err != nil {
		return err
	}
	if l.rival != nil {
		if l.stop, err = l.rival.start(ns); err != nil {
			return errors.Join(err, g.place.drop())
		}
	}
	if !l.observed {
		return nil
	}
	var s *model.Snapshot
	if l.mesh.services > 0 {
		s = snapshot(l.mesh, strings.TrimPrefix(cgroup.Dir, cgroup.Mount))
	}
	l.set, err = newSet(cgroup, s)
	return err
}

// dials is how many addresses are dialled in turn.
func (l *live) dials() int {
	switch {
	case l.targets > 0:
		return l.targets
	case l.direct:
		return 1
	}
	return max(1, l.services())
}

// measure makes a slice of each condition in an order shuffled anew, rounds times.
func (g *group) measure(ctx context.Context, rounds int, shuffled *rand.Rand) error {
	for round := range rounds + 1 {
		for _, i := range shuffled.Perm(len(g.all)) {
			if err := ctx.Err(); err != nil {
				return err
			}
			l := g.all[i]
			a, err := g.place.ask(order{Way: l.way, Script: reach, Targets: l.dials(), Warm: warm, Count: count})
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			owner := l
			if l.like != nil {
				owner = l.like
			}
			owner.connections += warm + count
			if owner.set != nil {
				if err := owner.set.drain(); err != nil {
					return err
				}
			}
			if round == 0 { // it warms up
				continue
			}
			l.connect, l.reached = append(l.connect, float64(a.Connect)), append(l.reached, float64(a.Reached))
		}
	}
	for _, l := range g.all {
		if err := l.check(); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

// check is an error when a condition was not what it is called.
func (l *live) check() error {
	if l.set == nil {
		return nil
	}
	if err := l.set.check(l.connections); err != nil {
		return err
	}
	if l.set.mesh == nil {
		return nil
	}
	want := l.connections
	if l.direct {
		want = 0
	}
	if have := l.set.mesh.picks(); have != want {
		return fmt.Errorf("%d connections came to their endpoint by a service, want %d", have, want)
	}
	return nil
}

// close removes everything. Safe for a group that was not opened whole.
func (g *group) close() error {
	var errs []error
	for _, l := range g.all {
		if l.stop != nil {
			errs = append(errs, l.stop())
		}
		if l.set != nil {
			errs = append(errs, l.set.close())
		}
	}
	return errors.Join(append(errs, g.place.close())...)
}
