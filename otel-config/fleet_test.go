package otelconfig_test

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// decisionWait is shorter than the example's: the agents of the test are quick.
const decisionWait = 4 * time.Second

// sampler is one of the second tier, with the backends that it alone sends to.
type sampler struct {
	*gateway
	loki, tempo *otlptest.Backend
}

func startSampler(t *testing.T, prometheus prometheus) *sampler {
	t.Helper()
	s := &sampler{loki: otlptest.Start(t, "http"), tempo: otlptest.Start(t, "grpc")}
	s.gateway = startGateway(t, "fleet-sampler.yaml", map[string]string{
		"PROMETHEUS_REMOTE_WRITE": "http://" + prometheus.address + "/api/v1/write", "LOKI_OTLP": "http://" + s.loki.Address + "/v1/logs", "TEMPO_OTLP": s.tempo.Address,
	}, "--set", "processors::tail_sampling::decision_wait="+decisionWait.String())
	return s
}

// startBalancer runs the first tier. The example finds samplers by DNS, of which the test has none: it names them.
func startBalancer(t *testing.T, samplers ...*sampler) *gateway {
	t.Helper()
	addresses := ""
	for _, s := range samplers {
		addresses += fmt.Sprintf("%q,", s.address)
	}
	var args []string
	for _, exporter := range []string{"traces", "logs", "metrics"} {
		args = append(args, "--config", "yaml:exporters::load_balancing/"+exporter+"::resolver: {dns: null, static: {hostnames: ["+addresses+"]}}")
	}
	return startGateway(t, "fleet-balancer.yaml", nil, args...)
}

// agentOf tells through one gateway what an agent would.
type agentOf struct {
	traces ptraceotlp.GRPCClient
	logs   plogotlp.GRPCClient
}

func connect(t *testing.T, address string) agentOf {
	t.Helper()
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return agentOf{ptraceotlp.NewGRPCClient(c), plogotlp.NewGRPCClient(c)}
}

