package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/collector/embedded"
)

// keeper is a real OTLP backend that keeps everything, once: where it takes longer than the exporter's timeout, OTLP sends again, and
// the uid tells.
type keeper struct {
	endpoint string

	mu      sync.Mutex
	logs    []map[string]any
	uids    map[string]bool
	spans   []map[string]any
	spanIDs map[string]bool
	metrics pmetric.Metrics // the newest report
}

func startKeeper(t *testing.T) *keeper {
	t.Helper()
	grpc := freePort(t)
	k := &keeper{endpoint: "http://" + grpc, uids: make(map[string]bool), spanIDs: make(map[string]bool), metrics: pmetric.NewMetrics()}
	c := embedded.New(embedded.Options{
		URI: fmt.Sprintf(`yaml:
receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}}
exporters: {keeper: {}}
service:
  pipelines:
    metrics: {receivers: [otlp], exporters: [keeper]}
    logs: {receivers: [otlp], exporters: [keeper]}
    traces: {receivers: [otlp], exporters: [keeper]}
  telemetry: {logs: {level: error}}
`, grpc),
		Exporters: []exporter.Factory{k.factory()}, DiscardMetrics: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func (k *keeper) factory() exporter.Factory {
	type config struct{}
	return exporter.NewFactory(component.MustNewType("keeper"), func() component.Config { return &config{} },
		exporter.WithLogs(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Logs, error) {
			return exporterhelper.NewLogs(ctx, set, cfg, k.keepLogs, exporterhelper.WithCapabilities(consumer.Capabilities{}))
		}, component.StabilityLevelDevelopment),
		exporter.WithTraces(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Traces, error) {
			return exporterhelper.NewTraces(ctx, set, cfg, k.keepTraces, exporterhelper.WithCapabilities(consumer.Capabilities{}))
		}, component.StabilityLevelDevelopment),
		exporter.WithMetrics(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Metrics, error) {
			return exporterhelper.NewMetrics(ctx, set, cfg, k.keepMetrics, exporterhelper.WithCapabilities(consumer.Capabilities{}))
		}, component.StabilityLevelDevelopment),
	)
}

func (k *keeper) keepLogs(_ context.Context, logs plog.Logs) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, resource := range logs.ResourceLogs().All() {
		for _, scope := range resource.ScopeLogs().All() {
			for _, record := range scope.LogRecords().All() {
				attributes := record.Attributes().AsRaw()
				if uid := fmt.Sprint(attributes["log.record.uid"]); !k.uids[uid] {
					k.uids[uid] = true
					k.logs = append(k.logs, attributes)
				}
			}
		}
	}
	return nil
}

func (k *keeper) keepTraces(_ context.Context, traces ptrace.Traces) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, resource := range traces.ResourceSpans().All() {
		for _, scope := range resource.ScopeSpans().All() {
			for _, span := range scope.Spans().All() {
				if id := span.SpanID().String(); !k.spanIDs[id] {
					k.spanIDs[id] = true
					k.spans = append(k.spans, span.Attributes().AsRaw())
				}
			}
		}
	}
	return nil
}

func (k *keeper) keepMetrics(_ context.Context, metrics pmetric.Metrics) error {
	kept := pmetric.NewMetrics()
	metrics.CopyTo(kept)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.metrics = kept
	return nil
}

func (k *keeper) counts() (logs, spans int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.logs), len(k.spans)
}

// ledger reads the newest report.
func (k *keeper) ledger() ledger {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := make(ledger)
	for _, resource := range k.metrics.ResourceMetrics().All() {
		for _, scope := range resource.ScopeMetrics().All() {
			for _, metric := range scope.Metrics().All() {
				what := metricNames[metric.Name()]
				if what == "" {
					continue
				}
				for _, p := range metric.Sum().DataPoints().All() {
					text := func(name string) string { v, _ := p.Attributes().Get(name); return v.Str() }
					edge := edgeName{text("role"), text("local.workload"), text("peer.workload"), text("network.type")}
					l[entry{edge, what, text("reason")}] = p.IntValue()
				}
			}
		}
	}
	return l
}
