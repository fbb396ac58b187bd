// Package pipeline runs events through the tracker and the enricher and hands batches of records to the sinks.
package pipeline

import (
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Sink takes batches of records in the order of the events. It must not change the batch, which is shared by all sinks,
// nor block, unless the events come from a recording. Whether it may keep the batch is said where sinks are set: see Options.
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
	// Now dates losses and sweeps; nil is time.Now.
	Now func() time.Time
	// Identify says who is at the ends of an event's connection.
	Identify func(*connection.Event) enrich.Identity
	// Sinks get every record that tells something, in their order. They must not keep a batch: its memory is that of the next.
	Sinks []Sink
	// Finished get the records of connections that ended, and no others, in batches that they may keep.
	Finished []Sink
	// Wanted, if set, says whether Finished want anything now: while they do not nothing is copied for them. It is asked for each batch.
	Wanted func() bool
	// Losses returns what was lost since its last call. It is asked whenever the ring was read; nil if nothing can be lost.
	Losses func() ([]connection.Loss, error)
	// LossSinks get what Losses returns.
	LossSinks []LossSink
	// Sweep calls back with each live connection, or without all only with those of which there is something new; nil for none. It is
	// run every SweepInterval.
	Sweep         func(all bool, observe func(*connection.Event)) error
	SweepInterval time.Duration
	// Inherit is for a kernel side that others counted for before: it returns sums of what was lost since the last call of it or of Losses, and a moment on
	// CLOCK_MONOTONIC until when they are complete, or as nearly as can be had. What was before is in no gauge: see connection.Tracker.Inherit. nil: there was nobody.
	Inherit func() ([]connection.Loss, uint64, error)
	// Again gets connections that ended which a pipeline before this one has counted, and may not have handed on: record by record. It may keep the
	// batch. nil: nobody wants them.
	Again func(batch []enrich.Record, position uint64)
}

// Pipeline is an event.Handler: it is called from one goroutine.
type Pipeline struct {
	options     Options
	tracker     *connection.Tracker[enrich.Identity]
	batch       []enrich.Record  // its memory serves again and again
	closes      int              // how many of the batch are of connections that ended
	now         connection.Clock // of the current batch
	alive       enrich.Record    // of the socket that the sweep is at
	lossesFail  bool             // the last look failed, and the log has it
	sweepFail   bool             // the last sweep failed, and the log has it
	swept       time.Time        // when the last sweep was
	lossy       bool             // a close was lost since the last sweep over all
	inherits    bool             // the ring was not read to its end yet: what comes is of before, and in no gauge
	sweeping    bool             // what the last sweep did not see is still to be forgotten
	connections atomic.Int64
}

// sweepBatch bounds a batch of a sweep, of which there can be as many records as there are sockets.
const sweepBatch = 1024

// New returns a pipeline.
func New(options Options) *Pipeline {
	if options.Now == nil {
		options.Now = time.Now
	}
	p := &Pipeline{options: options, tracker: connection.NewTracker(options.Limit, options.Identify)}
	if options.Inherit != nil {
		p.tracker.Inherit(math.MaxUint64)
		p.lossy = true // the first sweep tells of all: what is open is to be in the gauges
		p.inherits = true
	}
	return p
}

// HandleAgain hands on the end of a connection that was counted before. It adds nothing to any sum.
func (p *Pipeline) HandleAgain(event *connection.Event, position uint64) {
	if event.Kind != connection.Close || p.options.Again == nil {
		return
	}
	p.options.Again([]enrich.Record{{
		Event: *event, Change: connection.ChangeOf(event), Identity: p.options.Identify(event), Clock: p.options.Clock(),
	}}, position)
}

// HandleEvent adds an event's record to the current batch.
func (p *Pipeline) HandleEvent(event *connection.Event) {
	record := p.grow()
	p.tracker.Observe(event, record)
	record.Clock = p.now
	if event.Kind == connection.Close {
		p.closes++
	}
}

// grow returns a new record of the batch, which is valid until the next. What an earlier batch had in its place is still in it.
func (p *Pipeline) grow() *enrich.Record {
	n := len(p.batch)
	if n == 0 {
		p.now = p.options.Clock()
	}
	if n == cap(p.batch) {
		p.batch = append(p.batch, enrich.Record{})
	}
	p.batch = p.batch[:n+1]
	return &p.batch[n]
}

