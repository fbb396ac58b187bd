package embedded

import (
	"fmt"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/otlptest"
	"github.com/sidelight-mesh/sidelight/collector/queue"
)

// backend counts what came.
type backend struct{ *otlptest.Backend }

// uids are the ids of the log records that came, and how often each did.
func (b backend) uids() map[string]int {
	uids := make(map[string]int)
	for _, logs := range b.Logs.AllLogs() {
		for _, r := range logs.ResourceLogs().All() {
			for _, log := range r.ScopeLogs().At(0).LogRecords().All() {
				uid, _ := log.Attributes().Get("log.record.uid")
				uids[uid.Str()]++
			}
		}
	}
	return uids
}

// spans are the ids of the spans that came, and how often each did.
func (b backend) spans() map[string]int {
	spans := make(map[string]int)
	for _, traces := range b.Traces.AllTraces() {
		for _, r := range traces.ResourceSpans().All() {
			for _, span := range r.ScopeSpans().At(0).Spans().All() {
				spans[span.SpanID().String()]++
			}
		}
	}
	return spans
}

// attempts is what the last report says.
func (b backend) attempts() int64 {
	all := b.Metrics.AllMetrics()
	if len(all) == 0 {
		return 0
	}
	for _, m := range all[len(all)-1].ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().All() {
		if m.Name() == "sidelight.tcp.connection.attempts" {
			return m.Sum().DataPoints().At(0).IntValue()
		}
	}
	return -1
}

// source is what the agent has: a queue for each signal, and a table.
type source struct {
	logs, traces *queue.Queue
	table        *edge.Table
}

func newSource() source { return source{queue.New(1 << 16), queue.New(1 << 16), edge.NewTable(100)} }

func (s source) Logs() meshreceiver.Records { return s.logs }

func (s source) Traces() meshreceiver.Records { return s.traces }

// Close says that there will be no more.
func (s source) Close() {
	s.logs.Close()
	s.traces.Close()
}

func (s source) Edges() edge.Snapshot { return s.table.Snapshot() }

func (s source) mesh() meshreceiver.Settings {
	return meshreceiver.Settings{
		Source: s, Clock: func() connection.Clock { return fixture.Clock }, Boot: fixture.Boot, HostName: "node-1",
	}
}

// give hands over n finished connections and returns the ids of their log records and spans, once each.
func (s source) give(n int) (uids, spans map[string]int) {
	uids, spans = make(map[string]int), make(map[string]int)
	batch := make([]enrich.Record, n)
	for i := range batch {
		e := connection.Event{
			Kind: connection.Close, Role: connection.Client, Key: connection.Key{Cookie: uint64(i), StartNS: 1e9},
			ConnectNS: 1e9, EstablishedNS: 2e9, EventNS: 3e9, ClientISN: uint32(i),
		}
		trace := e.Trace()
		uids[fixture.Boot.UID(e.Key)]++
		spans[fmt.Sprintf("%x", trace.ClientSpan)]++
		batch[i] = enrich.Record{
			Event: e, Change: connection.Change{Attempts: 1, Established: 1, Closed: 1}, Clock: fixture.Clock,
			Identity: enrich.Identity{Local: &enrich.Workload{Name: "w"}, Peer: &enrich.Workload{Name: "p"}},
		}
	}
	s.logs.Consume(batch)
	s.traces.Consume(batch)
	s.table.Consume(batch)
	return uids, spans
}
