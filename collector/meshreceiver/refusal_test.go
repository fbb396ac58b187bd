package meshreceiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/collector/queue"
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

// TestASignalThatIsRefusedDoesNotHoldUpTheOther, and what finds no room meanwhile is counted for it alone.
func TestASignalThatIsRefusedDoesNotHoldUpTheOther(t *testing.T) {
	for _, refused := range []string{"logs", "traces"} {
		synctest.Test(t, func(t *testing.T) {
			const room, n = 50, 80
			var full atomic.Bool
			full.Store(true)
			p := &picky{refuse: func(signal string) error {
				if full.Load() && signal == refused {
					return errors.New("full")
				}
				return nil
			}}
			s := newSource()
			s.logs, s.traces = queue.New(room), queue.New(room)
			components := create(t, withSource(s), component.NewID(Type), consumers{logs: p, traces: p})
			start(t, components)
			for i := range n {
				s.give(i, 1)
				synctest.Wait()
			}
			// The first is in the hands of the receiver, and the next ones in the queue.
			queues := map[string]*queue.Queue{"logs": s.logs, "traces": s.traces}
			p.mu.Lock()
			got := map[string]int{"logs": len(collectedLogs(p.logs)), "traces": len(collectedSpans(p.traces))}
			p.mu.Unlock()
			for signal, q := range queues {
				arrived, dropped, waiting := n, 0, 0
				if signal == refused {
					arrived, dropped, waiting = 0, n-room-1, room+1
				}
				if got[signal] != arrived || q.Dropped() != uint64(dropped) || q.Waiting() != waiting {
					t.Errorf("%s refused: %s: %d arrived, %d dropped, %d wait; want %d, %d, %d", refused, signal, got[signal], q.Dropped(), q.Waiting(),
						arrived, dropped, waiting)
				}
			}
			full.Store(false)
			elapse(time.Minute)
			if got := min(len(collectedLogs(p.logs)), len(collectedSpans(p.traces))); got != room+1 || s.logs.Waiting()+s.traces.Waiting() != 0 {
				t.Errorf("%s refused for a while: %d arrived, want %d", refused, got, room+1)
			}
			shutdown(t, components)
		})
	}
}

// TestWhatGatheredGoesOnInParts: one request of all that waited would not fit into the queue of an exporter.
func TestWhatGatheredGoesOnInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &picky{refuse: func(string) error { return nil }}
		s := newSource()
		for i := range 5 {
			s.give(i*400, 400)
		}
		s.give(2000, 1500)
		components := create(t, withSource(s), component.NewID(Type), consumers{logs: p, traces: p})
		start(t, components)
		synctest.Wait()
		var parts []int
		for _, logs := range p.logs {
			parts = append(parts, logs.LogRecordCount())
		}
		if !slices.Equal(parts, []int{800, 800, 400, 1500}) || !slices.Equal(collectedLogs(p.logs), uids(3500)) {
			t.Errorf("parts %v", parts)
		}
		shutdown(t, components)
	})
}

// TestEverythingIsHandedOnDroppedOrUnused adds up what the receiver did.
func TestEverythingIsHandedOnDroppedOrUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := [3]uint64{HandedOn.Logs.Load(), HandedOn.Spans.Load(), Unused.Spans.Load()}
		s := newSource()
		components := create(t, withSource(s), component.NewID(Type), consumers{logs: &picky{refuse: func(string) error { return nil }}})
		start(t, components)
		s.give(0, 7)
		synctest.Wait()
		if got := [3]uint64{HandedOn.Logs.Load() - before[0], HandedOn.Spans.Load() - before[1], Unused.Spans.Load() - before[2]}; got != [3]uint64{7, 0, 7} {
			t.Errorf("logs handed on, spans handed on, spans unused: %v; want 7, 0, 7", got)
		}
		if s.logs.Waiting() != 0 || s.traces.Waiting() != 0 {
			t.Errorf("%d and %d wait", s.logs.Waiting(), s.traces.Waiting())
		}
		shutdown(t, components)
	})
}

// TestLastReportIsTriedUntilItIsTaken: no later one would make up for it.
func TestLastReportIsTriedUntilItIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries, taken := 0, 0
		next, err := consumer.NewMetrics(func(context.Context, pmetric.Metrics) error {
			if tries++; tries < 4 {
				return errors.New("full")
			}
			taken++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		before := Dropped.DataPoints.Load()
		s := newSource()
		components := create(t, withSource(s), component.NewID(Type), consumers{metrics: next})
		start(t, components)
		s.give(0, 1)
		s.logs.Close()
		s.traces.Close()
		elapse(time.Minute)
		shutdown(t, components)
		if tries != 4 || taken != 1 || Dropped.DataPoints.Load() != before {
			t.Errorf("%d tries, %d reports, %d data points dropped; want 4, 1, none", tries, taken, Dropped.DataPoints.Load()-before)
		}
	})
}

// TestFewRecordsWaitForMore, many do not, and none when there will be no more.
func TestFewRecordsWaitForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 200 * time.Millisecond
		p := &picky{refuse: func(string) error { return nil }}
		s := newSource()
		components := create(t, withSource(s), component.NewID(Type), consumers{logs: p, batchInterval: interval})
		began := time.Now()
		start(t, components)
		next := 0
		for _, step := range []struct {
			after time.Duration
			give  int
		}{{0, 3}, {10, 2}, {100, 4}, {150, enough - 1}, {10, 1}, {1000, 5}, {50, 6}} {
			time.Sleep(step.after * time.Millisecond)
			s.give(next, step.give)
			next += step.give
			synctest.Wait()
		}
		s.logs.Close()
		synctest.Wait()
		var got []string
		for i, at := range p.tries["logs"] {
			got = append(got, fmt.Sprintf("%v: %d", at.Sub(began), p.logs[i].LogRecordCount()))
		}
		// The first at once; then what came in 200 ms; then many; then the first after a while; and what is left at the end.
		want := []string{"0s: 3", "200ms: 6", "270ms: 512", "1.27s: 5", "1.32s: 6"}
		if !slices.Equal(got, want) || !slices.Equal(collectedLogs(p.logs), uids(next)) {
			t.Errorf("%v, want %v", got, want)
		}
		shutdown(t, components)
	})
}
