package dashboards

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/queue"
)

const spanScope = "github.com/sidelight-mesh/sidelight/collector/meshreceiver"

const toJaeger = `
receivers: {mesh: {}}
exporters: {otlp_grpc: {endpoint: "%s", tls: {insecure: true}}}
service: {pipelines: {traces: {receivers: [mesh], exporters: [otlp_grpc]}}}
`

// TestRecordedSpansInJaeger has "sidelight replay" send the spans of the recordings to a real Jaeger, and holds what that answers against what was done
// when they were made (recordings_test.go of agent/cmd/sidelight has the scripts), and against the access log, which other code writes.
func TestRecordedSpansInJaeger(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a Jaeger")
	}
	j := startJaeger(t)
	lines := make(map[string]map[string]any)
	for _, name := range []string{"mix", "loss"} {
		send(t, name, fmt.Sprintf(toJaeger, j.grpc))
		maps.Copy(lines, logged(t, name))
	}
	spans := j.spans(t)
	if len(lines) != 27+9 || len(spans) != len(lines) {
		t.Fatalf("%d spans of %d lines, want 36 of each", len(spans), len(lines))
	}
	checkSpansOfLines(t, spans, lines)
	j.checkRecordedTraces(t, spans)
	j.checkPanels(t, spans, map[string]int{
		"service":  0, // the recording has no mesh
		"workload": 5, "workload client": 5, "workload server": 2,
		"connections": 5, "connections client": 5, "connections server": 2,
	})

	// The page of Jaeger: who there is, what they do, who calls whom.
	mix, loss := "/sidelight-test-26703-1/", "/sidelight-test-26703-2/"
	if got, want := j.services(t), []string{mix + "client", mix + "server", loss + "client", loss + "server"}; !slices.Equal(got, want) {
		t.Errorf("services %v, want %v", got, want)
	}
	type operation struct{ Name, SpanKind string }
	for service, want := range map[string]operation{
		mix + "client": {"tcp connect", "client"}, mix + "server": {"tcp accept", "server"},
		loss + "client": {"tcp connect", "client"}, loss + "server": {"tcp accept", "server"},
	} {
		if got := data[operation](t, j, "/api/operations", url.Values{"service": {service}}); !slices.Equal(got, []operation{want}) {
			t.Errorf("%s has the operations %v, want %v", service, got, want)
		}
	}
	type call struct {
		Parent, Child string
		CallCount     int
	}
	calls := data[call](t, j, "/api/dependencies", url.Values{"endTs": {"4102444800000"}, "lookback": {"4102444800000"}})
	slices.SortFunc(calls, func(a, b call) int { return strings.Compare(a.Parent, b.Parent) })
	if want := []call{{mix + "client", mix + "server", 12}, {loss + "client", loss + "server", 4}}; !slices.Equal(calls, want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
	// One connection was held.
	for _, c := range []struct {
		service string
		tags    map[string]string
		longer  time.Duration
		want    int
	}{
		{mix + "client", nil, 0, 15},
		{mix + "server", nil, 0, 12},
		{loss + "client", nil, 0, 5},
		{loss + "server", nil, 0, 4},
		{mix + "client", map[string]string{"error.type": "refused"}, 0, 3},
		{mix + "client", map[string]string{"error.type": "reset_by_peer"}, 0, 2},
		{mix + "client", map[string]string{"network.type": "ipv6"}, 0, 6},
		{mix + "client", map[string]string{"sidelight.sent_bytes": "132", "sidelight.reason": "ok"}, 0, 10},
		{mix + "client", nil, 300 * time.Millisecond, 1},
		{mix + "server", map[string]string{"error.type": "reset_by_local"}, 0, 2},
		{mix + "server", map[string]string{"host.name": "node1"}, 0, 12},
		{mix + "server", nil, 300 * time.Millisecond, 1},
		{loss + "client", map[string]string{"sidelight.reason": "ok"}, 0, 5},
	} {
		if got := j.search(t, c.service, c.tags, c.longer); len(got) != c.want {
			t.Errorf("%d traces of %s with %v, longer than %s, want %d", len(got), c.service, c.tags, c.longer, c.want)
		}
	}
}

