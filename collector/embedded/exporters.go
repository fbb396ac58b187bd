package embedded

import (
	"context"
	"errors"
	"reflect"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/config/configoptional"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pipeline"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
)

// accounted makes a factory whose exporters keep a ledger each.
func (c *Collector) accounted(f exporter.Factory) exporter.Factory {
	wrapped := &exporterFactory{Factory: f, account: &c.account}
	if alias, ok := f.(aliased); ok {
		return struct {
			*exporterFactory
			aliased
		}{wrapped, alias}
	}
	return wrapped
}

// aliased has an older name, by which a configuration can name it as well.
type aliased interface {
	DeprecatedAlias() component.Type
	SetDeprecatedAlias(component.Type)
}

type exporterFactory struct {
	exporter.Factory
	account *account
}

// open finds an exporter's ledger, and has it told what the exporter does.
func (f *exporterFactory) open(set *exporter.Settings, signal pipeline.Signal, config component.Config) *ledger {
	l := f.account.ledger(set.ID, signal)
	l.configure(queueOf(config))
	set.MeterProvider = meterProvider{MeterProvider: set.MeterProvider, ledger: l}
	set.Logger = set.Logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewTee(core, rejections{l})
	}))
	return l
}

// queueConfig is what an exporter's configuration says of its queue.
type queueConfig struct {
	there, persistent, items bool
	capacity                 int64 // in its own size, as what waits in it
}

// queueOf finds the queue of an exporter's configuration, whichever exporter it is of.
func queueOf(config component.Config) queueConfig {
	v := reflect.Indirect(reflect.ValueOf(config))
	if v.Kind() != reflect.Struct {
		return queueConfig{}
	}
	for field, value := range v.Fields() {
		if !field.IsExported() {
			continue
		}
		if queue, ok := value.Interface().(configoptional.Optional[exporterhelper.QueueBatchConfig]); ok && queue.HasValue() {
			q := queue.Get()
			return queueConfig{there: true, persistent: q.StorageID != nil, items: q.Sizer == exporterhelper.RequestSizerTypeItems, capacity: q.QueueSize}
		}
	}
	return queueConfig{}
}

func (l *ledger) configure(queue queueConfig) {
	l.hasQueue.Store(queue.there)
	l.persistent.Store(queue.persistent)
	l.items.Store(queue.items)
	l.capacity.Store(queue.capacity)
}

// CreateTraces implements exporter.Factory.
func (f *exporterFactory) CreateTraces(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Traces, error) {
	l := f.open(&set, pipeline.SignalTraces, config)
	e, err := f.Factory.CreateTraces(ctx, set, config)
	if err != nil {
		return nil, err
	}
	made := tracesExporter{accountedExporter{Component: e, ledger: l}, e, nil}
	if config, ok := withoutQueue(config); ok {
		if made.now, err = f.Factory.CreateTraces(ctx, twin(set), config); err != nil {
			return nil, err
		}
		made.before(made.now, set.Logger)
	}
	return made, nil
}

// CreateMetrics implements exporter.Factory.
func (f *exporterFactory) CreateMetrics(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Metrics, error) {
	l := f.open(&set, pipeline.SignalMetrics, config)
	e, err := f.Factory.CreateMetrics(ctx, set, config)
	if err != nil {
		return nil, err
	}
	made := metricsExporter{accountedExporter{Component: e, ledger: l}, e, nil}
	if config, ok := withoutQueue(config); ok {
		if made.now, err = f.Factory.CreateMetrics(ctx, twin(set), config); err != nil {
			return nil, err
		}
		made.before(made.now, set.Logger)
	}
	return made, nil
}

// CreateLogs implements exporter.Factory.
func (f *exporterFactory) CreateLogs(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Logs, error) {
	l := f.open(&set, pipeline.SignalLogs, config)
	e, err := f.Factory.CreateLogs(ctx, set, config)
	if err != nil {
		return nil, err
	}
	made := logsExporter{accountedExporter{Component: e, ledger: l}, e, nil}
	if config, ok := withoutQueue(config); ok {
		if made.now, err = f.Factory.CreateLogs(ctx, twin(set), config); err != nil {
			return nil, err
		}
		made.before(made.now, set.Logger)
	}
	return made, nil
}

