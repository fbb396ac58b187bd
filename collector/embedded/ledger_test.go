package embedded

import (
	"log/slog"
	"maps"
	"testing"
)

// TestQueueCapacity sums up the queues of a signal's exporters, while they are there.
func TestQueueCapacity(t *testing.T) {
	s := newSource()
	c := New(Options{
		URI: `yaml:
receivers: {mesh: {}}
exporters:
  otlp_http/a: {endpoint: "http://127.0.0.1:1", sending_queue: {sizer: items, queue_size: 300}}
  otlp_http/b: {endpoint: "http://127.0.0.1:1", sending_queue: {sizer: items, queue_size: 50}}
  otlp_http/none: {endpoint: "http://127.0.0.1:1", sending_queue: {enabled: false}}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    metrics: {receivers: [mesh], exporters: [otlp_http/b, otlp_http/none]}
    logs: {receivers: [mesh], exporters: [otlp_http/a, otlp_http/b]}
    traces: {receivers: [mesh], exporters: [otlp_http/none]}
`,
		Mesh: s.mesh(), Version: "test", DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler),
	})
	if got := c.QueueCapacity(); len(got) != 0 {
		t.Errorf("before the start: %v", got)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := c.QueueCapacity(), (map[string]int64{"logs": 350, "metrics": 50}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	s.Close()
	shutdown(t, c)
	if got := c.QueueCapacity(); len(got) != 0 {
		t.Errorf("after the end: %v", got)
	}
}
