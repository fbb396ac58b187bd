package demo

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
)

// Edge is one row of the table: what the received metrics say of one edge.
type Edge struct {
	Role          string           `json:"role"`
	Local         string           `json:"local_workload"`
	Peer          string           `json:"peer_workload"`
	NetworkType   string           `json:"network_type"`
	Attempts      int64            `json:"attempts"`
	Established   int64            `json:"established"`
	Open          int64            `json:"open"`
	Connecting    int64            `json:"connecting"`
	SentBytes     int64            `json:"sent_bytes"`
	ReceivedBytes int64            `json:"received_bytes"`
	Failures      map[string]int64 `json:"failures,omitempty"`
	Closed        map[string]int64 `json:"closed,omitempty"`
	// Seconds; absent without a connection that was established.
	ConnectP50 *float64 `json:"connect_p50_seconds,omitempty"`
	ConnectP99 *float64 `json:"connect_p99_seconds,omitempty"`

	since, at pcommon.Timestamp
}

// Total is how many connections the edge has seen begin.
func (e *Edge) Total() int64 {
	if e.Role == "client" {
		return e.Attempts
	}
	return e.Established
}

type edgeKey struct{ role, local, peer, network string }

// Edges reads the table off an OTLP report, sorted.
func Edges(metrics pmetric.Metrics) []Edge {
	edges := make(map[edgeKey]*Edge)
	find := func(attributes pcommon.Map) *Edge {
		text := func(name string) string { v, _ := attributes.Get(name); return v.Str() }
		key := edgeKey{text("role"), text("local.workload"), text("peer.workload"), text("network.type")}
		if edges[key] == nil {
			edges[key] = &Edge{
				Role: key.role, Local: key.local, Peer: key.peer, NetworkType: key.network,
				Failures: make(map[string]int64), Closed: make(map[string]int64),
			}
		}
		return edges[key]
	}
	for _, resource := range metrics.ResourceMetrics().All() {
		for _, scope := range resource.ScopeMetrics().All() {
			for _, metric := range scope.Metrics().All() {
				// The others are of the agent itself.
				if strings.HasPrefix(metric.Name(), "sidelight.tcp.") {
					readMetric(metric, find)
				}
			}
		}
	}
	sorted := make([]Edge, 0, len(edges))
	for _, e := range edges {
		sorted = append(sorted, *e)
	}
	slices.SortFunc(sorted, func(a, b Edge) int {
		return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Local, b.Local), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.NetworkType, b.NetworkType))
	})
	return sorted
}

func readMetric(metric pmetric.Metric, find func(pcommon.Map) *Edge) {
	switch metric.Type() {
	case pmetric.MetricTypeSum:
		for _, p := range metric.Sum().DataPoints().All() {
			e := find(p.Attributes())
			e.since, e.at = p.StartTimestamp(), p.Timestamp()
			reason, _ := p.Attributes().Get("reason")
			switch metric.Name() {
			case "sidelight.tcp.connection.attempts":
				e.Attempts = p.IntValue()
			case "sidelight.tcp.connection.established":
				e.Established = p.IntValue()
			case "sidelight.tcp.connection.open":
				e.Open = p.IntValue()
			case "sidelight.tcp.connection.connecting":
				e.Connecting = p.IntValue()
			case "sidelight.tcp.sent":
				e.SentBytes = p.IntValue()
			case "sidelight.tcp.received":
				e.ReceivedBytes = p.IntValue()
			case "sidelight.tcp.connection.failures":
				e.Failures[reason.Str()] = p.IntValue()
			case "sidelight.tcp.connection.closed":
				e.Closed[reason.Str()] = p.IntValue()
			}
		}
	case pmetric.MetricTypeHistogram:
		if metric.Name() != "sidelight.tcp.connect.duration" {
			return
		}
		for _, p := range metric.Histogram().DataPoints().All() {
			if e := find(p.Attributes()); p.Count() > 0 {
				p50, p99 := quantile(p, 0.5), quantile(p, 0.99)
				e.ConnectP50, e.ConnectP99 = &p50, &p99
			}
		}
	}
}

// quantile estimates as PromQL's histogram_quantile does: evenly spread inside a bucket.
func quantile(p pmetric.HistogramDataPoint, q float64) float64 {
	rank := q * float64(p.Count())
	seen, lower := 0.0, 0.0
	for i, n := range p.BucketCounts().All() {
		if i == p.ExplicitBounds().Len() {
			return lower
		}
		upper := p.ExplicitBounds().At(i)
		if seen+float64(n) >= rank && n > 0 {
			return lower + (upper-lower)*(rank-seen)/float64(n)
		}
		seen += float64(n)
		lower = upper
	}
	return math.NaN()
}
