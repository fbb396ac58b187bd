package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/workload"
)

// sample is what a slice measured.
type sample struct {
	p50, p99 float64 // nanoseconds
	wall     float64 // seconds a unit
	cpu      float64 // microseconds a unit, agent included
	agent    float64 // the agent's part of it
	softirq  float64 // milliseconds of the machine, for information
	rss      float64 // bytes, of the agent
}

// pair is a slice of a condition and what the base measured beside it.
type pair struct{ with, base sample }

// slice runs one slice of work in a condition, without looking at its agent.
func (s *stand) slice(ctx context.Context, command workload.Command) (sample, error) {
	softirqBefore, err := softirqTicks()
	if err != nil {
		return sample{}, err
	}
	before, err := usage(s.cgroup)
	if err != nil {
		return sample{}, err
	}
	answer, err := s.do(ctx, command)
	if err != nil {
		return sample{}, err
	}
	after, err := settled(ctx, s.cgroup)
	if err != nil {
		return sample{}, err
	}
	softirqAfter, err := softirqTicks()
	if err != nil {
		return sample{}, err
	}
	units := float64(command.Units)
	const tick = 10 // milliseconds
	return sample{
		p50: float64(answer.P50), p99: float64(answer.P99), wall: float64(answer.Wall) / 1e9 / units,
		cpu: float64(after-before) / units, softirq: float64(softirqAfter-softirqBefore) * tick,
	}, nil
}

// drainedSlice runs one slice of work in a condition whose agent is stopped, waits until the agent has nothing left of it, and stops it again.
func (s *stand) drainedSlice(ctx context.Context, command workload.Command) (one sample, err error) {
	if err := s.agent.goOn(); err != nil {
		return sample{}, fmt.Errorf("wake the agent of %s: %w", s.name, err)
	}
	defer func() { err = errors.Join(err, s.agent.stop()) }()
	// What it has to make up for after its sleep is not of this slice.
	before, err := still(ctx, s.agent.cgroup)
	if err != nil {
		return sample{}, err
	}
	if one, err = s.slice(ctx, command); err != nil {
		return sample{}, err
	}
	after, err := s.agent.arrived(ctx, 2*s.ended)
	if err != nil {
		return sample{}, fmt.Errorf("agent of %s: %w", s.name, err)
	}
	memory, err := s.agent.rss()
	if err != nil {
		return sample{}, fmt.Errorf("agent of %s: %w", s.name, err)
	}
	one.agent = float64(after-before) / float64(command.Units)
	one.cpu += one.agent
	one.rss = float64(memory)
	return one, nil
}

// settled returns what a workload's cgroup has used once both its ends wait again: the client answers before the server has seen its last close.
func settled(ctx context.Context, cgroup string) (int64, error) {
	const look = 2 * time.Millisecond
	before, err := usage(cgroup)
	if err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(patience); ; {
		if err := pause(ctx, look); err != nil {
			return 0, err
		}
		now, err := usage(cgroup)
		if err != nil {
			return 0, err
		}
		const asleep = 50 // microseconds: the runtime's own clockwork
		if now-before < asleep {
			return now, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the workload does not come to rest within %v", patience)
		}
		before = now
	}
}