// accountedExporter is what exporters of all signals have in common.
type accountedExporter struct {
	component.Component
	ledger *ledger
	direct *direct             // nil without a queue on disk
	twin   component.Component // that is tried first
}

func (e *accountedExporter) before(twin component.Component, logger *zap.Logger) {
	e.twin, e.direct = twin, &direct{ledger: e.ledger, logger: logger}
}

// Start implements component.Component.
func (e accountedExporter) Start(ctx context.Context, host component.Host) error {
	if err := e.Component.Start(ctx, host); err != nil {
		return err
	}
	e.ledger.started()
	if e.twin != nil {
		return e.twin.Start(ctx, host)
	}
	return nil
}

// Shutdown implements component.Component.
func (e accountedExporter) Shutdown(ctx context.Context) error {
	var err error
	if e.twin != nil {
		err = e.twin.Shutdown(ctx)
	}
	return errors.Join(err, e.Component.Shutdown(ctx))
}

// took counts what the exporter was offered.
func (e accountedExporter) took(ctx context.Context, items int, err error) error {
	switch {
	case err == nil:
		e.ledger.taken.Add(int64(items))
	case !meshreceiver.Answerable(ctx):
		// Between the receiver and us the data changed hands, as with the batch processor, which does not try again.
		e.ledger.refused.Add(int64(items))
	}
	return err
}

// The counts are taken first: a queue may empty what it takes.

type tracesExporter struct {
	accountedExporter
	next exporter.Traces
	now  exporter.Traces // nil without a queue on disk
}

func (e tracesExporter) Capabilities() consumer.Capabilities { return e.next.Capabilities() }

// ConsumeTraces implements consumer.Traces.
func (e tracesExporter) ConsumeTraces(ctx context.Context, traces ptrace.Traces) error {
	n := traces.SpanCount()
	if e.now == nil {
		return e.took(ctx, n, e.next.ConsumeTraces(ctx, traces))
	}
	return e.took(ctx, n, e.direct.send(ctx, n,
		func(ctx context.Context) error { return e.now.ConsumeTraces(ctx, traces) },
		func(ctx context.Context) error { return e.next.ConsumeTraces(ctx, traces) }))
}

type metricsExporter struct {
	accountedExporter
	next exporter.Metrics
	now  exporter.Metrics // nil without a queue on disk
}

func (e metricsExporter) Capabilities() consumer.Capabilities { return e.next.Capabilities() }

// ConsumeMetrics implements consumer.Metrics.
func (e metricsExporter) ConsumeMetrics(ctx context.Context, metrics pmetric.Metrics) error {
	n := metrics.DataPointCount()
	if e.now == nil {
		return e.took(ctx, n, e.next.ConsumeMetrics(ctx, metrics))
	}
	return e.took(ctx, n, e.direct.send(ctx, n,
		func(ctx context.Context) error { return e.now.ConsumeMetrics(ctx, metrics) },
		func(ctx context.Context) error { return e.next.ConsumeMetrics(ctx, metrics) }))
}

type logsExporter struct {
	accountedExporter
	next exporter.Logs
	now  exporter.Logs // nil without a queue on disk
}

func (e logsExporter) Capabilities() consumer.Capabilities { return e.next.Capabilities() }

// ConsumeLogs implements consumer.Logs.
func (e logsExporter) ConsumeLogs(ctx context.Context, logs plog.Logs) error {
	n := logs.LogRecordCount()
	if e.now == nil {
		return e.took(ctx, n, e.next.ConsumeLogs(ctx, logs))
	}
	return e.took(ctx, n, e.direct.send(ctx, n,
		func(ctx context.Context) error { return e.now.ConsumeLogs(ctx, logs) },
		func(ctx context.Context) error { return e.next.ConsumeLogs(ctx, logs) }))
}