// checkSpansOfLines wants a span to say what the line of the same connection's end says, and in the same trace, under the span of the other end if
// that has a line. What no line says is looked at too: kind, status, events.
func checkSpansOfLines(t *testing.T, spans map[string]*aSpan, lines map[string]map[string]any) {
	t.Helper()
	clients := make(map[any]string) // their spans, by trace
	for id, line := range lines {
		if line["sidelight.role"] == "client" {
			clients[line["trace_id"]] = id
		}
	}
	for id, line := range lines {
		got := spans[id]
		if got == nil {
			t.Errorf("no span %s: %v", id, line)
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, line["timestamp"].(string))
		if err != nil {
			t.Fatal(err)
		}
		cgroup, _ := strings.CutPrefix(line["process.linux.cgroup"].(string), "0::")
		want := &aSpan{
			trace: line["trace_id"].(string), id: id, name: "tcp connect", kind: "Client", start: at.UnixNano(), status: "Unset",
			resource: map[string]any{"service.name": cgroup, "host.name": "node1"}, scope: spanScope,
		}
		want.end = want.start + line["sidelight.duration_ns"].(int64)
		want.attributes = maps.Clone(line)
		for _, name := range []string{"timestamp", "event.name", "log.record.uid", "trace_id", "span_id"} {
			delete(want.attributes, name)
		}
		if reason := line["sidelight.reason"].(string); reason != "ok" {
			want.status, want.message = "Error", reason
		}
		if line["sidelight.role"] == "server" {
			want.name, want.kind, want.parent = "tcp accept", "Server", clients[line["trace_id"]]
			// No line says when its handshake was done.
			if len(got.events) > 0 && want.start <= got.events[0].at && got.events[0].at <= want.end {
				want.events = []anEvent{{"established", got.events[0].at}}
			}
		} else {
			connect := want.start + line["sidelight.decision_ns"].(int64)
			want.events = []anEvent{{"pre_connect", connect}}
			if took, ok := line["sidelight.connect_ns"]; ok {
				want.events = append(want.events, anEvent{"established", connect + took.(int64)})
			}
		}
		want.events = append(want.events, anEvent{"close", want.end})
		inTime(want.events)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the span %s is\n%+v, want\n%+v", id, *got, *want)
		}
	}
}

// checkRecordedTraces holds the traces of Jaeger's own page against what was done, and against what its other API says.
func (j jaeger) checkRecordedTraces(t *testing.T, spans map[string]*aSpan) {
	t.Helper()
	shapes, seen := make(map[string]int), 0
	for _, directory := range []string{"/sidelight-test-26703-1/", "/sidelight-test-26703-2/"} {
		parameters := url.Values{"service": {directory + "client"}, "start": {"0"}, "end": {"4102444800000000"}, "limit": {strconv.Itoa(most)}}
		// Each trace has a client's span, and comes with all that it has.
		for _, trace := range data[jaegerTrace](t, j, "/api/traces", parameters) {
			if len(trace.Warnings) > 0 {
				t.Errorf("trace %s: %v", trace.TraceID, trace.Warnings)
			}
			shape := directory[len(directory)-2 : len(directory)-1]
			slices.SortFunc(trace.Spans, func(a, b jaegerSpan) int { return -strings.Compare(a.OperationName, b.OperationName) })
			for i := range trace.Spans {
				seen++
				shape += trace.checkSpan(t, &trace.Spans[i], spans)
			}
			shapes[shape]++
		}
	}
	if want := map[string]int{
		"1, client ipv4 ok, server of the client ipv4 ok":                        5 + 1,
		"1, client ipv6 ok, server of the client ipv6 ok":                        4,
		"1, client ipv4 refused":                                                 3,
		"1, client ipv6 reset_by_peer, server of the client ipv6 reset_by_local": 2,
		"2, client ipv4 ok, server of the client ipv4 ok":                        4,
		"2, client ipv4 ok":                                                      1, // the ring had no room for the server's end
	}; !maps.Equal(shapes, want) {
		t.Errorf("traces are %v, want %v", shapes, want)
	}
	if seen != len(spans) {
		t.Errorf("%d spans in traces, want %d", seen, len(spans))
	}
}

