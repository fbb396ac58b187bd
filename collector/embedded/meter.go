package embedded

import (
	"context"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap/zapcore"
)

// helperScope is the library that exporters are made with: it counts for each of them.
const helperScope = "go.opentelemetry.io/collector/exporter/exporterhelper"

// meterProvider stands between an exporter and the collector's meters, so that a ledger sees what the exporter counts: wherever the
// configuration sends the collector's own metrics, and if nowhere.
type meterProvider struct {
	metric.MeterProvider
	ledger *ledger
	twin   bool // of an exporter that is tried first: its failures are not the last word
}

// Meter implements metric.MeterProvider.
func (p meterProvider) Meter(name string, options ...metric.MeterOption) metric.Meter {
	m := p.MeterProvider.Meter(name, options...)
	if name != helperScope {
		return m
	}
	return meter{m, p.ledger, p.twin}
}

type meter struct {
	metric.Meter
	ledger *ledger
	twin   bool
}

// Int64Counter implements metric.Meter.
func (m meter) Int64Counter(name string, options ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	c, err := m.Meter.Int64Counter(name, options...)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(name, "otelcol_exporter_sent_"):
		return counter{c, func(n int64, _ []metric.AddOption) { m.ledger.sent.Add(n) }}, nil
	case strings.HasPrefix(name, "otelcol_exporter_send_failed_") && m.twin:
		return noop.Int64Counter{}, nil
	case strings.HasPrefix(name, "otelcol_exporter_send_failed_"):
		return counter{c, m.ledger.addFailed}, nil
	}
	return c, nil
}

// addFailed leaves out what the end of the exporter interrupted, if the queue keeps that for the next start.
func (l *ledger) addFailed(n int64, options []metric.AddOption) {
	set := metric.NewAddConfig(options).Attributes()
	if cause, _ := set.Value("error.type"); l.persistent.Load() && cause.AsString() == "Shutdown" {
		return
	}
	l.failed.Add(n)
}

type counter struct {
	metric.Int64Counter
	add func(int64, []metric.AddOption)
}

// Add implements metric.Int64Counter.
func (c counter) Add(ctx context.Context, n int64, options ...metric.AddOption) {
	c.add(n, options)
	c.Int64Counter.Add(ctx, n, options...)
}

// gauge is the size of a queue, which a callback tells.
type gauge struct {
	metric.Int64ObservableGauge
	callback metric.Callback
}

// Int64ObservableGauge implements metric.Meter.
func (m meter) Int64ObservableGauge(name string, options ...metric.Int64ObservableGaugeOption) (metric.Int64ObservableGauge, error) {
	g, err := m.Meter.Int64ObservableGauge(name, options...)
	if err != nil || name != "otelcol_exporter_queue_size" {
		return g, err
	}
	return &gauge{Int64ObservableGauge: g}, nil
}

// RegisterCallback implements metric.Meter.
func (m meter) RegisterCallback(callback metric.Callback, instruments ...metric.Observable) (metric.Registration, error) {
	var size *gauge
	inner := slices.Clone(instruments)
	for i, instrument := range instruments {
		if g, ok := instrument.(*gauge); ok {
			size, inner[i] = g, g.Int64ObservableGauge
		}
	}
	if size == nil {
		return m.Meter.RegisterCallback(callback, instruments...)
	}
	registration, err := m.Meter.RegisterCallback(func(ctx context.Context, to metric.Observer) error {
		return callback(ctx, &observer{Observer: to, size: size})
	}, inner...)
	if err != nil {
		return nil, err
	}
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	size.callback = callback
	m.ledger.queue = size
	return sizeRegistration{registration, m.ledger, size}, nil
}

// read asks the callback.
func (g *gauge) read() int64 {
	o := observer{size: g}
	_ = g.callback(context.Background(), &o) // it tells a number it has
	return o.value
}

// observer takes the size of a queue, and hands it on under the instrument that the collector knows.
type observer struct {
	metric.Observer
	size  *gauge
	value int64
}

// ObserveInt64 implements metric.Observer.
func (o *observer) ObserveInt64(instrument metric.Int64Observable, value int64, options ...metric.ObserveOption) {
	if instrument == metric.Int64Observable(o.size) {
		o.value, instrument = value, o.size.Int64ObservableGauge
	}
	if o.Observer != nil {
		o.Observer.ObserveInt64(instrument, value, options...)
	}
}

type sizeRegistration struct {
	metric.Registration
	ledger *ledger
	size   *gauge
}

// Unregister implements metric.Registration.
func (r sizeRegistration) Unregister() error {
	r.ledger.mu.Lock()
	if r.ledger.queue == r.size {
		r.ledger.queue = nil
	}
	r.ledger.mu.Unlock()
	return r.Registration.Unregister()
}

// rejections is a log core that takes nothing but what the OTLP exporters say of a partial success, which to them is a success:
// the log is the only place where they tell how much a backend rejected. It stands beside the collector's own core, so neither level
// nor sampling of the collector's log have a say.
type rejections struct{ ledger *ledger }

const partialSuccess = "Partial success response"

func (rejections) Enabled(level zapcore.Level) bool { return level == zapcore.WarnLevel }

func (r rejections) With([]zapcore.Field) zapcore.Core { return r }

func (r rejections) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level == zapcore.WarnLevel && e.Message == partialSuccess {
		return checked.AddCore(e, r)
	}
	return checked
}

func (r rejections) Write(_ zapcore.Entry, fields []zapcore.Field) error {
	for _, f := range fields {
		// dropped_log_records, dropped_spans, dropped_data_points
		if f.Type == zapcore.Int64Type && f.Integer > 0 && strings.HasPrefix(f.Key, "dropped_") {
			r.ledger.rejected.Add(f.Integer)
		}
	}
	return nil
}

func (rejections) Sync() error { return nil }
