package live

import (
	"context"
	"errors"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/workload"
)

// series is one number of each pair.
func series(pairs []pair, of func(*pair) float64) []float64 {
	values := make([]float64, len(pairs))
	for i := range pairs {
		values[i] = of(&pairs[i])
	}
	return values
}

// figures makes figures of what the session measured.
func (s *session) figures() []figure.Figure {
	var figures []figure.Figure
	block := len(s.pairs[1]) / s.epochs
	if s.epochs < 2 {
		block /= s.rounds // there is nothing to draw from one block
	}
	for i, t := range s.stands[1:] {
		pairs := s.pairs[i+1]
		name := "live." + s.name + "." + t.name + "."
		paired := func(what, unit string, better figure.Direction, of func(*sample) float64) {
			figures = append(figures, figure.Figure{
				Name: name + what, Unit: unit, Better: better, Block: block,
				Samples: series(pairs, func(p *pair) float64 { return of(&p.with) }), Base: series(pairs, func(p *pair) float64 { return of(&p.base) }),
			})
		}
		sampled := func(what, unit string, of func(*sample) float64) {
			figures = append(figures, figure.Figure{Name: name + what, Unit: unit, Block: block, Samples: series(pairs, func(p *pair) float64 { return of(&p.with) })})
		}
		if s.kind != workload.Bulk {
			paired("p50", "ns", figure.Lower, func(s *sample) float64 { return s.p50 })
			paired("p99", "ns", figure.Lower, func(s *sample) float64 { return s.p99 })
		}
		if s.kind != workload.Fanout { // of which the pace is given
			paired("throughput", "1/s", figure.Higher, func(s *sample) float64 { return 1 / s.wall })
		}
		if s.kind == workload.Bulk {
			paired("bytes_per_cpu_second", "bytes/s", figure.Higher, func(s *sample) float64 { return (1 << 20) / (s.cpu / 1e6) })
		} else {
			paired("cpu", "us", figure.Lower, func(s *sample) float64 { return s.cpu })
		}
		sampled("softirq", "ms", func(s *sample) float64 { return s.softirq })
		if t.agent != nil {
			sampled("agent_cpu", "us", func(s *sample) float64 { return s.agent })
			sampled("rss", "MiB", func(s *sample) float64 { return s.rss / (1 << 20) })
		}
	}
	return figures
}

const idleName = "idle"

// idle measures agents with nothing to observe, side by side: what they do by the clock.
func (r *run) idle(ctx context.Context) (figures []figure.Figure, err error) {
	defer func() { err = errors.Join(err, r.place.clear()) }()
	windows := 6
	if r.options.Quick {
		windows = 2
	}
	const length = 10 * time.Second // one report_interval
	var stands []*stand
	for i, c := range []condition{metrics, logging, full} {
		s, err := r.startStand(ctx, c, work{}, i)
		if err != nil {
			return nil, err
		}
		stands = append(stands, s)
	}
	for _, s := range stands {
		if _, err := still(ctx, s.agent.cgroup); err != nil {
			return nil, err
		}
	}
	shares := make([][]float64, len(stands))
	for range windows {
		before := make([]int64, len(stands))
		for i, s := range stands {
			if before[i], err = usage(s.agent.cgroup); err != nil {
				return nil, err
			}
		}
		begin := time.Now()
		if err := pause(ctx, length); err != nil {
			return nil, err
		}
		took := time.Since(begin)
		for i, s := range stands {
			after, err := usage(s.agent.cgroup)
			if err != nil {
				return nil, err
			}
			shares[i] = append(shares[i], 100*float64(after-before[i])/float64(took.Microseconds()))
		}
	}
	for i, s := range stands {
		rss, err := s.agent.rss()
		if err != nil {
			return nil, err
		}
		if err := s.agent.verify(ctx, 0); err != nil {
			return nil, err
		}
		name := "live." + idleName + "." + s.name + "."
		figures = append(figures,
			figure.Figure{Name: name + "cpu", Unit: "% of a core", Samples: shares[i]},
			figure.Figure{Name: name + "rss", Unit: "MiB", Samples: []float64{float64(rss) / (1 << 20)}})
	}
	return figures, nil
}
