package embedded

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/client"
	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const reportInterval = 100 * time.Millisecond

// toBackend is a collector with the built-in configuration for one endpoint.
func toBackend(t *testing.T, s source, o config.OTLP, stateDirectory string) *Collector {
	t.Helper()
	uri, err := DefaultURI(o.Exporters(), stateDirectory, reportInterval)
	if err != nil {
		t.Fatal(err)
	}
	// The library's memory limiter stores its host once for each pipeline and reads it at each check, without a lock: memorylimiter.go,
	// Start and CheckMemLimits. The race detector is right, and here it is in the way.
	uri, checks := strings.Replace(uri, "check_interval: 5s", "check_interval: 1h", 1), uri
	if uri == checks {
		t.Fatal("no check_interval of 5s in the built-in configuration")
	}
	return New(Options{
		URI: uri, Mesh: s.mesh(), Version: "test", DiscardMetrics: true, Persistent: true, Logger: slog.New(slog.DiscardHandler),
	})
}

func TestAllSignalsArrive(t *testing.T) {
	for protocol, otlp := range map[string]string{"grpc": config.ProtocolGRPC, "http": config.ProtocolHTTP} {
		for _, compression := range []string{"gzip", "zstd", "none"} {
			t.Run(protocol+"/"+compression, func(t *testing.T) {
				const n = 500
				b := backend{otlptest.Start(t, protocol)}
				s := newSource()
				// A directory and a header that the collector's configuration would expand.
				state := filepath.Join(t.TempDir(), "$HOME", "${env:PATH}")
				token := "a$b ${env:HOME} $$c"
				c := toBackend(t, s, config.OTLP{
					Endpoint: "http://" + b.Address, Protocol: otlp, Compression: compression, Headers: map[string]string{"x-token": token},
				}, state)
				if err := c.Validate(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := c.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				uids, spans := s.give(n)
				fixture.Eventually(t, "every signal arrived", func() bool {
					return b.Logs.LogRecordCount() >= n && b.Traces.SpanCount() >= n && b.attempts() == n
				})
				if got := b.uids(); !maps.Equal(got, uids) {
					t.Errorf("%d log records, want %d, each once", len(got), n)
				}
				if got := b.spans(); !maps.Equal(got, spans) {
					t.Errorf("%d spans, want %d, each once", len(got), n)
				}
				for signal, contexts := range map[string][]context.Context{
					"metrics": b.Metrics.Contexts(), "logs": b.Logs.Contexts(), "traces": b.Traces.Contexts(),
				} {
					if got := client.FromContext(contexts[0]).Metadata.Get("x-token"); len(got) != 1 || got[0] != token {
						t.Errorf("%s came with the header %q, want %q", signal, got, token)
					}
				}
				if _, err := os.Stat(filepath.Join(state, "queue")); err != nil {
					t.Errorf("the queue is elsewhere: %v", err)
				}
				checkStats(t, c, b, n)
				s.Close()
				shutdown(t, c)
			})
		}
	}
}

// checkStats waits for the collector's own account to say what the backend got.
func checkStats(t *testing.T, c *Collector, b backend, n int64) {
	t.Helper()
	fixture.Eventually(t, "Stats tells of what was sent", func() bool {
		stats := c.Stats()
		return stats["logs"] == Stats{Taken: n, Sent: n} && stats["traces"] == Stats{Taken: n, Sent: n} && stats["metrics"].Sent > 0
	})
	if got := c.Stats()["metrics"]; got.Failed != 0 || got.Sent > int64(b.Metrics.DataPointCount()) {
		t.Errorf("stats of metrics %+v, and %d data points came", got, b.Metrics.DataPointCount())
	}
}

func shutdown(t *testing.T, c *Collector) {
	t.Helper()
	for range 2 {
		if err := c.Shutdown(); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-c.Done():
	default:
		t.Error("Done is not closed after Shutdown")
	}
}

func TestNothingIsLostAtShutdown(t *testing.T) {
	const n = 2000
	for name, end := range map[string]func(cancel context.CancelFunc){
		"by Shutdown":       func(context.CancelFunc) {},
		"after the context": func(cancel context.CancelFunc) { cancel() }, // SIGTERM: the pipeline still drains what the kernel has
	} {
		t.Run(name, func(t *testing.T) {
			b := backend{otlptest.Start(t, "grpc")}
			o, state := config.OTLP{Endpoint: "http://" + b.Address, Protocol: config.ProtocolGRPC}, t.TempDir()
			s := newSource()
			c := toBackend(t, s, o, state)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			end(cancel)
			uids, spans := s.give(n)
			s.Close()
			shutdown(t, c)
			// A queue on disk keeps what it was given last for the next start.
			next := newSource()
			c = toBackend(t, next, o, state)
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			fixture.Eventually(t, "every signal arrived", func() bool {
				return b.Logs.LogRecordCount() >= n && b.Traces.SpanCount() >= n && b.attempts() == n
			})
			next.Close()
			shutdown(t, c)
			if got := b.uids(); !maps.Equal(got, uids) {
				t.Errorf("%d log records, want %d, each once", len(got), n)
			}
			if got := b.spans(); !maps.Equal(got, spans) {
				t.Errorf("%d spans, want %d, each once", len(got), n)
			}
		})
	}
}

func TestFlushWaitsForWhatTheBackendTakes(t *testing.T) {
	const n = 2000
	b := backend{otlptest.Start(t, "grpc")}
	s := newSource()
	c := toBackend(t, s, config.OTLP{Endpoint: "http://" + b.Address, Protocol: config.ProtocolGRPC}, t.TempDir())
	handedOn := make(chan struct{})
	c.options.Mesh.OnEnd = func() { close(handedOn) }
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	uids, spans := s.give(n)
	s.Close()
	<-handedOn
	if queued := c.Flush(t.Context(), fixture.Deadline); queued != 0 {
		t.Errorf("%d still queued, and the backend takes all", queued)
	}
	if !maps.Equal(b.uids(), uids) || !maps.Equal(b.spans(), spans) || b.attempts() != n {
		t.Errorf("%d log records, %d spans, %d attempts after Flush; want %d each", len(b.uids()), len(b.spans()), b.attempts(), n)
	}
	shutdown(t, c)
}

func TestFlushGivesUpOnABackendThatIsDown(t *testing.T) {
	const n, patience = 300, 50 * time.Millisecond
	s := newSource()
	o := config.OTLP{Logs: config.Signal{Endpoint: "http://" + otlptest.FreeAddress(t), Protocol: config.ProtocolGRPC}}
	c := toBackend(t, s, o, t.TempDir())
	handedOn := make(chan struct{})
	c.options.Mesh.OnEnd = func() { close(handedOn) }
	if got := c.Flush(t.Context(), fixture.Deadline); got != 0 {
		t.Errorf("%d queued before the start", got)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.give(n)
	s.Close()
	<-handedOn
	began := time.Now()
	if queued := c.Flush(t.Context(), patience); queued != n {
		t.Errorf("%d queued, want %d", queued, n)
	}
	if waited := time.Since(began); waited < patience {
		t.Errorf("gave up after %v, want at least %v", waited, patience)
	}
	shutdown(t, c)
}

func TestDataWaitsOnDiskForABackendThatIsDown(t *testing.T) {
	const n = 300
	address, state := otlptest.FreeAddress(t), t.TempDir()
	s := newSource()
	o := config.OTLP{Logs: config.Signal{Endpoint: "http://" + address, Protocol: config.ProtocolGRPC}}
	c := toBackend(t, s, o, state)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	uids, _ := s.give(n)
	// Before it is in the exporter's queue it is nowhere: Stats tells.
	fixture.Eventually(t, "the exporter has it", func() bool { return c.Stats()["logs"].Queued > 0 })
	s.Close()
	shutdown(t, c)

	b := backend{otlptest.StartAt(t, "grpc", address)}
	again := newSource()
	c = toBackend(t, again, o, state)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, "all of it arrived", func() bool { return b.Logs.LogRecordCount() >= n })
	again.Close()
	shutdown(t, c)
	if got := b.uids(); !maps.Equal(got, uids) {
		t.Errorf("%d log records, want %d, each once", len(got), n)
	}
}

func TestStatsWithoutStart(t *testing.T) {
	c := quiet("yaml:{}")
	if got := c.Stats(); len(got) != 0 {
		t.Errorf("stats %v of a collector that does not run", got)
	}
	if err := c.Shutdown(); err != nil {
		t.Error(err)
	}
}

const debugOnly = "yaml:" + `
receivers: {mesh: {}}
exporters: {debug: {}}
service:
  pipelines: {logs: {receivers: [mesh], exporters: [debug]}}
  telemetry: {metrics: {level: none}, logs: {level: info}}
`

func TestStartSaysWhyItDoesNot(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, test := range map[string]struct{ yaml, want string }{
		"bad configuration": {"receivers: {mash: {}}", "mash"},
		"no source":         {strings.TrimPrefix(debugOnly, "yaml:"), "no source of connections"},
		"address in use": {`
receivers: {otlp: {protocols: {grpc: {endpoint: "` + busy.Addr().String() + `"}}}}
exporters: {debug: {}}
service: {pipelines: {logs: {receivers: [otlp], exporters: [debug]}}, telemetry: {metrics: {level: none}}}
`, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			c := quiet("yaml:" + test.yaml)
			if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "start collector: ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
			select {
			case <-c.Done():
			default:
				t.Error("Done is not closed after Start failed")
			}
			if err := c.Shutdown(); err == nil {
				t.Error("Shutdown forgets why Start failed")
			}
		})
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := quiet(debugOnly)
	c.options.Mesh = newSource().mesh()
	if err := c.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	shutdown(t, c)
}
