package meshreceiver

import (
	"cmp"
	"path/filepath"
	"slices"
	"testing"

	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

func testSettings() Settings {
	return Settings{Clock: func() connection.Clock { return fixture.Clock }, Boot: fixture.Boot, HostName: "node-1"}
}

// snapshotOf aggregates a case. Its edges are sorted: a table has no order.
func snapshotOf(c fixture.Case) edge.Snapshot {
	table := edge.NewTable(c.MaxEdges)
	table.Consume(c.Records)
	snapshot := table.Snapshot()
	slices.SortFunc(snapshot.Edges, func(a, b edge.Edge) int {
		return cmp.Or(
			cmp.Compare(a.Key.Role, b.Key.Role),
			cmp.Compare(a.Key.LocalWorkload, b.Key.LocalWorkload),
			cmp.Compare(a.Key.PeerWorkload, b.Key.PeerWorkload),
			cmp.Compare(a.Key.Service, b.Key.Service),
		)
	})
	return snapshot
}

func TestGolden(t *testing.T) {
	settings := testSettings()
	fixture.Cases(t, "records.yaml", func(t *testing.T, dir string) {
		input := fixture.Load(t, filepath.Join(dir, "records.yaml"))
		batches := [][]enrich.Record{input.Finished}
		check := func(name string, compact []byte, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			fixture.Golden(t, filepath.Join(dir, name), fixture.Indent(t, compact))
		}
		logs, err := new(plog.JSONMarshaler).MarshalLogs(newLogs(&settings, batches))
		check("expected_logs.json", logs, err)
		traces, err := new(ptrace.JSONMarshaler).MarshalTraces(newTraces(&settings, batches))
		check("expected_traces.json", traces, err)
		metrics, err := new(pmetric.JSONMarshaler).MarshalMetrics(newMetrics(&settings, snapshotOf(input), fixture.Now))
		check("expected_metrics.json", metrics, err)
	})
}

// load returns the records of the connections of a golden case that ended.
func load(t *testing.T, name string) []enrich.Record {
	t.Helper()
	return fixture.Load(t, filepath.Join("testdata", name, "records.yaml")).Finished
}

// spans returns the spans of a golden case by their kind.
func spans(t *testing.T, name string) map[ptrace.SpanKind]ptrace.Span {
	t.Helper()
	settings := testSettings()
	byKind := make(map[ptrace.SpanKind]ptrace.Span)
	for _, resource := range newTraces(&settings, [][]enrich.Record{load(t, name)}).ResourceSpans().All() {
		for _, span := range resource.ScopeSpans().At(0).Spans().All() {
			byKind[span.Kind()] = span
		}
	}
	return byKind
}

func eventNames(span ptrace.Span) []string {
	var names []string
	for _, e := range span.Events().All() {
		names = append(names, e.Name())
	}
	return names
}

// What the golden files show, said: an update that is not looked at must not undo it.

func TestServersSpanIsBelowTheClientsThatWasSeen(t *testing.T) {
	pair := spans(t, "ok_pair")
	client, server := pair[ptrace.SpanKindClient], pair[ptrace.SpanKindServer]
	if client.TraceID() != server.TraceID() || server.ParentSpanID() != client.SpanID() || !client.ParentSpanID().IsEmpty() {
		t.Errorf("client %v/%v (parent %v), server %v/%v (parent %v)", client.TraceID(), client.SpanID(), client.ParentSpanID(),
			server.TraceID(), server.SpanID(), server.ParentSpanID())
	}
	if alone := spans(t, "reset")[ptrace.SpanKindServer]; !alone.ParentSpanID().IsEmpty() {
		t.Errorf("a server's span has the parent %v, whose client was not seen", alone.ParentSpanID())
	}
}

func TestFailedConnectionIsAnErrorAndWasNeverEstablished(t *testing.T) {
	span := spans(t, "refused")[ptrace.SpanKindClient]
	if span.Status().Code() != ptrace.StatusCodeError || span.Status().Message() != "refused" {
		t.Errorf("status %v %q, want an error, refused", span.Status().Code(), span.Status().Message())
	}
	if got := eventNames(span); !slices.Equal(got, []string{"pre_connect", "close"}) {
		t.Errorf("events %v", got)
	}
}

func TestResetConnectionIsAnErrorAfterItWasEstablished(t *testing.T) {
	span := spans(t, "reset")[ptrace.SpanKindServer]
	if span.Status().Code() != ptrace.StatusCodeError || span.Status().Message() != "reset_by_peer" {
		t.Errorf("status %v %q, want an error, reset_by_peer", span.Status().Code(), span.Status().Message())
	}
	if got := eventNames(span); !slices.Equal(got, []string{"established", "close"}) {
		t.Errorf("events %v", got)
	}
}

func TestRefusedByTheMeshIsAnErrorWithoutASYN(t *testing.T) {
	settings := testSettings()
	seen := 0
	for _, r := range load(t, "mesh") {
		if r.Event.Flags&connection.RefusedHere == 0 {
			continue
		}
		seen++
		span := newTraces(&settings, [][]enrich.Record{{r}}).ResourceSpans().At(0).ScopeSpans().At(0).Spans().At(0)
		reason := r.Event.Reason.String()
		if span.Status().Code() != ptrace.StatusCodeError || span.Status().Message() != reason {
			t.Errorf("%s: status %v %q, want an error, the reason", reason, span.Status().Code(), span.Status().Message())
		}
		if got := eventNames(span); !slices.Equal(got, []string{"close"}) || span.Events().At(0).Timestamp() != span.EndTimestamp() {
			t.Errorf("%s: events %v, want a close at the end", reason, got)
		}
		start, end := timestamp(&r, r.Event.Key.StartNS), timestamp(&r, r.Event.EventNS)
		if span.StartTimestamp() != start || span.EndTimestamp() != end || !span.ParentSpanID().IsEmpty() {
			t.Errorf("%s: from %v to %v below %v, want from %v to %v below nothing", reason, span.StartTimestamp(), span.EndTimestamp(),
				span.ParentSpanID(), start, end)
		}
		_, local := span.Attributes().Get("network.local.address")
		_, client := span.Attributes().Get("client.address")
		if server := r.Event.Role == connection.Server; local != server || client != server {
			t.Errorf("%s: a %v's span has a local address: %v, a client's: %v", reason, r.Event.Role, local, client)
		}
	}
	if seen != 4 {
		t.Errorf("%d refusals, want 4", seen)
	}
}

func TestServicesOfOneNameAreToldApart(t *testing.T) {
	// Texts are kept from one record to the next: neither another namespace nor a cgroup of the name may come out instead.
	settings := testSettings()
	record := load(t, "mesh")[0]
	var batch []enrich.Record
	for _, namespace := range []string{"a", "b"} {
		r := record
		r.Identity.Local = &enrich.Workload{Name: "w", Cgroup: "cart"}
		r.Identity.Decision = &enrich.Decision{Service: &enrich.Service{Name: "cart", Namespace: namespace}}
		batch = append(batch, r)
	}
	var got []string
	for _, resource := range newLogs(&settings, [][]enrich.Record{batch}).ResourceLogs().All() {
		for _, log := range resource.ScopeLogs().At(0).LogRecords().All() {
			for _, name := range []string{"process.linux.cgroup", "sidelight.service"} {
				v, _ := log.Attributes().Get(name)
				got = append(got, v.Str())
			}
		}
	}
	if want := []string{"0::cart", "a/cart", "0::cart", "b/cart"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNoEdgesNoMetrics(t *testing.T) {
	settings := testSettings()
	if metrics := newMetrics(&settings, edge.Snapshot{}, fixture.Now); metrics.ResourceMetrics().Len() != 0 {
		t.Errorf("%d resources without an edge", metrics.ResourceMetrics().Len())
	}
}
