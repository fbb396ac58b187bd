// Package promview shows the edges to Prometheus. It costs nothing while nobody scrapes.
package promview

import (
	"encoding/hex"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

// Labels of every edge metric, in the order of labelValues.
var Labels = []string{
	"role", "local_workload", "local_namespace", "peer_workload", "peer_namespace", "service", "service_namespace", "network_type",
}

func labelValues(k edge.Key) []string {
	return []string{
		k.Role.String(), k.LocalWorkload, k.LocalNamespace, k.PeerWorkload, k.PeerNamespace, k.Service, k.ServiceNamespace, k.NetworkType,
	}
}

func desc(name, help string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc("sidelight_tcp_"+name, help, append(slices.Clone(Labels), more...), nil)
}

// View is a prometheus.Collector over a table of edges.
type View struct {
	edges func() edge.Snapshot
	clock func() connection.Clock

	attempts, established, adopted, failures, closed            *prometheus.Desc
	open, connecting, oldest                                    *prometheus.Desc
	sent, received, retransmits, synRetransmits                 *prometheus.Desc
	connectDuration, firstByteDuration, connectionDuration, rtt *prometheus.Desc
	decisionDuration                                            *prometheus.Desc

	istio *istio // nil: off
}

// New returns a view. The clock dates exemplars.
func New(edges func() edge.Snapshot, clock func() connection.Clock) *View {
	return &View{
		edges: edges, clock: clock,
		attempts:           desc("connection_attempts_total", "Connections whose SYN was about to leave, or that the mesh refused before; clients only."),
		established:        desc("connection_established_total", "Connections whose handshake was done."),
		adopted:            desc("connection_adopted_total", "Connections that were open when the agent came; established and adopted make up closed and open."),
		failures:           desc("connection_failures_total", "Connections that ended before their handshake was done, by reason.", "reason"),
		closed:             desc("connection_closed_total", "Connections that ended after their handshake, by reason.", "reason"),
		open:               desc("connection_open", "Connections that are open now."),
		connecting:         desc("connection_connecting", "Connections whose handshake is under way now; clients only."),
		oldest:             desc("connection_connecting_oldest_seconds", "How long the connect has hung that hangs longest, at the last sweep; 0 without any; clients only."),
		sent:               desc("sent_bytes_total", "Payload sent, each byte once."),
		received:           desc("received_bytes_total", "Payload received, each byte once."),
		retransmits:        desc("retransmits_total", "Segments sent again, SYN among them."),
		synRetransmits:     desc("syn_retransmits_total", "Segments sent again during the handshake."),
		connectDuration:    desc("connect_duration_seconds", "Time from SYN to the end of the handshake; clients only."),
		firstByteDuration:  desc("first_byte_duration_seconds", "Time from the end of the handshake to the first byte received, of connections that ended; clients only."),
		connectionDuration: desc("connection_duration_seconds", "Life of connections that ended, from connect() or accept to the end of TCP."),
		rtt:                desc("rtt_seconds", "Smoothed round-trip time at the end of connections."),
		decisionDuration: prometheus.NewDesc("sidelight_mesh_decision_duration_seconds",
			"Time that the mesh took to decide a connect, whether it let it through or refused it; clients only.", nil, nil),
	}
}

// IstioAliases has the view show the same edges under Istio's names, too; for the table they are IstioName. Workloads of which the mesh does not say the
// cluster are in this one; without a mesh it is nil. It is called before the view is registered.
func (v *View) IstioAliases(cluster string, mesh *enrich.Catalog) *View {
	v.istio = newIstio(cluster, mesh)
	return v
}

// Describe implements prometheus.Collector.
func (v *View) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		v.attempts, v.established, v.adopted, v.failures, v.closed, v.open, v.connecting, v.oldest, v.sent, v.received, v.retransmits,
		v.synRetransmits, v.connectDuration, v.firstByteDuration, v.connectionDuration, v.rtt,
		v.decisionDuration,
	} {
		ch <- d
	}
	if v.istio != nil {
		v.istio.describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (v *View) Collect(ch chan<- prometheus.Metric) {
	snapshot := v.edges()
	clock := v.clock()
	for i := range snapshot.Edges {
		e := &snapshot.Edges[i]
		values, s := labelValues(e.Key), &e.Sums
		since := time.Unix(0, s.SinceUnixNS)
		counter := func(d *prometheus.Desc, value uint64, more ...string) {
			ch <- prometheus.MustNewConstMetricWithCreatedTimestamp(d, prometheus.CounterValue, float64(value), since,
				append(slices.Clone(values), more...)...)
		}
		gauge := func(d *prometheus.Desc, value float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, values...)
		}
		if e.Key.Role == connection.Client {
			counter(v.attempts, s.Attempts)
			gauge(v.connecting, float64(s.Connecting))
			gauge(v.oldest, time.Duration(s.OldestConnectingNS).Seconds())
			v.histogram(ch, v.connectDuration, &s.ConnectDuration, clock, since, values)
			v.histogram(ch, v.firstByteDuration, &s.FirstByteDuration, clock, since, values)
		}
		counter(v.established, s.Established)
		counter(v.adopted, s.Adopted)
		gauge(v.open, float64(s.Open))
		for reason := range connection.ReasonCount {
			if n := s.Failures[reason]; n > 0 {
				counter(v.failures, n, reason.String())
			}
			if n := s.Closed[reason]; n > 0 {
				counter(v.closed, n, reason.String())
			}
		}
		counter(v.sent, s.SentBytes)
		counter(v.received, s.ReceivedBytes)
		counter(v.retransmits, s.Retransmits)
		counter(v.synRetransmits, s.SYNRetransmits)
		v.histogram(ch, v.connectionDuration, &s.ConnectionDuration, clock, since, values)
		v.histogram(ch, v.rtt, &s.RTT, clock, since, values)
	}
	if d := &snapshot.Decisions; d.SinceUnixNS != 0 {
		ch <- &histogram{desc: v.decisionDuration, histogram: histogramProto(&d.Duration, clock, time.Unix(0, d.SinceUnixNS))}
	}
	if v.istio != nil {
		v.istio.collect(ch, snapshot)
	}
}