// checkSpan wants a span to be what the same span is by the other API, in Jaeger's older words, and returns what the stream implies of it.
func (trace *jaegerTrace) checkSpan(t *testing.T, got *jaegerSpan, spans map[string]*aSpan) string {
	t.Helper()
	want := spans[got.SpanID]
	where := fmt.Sprintf("span %s of trace %s", got.SpanID, trace.TraceID)
	if want == nil || want.trace != trace.TraceID {
		t.Errorf("%s is not there by the other API", where)
		return " ?"
	}
	shape := fmt.Sprintf(", %v", want.attributes["sidelight.role"])
	// A server that closes after its client looks to Jaeger like a clock that is ahead. It says so, and does no more unless it is told to.
	var parent *aSpan
	if want.parent != "" {
		parent = spans[want.parent]
	}
	late := parent != nil && want.end > parent.end && want.end-want.start <= parent.end-parent.start
	if late != (len(got.Warnings) == 1 && strings.HasPrefix(got.Warnings[0], "clock skew adjustment disabled; not applying")) || !late && len(got.Warnings) > 0 {
		t.Errorf("%s: %v", where, got.Warnings)
	}
	if got.OperationName != want.name || got.StartTime != want.start/1000 || got.Duration != (want.end-want.start)/1000 {
		t.Errorf("%s: %s at %d for %d, want %s at %d for %d ns", where, got.OperationName, got.StartTime, got.Duration, want.name, want.start, want.end-want.start)
	}
	if service := trace.Processes[got.ProcessID].ServiceName; service != want.resource["service.name"] {
		t.Errorf("%s is of %s, want %s", where, service, want.resource["service.name"])
	}
	switch {
	case want.parent == "" && len(got.References) == 0:
	case len(got.References) == 1 && got.References[0].RefType == "CHILD_OF" && got.References[0].TraceID == trace.TraceID && got.References[0].SpanID == want.parent:
		for _, s := range trace.Spans {
			if s.SpanID == want.parent {
				shape += fmt.Sprintf(" of the %s", strings.TrimPrefix(s.OperationName, "tcp "))
			}
		}
		shape = strings.Replace(shape, "of the connect", "of the client", 1)
	default:
		t.Errorf("%s refers to %v, want %q", where, got.References, want.parent)
	}
	tags := map[string]any{"otel.scope.name": want.scope, "span.kind": strings.ToLower(want.kind)}
	maps.Copy(tags, want.attributes)
	if want.status == "Error" {
		tags["error"], tags["otel.status_code"], tags["otel.status_description"] = true, "ERROR", want.message
	}
	for key, value := range tags {
		if n, ok := value.(int64); ok {
			tags[key] = float64(n) // as JSON has it
		}
	}
	have := make(map[string]any)
	for _, tag := range got.Tags {
		have[tag.Key] = tag.Value
	}
	if !maps.Equal(have, tags) || len(got.Tags) != len(tags) {
		t.Errorf("%s has the tags\n%v, want\n%v", where, got.Tags, tags)
	}
	return shape + fmt.Sprintf(" %v %v", have["network.type"], have["sidelight.reason"])
}

// TestLinesLeadToTraces follows the links of the log panels: each line that they show, asked of a real VictoriaLogs, names a trace and a span that a real Jaeger
// has.
func TestLinesLeadToTraces(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a VictoriaLogs and a Jaeger")
	}
	j, v := startJaeger(t), startVictoriaLogs(t)
	send(t, "mix", fmt.Sprintf(toVictoriaLogs, v.address))
	send(t, "mix", fmt.Sprintf(toJaeger, j.grpc))
	v.await(t, 27)
	shown := 0
	for _, d := range load(t) {
		for where, target := range d.signalTargets(victoriaLogsType) {
			expr, err := d.interpolate(target.Expr, cart, anyTiming)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range v.query(t, expr) {
				if shown++; !j.leadsTo(t, line["trace_id"], line["span_id"]) {
					t.Errorf("%s: no span %s in the trace %s: %s", where, line["span_id"], line["trace_id"], line["_msg"])
				}
			}
		}
	}
	if shown != 2*27 {
		t.Errorf("%d lines, want 27 on each of two dashboards", shown)
	}
}

// TestPointsLeadToTraces follows the exemplars of the latency panels, of a recording and of a mesh, into a real Jaeger.
func TestPointsLeadToTraces(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a Jaeger")
	}
	j, s, ended := startJaeger(t), newStore(t), queue.New(1<<16)
	a := newAgent(ended)
	mesh := runAgents(t, s, a, nil)
	j.take(t, ended)
	spans := j.spans(t)
	checkDecidedSpans(t, spans)
	j.checkPanels(t, spans, map[string]int{
		// By their periods and lives in half an hour, from top to bottom in flows. Of the service cart: calls that took longer than a second, and the intruder.
		"service": 1798 + 180,
		// Who calls, then who accepts: those of cart, narrow, inside-only and flaky-2.
		"workload":        1798 + 360 + 180 + 180 + 180 + 180 + 60 + 360 + 28 + 180 + 899,
		"workload client": 1798 + 360 + 180 + 180 + 180 + 60 + 360 + 28 + 180 + 899,
		"workload server": 1798 + 180 + 180 + 899,

		"connections":        1798 + 360 + 180 + 180 + 180 + 180 + 60 + 360 + 28 + 180 + 899,
		"connections client": 1798 + 360 + 180 + 180 + 180 + 60 + 360 + 28 + 180 + 899,
		"connections server": 1798 + 180 + 180 + 899,
	})
	mix := replay(t, s, "mix")
	send(t, "mix", fmt.Sprintf(toJaeger, j.grpc))

	// A span is told when its connection has ended.
	open := make(map[string]bool)
	for _, e := range a.open {
		trace := e.Trace()
		open[fmt.Sprintf("%x", trace.ID)] = true
	}
	for _, c := range []struct {
		*world
		points, tooEarly int // spans that exemplars name, and how many of these are of connections that are open
	}{{mesh, 1860, 3}, {mix, 18, 0}} {
		points, tooEarly := c.pointed(t), 0
		for span, trace := range points {
			switch there := j.leadsTo(t, trace, span); {
			case there && open[trace], !there && !open[trace]:
				t.Errorf("%s: an exemplar leads to the span %s of the trace %s; open: %v, there: %v", c.cluster, span, trace, open[trace], there)
			case !there:
				tooEarly++
			}
		}
		if len(points) != c.points || tooEarly != c.tooEarly {
			t.Errorf("%s: exemplars of %d spans, %d of them open; want %d and %d", c.cluster, len(points), tooEarly, c.points, c.tooEarly)
		}
	}
}

