// Package pipeline runs events through the tracker and the enricher and hands batches of records to the sinks.
package pipeline

import (
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Sink takes batches of records in the order of the events. It must neither block nor change the batch, which is shared by all
// sinks and may be kept.
type Sink interface {
	Consume(batch []enrich.Record)
}

// Pipeline is an event.Handler: it is called from one goroutine.
type Pipeline struct {
	tracker *connection.Tracker[enrich.Identity]
	clock   func() connection.Clock
	sinks   []Sink
	batch   []enrich.Record
	now     connection.Clock // of the current batch

	connections atomic.Int64
	untracked   atomic.Uint64
}

// batchHint is the room that a new batch starts with.
const batchHint = 64

// New returns a pipeline that follows at most limit connections and gives every record to every sink, in their order. The clock
// is read once a batch.
func New(limit int, clock func() connection.Clock, identify func(*connection.Event) enrich.Identity, sinks ...Sink) *Pipeline {
	return &Pipeline{tracker: connection.NewTracker(limit, identify), clock: clock, sinks: sinks}
}

// HandleEvent adds an event's record to the current batch.
func (p *Pipeline) HandleEvent(event *connection.Event) {
	if p.batch == nil {
		p.batch = make([]enrich.Record, 0, batchHint)
		p.now = p.clock()
	}
	n := len(p.batch)
	p.batch = append(p.batch, enrich.Record{})
	if !p.tracker.Observe(event, &p.batch[n]) {
		p.batch = p.batch[:n]
		return
	}
	p.batch[n].Clock = p.now
}

// HandleDrained hands the batch to the sinks, which may keep it.
func (p *Pipeline) HandleDrained() {
	stats := p.tracker.Stats()
	p.connections.Store(int64(stats.Connections))
	p.untracked.Store(stats.Untracked)
	batch := p.batch
	p.batch = nil // an empty one too: the next begins with a new look at the clock
	if len(batch) == 0 {
		return
	}
	for _, sink := range p.sinks {
		sink.Consume(batch)
	}
}

// Connections returns how many connections are followed now. Safe for concurrent use.
func (p *Pipeline) Connections() int64 { return p.connections.Load() }

// Untracked counts events of connections over the limit. Safe for concurrent use.
func (p *Pipeline) Untracked() uint64 { return p.untracked.Load() }
