package meshreceiver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// picky is a pipeline for logs and traces that refuses. It wants to be asked by one goroutine a signal at a time.
type picky struct {
	refuse func(signal string) error

	mu     sync.Mutex
	tries  map[string][]time.Time
	logs   []plog.Logs
	traces []ptrace.Traces
}

func (*picky) Capabilities() consumer.Capabilities { return consumer.Capabilities{} }

func (p *picky) try(signal string) error {
	if p.tries == nil {
		p.tries = make(map[string][]time.Time)
	}
	p.tries[signal] = append(p.tries[signal], time.Now())
	return p.refuse(signal)
}

func (p *picky) ConsumeLogs(_ context.Context, logs plog.Logs) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.try("logs"); err != nil {
		return err
	}
	p.logs = append(p.logs, logs)
	return nil
}

func (p *picky) ConsumeTraces(_ context.Context, traces ptrace.Traces) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.try("traces"); err != nil {
		return err
	}
	p.traces = append(p.traces, traces)
	return nil
}

// pauses are the times between tries.
func (p *picky) pauses(signal string) []time.Duration {
	var all []time.Duration
	for i, at := range p.tries[signal][1:] {
		all = append(all, at.Sub(p.tries[signal][i]))
	}
	return all
}

// dropped returns what was counted since the call.
func dropped() func() (logs, spans uint64) {
	l, s := Dropped.Logs.Load(), Dropped.Spans.Load()
	return func() (logs, spans uint64) { return Dropped.Logs.Load() - l, Dropped.Spans.Load() - s }
}

func TestWhatIsRefusedForAWhileArrivesExactlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := map[string]int{"logs": 8, "traces": 3}
		p := &picky{refuse: func(signal string) error {
			if left[signal]--; left[signal] >= 0 {
				return errors.New("full")
			}
			return nil
		}}
		lost := dropped()
		s := newSource()
		components := create(t, withSource(s), component.NewID(Type), consumers{logs: p, traces: p})
		start(t, components)
		s.give(0, 3)
		synctest.Wait()
		s.give(3, 2) // waits in the queue while the first is refused
		elapse(time.Minute)
		if got := collectedLogs(p.logs); !slices.Equal(got, uids(5)) {
			t.Errorf("log records %v, want 5, each once and in order", got)
		}
		if got := collectedSpans(p.traces); !slices.Equal(got, spanIDs(5)) {
			t.Errorf("spans %v, want 5, each once and in order", got)
		}
		const ms = time.Millisecond
		if got, want := p.pauses("logs"), []time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 2000 * ms, 2000 * ms, 0}; !slices.Equal(got, want) {
			t.Errorf("pauses between tries: %v, want %v", got, want)
		}
		shutdown(t, components)
		if logs, spans := lost(); logs != 0 || spans != 0 {
			t.Errorf("%d log records and %d spans counted as dropped, want none", logs, spans)
		}
	})
}

func TestPermanentErrorIsCountedAndNotTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: func(signal string) error {
			if signal == "logs" {
				return consumererror.NewPermanent(errors.New("nonsense"))
			}
			return nil
		}}
		// A pipeline may take the data apart before it refuses it.
		emptying, err := consumer.NewLogs(func(ctx context.Context, logs plog.Logs) error {
			logs.ResourceLogs().RemoveIf(func(plog.ResourceLogs) bool { return true })
			return p.ConsumeLogs(ctx, logs)
		})
		if err != nil {
			t.Fatal(err)
		}
		lost := dropped()
		s := newSource()
		components := create(t, withSource(s), component.NewID(Type), consumers{logs: emptying, traces: p})
		start(t, components)
		s.give(0, 3)
		elapse(time.Minute)
		shutdown(t, components)
		if logs, spans := lost(); logs != 3 || spans != 0 {
			t.Errorf("%d log records and %d spans counted as dropped, want 3 and none", logs, spans)
		}
		if len(p.tries["logs"]) != 1 || !slices.Equal(collectedSpans(p.traces), spanIDs(3)) {
			t.Errorf("%d tries of logs, %d spans; want one and 3", len(p.tries["logs"]), len(collectedSpans(p.traces)))
		}
	})
}

func TestShutdownDoesNotWaitForAPipelineThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: func(string) error { return errors.New("full") }}
		lost := dropped()
		s := newSource()
		components := create(t, withSource(s), component.NewID(Type), consumers{logs: p, traces: p})
		start(t, components)
		s.give(0, 3)
		elapse(10 * time.Second)
		s.give(3, 4) // waits in the queue
		tries, began := len(p.tries["logs"]), time.Now()
		shutdown(t, components)
		if took := time.Since(began); took != 0 {
			t.Errorf("Shutdown took %v of the bubble's clock, want no pause", took)
		}
		// One last try of what was refused; a first and a last of what was queued.
		if got := len(p.tries["logs"]) - tries; got != 3 {
			t.Errorf("%d tries at shutdown, want 3", got)
		}
		if logs, spans := lost(); logs != 7 || spans != 7 {
			t.Errorf("%d log records and %d spans counted as dropped, want 7 each", logs, spans)
		}
	})
}