// pointed are the spans that the exemplars of all panels name, with their traces.
func (w *world) pointed(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, d := range load(t) {
		for _, target := range d.metricTargets() {
			if !target.Exemplar || w.cluster != "mesh" && d.variable("service") != nil { // a recording has no services
				continue
			}
			set := d.choices(t, w, false)[0]
			set["cluster"] = []string{w.cluster}
			expr, err := d.interpolate(target.Expr, set, w.timing)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range w.exemplars(t, expr, w.start, w.end) {
				for _, e := range r.Exemplars {
					all[e.Labels.Get("span_id")] = e.Labels.Get("trace_id")
				}
			}
		}
	}
	return all
}

// take has the embedded collector send it the spans of connections that ended.
func (j jaeger) take(t *testing.T, ended *queue.Queue) {
	t.Helper()
	ended.Close()
	nothing := queue.New(1)
	nothing.Close()
	done := make(chan struct{})
	c := embedded.New(embedded.Options{
		URI: "yaml:" + fmt.Sprintf(`
receivers: {mesh: {}}
exporters: {otlp_http: {traces_endpoint: "http://%s/v1/traces"}}
service: {pipelines: {traces: {receivers: [mesh], exporters: [otlp_http]}}}
`, j.http),
		Mesh: meshreceiver.Settings{
			Source: justSpans{nothing, ended}, Clock: clock, Boot: attribute.NewBoot("01234567-89ab-cdef-0123-456789abcdef"), HostName: "node1",
			OnEnd: func() { close(done) },
		},
		Version: "test", DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler),
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("the receiver does not come to its end")
	}
	if err := c.Shutdown(); err != nil { // when the exporter has sent what it has
		t.Error(err)
	}
}

// justSpans is a source without anything else.
type justSpans struct{ nothing, ended *queue.Queue }

func (s justSpans) Logs() meshreceiver.Records   { return s.nothing }
func (s justSpans) Traces() meshreceiver.Records { return s.ended }
func (s justSpans) Edges() edge.Snapshot         { return edge.Snapshot{} }

// checkDecidedSpans holds spans against what the flows are, trace by trace.
func checkDecidedSpans(t *testing.T, spans map[string]*aSpan) {
	t.Helper()
	want, traces := make(map[string]int), 0
	for i := range flows {
		f := &flows[i]
		for n, at := 0, f.first+time.Second/2; at+f.length() <= meshLength; n, at = n+1, at+f.every {
			traces++
			want[f.impliedTrace(n, at)]++
		}
	}
	if traces != 5755 || len(spans) != 8632 {
		t.Errorf("%d traces implied, %d spans there; want 5755, and 8632 of which 2877 are of the other end", traces, len(spans))
	}
	byTrace := make(map[string][]*aSpan)
	for _, s := range spans {
		byTrace[s.trace] = append(byTrace[s.trace], s)
	}
	for _, trace := range byTrace {
		want[toldOf(trace)]--
	}
	maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
	if len(want) > 0 {
		t.Errorf("%d kinds of traces are not as often there as they should", len(want))
	}
	shown := 0
	for told, n := range want {
		if shown++; shown > 6 {
			break
		}
		t.Errorf("%d missing (or too many, if negative) of\n%s", n, told)
	}
}

func (f *flow) length() time.Duration {
	if f.reason != connection.OK {
		return f.handshake
	}
	return f.handshake + f.life
}