// handleSwept adds the record of a live connection if it tells something: of most there is nothing new. A connect that hangs tells its
// age.
func (p *Pipeline) handleSwept(event *connection.Event) {
	p.tracker.Observe(event, &p.alive)
	sent, received, retransmits, _ := event.Moved()
	if p.alive.Change == (connection.Change{}) && sent|received|retransmits == 0 && event.EstablishedNS != 0 {
		return
	}
	record := p.grow()
	*record = p.alive
	record.Clock = p.now
	if len(p.batch) == sweepBatch {
		p.handOn()
	}
}

// HandleDrained hands the batch to the sinks, and then what was lost. When the ring is empty and it is time, it
// sweeps.
func (p *Pipeline) HandleDrained(empty bool) {
	p.handOn()
	if p.options.Losses != nil {
		p.handleLosses()
	}
	if empty {
		if p.inherits {
			p.begin()
		}
		// The ring is empty again after the last sweep: whatever ended before or during it has been observed, or was lost.
		if p.sweeping {
			p.tracker.EndSweep()
			p.sweeping = false
		}
		if now := p.options.Now(); p.options.Sweep != nil && now.Sub(p.swept) >= p.options.SweepInterval {
			p.swept = now
			p.HandleSweep(p.lossy, p.options.Sweep)
		}
	}
	p.connections.Store(int64(p.tracker.Len()))
}

func (p *Pipeline) handOn() {
	batch := p.batch
	if len(batch) == 0 {
		return
	}
	for _, sink := range p.options.Sinks {
		sink.Consume(batch)
	}
	finished := p.finished()
	p.batch, p.closes = batch[:0], 0
	if len(finished) == 0 {
		return
	}
	for _, sink := range p.options.Finished {
		sink.Consume(finished)
	}
}

// finished copies those of the batch that are of connections that ended. What waits for a log holds no others, nor room for them.
func (p *Pipeline) finished() []enrich.Record {
	if p.closes == 0 || len(p.options.Finished) == 0 || p.options.Wanted != nil && !p.options.Wanted() {
		return nil
	}
	finished := make([]enrich.Record, 0, p.closes)
	for i := range p.batch {
		if p.batch[i].Event.Kind == connection.Close {
			finished = append(finished, p.batch[i])
		}
	}
	return finished
}

// HandleSweep runs a sweep, which calls back with live connections, and hands on what it tells. After a sweep over all what it did not
// tell of is forgotten when the ring was read empty once more: its close was lost. So all is asked for when closes were lost.
func (p *Pipeline) HandleSweep(all bool, sweep func(all bool, observe func(*connection.Event)) error) {
	p.tracker.BeginSweep()
	err := sweep(all, p.handleSwept)
	if err != nil && !p.sweepFail {
		slog.Error("sweep over live sockets", "error", err)
	}
	p.sweepFail = err != nil
	if p.sweeping = all && err == nil; p.sweeping {
		p.lossy = false
	}
	p.handOn()
}

// begin begins with the gauges, when the ring was read to its end: there is room in it then, so that hardly anything is lost.
func (p *Pipeline) begin() {
	losses, until, err := p.options.Inherit()
	p.takeLosses(losses, err)
	if err != nil {
		return // and again, when the ring is empty again
	}
	p.tracker.Inherit(until)
	p.inherits = false
}

func (p *Pipeline) handleLosses() { p.takeLosses(p.options.Losses()) }

func (p *Pipeline) takeLosses(losses []connection.Loss, err error) {
	if err != nil && !p.lossesFail {
		// Nothing is gone: the sums stay in the kernel until a look succeeds.
		slog.Error("read sums of lost events", "error", err)
	}
	p.lossesFail = err != nil
	if p.inherits {
		// In no gauge of ours: what is open now comes with the sweep that follows.
		for i := range losses {
			losses[i].ConnectingDown, losses[i].OpenDown = 0, 0
		}
	}
	if len(losses) == 0 {
		return
	}
	p.lossy = true
	named, now := make([]enrich.Loss, 0, len(losses)), p.options.Now()
	for i := range losses {
		named = append(named, enrich.NewLoss(&losses[i], now, p.options.Identify))
	}
	for _, sink := range p.options.LossSinks {
		sink.ConsumeLosses(named)
	}
}

// Connections returns how many connections are followed now. Safe for concurrent use.
func (p *Pipeline) Connections() int64 { return p.connections.Load() }
