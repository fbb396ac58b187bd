package embedded

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/pipeline"
)

// Stats are what the exporters of one signal did, in log records, spans or data points, since New: a reload of the configuration
// changes nothing of them.
type Stats struct {
	Taken    int64 `json:"taken"`    // from the pipeline
	Carried  int64 `json:"carried"`  // found in the queue at the start, from an earlier run
	Sent     int64 `json:"sent"`     // and kept by the backend
	Queued   int64 `json:"queued"`   // waiting or under way, in the queue's own size
	Rejected int64 `json:"rejected"` // by the backend, which took the rest of the request: a partial success
	Failed   int64 `json:"failed"`   // given up on, after an error that is no use to try again
	// Unaccounted is what was taken or carried and is nowhere else. Only queues sized in items are looked at.
	Unaccounted int64 `json:"unaccounted"`
}

// ledger is the account of one exporter for one signal.
type ledger struct {
	taken    atomic.Int64 // by Consume, that is by the queue if there is one
	refused  atomic.Int64 // by Consume, and whoever called does not try again
	sent     atomic.Int64 // the partly rejected among them
	failed   atomic.Int64
	rejected atomic.Int64
	spooled  atomic.Int64 // of taken: went to a queue on disk

	mu      sync.Mutex
	queue   *gauge // its size; nil when there is none
	found   bool   // carried is known
	carried int64

	// Of the configuration.
	hasQueue   atomic.Bool
	persistent atomic.Bool // the queue keeps what a shutdown interrupts
	items      atomic.Bool // the queue's size is in items
	capacity   atomic.Int64
}

func (l *ledger) stats() Stats {
	// In the order of the way: what moves on between two readings is seen twice rather than not at all.
	s := Stats{Taken: l.taken.Load()}
	queued, ok := l.queued()
	s.Queued = queued
	l.mu.Lock()
	s.Carried = l.carried
	l.mu.Unlock()
	rejected := l.rejected.Load()
	sent, failed := l.sent.Load(), l.failed.Load()
	if ok && l.items.Load() {
		s.Unaccounted = max(0, s.Taken+s.Carried-queued-sent-failed)
	}
	// It is counted before the request that it is part of; and a backend may claim what it likes.
	s.Rejected = min(rejected, sent)
	s.Sent = sent - s.Rejected
	s.Failed = l.refused.Load()
	if l.hasQueue.Load() {
		s.Failed += failed
	}
	return s
}

// queued returns the queue's size, if there is a queue now.
func (l *ledger) queued() (int64, bool) {
	l.mu.Lock()
	queue := l.queue
	l.mu.Unlock()
	if queue == nil {
		return 0, false
	}
	return queue.read(), true
}

// How often, and how far apart, a queue that was found with something in it is looked at.
const (
	looks     = 10
	lookPause = time.Millisecond
)

// started finds what the queue holds of an earlier run. The pipeline is not yet there to put anything in, but the exporter may be
// sending already: a request that ends between two readings, or that is counted as sent before it leaves the queue, is seen twice.
// The least of some looks is the truth.
func (l *ledger) started() {
	l.mu.Lock()
	found := l.found
	l.mu.Unlock()
	if found {
		return // a reload: the account goes on
	}
	carried := int64(0)
	for look := range looks {
		queued, ok := l.queued()
		if !ok {
			return
		}
		seen := queued + l.sent.Load() + l.failed.Load() - l.taken.Load()
		if look == 0 || seen < carried {
			carried = seen
		}
		if queued == 0 {
			break
		}
		time.Sleep(lookPause)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found, l.carried = true, carried
}

// account is that of a collector's exporters.
type account struct {
	mu      sync.Mutex
	ledgers map[entry]*ledger
}

type entry struct {
	exporter component.ID
	signal   pipeline.Signal
}

// ledger finds or makes the one of an exporter.
func (a *account) ledger(exporter component.ID, signal pipeline.Signal) *ledger {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := entry{exporter, signal}
	if a.ledgers[key] == nil {
		if a.ledgers == nil {
			a.ledgers = make(map[entry]*ledger)
		}
		a.ledgers[key] = new(ledger)
	}
	return a.ledgers[key]
}

// Stats sums up the exporters of each signal: "logs", "traces", "metrics". Safe for concurrent use.
func (c *Collector) Stats() map[string]Stats {
	c.account.mu.Lock()
	defer c.account.mu.Unlock()
	sums := make(map[string]Stats)
	for key, l := range c.account.ledgers {
		s, sum := l.stats(), sums[key.signal.String()]
		sum.Taken += s.Taken
		sum.Carried += s.Carried
		sum.Sent += s.Sent
		sum.Queued += s.Queued
		sum.Rejected += s.Rejected
		sum.Failed += s.Failed
		sum.Unaccounted += s.Unaccounted
		sums[key.signal.String()] = sum
	}
	return sums
}

// QueueCapacity returns how much can wait in the queues of each signal's exporters, in the queues' own size, as Stats.Queued is: items, unless a
// configuration says otherwise. A signal without a queue is not there. Safe for concurrent use.
func (c *Collector) QueueCapacity() map[string]int64 {
	c.account.mu.Lock()
	defer c.account.mu.Unlock()
	sums := make(map[string]int64)
	for key, l := range c.account.ledgers {
		l.mu.Lock()
		there := l.queue != nil // also of a ledger whose exporter a reload took away
		l.mu.Unlock()
		if there {
			sums[key.signal.String()] += l.capacity.Load()
		}
	}
	return sums
}

// Flush waits until the exporters' queues are empty, and returns how much is still queued when there was no progress for the
// given time, because the backend is down, or when the context ends.
func (c *Collector) Flush(ctx context.Context, patience time.Duration) (queued int64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var doneBefore int64
	deadline := time.Now().Add(patience)
	for {
		var done int64
		queued = 0
		for _, s := range c.Stats() {
			queued += s.Queued
			done += s.Sent + s.Rejected + s.Failed
		}
		if done != doneBefore {
			doneBefore, deadline = done, time.Now().Add(patience)
		}
		if queued == 0 || time.Now().After(deadline) {
			return queued
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return queued
		case <-c.done:
			return queued
		}
	}
}