// impliedTrace is what the n-th connection of a flow is to look like.
func (f *flow) impliedTrace(n int, at time.Duration) string {
	server := f.servers[n%len(f.servers)]
	var trace []*aSpan
	end := func(role connection.Role, w *enrich.Workload) {
		s := &aSpan{
			name: "tcp connect", kind: "Client", start: meshStart.Add(at).UnixNano(), status: "Unset", scope: spanScope,
			resource: map[string]any{"service.name": w.Name, "host.name": "node1"},
		}
		s.end = s.start + int64(f.length())
		reason := f.reason
		if f.resetEach != 0 && n%f.resetEach == 0 {
			reason = connection.ResetByPeer
			if role == connection.Server {
				reason = connection.ResetByLocal
			}
		}
		if w.Namespace != "" {
			s.resource["service.namespace"] = w.Namespace
		}
		if reason != connection.OK {
			s.status, s.message = "Error", reason.String()
		}
		a := map[string]any{"sidelight.role": role.String(), "sidelight.reason": reason.String()}
		if role == connection.Client {
			a["sidelight.sent_bytes"], a["sidelight.received_bytes"] = int64(f.sent), int64(f.received)
			s.events = append(s.events, anEvent{"pre_connect", s.start})
			if f.service != nil {
				a["sidelight.service"] = f.service.Namespace + "/" + f.service.Name
				if !f.refused {
					a["sidelight.backend"] = server.Namespace + "/" + server.Name
				}
			}
			if f.limit != "" {
				a["sidelight.limit"] = f.limit
			}
		} else {
			s.name, s.kind = "tcp accept", "Server"
			a["sidelight.sent_bytes"], a["sidelight.received_bytes"] = int64(f.received), int64(f.sent)
			if f.clientHere {
				s.parent = "there"
			}
		}
		if f.reason == connection.OK {
			s.events = append(s.events, anEvent{"established", s.start + int64(f.handshake)})
		}
		s.events = append(s.events, anEvent{"close", s.end})
		inTime(s.events)
		if f.verdict != connection.VerdictNone {
			a["sidelight.verdict"] = f.verdict.String()
		}
		if r := f.rule; r != nil {
			a["sidelight.policy"], a["sidelight.policy.rule"] = r.Policy, int64(r.Index)
		}
		if r := f.dryRule; r != nil {
			a["sidelight.dry_run.verdict"], a["sidelight.dry_run.policy"], a["sidelight.dry_run.policy.rule"] = f.dry.String(), r.Policy, int64(r.Index)
		}
		if f.refused {
			a["sidelight.refused_by_mesh"] = true
		}
		if f.service != nil || f.rule != nil || f.dryRule != nil {
			took := int64(decides)
			if role == connection.Client {
				took = int64(f.decide)
			}
			a["sidelight.decision_ns"], a["sidelight.original_destination"] = took, fmt.Sprintf("10.0.1.%d:8080", n%len(f.servers))
		}
		if reason != connection.OK {
			a["error.type"] = reason.String()
		}
		s.attributes = a
		trace = append(trace, s)
	}
	if f.clientHere {
		end(connection.Client, f.client)
	}
	if f.serverHere {
		end(connection.Server, server)
	}
	return toldOf(trace)
}

// told are the attributes that a flow implies; addresses and what the kernel measures are held against the access log, of recordings.
var toldAttributes = []string{
	"sidelight.role", "sidelight.reason", "sidelight.sent_bytes", "sidelight.received_bytes", "sidelight.service", "sidelight.backend", "sidelight.limit",
	"sidelight.verdict", "sidelight.policy", "sidelight.policy.rule", "sidelight.dry_run.verdict", "sidelight.dry_run.policy", "sidelight.dry_run.policy.rule",
	"sidelight.refused_by_mesh", "sidelight.decision_ns", "error.type", "sidelight.original_destination",
}

// toldOf says what a trace tells, but for its ids: of parents it says whether they are there.
func toldOf(trace []*aSpan) string {
	ids := make(map[string]bool)
	for _, s := range trace {
		ids[s.id] = s.id != ""
	}
	var all []string
	for _, s := range trace {
		parent := s.parent
		if ids[parent] {
			parent = "there"
		}
		attributes := make(map[string]any)
		for _, name := range toldAttributes {
			if v, ok := s.attributes[name]; ok {
				attributes[name] = v
			}
		}
		text, err := json.Marshal(attributes)
		if err != nil {
			panic(err) // they are texts, numbers and booleans
		}
		all = append(all, fmt.Sprintf("%s %s, parent %s, %d to %d, %s %s, %v, %v, %s, %s",
			s.kind, s.name, parent, s.start, s.end, s.status, s.message, s.events, s.resource, s.scope, text))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}
