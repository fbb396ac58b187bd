package embedded

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// choosy is a backend that rejects some of what each request holds, by partial success, or all requests for good.
type choosy struct {
	refuse                      bool
	rejectLogs, rejectSpans     int64 // of each request
	rejectPoints                int64
	logRequests, traceRequests  atomic.Int64
	pointRequests               atomic.Int64
	logItems, spanItems, points atomic.Int64
}

func (c *choosy) logs(request plogotlp.ExportRequest) (plogotlp.ExportResponse, error) {
	response := plogotlp.NewExportResponse()
	c.logRequests.Add(1)
	c.logItems.Add(int64(request.Logs().LogRecordCount()))
	response.PartialSuccess().SetRejectedLogRecords(c.rejectLogs)
	return response, c.err()
}

func (c *choosy) traces(request ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	response := ptraceotlp.NewExportResponse()
	c.traceRequests.Add(1)
	c.spanItems.Add(int64(request.Traces().SpanCount()))
	response.PartialSuccess().SetRejectedSpans(c.rejectSpans)
	return response, c.err()
}

func (c *choosy) metrics(request pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	response := pmetricotlp.NewExportResponse()
	c.pointRequests.Add(1)
	c.points.Add(int64(request.Metrics().DataPointCount()))
	response.PartialSuccess().SetRejectedDataPoints(c.rejectPoints)
	return response, c.err()
}

func (c *choosy) err() error {
	if c.refuse {
		return status.Error(codes.InvalidArgument, "nothing of this")
	}
	return nil
}

type grpcLogs struct {
	plogotlp.UnimplementedGRPCServer
	*choosy
}

func (g *grpcLogs) Export(_ context.Context, r plogotlp.ExportRequest) (plogotlp.ExportResponse, error) {
	return g.logs(r)
}

type grpcTraces struct {
	ptraceotlp.UnimplementedGRPCServer
	*choosy
}

func (g *grpcTraces) Export(_ context.Context, r ptraceotlp.ExportRequest) (ptraceotlp.ExportResponse, error) {
	return g.traces(r)
}

type grpcMetrics struct {
	pmetricotlp.UnimplementedGRPCServer
	*choosy
}

func (g *grpcMetrics) Export(_ context.Context, r pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	return g.metrics(r)
}

// serve listens until the test ends, and returns the endpoint.
func (c *choosy) serve(t *testing.T, protocol string) string {
	t.Helper()
	if protocol == "http" {
		server := httptest.NewServer(http.HandlerFunc(c.serveHTTP))
		t.Cleanup(server.Close)
		return server.URL
	}
	return "http://" + c.serveGRPC(t, "127.0.0.1:0")
}

// serveGRPC listens at an address until the test ends, and returns it.
func (c *choosy) serveGRPC(t *testing.T, address string) string {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	plogotlp.RegisterGRPCServer(server, &grpcLogs{choosy: c})
	ptraceotlp.RegisterGRPCServer(server, &grpcTraces{choosy: c})
	pmetricotlp.RegisterGRPCServer(server, &grpcMetrics{choosy: c})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // until Stop
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return listener.Addr().String()
}

func (c *choosy) serveHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var answer []byte
	switch r.URL.Path {
	case "/v1/logs":
		answer, err = exchange(body, plogotlp.NewExportRequest(), c.logs)
	case "/v1/traces":
		answer, err = exchange(body, ptraceotlp.NewExportRequest(), c.traces)
	case "/v1/metrics":
		answer, err = exchange(body, pmetricotlp.NewExportRequest(), c.metrics)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}

func exchange[Q interface{ UnmarshalProto([]byte) error }, A interface{ MarshalProto() ([]byte, error) }](
	body []byte, request Q, serve func(Q) (A, error),
) ([]byte, error) {
	if err := request.UnmarshalProto(body); err != nil {
		return nil, err
	}
	answer, err := serve(request)
	if err != nil {
		return nil, err
	}
	return answer.MarshalProto()
}

