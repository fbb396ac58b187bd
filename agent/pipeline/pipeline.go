// Package pipeline runs events through the tracker and the enricher and hands batches of records to the sinks.
package pipeline

import (
	"log/slog"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Sink takes batches of records in the order of the events. It must neither block nor change the batch, which is shared by all
// sinks and may be kept.
type Sink interface {
	Consume(batch []enrich.Record)
}

// LossSink takes what lost events would have added. It must not block.
type LossSink interface {
	ConsumeLosses(losses []enrich.Loss)
}

// Options of a pipeline.
type Options struct {
	// Limit is how many connections are followed at a time.
	Limit int
	// Clock is read once a batch.
	Clock func() connection.Clock
	// Identify says who is at the ends of an event's connection.
	Identify func(*connection.Event) enrich.Identity
	// Sinks get every record, in their order.
	Sinks []Sink
	// Losses returns what was lost since its last call. It is asked whenever the ring was read; nil if nothing can be lost.
	Losses func() ([]connection.Loss, error)
	// LossSinks get what Losses returns.
	LossSinks []LossSink
}

// Pipeline is an event.Handler: it is called from one goroutine.
type Pipeline struct {
	options     Options
	tracker     *connection.Tracker[enrich.Identity]
	batch       []enrich.Record
	now         connection.Clock // of the current batch
	lossesFail  bool             // the last look failed, and the log has it
	connections atomic.Int64
}

// batchHint is the room that a new batch starts with.
const batchHint = 64

// New returns a pipeline.
func New(options Options) *Pipeline {
	return &Pipeline{options: options, tracker: connection.NewTracker(options.Limit, options.Identify)}
}

// HandleEvent adds an event's record to the current batch.
func (p *Pipeline) HandleEvent(event *connection.Event) {
	if p.batch == nil {
		p.batch = make([]enrich.Record, 0, batchHint)
		p.now = p.options.Clock()
	}
	n := len(p.batch)
	p.batch = append(p.batch, enrich.Record{})
	p.tracker.Observe(event, &p.batch[n])
	p.batch[n].Clock = p.now
}

// HandleDrained hands the batch to the sinks, which may keep it, and then what was lost.
func (p *Pipeline) HandleDrained() {
	p.connections.Store(int64(p.tracker.Len()))
	if batch := p.batch; len(batch) > 0 {
		p.batch = nil
		for _, sink := range p.options.Sinks {
			sink.Consume(batch)
		}
	}
	if p.options.Losses != nil {
		p.handleLosses()
	}
}

func (p *Pipeline) handleLosses() {
	losses, err := p.options.Losses()
	if err != nil && !p.lossesFail {
		// Nothing is gone: the sums stay in the kernel until a look succeeds.
		slog.Error("read sums of lost events", "error", err)
	}
	p.lossesFail = err != nil
	if len(losses) == 0 {
		return
	}
	named := make([]enrich.Loss, 0, len(losses))
	for i := range losses {
		named = append(named, enrich.NewLoss(&losses[i], p.options.Identify))
	}
	for _, sink := range p.options.LossSinks {
		sink.ConsumeLosses(named)
	}
}

// Connections returns how many connections are followed now. Safe for concurrent use.
func (p *Pipeline) Connections() int64 { return p.connections.Load() }
