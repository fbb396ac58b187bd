package otelconfig_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// logRecords returns the log records of requests by their uid, and complains of those that are there twice.
func logRecords(t *testing.T, all []plog.Logs) map[string]plog.LogRecord {
	t.Helper()
	records := make(map[string]plog.LogRecord)
	for _, logs := range all {
		for _, resource := range logs.ResourceLogs().All() {
			for _, scope := range resource.ScopeLogs().All() {
				for _, record := range scope.LogRecords().All() {
					uid, _ := record.Attributes().Get("log.record.uid")
					if _, ok := records[uid.Str()]; ok {
						t.Errorf("the log record %s came twice", uid.Str())
					}
					records[uid.Str()] = record
				}
			}
		}
	}
	return records
}

// spans returns those of requests by their id, and complains of those that are there twice.
func spans(t *testing.T, all []ptrace.Traces) map[string]ptrace.Span {
	t.Helper()
	found := make(map[string]ptrace.Span)
	for _, traces := range all {
		for _, resource := range traces.ResourceSpans().All() {
			for _, scope := range resource.ScopeSpans().All() {
				for _, span := range scope.Spans().All() {
					id := span.SpanID().String()
					if _, ok := found[id]; ok {
						t.Errorf("the span %s came twice", id)
					}
					found[id] = span
				}
			}
		}
	}
	return found
}

// checkRecords wants each line of the recording's access log as a log record and as a span.
func checkRecords(t *testing.T, logs map[string]plog.LogRecord, spans map[string]ptrace.Span) {
	t.Helper()
	lines := accessLog(t)
	if len(logs) != len(lines) || len(spans) != len(lines) {
		t.Errorf("%d log records and %d spans, want %d of both", len(logs), len(spans), len(lines))
	}
	for _, line := range lines {
		record, ok := logs[line["log.record.uid"].(string)]
		if !ok {
			t.Errorf("no log record %v", line["log.record.uid"])
			continue
		}
		reason, _ := record.Attributes().Get("sidelight.reason")
		if record.TraceID().String() != line["trace_id"] || reason.Str() != line["sidelight.reason"] {
			t.Errorf("log record %v is of trace %s with reason %s, want %v and %v", line["log.record.uid"], record.TraceID(), reason.Str(), line["trace_id"], line["sidelight.reason"])
		}
		span, ok := spans[line["span_id"].(string)]
		if !ok || span.TraceID().String() != line["trace_id"] {
			t.Errorf("no span %v of trace %v", line["span_id"], line["trace_id"])
		}
	}
}

// series is what the backend tells of one.
type series struct {
	Labels map[string]string `json:"labels"`
	Value  float64           `json:"value"`
}

// prometheus is the database of Prometheus with its own handler of remote write.
type prometheus struct{ address string }

func startPrometheus(t *testing.T) prometheus {
	t.Helper()
	p := prometheus{otlptest.FreeAddress(t)}
	startProcess(t, nil, backendsProgram(t), "prometheus", p.address)
	eventually(t, "Prometheus", 60*time.Second, func() bool {
		response, err := http.Get("http://" + p.address + "/series")
		if err != nil {
			return false
		}
		return response.Body.Close() == nil
	})
	return p
}

func (p prometheus) series(t *testing.T) []series {
	t.Helper()
	response, err := http.Get("http://" + p.address + "/series")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var all []series
	if err := json.NewDecoder(response.Body).Decode(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

// name is a series as a text, without labels that are empty or that the way adds. Remote write spells the bound of a bucket 0.000025 where a scrape has
// 2.5e-05: they are taken for the same, as histogram_quantile does.
func name(labels map[string]string) string {
	labels = maps.Clone(labels)
	if bound, err := strconv.ParseFloat(labels["le"], 64); err == nil {
		labels["le"] = strconv.FormatFloat(bound, 'g', -1, 64)
	}
	maps.DeleteFunc(labels, func(name, value string) bool { return value == "" || name == "job" || name == "instance" })
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "%s=%q ", key, labels[key])
	}
	return b.String()
}

