package meshreceiver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/receiver"
	"go.uber.org/zap"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Dropped counts what the receiver of this process gave up on, because the pipeline said that it is no use or because the
// pipeline was shut down while it refused. Safe for concurrent use.
var Dropped struct{ Logs, Spans, DataPoints atomic.Uint64 }

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
		r.wg.Go(func() {
			r.runRecords(ctx)
			close(ended)
		})
		r.wg.Go(func() {
			r.runMetrics(ended)
			if ctx.Err() == nil && r.settings.OnEnd != nil {
				r.settings.OnEnd()
			}
		})
	})
	return nil
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

func (r *meshReceiver) runRecords(ctx context.Context) {
	for {
		batches, ok := r.settings.Source.Next(ctx)
		if !ok {
			return
		}
		r.consume(batches)
	}
}

// consume gives each signal what the batches hold, and returns when both have taken it or given up.
func (r *meshReceiver) consume(batches [][]enrich.Record) {
	var wg sync.WaitGroup
	if r.nextLogs != nil {
		wg.Go(func() {
			logs := newLogs(&r.settings, batches)
			// Counted now: what was handed on is the pipeline's, also when it refuses it.
			count := logs.LogRecordCount()
			if count > 0 && !r.deliver("logs", func(ctx context.Context) error { return r.nextLogs.ConsumeLogs(ctx, logs) }) {
				Dropped.Logs.Add(uint64(count))
			}
		})
	}
	if r.nextTraces != nil {
		wg.Go(func() {
			traces := newTraces(&r.settings, batches)
			count := traces.SpanCount()
			if count > 0 && !r.deliver("traces", func(ctx context.Context) error { return r.nextTraces.ConsumeTraces(ctx, traces) }) {
				Dropped.Spans.Add(uint64(count))
			}
		})
	}
	wg.Wait()
}

// runMetrics reports once more when there will be no more records: then the sums are final.
func (r *meshReceiver) runMetrics(ended <-chan struct{}) {
	ticker := time.NewTicker(r.config.ReportInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			r.report(now)
		case <-ended:
			r.report(time.Now())
			return
		}
	}
}

func (r *meshReceiver) report(now time.Time) {
	if r.nextMetrics == nil {
		return
	}
	metrics := newMetrics(&r.settings, r.settings.Source.Edges(), now)
	points := metrics.DataPointCount()
	if points == 0 {
		return
	}
	// The next report repeats all of it: sums are cumulative.
	if err := r.nextMetrics.ConsumeMetrics(delivery(), metrics); err != nil {
		Dropped.DataPoints.Add(uint64(points))
		r.logger.Warn("Metrics refused by the pipeline", zap.Error(err))
	}
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
