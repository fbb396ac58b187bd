package embedded

import (
	"context"
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
	set.MeterProvider = meterProvider{set.MeterProvider, l}
	set.Logger = set.Logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewTee(core, rejections{l})
	}))
	return l
}

// queueConfig is what an exporter's configuration says of its queue.
type queueConfig struct {
	there, persistent, items bool
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
			return queueConfig{there: true, persistent: q.StorageID != nil, items: q.Sizer == exporterhelper.RequestSizerTypeItems}
		}
	}
	return queueConfig{}
}

func (l *ledger) configure(queue queueConfig) {
	l.hasQueue.Store(queue.there)
	l.persistent.Store(queue.persistent)
	l.items.Store(queue.items)
}

// CreateTraces implements exporter.Factory.
func (f *exporterFactory) CreateTraces(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Traces, error) {
	l := f.open(&set, pipeline.SignalTraces, config)
	e, err := f.Factory.CreateTraces(ctx, set, config)
	if err != nil {
		return nil, err
	}
	return tracesExporter{accountedExporter{e, l}, e}, nil
}

// CreateMetrics implements exporter.Factory.
func (f *exporterFactory) CreateMetrics(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Metrics, error) {
	l := f.open(&set, pipeline.SignalMetrics, config)
	e, err := f.Factory.CreateMetrics(ctx, set, config)
	if err != nil {
		return nil, err
	}
	return metricsExporter{accountedExporter{e, l}, e}, nil
}

// CreateLogs implements exporter.Factory.
func (f *exporterFactory) CreateLogs(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Logs, error) {
	l := f.open(&set, pipeline.SignalLogs, config)
	e, err := f.Factory.CreateLogs(ctx, set, config)
	if err != nil {
		return nil, err
	}
	return logsExporter{accountedExporter{e, l}, e}, nil
}

// accountedExporter is what exporters of all signals have in common.
type accountedExporter struct {
	component.Component
	ledger *ledger
}

// Start implements component.Component.
func (e accountedExporter) Start(ctx context.Context, host component.Host) error {
	if err := e.Component.Start(ctx, host); err != nil {
		return err
	}
	e.ledger.started()
	return nil
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
}

func (e tracesExporter) Capabilities() consumer.Capabilities { return e.next.Capabilities() }

// ConsumeTraces implements consumer.Traces.
func (e tracesExporter) ConsumeTraces(ctx context.Context, traces ptrace.Traces) error {
	n := traces.SpanCount()
	return e.took(ctx, n, e.next.ConsumeTraces(ctx, traces))
}

type metricsExporter struct {
	accountedExporter
	next exporter.Metrics
}

func (e metricsExporter) Capabilities() consumer.Capabilities { return e.next.Capabilities() }

// ConsumeMetrics implements consumer.Metrics.
func (e metricsExporter) ConsumeMetrics(ctx context.Context, metrics pmetric.Metrics) error {
	n := metrics.DataPointCount()
	return e.took(ctx, n, e.next.ConsumeMetrics(ctx, metrics))
}

type logsExporter struct {
	accountedExporter
	next exporter.Logs
}

func (e logsExporter) Capabilities() consumer.Capabilities { return e.next.Capabilities() }

// ConsumeLogs implements consumer.Logs.
func (e logsExporter) ConsumeLogs(ctx context.Context, logs plog.Logs) error {
	n := logs.LogRecordCount()
	return e.took(ctx, n, e.next.ConsumeLogs(ctx, logs))
}
