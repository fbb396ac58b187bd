package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/exporter"

	"github.com/sidelight-mesh/sidelight/agent/budget"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/collector/accesslog"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/promview"
	"github.com/sidelight-mesh/sidelight/collector/queue"
	"github.com/sidelight-mesh/sidelight/collector/tail"
)

// recordQueue is how many records of each signal may wait for the embedded collector while it refuses them.
const recordQueue = 1 << 16

// idleReports is how many times an edge is reported after its last record before it may be folded to make room: five minutes by
// default, so that every scraper has its last sums.
const idleReports = 30

// outputs are where records go, of run and of replay alike.
type outputs struct {
	edges     *edge.Table
	log       *accesslog.Log // nil if off
	records   records
	tail      *tail.Tail          // the log, for who asks; nil of what is no agent
	gate      *budget.Gate        // before the log and the records; nil without either
	collector *embedded.Collector // nil without
	// builtIn says that the collector's configuration is ours: nothing is between the receiver and the exporters that keeps data.
	builtIn bool
	// received says that the mesh receiver was started.
	received atomic.Bool
	// unwritten leaves out those whose lines an agent before this one has written; nil: none.
	unwritten func([]enrich.Record) []enrich.Record
	// handed is the position in the ring before which everything had been handed on when the collector was stopped.
	handed uint64
	// handedOn is closed when the mesh receiver has given everything to the exporters.
	handedOn chan struct{}
}

// records are what waits for the mesh receiver: the same for both signals, each of which reads at its own pace.
type records struct{ logs, traces *queue.Queue }

func (r records) wait() {
	r.logs.Wait()
	r.traces.Wait()
}

// handedOn is the position in the ring before which nobody has a record any more.
func (r records) handedOn() uint64 {
	logs, _ := r.logs.Marked()
	traces, _ := r.traces.Marked()
	return min(logs, traces)
}

func (r records) close() {
	r.logs.Close()
	r.traces.Close()
}

// open makes the table of edges and opens the access log.
func (o *outputs) open(c *config.Config, boot attribute.Boot) (err error) {
	o.edges = edge.NewTable(c.MaxEdges).FoldAfter(idleReports * c.ReportInterval)
	if c.Prometheus.IstioAliases {
		o.edges.KeepAliases(promview.IstioName)
	}
	if c.AccessLog == "off" {
		return nil
	}
	if o.log, err = accesslog.Open(c.AccessLog, boot); err != nil {
		return fmt.Errorf("%w; choose another with --access-log", err)
	}
	return nil
}

// nodeOptions are what the configuration does not say.
type nodeOptions struct {
	collectorOptions
	takeover bool // from an agent that runs
	mounted  bool // bpffs was, by this process
}

// collectorOptions are those of the collector.
type collectorOptions struct {
	collectorURI string // instead of the one that the configuration leads to
	exporters    []exporter.Factory
	// transient says that what waits in the built-in configuration's queue is gone with this process.
	transient bool
}

// source is the mesh receiver's view of this process.
type source struct {
	records records
	edges   func() edge.Snapshot
}

func (s source) Logs() meshreceiver.Records   { return s.records.logs }
func (s source) Traces() meshreceiver.Records { return s.records.traces }
func (s source) Edges() edge.Snapshot         { return s.edges() }

