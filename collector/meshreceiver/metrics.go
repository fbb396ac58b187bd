package meshreceiver

import (
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// newMetrics makes cumulative metrics of a snapshot. A backend that spells names the Prometheus way arrives at the names and
// labels of /metrics.
func newMetrics(settings *Settings, snapshot edge.Snapshot, now time.Time) pmetric.Metrics {
	metrics := pmetric.NewMetrics()
	var own self.Reading
	if settings.Self != nil {
		own = settings.Self()
	}
	if len(snapshot.Edges) == 0 && len(own.Values) == 0 {
		return metrics
	}
	resource := metrics.ResourceMetrics().AppendEmpty()
	resource.Resource().Attributes().PutStr("service.name", "sidelight")
	if settings.HostName != "" {
		resource.Resource().Attributes().PutStr("host.name", settings.HostName)
		resource.Resource().Attributes().PutStr("service.instance.id", settings.HostName)
	}
	scope := resource.ScopeMetrics().AppendEmpty()
	scope.Scope().SetName(scopeName)
	b := builder{scope: scope.Metrics(), edges: snapshot.Edges, now: pcommon.NewTimestampFromTime(now), clock: settings.Clock()}

	b.counter("sidelight.tcp.connection.attempts", "{connection}", clients(func(s *edge.Sums) uint64 { return s.Attempts }))
	b.counter("sidelight.tcp.connection.established", "{connection}", each(func(s *edge.Sums) uint64 { return s.Established }))
	b.counter("sidelight.tcp.connection.adopted", "{connection}", each(func(s *edge.Sums) uint64 { return s.Adopted }))
	b.reasons("sidelight.tcp.connection.failures", func(s *edge.Sums) *[connection.ReasonCount]uint64 { return &s.Failures })
	b.reasons("sidelight.tcp.connection.closed", func(s *edge.Sums) *[connection.ReasonCount]uint64 { return &s.Closed })
	b.gauge("sidelight.tcp.connection.open", each(func(s *edge.Sums) int64 { return s.Open }))
	b.gauge("sidelight.tcp.connection.connecting", clients(func(s *edge.Sums) int64 { return s.Connecting }))
	b.seconds("sidelight.tcp.connection.connecting.oldest", clients(func(s *edge.Sums) uint64 { return s.OldestConnectingNS }))
	b.counter("sidelight.tcp.sent", "By", each(func(s *edge.Sums) uint64 { return s.SentBytes }))
	b.counter("sidelight.tcp.received", "By", each(func(s *edge.Sums) uint64 { return s.ReceivedBytes }))
	b.counter("sidelight.tcp.retransmits", "{segment}", each(func(s *edge.Sums) uint64 { return s.Retransmits }))
	b.counter("sidelight.tcp.syn.retransmits", "{segment}", each(func(s *edge.Sums) uint64 { return s.SYNRetransmits }))
	b.histogram("sidelight.tcp.connect.duration", clients(func(s *edge.Sums) *edge.Histogram { return &s.ConnectDuration }))
	b.histogram("sidelight.tcp.first_byte.duration", clients(func(s *edge.Sums) *edge.Histogram { return &s.FirstByteDuration }))
	b.histogram("sidelight.tcp.connection.duration", each(func(s *edge.Sums) *edge.Histogram { return &s.ConnectionDuration }))
	b.histogram("sidelight.tcp.rtt", each(func(s *edge.Sums) *edge.Histogram { return &s.RTT }))
	b.decisions(&snapshot.Decisions)
	appendSelf(scope.Metrics(), own, b.now)
	// Backends complain of a metric without a point, such as failures while there are none.
	scope.Metrics().RemoveIf(func(m pmetric.Metric) bool {
		switch m.Type() {
		case pmetric.MetricTypeHistogram:
			return m.Histogram().DataPoints().Len() == 0
		case pmetric.MetricTypeGauge:
			return m.Gauge().DataPoints().Len() == 0
		}
		return m.Sum().DataPoints().Len() == 0
	})
	return metrics
}

// pick reads something of an edge, if it applies to it.
type pick[T any] func(*edge.Edge) (T, bool)

func each[T any](f func(*edge.Sums) T) pick[T] {
	return func(e *edge.Edge) (T, bool) { return f(&e.Sums), true }
}

// clients leaves servers out: a server does not see an attempt before it succeeds.
func clients[T any](f func(*edge.Sums) T) pick[T] {
	return func(e *edge.Edge) (T, bool) { return f(&e.Sums), e.Key.Role == connection.Client }
}

type builder struct {
	scope pmetric.MetricSlice
	edges []edge.Edge
	now   pcommon.Timestamp
	clock connection.Clock
}

func (b *builder) metric(name, unit string) pmetric.Metric {
	m := b.scope.AppendEmpty()
	m.SetName(name)
	m.SetUnit(unit)
	m.SetDescription(descriptions[name])
	return m
}

func (b *builder) sum(name, unit string, monotonic bool) pmetric.NumberDataPointSlice {
	sum := b.metric(name, unit).SetEmptySum()
	sum.SetIsMonotonic(monotonic)
	sum.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	sum.DataPoints().EnsureCapacity(len(b.edges))
	return sum.DataPoints()
}

func (b *builder) counter(name, unit string, value pick[uint64]) {
	points := b.sum(name, unit, true)
	for i := range b.edges {
		if v, ok := value(&b.edges[i]); ok {
			b.number(points, &b.edges[i]).SetIntValue(int64(v))
		}
	}
}

func (b *builder) gauge(name string, value pick[int64]) {
	points := b.sum(name, "{connection}", false)
	for i := range b.edges {
		if v, ok := value(&b.edges[i]); ok {
			b.number(points, &b.edges[i]).SetIntValue(v)
		}
	}
}

// seconds makes a gauge of a number of nanoseconds.
func (b *builder) seconds(name string, value pick[uint64]) {
	points := b.metric(name, "s").SetEmptyGauge().DataPoints()
	for i := range b.edges {
		if v, ok := value(&b.edges[i]); ok {
			b.number(points, &b.edges[i]).SetDoubleValue(time.Duration(v).Seconds())
		}
	}
}

func (b *builder) reasons(name string, counts func(*edge.Sums) *[connection.ReasonCount]uint64) {
	points := b.sum(name, "{connection}", true)
	for i := range b.edges {
		for reason, n := range counts(&b.edges[i].Sums) {
			if n > 0 {
				point := b.number(points, &b.edges[i])
				point.Attributes().PutStr("reason", connection.Reason(reason).String())
				point.SetIntValue(int64(n))
			}
		}
	}
}

func (b *builder) number(points pmetric.NumberDataPointSlice, e *edge.Edge) pmetric.NumberDataPoint {
	point := points.AppendEmpty()
	point.SetStartTimestamp(pcommon.Timestamp(e.Sums.SinceUnixNS))
	point.SetTimestamp(b.now)
	edgeAttributes(point.Attributes(), e.Key)
	return point
}

func (b *builder) histogram(name string, value pick[*edge.Histogram]) {
	h := b.metric(name, "s").SetEmptyHistogram()
	h.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	for i := range b.edges {
		v, ok := value(&b.edges[i])
		if !ok {
			continue
		}
		point := h.DataPoints().AppendEmpty()
		edgeAttributes(point.Attributes(), b.edges[i].Key)
		b.observations(point, v, b.edges[i].Sums.SinceUnixNS)
	}
}

// decisions are of the node, so their histogram has no attributes.
func (b *builder) decisions(d *edge.Decisions) {
	h := b.metric("sidelight.mesh.decision.duration", "s").SetEmptyHistogram()
	h.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	if d.SinceUnixNS != 0 {
		b.observations(h.DataPoints().AppendEmpty(), &d.Duration, d.SinceUnixNS)
	}
}

func (b *builder) observations(point pmetric.HistogramDataPoint, of *edge.Histogram, sinceUnixNS int64) {
	point.SetStartTimestamp(pcommon.Timestamp(sinceUnixNS))
	point.SetTimestamp(b.now)
	point.SetCount(of.Count)
	point.SetSum(of.Sum)
	point.ExplicitBounds().FromRaw(of.Bounds)
	point.BucketCounts().FromRaw(of.Classic)
	for _, x := range of.Exemplars {
		if x.AtNS != 0 {
			exemplar := point.Exemplars().AppendEmpty()
			exemplar.SetTraceID(pcommon.TraceID(x.TraceID))
			exemplar.SetSpanID(pcommon.SpanID(x.SpanID))
			exemplar.SetTimestamp(pcommon.Timestamp(b.clock.WallNS(x.AtNS)))
			exemplar.SetDoubleValue(x.Value)
		}
	}
}

// edgeAttributes have the names of the Prometheus labels with dots for underscores, so that both ways lead to the same series.
func edgeAttributes(to pcommon.Map, k edge.Key) {
	to.EnsureCapacity(9)
	to.PutStr("role", k.Role.String())
	put := func(name, value string) {
		if value != "" {
			to.PutStr(name, value)
		}
	}
	put("local.workload", k.LocalWorkload)
	put("local.namespace", k.LocalNamespace)
	put("peer.workload", k.PeerWorkload)
	put("peer.namespace", k.PeerNamespace)
	put("service", k.Service)
	put("service.namespace", k.ServiceNamespace)
	put("network.type", k.NetworkType)
	if k.IsOverflow() {
		to.PutBool("otel.metric.overflow", true)
	}
}
