package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/workload"
)

// session is a workload under way: all its conditions, of which the first is the base.
type session struct {
	*run
	work
	stands  []*stand
	command workload.Command
	pairs   [][]pair // by condition; the base has none
}

// session runs a workload and closes its accounts. What it started has ended when it returns.
func (r *run) session(ctx context.Context, w work) (s *session, err error) {
	s = &session{run: r, work: w, command: workload.Command{Units: w.units, Open: w.open, Pace: w.pace}}
	defer func() { err = errors.Join(err, r.place.clear()) }()
	s.stands, s.pairs = make([]*stand, len(w.conditions)), make([][]pair, len(w.conditions))
	for i, c := range w.conditions {
		if s.stands[i], err = r.startStand(ctx, c, w, i); err != nil {
			return nil, err
		}
	}
	measure := s.drained
	if w.running {
		measure = s.side
	}
	begin := time.Now()
	for range w.epochs {
		if err := s.epoch(ctx, measure); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(r.options.Log, "%-10s %d times %d rounds of %d conditions in %v\n",
		w.name, w.epochs, w.rounds, len(s.stands), time.Since(begin).Round(time.Second/10))
	for _, t := range s.stands {
		if t.agent == nil {
			continue
		}
		if err := t.agent.verify(ctx, t.ended); err != nil {
			return nil, fmt.Errorf("the account of %s does not close: %w", t.name, err)
		}
	}
	return s, nil
}

// epoch measures some rounds with workload processes of their own: where a process has its memory makes it some percent faster or slower for all
// its life.
func (s *session) epoch(ctx context.Context, measure func(context.Context) error) error {
	for _, i := range s.random.Perm(len(s.stands)) {
		if err := s.startWorkload(s.stands[i], s.kind); err != nil {
			return err
		}
		if err := s.warmUp(ctx, s.stands[i]); err != nil {
			return err
		}
	}
	for _, t := range s.stands {
		if t.agent == nil {
			continue
		}
		if _, err := t.agent.arrived(ctx, 2*t.ended); err != nil {
			return fmt.Errorf("agent of %s: %w", t.name, err)
		}
	}
	if err := measure(ctx); err != nil {
		return err
	}
	for _, t := range s.stands {
		if err := s.endWorkload(ctx, t, s.open); err != nil {
			return err
		}
	}
	return nil
}

// warmUp is for first connections, caches, and what an agent reads of a process that is new to it. Nothing of it is measured.
func (s *session) warmUp(ctx context.Context, t *stand) error {
	command := s.command
	command.Units = max(1, s.units/10)
	if _, err := t.do(ctx, command); err != nil {
		return err
	}
	_, err := settled(ctx, t.cgroup)
	return err
}

// drained measures work of which agents have something to do: only the agent of the slice runs, and the slice includes all that it does. A slice
// of the base comes before and after each other slice.
func (s *session) drained(ctx context.Context) error {
	for _, t := range s.stands {
		if t.agent == nil {
			continue
		}
		if err := t.agent.stop(); err != nil {
			return err
		}
		defer func() { _ = t.agent.goOn() }()
	}
	before, err := s.stands[0].slice(ctx, s.command)
	if err != nil {
		return err
	}
	for range s.rounds {
		for _, i := range s.random.Perm(len(s.stands) - 1) {
			t := s.stands[i+1]
			slice := t.slice
			if t.agent != nil {
				slice = t.drainedSlice
			}
			with, err := slice(ctx, s.command)
			if err != nil {
				return err
			}
			after, err := s.stands[0].slice(ctx, s.command)
			if err != nil {
				return err
			}
			// Two pairs, not one with the mean of both: times have a long tail, and a mean of two is above most of them.
			s.pairs[i+1] = append(s.pairs[i+1], pair{with, before}, pair{with, after})
			before = after
		}
	}
	return nil
}

// side measures work of which agents have next to nothing to do: slices are short and follow each other, and agents run all the time. What they
// use is by the clock, so a slice is charged with the share of it that falls into its time.
func (s *session) side(ctx context.Context) error {
	used := make([]int64, len(s.stands))
	for i, t := range s.stands {
		if t.agent == nil {
			continue
		}
		var err error
		if used[i], err = usage(t.agent.cgroup); err != nil {
			return err
		}
	}
	begin := time.Now()
	for range s.rounds {
		round := make([]sample, len(s.stands))
		for _, i := range s.random.Perm(len(s.stands)) {
			var err error
			if round[i], err = s.stands[i].slice(ctx, s.command); err != nil {
				return err
			}
		}
		for i := 1; i < len(round); i++ {
			s.pairs[i] = append(s.pairs[i], pair{round[i], round[0]})
		}
	}
	took := time.Since(begin)
	for i, t := range s.stands {
		if t.agent == nil {
			continue
		}
		after, err := usage(t.agent.cgroup)
		if err != nil {
			return err
		}
		memory, err := t.agent.rss()
		if err != nil {
			return err
		}
		rate := float64(after-used[i]) / took.Seconds()
		for j := range s.pairs[i][len(s.pairs[i])-s.rounds:] {
			with := &s.pairs[i][len(s.pairs[i])-s.rounds+j].with
			with.agent = rate * with.wall
			with.cpu += with.agent
			with.rss = float64(memory)
		}
	}
	return nil
}