// toChoosy is a configuration with queues of the default's kind, or without.
func toChoosy(protocol, endpoint, telemetry, exporterMore string) string {
	exporter := "otlp_" + protocol
	return fmt.Sprintf(`yaml:
receivers: {mesh: {report_interval: 100ms, batch_interval: 0s}}
exporters:
  %[1]s:
    endpoint: %[2]s
    compression: none
    tls: {insecure: true}
    %[4]s
service:
  telemetry: %[3]s
  pipelines:
    metrics: {receivers: [mesh], exporters: [%[1]s]}
    logs: {receivers: [mesh], exporters: [%[1]s]}
    traces: {receivers: [mesh], exporters: [%[1]s]}
`, exporter, endpoint, telemetry, exporterMore)
}

const (
	itemsQueue = "sending_queue: {sizer: items, queue_size: 100000}"
	noQueue    = "sending_queue: {enabled: false}\n    retry_on_failure: {enabled: false}"
)

// TestPartialSuccessIsRejected counts what a backend takes a request for and does not keep, whatever the collector logs and wherever
// its own metrics go.
func TestPartialSuccessIsRejected(t *testing.T) {
	for _, protocol := range []string{"grpc", "http"} {
		for name, telemetry := range map[string]string{
			"errors only":  "{logs: {level: error}, metrics: {level: none}}",
			"sampled":      "{logs: {level: warn, sampling: {enabled: true, tick: 1h, initial: 1, thereafter: 0}}, metrics: {level: none}}",
			"user's views": "{metrics: {level: detailed, readers: [{pull: {exporter: {prometheus: {host: 127.0.0.1, port: PORT}}}}], views: [{selector: {instrument_name: '*'}, stream: {aggregation: {drop: {}}}}]}}",
		} {
			for _, queue := range []string{itemsQueue, noQueue} {
				t.Run(protocol+"/"+name+"/"+queue[:20], func(t *testing.T) {
					const batches, size = 20, 50
					_, port, _ := net.SplitHostPort(otlptest.FreeAddress(t))
					telemetry := strings.ReplaceAll(telemetry, "PORT", port)
					b := &choosy{rejectLogs: 3, rejectSpans: 7, rejectPoints: 2}
					s := newSource()
					c := New(Options{
						URI: toChoosy(protocol, b.serve(t, protocol), telemetry, queue), Mesh: s.mesh(), Version: "test",
						DiscardMetrics: name != "user's views", Logger: slog.New(slog.DiscardHandler),
					})
					if err := c.Start(t.Context()); err != nil {
						t.Fatal(err)
					}
					for i := range batches {
						s.give(size)
						// Several requests, so that a log that samples would leave some out.
						fixture.Eventually(t, "a batch arrived", func() bool { return b.logItems.Load() == int64((i+1)*size) && b.spanItems.Load() == int64((i+1)*size) })
					}
					s.Close()
					shutdown(t, c)
					const n = batches * size
					stats := c.Stats()
					logs, spans, points := 3*b.logRequests.Load(), 7*b.traceRequests.Load(), 2*b.pointRequests.Load()
					for signal, want := range map[string]Stats{
						"logs":    {Taken: n, Sent: n - logs, Rejected: logs},
						"traces":  {Taken: n, Sent: n - spans, Rejected: spans},
						"metrics": {Taken: b.points.Load(), Sent: b.points.Load() - points, Rejected: points},
					} {
						if stats[signal] != want || want.Rejected == 0 {
							t.Errorf("%s: %+v, want %+v", signal, stats[signal], want)
						}
					}
				})
			}
		}
	}
}

