package embedded

import (
	"context"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/service/telemetry"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

func (c *Collector) telemetry() telemetry.Factory {
	standard := otelconftelemetry.NewFactory()
	if !c.options.OwnTelemetry {
		return standard
	}
	return telemetryFactory{Factory: standard, meters: c.meters}
}

// telemetryFactory is the collector's own, but for where its internal metrics go.
type telemetryFactory struct {
	telemetry.Factory
	meters *meters
}

// CreateMeterProvider implements telemetry.Factory.
func (f telemetryFactory) CreateMeterProvider(context.Context, telemetry.MeterSettings, component.Config) (telemetry.MeterProvider, error) {
	return f.meters.start(), nil
}

// meters reads the collector's internal metrics on demand.
type meters struct {
	mu     sync.Mutex
	reader *metric.ManualReader
}

func (m *meters) start() *metric.MeterProvider {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reader = metric.NewManualReader()
	return metric.NewMeterProvider(metric.WithReader(m.reader))
}

// Stats are what the exporters of one signal did, in log records, spans or data points.
type Stats struct {
	Sent   int64 `json:"sent"`
	Failed int64 `json:"failed"` // given up on, after an error that is no use to try again
	Queued int64 `json:"queued"` // waiting, in the queue's own size
}

// Stats sums up the exporters of each signal: "logs", "traces", "metrics". It is empty unless OwnTelemetry was set. Safe for
// concurrent use.
func (c *Collector) Stats() map[string]Stats {
	c.meters.mu.Lock()
	reader := c.meters.reader
	c.meters.mu.Unlock()
	stats := make(map[string]Stats)
	if reader == nil {
		return stats
	}
	var data metricdata.ResourceMetrics
	if reader.Collect(context.Background(), &data) != nil {
		return stats // it was shut down
	}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			addStats(stats, m)
		}
	}
	return stats
}

// Flush waits until the exporters' queues are empty, and returns how much is still queued when there was no progress for the
// given time: the backend is down. It needs OwnTelemetry, and returns at once without.
func (c *Collector) Flush(patience time.Duration) (queued int64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var sentBefore int64
	deadline := time.Now().Add(patience)
	for {
		var sent int64
		queued = 0
		for _, s := range c.Stats() {
			queued += s.Queued
			sent += s.Sent
		}
		if sent != sentBefore {
			sentBefore, deadline = sent, time.Now().Add(patience)
		}
		if queued == 0 || time.Now().After(deadline) {
			return queued
		}
		select {
		case <-tick.C:
		case <-c.done:
			return queued
		}
	}
}

// items are the names that the collector's exporter metrics have for what a signal consists of.
var items = map[string]string{"log_records": "logs", "spans": "traces", "metric_points": "metrics"}

func addStats(stats map[string]Stats, m metricdata.Metrics) {
	what, ok := strings.CutPrefix(m.Name, "otelcol_exporter_")
	if !ok {
		return
	}
	if what == "queue_size" {
		if gauge, ok := m.Data.(metricdata.Gauge[int64]); ok {
			for _, p := range gauge.DataPoints {
				dataType, _ := p.Attributes.Value("data_type")
				s := stats[dataType.AsString()]
				s.Queued += p.Value
				stats[dataType.AsString()] = s
			}
		}
		return
	}
	sum, ok := m.Data.(metricdata.Sum[int64])
	if !ok {
		return
	}
	var total int64
	for _, p := range sum.DataPoints {
		total += p.Value
	}
	for item, signal := range items {
		did, ok := strings.CutSuffix(what, "_"+item)
		if !ok {
			continue
		}
		s := stats[signal]
		switch did {
		case "sent":
			s.Sent += total
		case "send_failed":
			s.Failed += total
		}
		stats[signal] = s
	}
}