// tell sends one end of each connection, as a span and as a log record.
func (a agentOf) tell(t *testing.T, kind ptrace.SpanKind, traces []pcommon.TraceID, failed func(int) bool) {
	t.Helper()
	data, records := ptrace.NewTraces(), plog.NewLogs()
	resource := data.ResourceSpans().AppendEmpty()
	resource.Resource().Attributes().PutStr("service.name", kind.String())
	records.ResourceLogs().AppendEmpty().Resource().Attributes().PutStr("service.name", kind.String())
	all, lines := resource.ScopeSpans().AppendEmpty().Spans(), records.ResourceLogs().At(0).ScopeLogs().AppendEmpty().LogRecords()
	for i, id := range traces {
		span, line := all.AppendEmpty(), lines.AppendEmpty()
		var own pcommon.SpanID
		_, _ = rand.Read(own[:])
		span.SetTraceID(id)
		span.SetSpanID(own)
		span.SetKind(kind)
		span.SetStartTimestamp(pcommon.NewTimestampFromTime(time.Now()))
		span.SetEndTimestamp(span.StartTimestamp())
		span.Attributes().PutInt("sidelight.connect_ns", 50_000)
		if failed(i) {
			span.Status().SetCode(ptrace.StatusCodeError)
		}
		line.SetTraceID(id)
		line.SetSpanID(own)
		line.Attributes().PutStr("log.record.uid", own.String())
	}
	if _, err := a.traces.Export(t.Context(), ptraceotlp.NewExportRequestFromTraces(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.logs.Export(t.Context(), plogotlp.NewExportRequestFromLogs(records)); err != nil {
		t.Fatal(err)
	}
}

// TestFleet has two agents that each tell one end of the same connections to balancers of their own: both ends meet at one sampler, which
// decides for both. A replay goes the same way.
func TestFleet(t *testing.T) {
	t.Parallel()
	prometheus := startPrometheus(t)
	samplers := []*sampler{startSampler(t, prometheus), startSampler(t, prometheus)}
	balancers := []*gateway{startBalancer(t, samplers...), startBalancer(t, samplers...)}

	const connections = 400
	traces, at := make([]pcommon.TraceID, connections), make(map[pcommon.TraceID]int)
	for i := range traces {
		_, _ = rand.Read(traces[i][:])
		at[traces[i]] = i
	}
	failed := func(i int) bool { return i%10 == 0 }
	// The server knows nothing of what fails at the client.
	connect(t, balancers[0].address).tell(t, ptrace.SpanKindClient, traces, failed)
	connect(t, balancers[1].address).tell(t, ptrace.SpanKindServer, traces, func(int) bool { return false })
	replay(t, "agent-to-gateway.yaml", map[string]string{"SIDELIGHT_GATEWAY": "http://" + balancers[0].address, "SIDELIGHT_GATEWAY_INSECURE": "true"})

	recordedLines := accessLog(t)
	// What an exporter has not read of its queue on disk when it is stopped stays there: so everything is waited for.
	eventually(t, "lines and failures at the end of the way", 60*time.Second, func() bool {
		lines, ends := 0, make(map[pcommon.TraceID]int)
		for _, s := range samplers {
			lines += s.loki.Logs.LogRecordCount()
			for _, span := range spans(t, s.tempo.Traces.AllTraces()) {
				ends[span.TraceID()]++
			}
		}
		all := lines >= 2*connections+len(recordedLines)
		for i, id := range traces {
			all = all && (!failed(i) || ends[id] >= 2)
		}
		for _, line := range recordedLines {
			all = all && (line["sidelight.reason"] == "ok" || ends[traceID(t, line)] > 0)
		}
		return all
	})
	time.Sleep(decisionWait) // for what came last of the others
	for _, g := range append(balancers, samplers[0].gateway, samplers[1].gateway) {
		if err := g.stop(); err != nil {
			t.Fatalf("%v: %s", err, g.said())
		}
	}

	lines := 0
	where := make(map[string]int) // the sampler that has what is of a trace
	ends := make(map[pcommon.TraceID]map[string]bool)
	for n, s := range samplers {
		records := logRecords(t, s.loki.Logs.AllLogs())
		if len(records) < connections/4 {
			t.Errorf("sampler %d has %d of %d lines, which is no balance", n, len(records), 2*connections)
		}
		lines += len(records)
		for _, record := range records {
			if before, ok := where["line of "+record.TraceID().String()]; ok && before != n {
				t.Errorf("both samplers have lines of trace %s", record.TraceID())
			}
			where["line of "+record.TraceID().String()] = n
		}
		for id, span := range spans(t, s.tempo.Traces.AllTraces()) {
			trace := span.TraceID()
			if before, ok := where["span of "+trace.String()]; ok && before != n {
				t.Errorf("both samplers have spans of trace %s", trace)
			}
			where["span of "+trace.String()] = n
			if ends[trace] == nil {
				ends[trace] = make(map[string]bool)
			}
			ends[trace][id] = true
		}
	}
	if want := 2*connections + len(recordedLines); lines != want {
		t.Errorf("%d lines arrived, want all %d: log records are not sampled", lines, want)
	}

	kept := 0
	for i, id := range traces {
		switch n := len(ends[id]); {
		case failed(i) && n != 2:
			t.Errorf("%d spans of a connection that failed, want both", n)
		case !failed(i) && n == 1:
			t.Errorf("one span of trace %s, want both or none", id)
		case !failed(i) && n == 2:
			kept++
		}
	}
	// 36 of 360 are to be expected; fewer than 10 or more than 80 are not in the life of this test.
	if kept < 10 || kept > 80 {
		t.Errorf("%d of the connections that did not fail were kept, want some tenth of %d", kept, connections*9/10)
	}
	for _, line := range recordedLines {
		if line["sidelight.reason"] != "ok" && !ends[traceID(t, line)][line["span_id"].(string)] {
			t.Errorf("no span of the recording's %v, which is %v", line["span_id"], line["sidelight.reason"])
		}
	}

	want, got := ownMetrics(t), make(map[string]float64)
	for _, s := range prometheus.series(t) {
		got[name(s.Labels)] = s.Value
	}
	for series, value := range want {
		if v, ok := got[series]; !ok || v != value {
			t.Errorf("%s is %v (there: %v), want %v", series, v, ok, value)
		}
	}
}

func traceID(t *testing.T, line map[string]any) (id pcommon.TraceID) {
	t.Helper()
	if _, err := hex.Decode(id[:], []byte(line["trace_id"].(string))); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestFleetFindsSamplersByName runs the balancer as it is. An address is a name, too: that of one sampler, which here is a backend.
func TestFleetFindsSamplersByName(t *testing.T) {
	t.Parallel()
	sampler := otlptest.Start(t, "grpc")
	host, port, err := net.SplitHostPort(sampler.Address)
	if err != nil {
		t.Fatal(err)
	}
	balancer := startGateway(t, "fleet-balancer.yaml", map[string]string{"SAMPLER_HOST": host, "SAMPLER_PORT": port})
	replay(t, "agent-to-gateway.yaml", map[string]string{"SIDELIGHT_GATEWAY": "http://" + balancer.address, "SIDELIGHT_GATEWAY_INSECURE": "true"})
	want := len(accessLog(t))
	eventually(t, "records", 60*time.Second, func() bool {
		return sampler.Logs.LogRecordCount() >= want && sampler.Traces.SpanCount() >= want && sampler.Metrics.DataPointCount() > 0
	})
	checkRecords(t, logRecords(t, sampler.Logs.AllLogs()), spans(t, sampler.Traces.AllTraces()))
}