func (v *View) histogram(ch chan<- prometheus.Metric, d *prometheus.Desc, h *edge.Histogram, clock connection.Clock, since time.Time, values []string) {
	labels := make([]*dto.LabelPair, 0, len(values))
	for i, name := range Labels {
		labels = append(labels, &dto.LabelPair{Name: proto.String(name), Value: proto.String(values[i])})
	}
	slices.SortFunc(labels, func(a, b *dto.LabelPair) int {
		if a.GetName() < b.GetName() {
			return -1
		}
		return 1
	})
	ch <- &histogram{desc: d, labels: labels, histogram: histogramProto(h, clock, since)}
}

// histogram is a metric with classic and native buckets at once; the library's constant histograms have either.
type histogram struct {
	desc      *prometheus.Desc
	labels    []*dto.LabelPair
	histogram *dto.Histogram
}

// Desc implements prometheus.Metric.
func (h *histogram) Desc() *prometheus.Desc { return h.desc }

// Write implements prometheus.Metric.
func (h *histogram) Write(out *dto.Metric) error {
	out.Label = h.labels
	out.Histogram = h.histogram
	return nil
}

func histogramProto(h *edge.Histogram, clock connection.Clock, since time.Time) *dto.Histogram {
	out := &dto.Histogram{
		SampleCount:      proto.Uint64(h.Count),
		SampleSum:        proto.Float64(h.Sum),
		CreatedTimestamp: timestamppb.New(since),
		Schema:           proto.Int32(edge.Schema),
		ZeroThreshold:    proto.Float64(0),
		ZeroCount:        proto.Uint64(h.Zero),
	}
	cumulative := uint64(0)
	for i, n := range h.Classic {
		cumulative += n
		bound, x := math.Inf(1), h.Exemplars[i]
		if i < len(h.Bounds) {
			bound = h.Bounds[i]
		} else if x.AtNS == 0 {
			break // the last bucket goes without saying, but for its exemplar
		}
		bucket := &dto.Bucket{UpperBound: proto.Float64(bound), CumulativeCount: proto.Uint64(cumulative)}
		if x.AtNS != 0 {
			bucket.Exemplar = exemplarProto(x, clock)
			out.Exemplars = append(out.Exemplars, bucket.Exemplar)
		}
		out.Bucket = append(out.Bucket, bucket)
	}
	out.PositiveSpan, out.PositiveDelta = nativeBuckets(h)
	if len(out.PositiveSpan) == 0 {
		// A span of no length is how a native histogram without observations tells itself from a classic one.
		out.PositiveSpan = []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(0)}}
	}
	return out
}

// nativeBuckets turns the window of buckets into Prometheus's spans of buckets that are not empty, and the differences between
// neighbours. Bucket i of Prometheus ends at 2^(i/8), ours begins there, hence the one.
func nativeBuckets(h *edge.Histogram) ([]*dto.BucketSpan, []int64) {
	var spans []*dto.BucketSpan
	var deltas []int64
	var last int64
	end := 0 // index after the last span
	for i, n := range h.Exponential {
		if n == 0 {
			continue
		}
		index := h.Offset + i + 1
		if len(spans) > 0 && index == end {
			*spans[len(spans)-1].Length++
		} else {
			spans = append(spans, &dto.BucketSpan{Offset: proto.Int32(int32(index - end)), Length: proto.Uint32(1)})
		}
		end = index + 1
		deltas = append(deltas, int64(n)-last)
		last = int64(n)
	}
	return spans, deltas
}

func exemplarProto(x edge.Exemplar, clock connection.Clock) *dto.Exemplar {
	return &dto.Exemplar{
		Label: []*dto.LabelPair{
			{Name: proto.String("trace_id"), Value: proto.String(hex.EncodeToString(x.TraceID[:]))},
			{Name: proto.String("span_id"), Value: proto.String(hex.EncodeToString(x.SpanID[:]))},
		},
		Value:     proto.Float64(x.Value),
		Timestamp: timestamppb.New(time.Unix(0, clock.WallNS(x.AtNS))),
	}
}
