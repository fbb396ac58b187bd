package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/exporter"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/agent/status"
	"github.com/sidelight-mesh/sidelight/collector/accesslog"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/queue"
)

// recordQueue is how many records of each signal may wait for the embedded collector while it refuses them.
const recordQueue = 1 << 16

// idleReports is how many times an edge is reported after its last record before it may be folded to make room: five minutes by
// default, so that every scraper has its last sums.
const idleReports = 30

// node is one agent: everything from the cgroup to the exporters.
type node struct {
	config  config.Config
	logger  *slog.Logger
	started time.Time

	cgroup    datapath.Cgroup
	boot      attribute.Boot
	datapath  *datapath.Datapath
	enricher  *enrich.Enricher
	stats     event.Stats
	reader    *event.Reader
	pipeline  *pipeline.Pipeline
	edges     *edge.Table
	log       *accesslog.Log
	records   records
	collector *embedded.Collector
	// builtIn says that the collector's configuration is ours: nothing is between the receiver and the exporters that keeps data.
	builtIn bool
	// received says that the mesh receiver was started.
	received atomic.Bool
	// handedOn is closed when the mesh receiver has given everything to the exporters.
	handedOn chan struct{}
	server   *status.Server
}

// records are what waits for the mesh receiver: the same for both signals, each of which reads at its own pace.
type records struct{ logs, traces *queue.Queue }

// nodeOptions are what the configuration does not say.
type nodeOptions struct {
	collectorURI string // instead of the one that the configuration leads to
	exporters    []exporter.Factory
}

// inputError is a fault of what the user gave or of the machine, found before anything was attached. The exit code is 2.
type inputError struct{ error }

func (e inputError) Unwrap() error { return e.error }

// newNode checks everything that can be checked and takes what it needs, attaching nothing. Every error is an inputError.
func newNode(ctx context.Context, c config.Config, options nodeOptions, logger *slog.Logger) (*node, error) {
	n := &node{config: c, logger: logger, started: time.Now()}
	if err := n.prepare(ctx, options); err != nil {
		n.release()
		return nil, inputError{err}
	}
	return n, nil
}

