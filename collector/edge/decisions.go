package edge

import (
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// DecisionBounds are the upper bounds, in seconds, of the classic buckets of the time to decide: a look into maps takes a fraction of a microsecond, and a CPU
// that is taken away meanwhile some hundred.
var DecisionBounds = []float64{250e-9, 500e-9, 1e-6, 2.5e-6, 5e-6, 10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 10e-3}

// Decisions is how long the mesh took to decide the connects of this node, let through or refused. It is of the node and not of edges: what a decision costs depends
// on the machine and the mesh, hardly on who connects to whom, and a histogram for each edge would have as many series as all counters of it.
type Decisions struct {
	// SinceUnixNS is when the first one was seen; 0: there was none.
	SinceUnixNS int64
	Duration    Histogram // seconds
}

func newDecisions() Decisions { return Decisions{Duration: NewHistogram(DecisionBounds)} }

// add takes each connect once, in the first event of it that gets through. Servers are left out: of those only refusals say how long they took.
func (d *Decisions) add(r *enrich.Record) {
	e := &r.Event
	if e.Flags&connection.Decided == 0 || r.Change.Attempts == 0 {
		return
	}
	if d.SinceUnixNS == 0 {
		d.SinceUnixNS = r.Clock.WallNS(e.EventNS)
	}
	d.Duration.Observe(float64(e.Decision.DecisionNS)/second, e)
}

func (d *Decisions) clone() Decisions { return Decisions{d.SinceUnixNS, d.Duration.clone()} }

// restore goes on from those of an earlier table, if they are of this version.
func (d *Decisions) restore(of *Decisions) {
	if of.SinceUnixNS == 0 || !of.Duration.hasBounds(DecisionBounds) {
		return
	}
	if d.SinceUnixNS == 0 || of.SinceUnixNS < d.SinceUnixNS {
		d.SinceUnixNS = of.SinceUnixNS
	}
	d.Duration.merge(&of.Duration)
}
