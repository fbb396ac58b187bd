package meshreceiver

import (
	"context"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver"
	"go.uber.org/zap"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Count is of what the receiver of this process did. Safe for concurrent use.
type Count struct{ Logs, Spans, DataPoints atomic.Uint64 }

var (
	// HandedOn counts what a pipeline took.
	HandedOn Count
	// Dropped counts what the receiver gave up on, because the pipeline said that it is no use or because the pipeline was shut down
	// while it refused.
	Dropped Count
	// Unused counts records of a signal that no pipeline of the configuration wants.
	Unused Count
)

// meshReceiver is started and stopped once for each signal that uses it; the first start and the first stop count.
type meshReceiver struct {
	config   *Config
	settings Settings
	logger   *zap.Logger

	nextMetrics consumer.Metrics
	nextLogs    consumer.Logs
	nextTraces  consumer.Traces

	start, stop sync.Once
	// stopping ends waits and retries, cancel ends the wait for records.
	stopping chan struct{}
	wg       sync.WaitGroup
	cancel   context.CancelFunc
}

func newReceiver(config *Config, settings Settings, set receiver.Settings) *meshReceiver {
	settings.Tracing.use(set.TracerProvider)
	return &meshReceiver{config: config, settings: settings, logger: set.Logger, stopping: make(chan struct{}), cancel: func() {}}
}

func (r *meshReceiver) stopped() bool {
	select {
	case <-r.stopping:
		return true
	default:
		return false
	}
}

// Start implements component.Component.
func (r *meshReceiver) Start(context.Context, component.Host) error {
	if r.settings.Source == nil {
		return errNoSource
	}
	r.start.Do(func() {
		if r.settings.OnStart != nil {
			r.settings.OnStart()
		}
		var ctx context.Context
		ctx, r.cancel = context.WithCancel(context.Background())
		ended := make(chan struct{})
		var records sync.WaitGroup
		records.Go(func() { stage("logs", func() { r.runLogs(ctx) }) })
		records.Go(func() { stage("traces", func() { r.runTraces(ctx) }) })
		r.wg.Go(r.runSteps)
		r.wg.Go(func() {
			records.Wait()
			close(ended)
		})
		r.wg.Go(func() {
			stage("metrics", func() { r.runMetrics(ended) })
			if ctx.Err() == nil && r.settings.OnEnd != nil {
				r.settings.OnEnd()
			}
		})
	})
	return nil
}

// stage labels a goroutine for profiles, once.
func stage(name string, f func()) {
	pprof.Do(context.Background(), pprof.Labels("stage", name), func(context.Context) { f() })
}

// Shutdown implements component.Component. It hands on what the source holds and the sums as they are last. Safe twice, and
// without Start.
func (r *meshReceiver) Shutdown(context.Context) error {
	r.stop.Do(func() {
		close(r.stopping)
		r.cancel()
		r.wg.Wait()
	})
	return nil
}

func (r *meshReceiver) runLogs(ctx context.Context) {
	run(ctx, r.config.BatchInterval, r.settings.Source.Logs(), func(batches [][]enrich.Record, records int) {
		if r.nextLogs == nil {
			Unused.Logs.Add(uint64(records))
			return
		}
		span := r.settings.Tracing.build("logs", records)
		logs := newLogs(&r.settings, batches)
		span.End()
		count := &HandedOn
		if !r.deliver("logs", func(ctx context.Context) error { return r.nextLogs.ConsumeLogs(ctx, logs) }) {
			count = &Dropped
		}
		count.Logs.Add(uint64(records))
	})
}

func (r *meshReceiver) runTraces(ctx context.Context) {
	run(ctx, r.config.BatchInterval, r.settings.Source.Traces(), func(batches [][]enrich.Record, records int) {
		if r.nextTraces == nil {
			Unused.Spans.Add(uint64(records))
			return
		}
		span := r.settings.Tracing.build("traces", records)
		traces := newTraces(&r.settings, batches)
		span.End()
		count := &HandedOn
		if !r.deliver("traces", func(ctx context.Context) error { return r.nextTraces.ConsumeTraces(ctx, traces) }) {
			count = &Dropped
		}
		count.Spans.Add(uint64(records))
	})
}

const (
	// most is how many records go to a pipeline at once, or one batch: what is made of it, some two kilobytes each, is to fit into a
	// processor's cache until an exporter has made bytes of it.
	most = 1024
	// enough is how many do not wait for more.
	enough = most / 2
)

// run hands on what a signal's records hold until there will be no more, and waits where the pipeline refuses; the other signal
// does not notice.
func run(ctx context.Context, interval time.Duration, records Records, handOn func(batches [][]enrich.Record, records int)) {
	var last time.Time
	for {
		batches, ok := records.Next(ctx)
		if !ok {
			return
		}
		batches = gather(ctx, records, batches, last.Add(interval))
		for len(batches) > 0 {
			n, size := 1, len(batches[0])
			for n < len(batches) && size+len(batches[n]) <= most {
				size += len(batches[n])
				n++
			}
			handOn(batches[:n], size)
			records.Done(size)
			batches = batches[n:]
		}
		last = time.Now()
	}
}

// gather waits for more than few records, but not for longer than until, nor when there will be no more.
func gather(ctx context.Context, records Records, batches [][]enrich.Record, until time.Time) [][]enrich.Record {
	if !time.Now().Before(until) {
		return batches
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	size := 0
	for _, b := range batches {
		size += len(b)
	}
	for size < enough {
		more, ok := records.Next(ctx)
		if !ok {
			break
		}
		for _, b := range more {
			size += len(b)
		}
		batches = append(batches, more...)
	}
	return batches
}

// runMetrics reports once more when there will be no more records: then the sums are final.
func (r *meshReceiver) runMetrics(ended <-chan struct{}) {
	ticker := time.NewTicker(r.config.ReportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// The next report repeats all of it: sums are cumulative.
			r.report(func(metrics pmetric.Metrics) bool {
				err := r.nextMetrics.ConsumeMetrics(delivery(), metrics)
				if err != nil {
					r.logger.Warn("Metrics refused by the pipeline", zap.Error(err))
				}
				return err == nil
			})
		case <-ended:
			r.report(func(metrics pmetric.Metrics) bool {
				return r.deliver("metrics", func(ctx context.Context) error { return r.nextMetrics.ConsumeMetrics(ctx, metrics) })
			})
			return
		}
	}
}

func (r *meshReceiver) report(consume func(pmetric.Metrics) bool) {
	if r.nextMetrics == nil {
		return
	}
	snapshot := r.settings.Source.Edges()
	span := r.settings.Tracing.build("metrics", len(snapshot.Edges))
	metrics := newMetrics(&r.settings, snapshot, r.settings.Now())
	span.End()
	count, points := &HandedOn, metrics.DataPointCount()
	if points > 0 && !consume(metrics) {
		count = &Dropped
	}
	count.DataPoints.Add(uint64(points))
}

// Pauses between tries, while a memory limiter or a full queue refuses. The source's bounded queue fills up meanwhile.
const (
	firstPause = 50 * time.Millisecond
	mostPause  = 2 * time.Second
)

// deliver tries until the data is taken, the error is a permanent one, or the receiver stops.
func (r *meshReceiver) deliver(signal string, consume func(context.Context) error) bool {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		err := consume(delivery())
		if err == nil {
			return true
		}
		if consumererror.IsPermanent(err) {
			r.logger.Error("Data refused by the pipeline for good", zap.String("signal", signal), zap.Error(err))
			return false
		}
		if pause == firstPause {
			r.logger.Warn("Data refused by the pipeline, trying again", zap.String("signal", signal), zap.Error(err))
		}
		select {
		case <-time.After(pause):
		case <-r.stopping:
			// One last try: Shutdown may have come between.
			return consume(delivery()) == nil
		}
	}
}