// prepareCollector makes the collector that the configuration asks for, if it does, and checks it. It fills in those settings of the
// mesh receiver that are about the end of its work.
func (o *outputs) prepareCollector(
	ctx context.Context, c *config.Config, options collectorOptions, logger *slog.Logger, mesh meshreceiver.Settings, edges func() edge.Snapshot,
) error {
	uri, own := options.collectorURI, true
	switch {
	case uri != "":
	case c.OTelConfig != "":
		text, err := os.ReadFile(c.OTelConfig)
		if err != nil {
			return fmt.Errorf("read collector configuration: %w", err)
		}
		uri, own = "file:"+c.OTelConfig, !embedded.HasMetricsTelemetry(text)
	case c.OTLP.Enabled():
		if err := os.MkdirAll(c.StateDirectory, 0o700); err != nil {
			return fmt.Errorf("make state_directory: %w", err)
		}
		var err error
		if uri, err = embedded.DefaultURI(c.OTLP.Exporters(), c.StateDirectory, c.ReportInterval); err != nil {
			return err
		}
	default:
		return nil
	}
	o.builtIn = options.collectorURI == "" && c.OTelConfig == ""
	o.records = records{logs: queue.NewFair(recordQueue), traces: queue.NewFair(recordQueue)}
	o.handedOn = make(chan struct{})
	mesh.Source = source{o.records, edges}
	mesh.OnStart = func() { o.received.Store(true) }
	mesh.OnEnd = sync.OnceFunc(func() { close(o.handedOn) })
	o.collector = embedded.New(embedded.Options{
		URI:            uri,
		Mesh:           mesh,
		Version:        version(),
		DiscardMetrics: own,
		Persistent:     o.builtIn && !options.transient,
		Exporters:      options.exporters,
		Logger:         logger,
	})
	if err := o.collector.Validate(ctx); err != nil {
		return fmt.Errorf("check collector configuration: %w", err)
	}
	return nil
}

// lines is the log, without what it has.
type lines struct {
	*accesslog.Log
	unwritten func([]enrich.Record) []enrich.Record // nil: all of it
}

func (l lines) Consume(batch []enrich.Record) {
	if l.unwritten != nil {
		batch = l.unwritten(batch)
	}
	if len(batch) > 0 {
		l.Log.Consume(batch)
	}
}

// finished are what a pipeline hands the records of connections to that ended: a gate, if there is anything behind it that always wants them.
func (o *outputs) finished(slow time.Duration) []pipeline.Sink {
	var logs, spans []budget.Sink
	if o.log != nil {
		logs = append(logs, lines{o.log, o.unwritten})
	}
	if o.collector != nil {
		logs = append(logs, o.records.logs)
		spans = append(spans, o.records.traces)
	}
	switch {
	case logs == nil && o.tail == nil:
		return nil
	case logs == nil: // there are no lines that the budget could leave out
		return []pipeline.Sink{o.tail}
	case o.tail != nil:
		logs = append(logs, o.tail)
	}
	o.gate = budget.NewGate(budget.Sampler{Slow: slow}, logs, spans)
	return []pipeline.Sink{o.gate}
}

// wanted says whether anybody wants what finished returned, if that changes.
func (o *outputs) wanted() func() bool {
	if o.tail == nil || o.gate != nil {
		return nil
	}
	return o.tail.Watched
}

// stopCollector lets the receiver take what is queued until a context ends, and the exporters send it while they make progress and until another one ends.
// It returns what they still have and what they gave up on, in all signals.
func (o *outputs) stopCollector(ctx, flush context.Context, patience time.Duration) (queued, failed int64, err error) {
	if o.collector == nil {
		return 0, 0, nil
	}
	o.records.close()
	if !o.received.Load() {
		close(o.handedOn)
	}
	select {
	case <-o.handedOn:
		queued = o.collector.Flush(flush, patience)
	case <-o.collector.Done():
	case <-ctx.Done():
	}
	// What is dropped from here on can be had from the ring once more.
	o.handed = o.records.handedOn()
	for _, s := range o.collector.Stats() {
		failed += s.Failed + s.Rejected
	}
	if err := o.collector.Shutdown(); err != nil {
		return queued, failed, fmt.Errorf("stop collector: %w", err)
	}
	return queued, failed, nil
}

// release closes the access log. Safe twice.
func (o *outputs) release() {
	if o.log != nil {
		o.log.CloseFile()
	}
}

// writeTime is how long the access log may take for its last lines: its reader can be a pipe that nobody empties.
const writeTime = 5 * time.Second

func waitWithin(group *sync.WaitGroup, limit time.Duration) error {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("write the end of the access log: not done within %v, lines are lost", limit)
	}
}
