package embedded

import (
	"context"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/service/telemetry"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

func (c *Collector) telemetry() telemetry.Factory {
	standard := otelconftelemetry.NewFactory()
	if !c.options.DiscardMetrics {
		return standard
	}
	return telemetryFactory{standard}
}

// telemetryFactory is the collector's own, but for its internal metrics, which go nowhere.
type telemetryFactory struct{ telemetry.Factory }

// CreateMeterProvider implements telemetry.Factory.
func (telemetryFactory) CreateMeterProvider(context.Context, telemetry.MeterSettings, component.Config) (telemetry.MeterProvider, error) {
	return noMeters{noop.NewMeterProvider()}, nil
}

type noMeters struct{ metric.MeterProvider }

// Shutdown implements telemetry.MeterProvider.
func (noMeters) Shutdown(context.Context) error { return nil }