// ownMetrics are the series that /metrics has of the recording.
func ownMetrics(t *testing.T) map[string]float64 {
	t.Helper()
	file, err := os.Open(recorded + ".prom")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(file)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for family, f := range families {
		for _, m := range f.Metric {
			add := func(suffix string, value float64, more ...string) {
				labels := map[string]string{"__name__": family + suffix}
				for _, l := range m.Label {
					labels[l.GetName()] = l.GetValue()
				}
				if len(more) > 0 {
					labels[more[0]] = more[1]
				}
				all[name(labels)] = value
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				add("", m.Counter.GetValue())
			case dto.MetricType_GAUGE:
				add("", m.Gauge.GetValue())
			case dto.MetricType_HISTOGRAM:
				add("_count", float64(m.Histogram.GetSampleCount()))
				add("_sum", m.Histogram.GetSampleSum())
				for _, b := range m.Histogram.Bucket {
					add("_bucket", float64(b.GetCumulativeCount()), "le", strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))
				}
			default:
				t.Fatalf("%s is a %v", family, f.GetType())
			}
		}
	}
	return all
}

// TestGatewayToGrafana sends a recording through an agent and the gateway. What arrives at Prometheus is what the agent's own /metrics
// has, what arrives at Loki and Tempo is the access log.
func TestGatewayToGrafana(t *testing.T) {
	t.Parallel()
	prometheus, loki, tempo := startPrometheus(t), otlptest.Start(t, "http"), otlptest.Start(t, "grpc")
	g := startGateway(t, "grafana.yaml", map[string]string{
		"PROMETHEUS_REMOTE_WRITE": "http://" + prometheus.address + "/api/v1/write",
		"LOKI_OTLP":               "http://" + loki.Address + "/v1/logs",
		"TEMPO_OTLP":              tempo.Address,
	})
	replay(t, "agent-to-gateway.yaml", map[string]string{"SIDELIGHT_GATEWAY": "http://" + g.address, "SIDELIGHT_GATEWAY_INSECURE": "true"})
	want := len(accessLog(t))
	// What an exporter has not read of its queue on disk when it is stopped stays there.
	eventually(t, "records", 60*time.Second, func() bool { return loki.Logs.LogRecordCount() >= want && tempo.Traces.SpanCount() >= want })
	if err := g.stop(); err != nil { // hands on the metrics that it has
		t.Fatalf("%v: %s", err, g.said())
	}
	checkRecords(t, logRecords(t, loki.Logs.AllLogs()), spans(t, tempo.Traces.AllTraces()))

	own, got := ownMetrics(t), make(map[string]float64)
	for _, s := range prometheus.series(t) {
		metric := s.Labels["__name__"]
		if !strings.HasPrefix(metric, "sidelight_tcp_") {
			continue
		}
		if s.Labels["job"] != "sidelight" || s.Labels["instance"] == "" {
			t.Errorf("%s has job %q and instance %q", metric, s.Labels["job"], s.Labels["instance"])
		}
		got[name(s.Labels)] = s.Value
	}
	for series, value := range own {
		if v, ok := got[series]; !ok || v != value {
			t.Errorf("%s is %v (there: %v), want %v", series, v, ok, value)
		}
		delete(got, series)
	}
	for series := range got {
		t.Errorf("%s is not among what the agent exports", series)
	}
}

// TestAgentOnly sends each signal from the agent to its own backend.
func TestAgentOnly(t *testing.T) {
	t.Parallel()
	prometheus, loki, tempo := otlptest.Start(t, "http"), otlptest.Start(t, "http"), otlptest.Start(t, "grpc")
	replay(t, "agent-only.yaml", map[string]string{
		"PROMETHEUS_OTLP": "http://" + prometheus.Address + "/v1/metrics",
		"LOKI_OTLP":       "http://" + loki.Address + "/v1/logs",
		"TEMPO_OTLP":      tempo.Address,
	})
	checkRecords(t, logRecords(t, loki.Logs.AllLogs()), spans(t, tempo.Traces.AllTraces()))
	if prometheus.Metrics.DataPointCount() == 0 {
		t.Error("no metrics arrived")
	}
}

