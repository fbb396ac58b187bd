package userspace

import (
	"errors"
	"runtime"
	"time"
)

// subject is an agent with a stream that it plays over and over.
type subject struct {
	agent  *Agent
	stream *Stream
}

func newSubject(load Load, outputs Outputs) (*subject, error) {
	agent, err := NewAgent(load, outputs)
	if err != nil {
		return nil, err
	}
	s := &subject{agent: agent, stream: NewStream(load)}
	return s, s.warm()
}

// warm plays the stream so that every edge is there and every buffer is as large as it gets.
func (s *subject) warm() error {
	if err := s.agent.Play(s.stream.Before); err != nil {
		return err
	}
	_, err := s.play(2 * s.stream.Ends)
	return err
}

// cost is of some ends of connections.
type cost struct {
	ends, events int
	cpu          time.Duration
	allocations  uint64
	bytes        uint64
}

// play plays the stream as often as it takes for so many ends, waits for the outputs, and returns what it cost.
func (s *subject) play(ends int) (cost, error) {
	var c cost
	var before, after runtime.MemStats
	for c.ends < ends {
		runtime.ReadMemStats(&before)
		begin := cpuTime()
		if err := s.agent.Play(s.stream.Records); err != nil {
			return c, err
		}
		s.agent.Wait()
		c.cpu += cpuTime() - begin
		runtime.ReadMemStats(&after)
		c.allocations += after.Mallocs - before.Mallocs
		c.bytes += after.TotalAlloc - before.TotalAlloc
		c.ends += s.stream.Ends
		c.events += len(s.stream.Records)
		s.stream.Advance()
	}
	if dropped := s.agent.Dropped(); dropped > 0 {
		return c, errors.New("the outputs dropped records: what is measured is not all of the work")
	}
	return c, nil
}

func (c cost) cpuPerEnd() float64 { return float64(c.cpu) / float64(c.ends) / 1e3 } // us

// heap is what is in use, in bytes.
func heap() float64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first one's sweep left
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}