func (n *node) prepare(ctx context.Context, options nodeOptions) error {
	var err error
	if n.cgroup, err = datapath.OpenCgroup(n.config.Cgroup); err != nil {
		return err
	}
	if err := datapath.CheckPrivileges(); err != nil {
		return err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	n.boot = attribute.NewBoot(string(bootID))
	if n.config.AccessLog != "off" {
		if n.log, err = accesslog.Open(n.config.AccessLog, n.boot); err != nil {
			return fmt.Errorf("%w; choose another with --access-log", err)
		}
	}
	if n.server, err = status.Listen(n.config.MetricsAddress); err != nil {
		return err
	}
	n.edges = edge.NewTable(n.config.MaxEdges).FoldAfter(idleReports * n.config.ReportInterval)
	if err := n.prepareCollector(ctx, options); err != nil {
		return err
	}
	return n.prepareKernel()
}

func (n *node) prepareCollector(ctx context.Context, options nodeOptions) error {
	uri, own := options.collectorURI, true
	switch {
	case uri != "":
	case n.config.OTelConfig != "":
		text, err := os.ReadFile(n.config.OTelConfig)
		if err != nil {
			return fmt.Errorf("read collector configuration: %w", err)
		}
		uri, own = "file:"+n.config.OTelConfig, !embedded.HasMetricsTelemetry(text)
	case n.config.OTLP.Enabled():
		if err := os.MkdirAll(n.config.StateDirectory, 0o700); err != nil {
			return fmt.Errorf("make state_directory: %w", err)
		}
		var err error
		if uri, err = embedded.DefaultURI(n.config.OTLP.Exporters(), n.config.StateDirectory, n.config.ReportInterval); err != nil {
			return err
		}
	default:
		return nil
	}
	n.builtIn = options.collectorURI == "" && n.config.OTelConfig == ""
	n.records = records{logs: queue.NewFair(recordQueue), traces: queue.NewFair(recordQueue)}
	n.handedOn = make(chan struct{})
	host, _ := os.Hostname() // without a name the attribute is left out
	n.collector = embedded.New(embedded.Options{
		URI: uri,
		Mesh: meshreceiver.Settings{
			Source: source{n}, Clock: event.MeasureClock, Boot: n.boot, HostName: host, Self: n.readSelf,
			OnStart: func() { n.received.Store(true) },
			OnEnd:   sync.OnceFunc(func() { close(n.handedOn) }),
		},
		Version:        version(),
		DiscardMetrics: own,
		Persistent:     n.builtIn,
		Exporters:      options.exporters,
		Logger:         n.logger,
	})
	if err := n.collector.Validate(ctx); err != nil {
		return fmt.Errorf("check collector configuration: %w", err)
	}
	return nil
}

func (n *node) prepareKernel() error {
	mounted, err := datapath.MountBPFFS()
	if err != nil {
		n.logger.Warn("bpffs is not there, and was not mounted", "error", err)
	} else if mounted {
		n.logger.Info("mounted bpffs", "at", datapath.BPFFS)
	}
	if n.datapath, err = datapath.Load(datapath.Options{
		RingBytes: n.config.RingBytes, WakeupBytes: uint64(n.config.RingBytes) / 8,
	}); err != nil {
		return err
	}
	if n.enricher, err = enrich.New(n.cgroup.Mount, enrich.NewPeers(peerGroups(n.config.PeerGroups))); err != nil {
		return err
	}
	if n.reader, err = event.NewReader(n.datapath.Ring(), n.config.DrainInterval, &n.stats); err != nil {
		return err
	}
	sinks := []pipeline.Sink{n.edges}
	var closes queue.Closes
	if n.log != nil {
		closes = append(closes, n.log)
	}
	if n.collector != nil {
		closes = append(closes, n.records.logs, n.records.traces)
	}
	if len(closes) > 0 {
		sinks = append(sinks, closes)
	}
	n.pipeline = pipeline.New(pipeline.Options{
		Limit: n.config.MaxConnections, Clock: event.MeasureClock, Identify: n.enricher.Identify, Sinks: sinks,
		Losses: n.datapath.Losses, LossSinks: []pipeline.LossSink{n.edges},
		Sweep: n.sweep, SweepInterval: n.config.ReportInterval,
	})
	return nil
}

// sweep decodes what the kernel tells of live sockets.
func (n *node) sweep(observe func(*connection.Event)) error {
	var e connection.Event
	return n.datapath.Sweep(func(record []byte) {
		if err := event.Decode(record, &e); err != nil {
			n.stats.DecodeFailed.Add(1)
			return
		}
		n.stats.Decoded[e.Kind].Add(1)
		observe(&e)
	})
}

func peerGroups(groups []config.PeerGroup) []enrich.PeerGroup {
	named := make([]enrich.PeerGroup, 0, len(groups))
	for _, g := range groups {
		named = append(named, enrich.PeerGroup{Name: g.Name, Namespace: g.Namespace, CIDRs: g.CIDRs})
	}
	return named
}

// source is the mesh receiver's view of this node.
type source struct{ node *node }

func (s source) Logs() meshreceiver.Records   { return s.node.records.logs }
func (s source) Traces() meshreceiver.Records { return s.node.records.traces }
func (s source) Edges() edge.Snapshot         { return s.node.snapshot() }

// snapshot returns the edges with everything in them that the kernel had told by the time of the call. If the ring cannot be drained
// in time, what is not read yet is missing until the next.
func (n *node) snapshot() edge.Snapshot {
	ctx, cancel := context.WithTimeout(context.Background(), auditTime)
	defer cancel()
	if err := n.reader.Drain(ctx); err != nil {
		n.logger.Debug("the ring was not drained for a report", "error", err)
	}
	return n.edges.Snapshot()
}

// run attaches, works until the context ends, and lets go in the reverse order: no new events, what is in the ring, what waits for
// the log and the exporters.
func (n *node) run(ctx context.Context, attached func()) error {
	defer n.release()
	metrics, err := n.metrics()
	if err != nil {
		return err
	}
	if n.collector != nil {
		if err := n.collector.Start(ctx); err != nil {
			return inputError{err}
		}
	}
	if err := n.datapath.Attach(n.cgroup); err != nil {
		return errors.Join(err, n.stopCollector())
	}
	if err := n.datapath.AdoptListeners(); err != nil {
		n.logger.Warn("servers that listen already have no process in the access log", "error", err)
	}
	n.logger.Info("attached", "cgroup", n.cgroup.Dir, "metrics", n.server.Address())
	readCtx, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	var reading, writing sync.WaitGroup
	failed := make(chan error, 2)
	reading.Go(func() {
		if err := n.reader.Run(readCtx, n.pipeline); err != nil {
			failed <- err
		}
	})
	if n.log != nil {
		writing.Go(n.log.Run)
	}
	writing.Go(func() { n.serve(metrics, failed) })
	n.server.SetReady(true)
	if attached != nil {
		attached()
	}
	err = n.wait(ctx, failed)
	n.server.SetReady(false)
	err = errors.Join(err, n.datapath.Detach())
	stopReading()
	reading.Wait()
	if n.log != nil {
		n.log.Close()
	}
	err = errors.Join(err, n.stopCollector())
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = n.server.Shutdown(shutdownCtx) // a scrape that takes longer is cut
	return errors.Join(err, waitWithin(&writing, writeTime))
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

func (n *node) serve(metrics http.Handler, failed chan<- error) {
	if err := n.server.Serve(metrics, http.HandlerFunc(n.serveAudit)); err != nil {
		failed <- err
	}
}

// wait returns when the context ends or when the node cannot go on. It can without the collector.
func (n *node) wait(ctx context.Context, failed <-chan error) error {
	var collectorDone <-chan struct{}
	if n.collector != nil {
		collectorDone = n.collector.Done()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-collectorDone:
			collectorDone = nil
			n.logger.Error("the embedded collector stopped: nothing is exported any more; metrics and access log go on")
		}
	}
}

// handOnTime is how long the mesh receiver may take for what is queued; a pipeline that refuses all of it would take for ever.
// flushPatience is how long exporters that make no progress are waited for.
const (
	handOnTime    = 5 * time.Second
	flushPatience = time.Second
)

// stopCollector lets the receiver take what is queued, and the exporters send it or, while the backend is down, leave it in their
// queue on disk.
func (n *node) stopCollector() error {
	if n.collector == nil {
		return nil
	}
	n.records.logs.Close()
	n.records.traces.Close()
	if !n.received.Load() {
		close(n.handedOn)
	}
	select {
	case <-n.handedOn:
		if queued := n.collector.Flush(flushPatience); queued > 0 {
			n.logger.Warn("the OTLP backend does not take what is queued, it waits on disk for the next start", "items", queued)
		}
	case <-n.collector.Done():
	case <-time.After(handOnTime):
	}
	if err := n.collector.Shutdown(); err != nil {
		return fmt.Errorf("stop collector: %w", err)
	}
	return nil
}

// release frees what prepare took, in reverse. Safe twice.
func (n *node) release() {
	if n.reader != nil {
		n.reader.Close()
	}
	if n.enricher != nil {
		n.enricher.Close()
	}
	if n.datapath != nil {
		n.datapath.Close()
	}
	if n.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = n.server.Shutdown(ctx)
		cancel()
	}
	if n.log != nil {
		n.log.CloseFile()
	}
}
