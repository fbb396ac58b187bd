package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/demo"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
)

// freePort finds a port on loopback that nobody uses, and at an address of its own, so that no client gets it before the server does.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// backend is a real OTLP receiver: the collector's own, in a collector of its own.
type backend struct {
	*demo.Sink
	collector *embedded.Collector
}

func startBackend(t *testing.T, grpc, http string) *backend {
	t.Helper()
	b := &backend{Sink: demo.NewSink()}
	b.collector = embedded.New(embedded.Options{
		URI: fmt.Sprintf(`yaml:
receivers: {otlp: {protocols: {grpc: {endpoint: %q}, http: {endpoint: %q}}}}
exporters: {terminal: {}}
service:
  pipelines:
    metrics: {receivers: [otlp], exporters: [terminal]}
    logs: {receivers: [otlp], exporters: [terminal]}
    traces: {receivers: [otlp], exporters: [terminal]}
  telemetry: {logs: {level: error}}
`, grpc, http),
		Exporters: []exporter.Factory{b.Factory()}, DiscardMetrics: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err := b.collector.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.collector.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// noBudget is for tests that count every line and span, whatever it costs.
const noBudget = "budget: {cpu: off, memory: off}"

// writeConfig writes a configuration with a state directory of the test's own, and without a budget unless it is given one.
func writeConfig(t *testing.T, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "sidelight.yaml")
	if !slices.ContainsFunc(more, func(line string) bool { return strings.HasPrefix(line, "budget:") }) {
		more = append(more, noBudget)
	}
	text := fmt.Sprintf("state_directory: %s\nreport_interval: 200ms\n%s\n", filepath.Join(dir, "state"), strings.Join(more, "\n"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestExport sends the three signals by each protocol and wants each connection once, in sums that agree.
func TestExport(t *testing.T) {
	needRoot(t)
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			const count = 500
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			grpc, http := freePort(t), freePort(t)
			b := startBackend(t, grpc, http)
			endpoint := "http://" + grpc
			if protocol != "grpc" {
				endpoint = "http://" + http
			}
			a := startAgent(t, cgroup, "--config", writeConfig(t, "otlp: {protocol: "+protocol+"}"), "--otlp-endpoint", endpoint)
			_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
			runScript(t, ns, filepath.Join(cgroup, "client"), script{
				Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 20, Request: 10, Response: 100,
			})
			a.waitClosed()
			eventually(t, "logs and spans", func() error {
				return receivedOnce(b.Received(), 2*count)
			})
			a.stop()
			r := b.Received()
			if err := receivedOnce(r, 2*count); err != nil {
				t.Error(err)
			}
			edges := demo.Edges(r.Metrics)
			if len(edges) != 2 {
				t.Fatalf("got %d edges: %+v", len(edges), edges)
			}
			client, server := edges[0], edges[1]
			if client.Attempts != count || client.Established != count || client.Closed["ok"] != count || client.Open != 0 ||
				client.SentBytes != count*(headerBytes+10) || client.ReceivedBytes != count*100 {
				t.Errorf("client edge: %+v", client)
			}
			if server.Established != count || server.Closed["ok"] != count || server.SentBytes != count*100 || server.ReceivedBytes != count*(headerBytes+10) {
				t.Errorf("server edge: %+v", server)
			}
			own := ownMetrics(r.Metrics)
			for name, want := range map[string]float64{
				"sidelight.accounting.unaccounted": 0, "sidelight.self.access_log.lines": 2 * count, "sidelight.dropped access_log log": 0,
				"sidelight.dropped ring close": 0, "sidelight.dropped exporter span": 0, "sidelight.self.events.decoded close": 2 * count,
				"sidelight.self.kernel.connections client attempted": count,
			} {
				if got, ok := own[name]; !ok || got != want {
					t.Errorf("%s is %v (%v) in the last report, want %v", name, got, ok, want)
				}
			}
		})
	}
}

// receivedOnce wants so many log records and spans, each once. What is answered too late is sent again, and OTLP cannot tell: where machines are emulated
// it may have come twice.
func receivedOnce(r demo.Received, n int) error {
	if r.UniqueLogs != n || r.UniqueSpans != n || !emulatedMachine() && (r.Logs != n || r.Spans != n) {
		return fmt.Errorf("got %d logs (%d different) and %d spans (%d different), want %d of each", r.Logs, r.UniqueLogs, r.Spans, r.UniqueSpans, n)
	}
	return nil
}

// ownMetrics reads what the agent tells of itself, by name and values of attributes. A request can hold several reports, oldest first.
func ownMetrics(metrics pmetric.Metrics) map[string]float64 {
	own := make(map[string]float64)
	for _, report := range metrics.ResourceMetrics().All() {
		for _, m := range report.ScopeMetrics().At(0).Metrics().All() {
			if m.Type() != pmetric.MetricTypeSum || strings.HasPrefix(m.Name(), "sidelight.tcp.") {
				continue
			}
			for _, p := range m.Sum().DataPoints().All() {
				name := m.Name()
				for _, v := range p.Attributes().All() {
					name += " " + v.Str()
				}
				own[name] = p.DoubleValue() + float64(p.IntValue())
			}
		}
	}
	return own
}

// TestBackendDown makes 10,000 connections while the backend is down, the agent restarted halfway, then starts the backend: every
// record of every connection arrives.
func TestBackendDown(t *testing.T) {
	needRoot(t)
	const count = 5000
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	grpc := freePort(t)
	config := writeConfig(t, "otlp: {protocol: grpc}")
	b := startBackend(t, grpc, freePort(t))
	if err := b.collector.Shutdown(); err != nil { // it was there once, as backends are
		t.Fatal(err)
	}
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	s := script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 20, Request: 10, Response: 10,
	}
	for range 2 {
		a := startAgent(t, cgroup, "--config", config, "--otlp-endpoint", "http://"+grpc)
		runScript(t, ns, filepath.Join(cgroup, "client"), s)
		a.waitClosed()
		a.stop()
		if lines := len(a.lines()); lines != 2*count {
			t.Fatalf("%d lines, want %d", lines, 2*count)
		}
	}
	b = startBackend(t, grpc, freePort(t))
	a := startAgent(t, cgroup, "--config", config, "--otlp-endpoint", "http://"+grpc)
	const want = 2 * 2 * count // two rounds, two ends
	eventuallyWithin(t, time.Minute, "everything that waited", func() error {
		if r := b.Received(); r.UniqueLogs < want || r.UniqueSpans < want {
			return fmt.Errorf("got %d different logs and %d different spans, want %d", r.UniqueLogs, r.UniqueSpans, want)
		}
		return nil
	})
	// The exporters were sending before anybody could look how much there was.
	eventually(t, "an account of what earlier runs left", func() error {
		report := a.audit()
		for _, signal := range []string{"logs", "traces"} {
			if got := report.Export[signal]; got != (embedded.Stats{Carried: want, Sent: want}) {
				return fmt.Errorf("%s: %+v", signal, got)
			}
		}
		if report.Unaccounted != 0 {
			return fmt.Errorf("%d unaccounted: %+v", report.Unaccounted, report.Export)
		}
		return nil
	})
	a.stop()
	if err := receivedOnce(b.Received(), want); err != nil {
		t.Error(err)
	}
}

// TestOTelConfig runs the agent with a collector configuration of the user's own.
func TestOTelConfig(t *testing.T) {
	needRoot(t)
	const count = 100
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "logs.jsonl")
	file := filepath.Join(dir, "collector.yaml")
	text := fmt.Sprintf(`
receivers: {mesh: {}}
processors:
  batch: {timeout: 100ms}
  filter: {logs: {log_record: ['attributes["sidelight.role"] == "server"']}}
  transform: {log_statements: [{context: log, statements: ['set(attributes["team"], "blue")']}]}
  resource: {attributes: [{key: deployment.environment.name, value: test, action: upsert}]}
exporters: {file: {path: %q}}
service:
  pipelines: {logs: {receivers: [mesh], processors: [filter, transform, resource, batch], exporters: [file]}}
  telemetry: {metrics: {level: none}, logs: {level: warn}}
`, out)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, cgroup, "--otel-config", file)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("::1"), port), Ending: clientCloses, Count: count, Parallel: 5,
	})
	a.waitClosed()
	a.stop()
	exported, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for want, times := range map[string]int{
		`"eventName":"sidelight.connection"`: count, `{"key":"sidelight.role","value":{"stringValue":"client"}}`: count,
		`{"key":"sidelight.role","value":{"stringValue":"server"}}`: 0, `{"key":"team","value":{"stringValue":"blue"}}`: count,
	} {
		if n := strings.Count(string(exported), want); n != times {
			t.Errorf("%d times %s, want %d", n, want, times)
		}
	}
	if !strings.Contains(string(exported), `"deployment.environment.name"`) {
		t.Error("the resource processor's attribute is missing")
	}
}