// TestRefusedForGoodIsFailed: a permanent error is the end of what is in a queue; without a queue the receiver hears of it.
func TestRefusedForGoodIsFailed(t *testing.T) {
	for _, protocol := range []string{"grpc", "http"} {
		for queue, want := range map[string]Stats{itemsQueue: {Taken: 100, Failed: 100}, noQueue: {}} {
			t.Run(protocol+"/"+queue[:20], func(t *testing.T) {
				b := &choosy{refuse: true}
				s := newSource()
				c := New(Options{
					URI: toChoosy(protocol, b.serve(t, protocol), "{logs: {level: fatal}}", queue), Mesh: s.mesh(), Version: "test",
					DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler),
				})
				if err := c.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.give(100)
				fixture.Eventually(t, "it was refused", func() bool { return b.logItems.Load() == 100 && b.spanItems.Load() == 100 })
				s.Close()
				shutdown(t, c)
				if got := c.Stats(); got["logs"] != want || got["traces"] != want {
					t.Errorf("%+v, want %+v", got, want)
				}
			})
		}
	}
}

// TestLostBehindABatchProcessorIsFailed: the batch processor drops what is refused, and says so in the log only.
func TestLostBehindABatchProcessorIsFailed(t *testing.T) {
	b := &choosy{refuse: true}
	s := newSource()
	uri := toChoosy("grpc", b.serve(t, "grpc"), "{logs: {level: fatal}}", noQueue)
	uri = strings.Replace(uri, "service:", "processors: {batch: {timeout: 10ms}}\nservice:", 1)
	uri = strings.Replace(uri, "logs: {receivers: [mesh],", "logs: {receivers: [mesh], processors: [batch],", 1)
	c := New(Options{URI: uri, Mesh: s.mesh(), Version: "test", DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler)})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.give(100)
	s.Close()
	fixture.Eventually(t, "it is counted", func() bool { return c.Stats()["logs"].Failed != 0 })
	shutdown(t, c)
	if got, want := c.Stats()["logs"], (Stats{Failed: 100}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestAccountOverARestart: what a queue on disk holds of an earlier run is told apart, and what a stop interrupts is not lost.
func TestAccountOverARestart(t *testing.T) {
	state := t.TempDir()
	// Nobody listens, then somebody does.
	address := otlptest.FreeAddress(t)
	config := func(endpoint string) string {
		uri := toChoosy("grpc", endpoint, "{logs: {level: fatal}}", strings.Replace(itemsQueue, "{", "{storage: file_storage, ", 1))
		uri = strings.Replace(uri, "service:", fmt.Sprintf("extensions: {file_storage: {directory: %q, create_directory: true}}\nservice:\n  extensions: [file_storage]", filepath.Join(state, "queue")), 1)
		return uri
	}
	run := func(endpoint string, n int, want Stats) {
		t.Helper()
		s := newSource()
		c := New(Options{URI: config(endpoint), Mesh: s.mesh(), Version: "test", DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler)})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.give(n)
		fixture.Eventually(t, "the account is as wanted", func() bool { return c.Stats()["logs"] == want && c.Stats()["traces"] == want })
		s.Close()
		shutdown(t, c)
		if got := c.Stats()["logs"]; got.Failed != 0 {
			t.Errorf("after the end: %+v", got)
		}
	}
	run("http://"+address, 300, Stats{Taken: 300, Queued: 300})
	run("http://"+address, 200, Stats{Taken: 200, Carried: 300, Queued: 500})
	b := new(choosy)
	run(b.serve(t, "grpc"), 100, Stats{Taken: 100, Carried: 500, Sent: 600})
}

// TestAccountShowsWhatIsMissing: an account that cannot fail is none.
func TestAccountShowsWhatIsMissing(t *testing.T) {
	b := new(choosy)
	s := newSource()
	c := New(Options{URI: toChoosy("grpc", b.serve(t, "grpc"), "{}", itemsQueue), Mesh: s.mesh(), Version: "test", DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler)})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.give(100)
	fixture.Eventually(t, "all is sent", func() bool { return c.Stats()["logs"] == Stats{Taken: 100, Sent: 100} })
	for key, l := range c.account.ledgers {
		if key.signal.String() == "logs" {
			l.sent.Add(-1)
		}
	}
	if got, want := c.Stats()["logs"], (Stats{Taken: 100, Sent: 99, Unaccounted: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	s.Close()
	shutdown(t, c)
}