// TestGatewayToKafka reads what arrives in the topics as OTLP.
func TestGatewayToKafka(t *testing.T) {
	t.Parallel()
	address := otlptest.FreeAddress(t)
	kafka := startProcess(t, nil, backendsProgram(t), "kafka", address, "sidelight.metrics", "sidelight.logs", "sidelight.traces")
	eventually(t, "Kafka", 60*time.Second, func() bool { return listens(address) })
	g := startGateway(t, "kafka.yaml", map[string]string{"KAFKA_BROKER": address})
	replay(t, "agent-to-gateway.yaml", map[string]string{"SIDELIGHT_GATEWAY": "http://" + g.address, "SIDELIGHT_GATEWAY_INSECURE": "true"})
	var logs []plog.Logs
	var traces []ptrace.Traces
	points, seen := 0, 0
	read := func() {
		for _, line := range kafka.lines()[seen:] {
			seen++
			var m struct {
				Topic      string
				Key, Value []byte
			}
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			var err error
			switch m.Topic {
			case "sidelight.logs":
				var l plog.Logs
				l, err = (&plog.ProtoUnmarshaler{}).UnmarshalLogs(m.Value)
				logs = append(logs, l)
			case "sidelight.traces":
				var s ptrace.Traces
				s, err = (&ptrace.ProtoUnmarshaler{}).UnmarshalTraces(m.Value)
				traces = append(traces, s)
			case "sidelight.metrics":
				var p pmetric.Metrics
				p, err = (&pmetric.ProtoUnmarshaler{}).UnmarshalMetrics(m.Value)
				points += p.DataPointCount()
			}
			if err != nil {
				t.Fatalf("%s: %v", m.Topic, err)
			}
			if len(m.Key) == 0 && m.Topic != "sidelight.traces" {
				t.Errorf("a message of %s has no key, so its order is nobody's", m.Topic)
			}
		}
	}
	want := len(accessLog(t))
	eventually(t, "messages", 60*time.Second, func() bool {
		read()
		return points > 0 && len(logRecords(t, logs)) >= want && len(spans(t, traces)) >= want
	})
	checkRecords(t, logRecords(t, logs), spans(t, traces))
}

// TestGatewayKeepsWhatItTook stops the gateway while its backends are away: what the agent was told is taken arrives after the next start.
func TestGatewayKeepsWhatItTook(t *testing.T) {
	t.Parallel()
	loki, tempo, state := otlptest.FreeAddress(t), otlptest.FreeAddress(t), t.TempDir()
	env := map[string]string{
		"PROMETHEUS_REMOTE_WRITE": "http://" + otlptest.FreeAddress(t) + "/api/v1/write", "LOKI_OTLP": "http://" + loki + "/v1/logs", "TEMPO_OTLP": tempo,
		"STATE_DIRECTORY": filepath.Join(state, "gateway"),
	}
	g := startGateway(t, "grafana.yaml", env)
	replay(t, "agent-to-gateway.yaml", map[string]string{"SIDELIGHT_GATEWAY": "http://" + g.address, "SIDELIGHT_GATEWAY_INSECURE": "true"})
	if err := g.stop(); err != nil {
		t.Fatalf("%v: %s", err, g.said())
	}
	logs, traces := otlptest.StartAt(t, "http", loki), otlptest.StartAt(t, "grpc", tempo)
	g = startGateway(t, "grafana.yaml", env)
	want := len(accessLog(t))
	eventually(t, "records from the disk", 60*time.Second, func() bool { return logs.Logs.LogRecordCount() >= want && traces.Traces.SpanCount() >= want })
	checkRecords(t, logRecords(t, logs.Logs.AllLogs()), spans(t, traces.Traces.AllTraces()))
	if err := g.stop(); err != nil {
		t.Fatalf("%v: %s", err, g.said())
	}
}

