package budget

import (
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Sink takes batches of records; see pipeline.Sink.
type Sink interface{ Consume(batch []enrich.Record) }

// Gate is a pipeline.Sink before those that tell of each connection that ended. It lets through what the ladder's place allows, and counts
// the rest. Consume is called from one goroutine; everything else is safe for concurrent use.
type Gate struct {
	sampler     Sampler
	logs, spans []Sink
	detail      atomic.Uint32
	// Without a log line, and without a span. Connections that the kernel did not send are in neither.
	logsOut, spansOut atomic.Uint64

	keep []connection.Sampling // of the current batch
}

// NewGate returns a gate that lets everything through.
func NewGate(sampler Sampler, logs, spans []Sink) *Gate {
	return &Gate{sampler: sampler, logs: logs, spans: spans}
}

// Set lets through what a place on the ladder allows, from the next batch on.
func (g *Gate) Set(d Detail) { g.detail.Store(uint32(d.Rung)<<8 | uint32(d.Halvings)) }

// LogsOut counts records that no log got.
func (g *Gate) LogsOut() uint64 { return g.logsOut.Load() }

// SpansOut counts records that did not become a span.
func (g *Gate) SpansOut() uint64 { return g.spansOut.Load() }

// Consume hands on a batch of connections that ended, or a part of it.
func (g *Gate) Consume(batch []enrich.Record) {
	packed := g.detail.Load()
	d := Detail{Rung: Rung(packed >> 8), Halvings: uint8(packed)}
	if d.Rung >= SpansOff {
		if len(g.spans) > 0 {
			g.spansOut.Add(uint64(len(batch)))
		}
	} else {
		handOn(g.spans, batch)
	}
	if d.Rung >= LogSampling && len(g.logs) > 0 {
		batch = g.sample(batch, d.Halvings)
	}
	handOn(g.logs, batch)
}

func handOn(sinks []Sink, batch []enrich.Record) {
	if len(batch) == 0 {
		return
	}
	for _, sink := range sinks {
		sink.Consume(batch)
	}
}

// sample returns a batch of those that are kept: the other belongs to all sinks, and holds the memory of those that are not.
func (g *Gate) sample(batch []enrich.Record, halvings uint8) []enrich.Record {
	g.keep = g.keep[:0]
	kept := 0
	for i := range batch {
		s := g.sampler.Keep(&batch[i].Event, halvings)
		if s != 0 {
			kept++
		}
		g.keep = append(g.keep, s)
	}
	g.logsOut.Add(uint64(len(batch) - kept))
	sampled := make([]enrich.Record, 0, kept)
	for i, s := range g.keep {
		if s != 0 {
			sampled = append(sampled, batch[i])
			sampled[len(sampled)-1].Sampling = s
		}
	}
	return sampled
}