// TestGatewayRefusesWhatItHasNoRoomFor fills the queue of a gateway whose backend is away. What it refuses is the agent's still, and what it took
// arrives: each line once.
func TestGatewayRefusesWhatItHasNoRoomFor(t *testing.T) {
	t.Parallel()
	loki := otlptest.FreeAddress(t)
	g := startGateway(t, "grafana.yaml", map[string]string{
		"PROMETHEUS_REMOTE_WRITE": "http://" + otlptest.FreeAddress(t) + "/api/v1/write", "LOKI_OTLP": "http://" + loki + "/v1/logs", "TEMPO_OTLP": otlptest.FreeAddress(t),
	}, "--set", "exporters::otlp_http/loki::sending_queue::queue_size=200", "--set", "exporters::otlp_http/loki::retry_on_failure::max_interval=1s")
	agent := connect(t, g.address)
	lines := func(request int) plogotlp.ExportRequest {
		logs := plog.NewLogs()
		records := logs.ResourceLogs().AppendEmpty().ScopeLogs().AppendEmpty().LogRecords()
		for i := range 50 {
			records.AppendEmpty().Attributes().PutStr("log.record.uid", fmt.Sprintf("%d-%d", request, i))
		}
		return plogotlp.NewExportRequestFromLogs(logs)
	}
	const requests = 12
	var refused []int
	for i := range requests {
		// What is refused waits for room (block_on_overflow) until the client has no more time, and must not be taken for what was taken and answered late:
		// until the queue is full there is much time.
		limit := 5 * time.Second
		if len(refused) > 0 {
			limit = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		if _, err := agent.logs.Export(ctx, lines(i)); err != nil {
			refused = append(refused, i)
		}
		cancel()
	}
	if len(refused) == 0 || len(refused) == requests {
		t.Fatalf("%d of %d requests were refused, want those that the queue has no room for", len(refused), requests)
	}
	backend := otlptest.StartAt(t, "http", loki)
	for _, i := range refused {
		if _, err := agent.logs.Export(t.Context(), lines(i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "lines", 60*time.Second, func() bool { return backend.Logs.LogRecordCount() >= 50*requests })
	if records := logRecords(t, backend.Logs.AllLogs()); len(records) != 50*requests {
		t.Errorf("%d lines, want %d", len(records), 50*requests)
	}
	if err := g.stop(); err != nil {
		t.Fatalf("%v: %s", err, g.said())
	}
	if records := logRecords(t, backend.Logs.AllLogs()); len(records) != 50*requests {
		t.Errorf("%d lines at the end, want %d", len(records), 50*requests)
	}
}

// TestGatewayWithoutClickHouse has the example do what it says where there is no ClickHouse; a real one could not be had.
func TestGatewayWithoutClickHouse(t *testing.T) {
	t.Parallel()
	env := map[string]string{"CLICKHOUSE_ENDPOINT": "tcp://" + otlptest.FreeAddress(t) + "?dial_timeout=1s"}
	t.Run("that makes tables", func(t *testing.T) {
		cmd := exec.Command(collectorProgram(t), "--config", "file:gateway/clickhouse.yaml")
		cmd.Env = environment(map[string]string{
			"CLICKHOUSE_ENDPOINT": env["CLICKHOUSE_ENDPOINT"], "GATEWAY_LISTEN": otlptest.FreeAddress(t), "HEALTH_LISTEN": otlptest.FreeAddress(t), "STATE_DIRECTORY": t.TempDir(),
			"GATEWAY_METRICS_PORT": "0",
		})
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "create database") {
			t.Errorf("%v, want it to end because it cannot create a database: %s", err, out)
		}
	})
	t.Run("that does not", func(t *testing.T) {
		metrics := otlptest.FreeAddress(t)
		host, port, err := net.SplitHostPort(metrics)
		if err != nil {
			t.Fatal(err)
		}
		env := map[string]string{
			"CLICKHOUSE_ENDPOINT": env["CLICKHOUSE_ENDPOINT"], "STATE_DIRECTORY": filepath.Join(t.TempDir(), "gateway"), "GATEWAY_METRICS_HOST": host, "GATEWAY_METRICS_PORT": port,
		}
		lines := len(accessLog(t))
		keeps := func() bool {
			queued := ownQueue(t, metrics)
			return queued["logs"] == lines && queued["traces"] == lines && queued["metrics"] > 0
		}
		g := startGateway(t, "clickhouse.yaml", env, "--set", "exporters::clickhouse::create_schema=false")
		replay(t, "agent-to-gateway.yaml", map[string]string{"SIDELIGHT_GATEWAY": "http://" + g.address, "SIDELIGHT_GATEWAY_INSECURE": "true"})
		eventually(t, "queue with all that the agent told", 60*time.Second, keeps)
		eventually(t, "try that failed", 60*time.Second, func() bool { return strings.Contains(g.said(), "Will retry the request") })
		if !keeps() {
			t.Errorf("after a try that failed it has %v", ownQueue(t, metrics))
		}
		if err := g.stop(); err != nil {
			t.Fatalf("%v: %s", err, g.said())
		}
		startGateway(t, "clickhouse.yaml", env, "--set", "exporters::clickhouse::create_schema=false")
		eventually(t, "queue after the next start", 60*time.Second, keeps)
	})
}

// ownQueue is what waits in a gateway, by signal, as it tells at its own metrics.
func ownQueue(t *testing.T, address string) map[string]int {
	t.Helper()
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]int)
	for _, m := range families["otelcol_exporter_queue_size"].GetMetric() {
		for _, l := range m.Label {
			if l.GetName() == "data_type" {
				all[l.GetValue()] = int(m.Gauge.GetValue())
			}
		}
	}
	return all
}
