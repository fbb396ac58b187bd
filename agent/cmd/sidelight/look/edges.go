package look

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/filter"
)

// Edges are those of an agent at one moment: what it answers.
type Edges struct {
	At          time.Time `json:"at"`
	MonotonicNS uint64    `json:"monotonic_ns"`
	Rung        string    `json:"rung,omitempty"` // of the budget's ladder
	Edges       []Edge    `json:"edges"`
}

// Edge has the labels of an edge's metrics, and its sums.
type Edge struct {
	Labels
	SinceUnixNS     int64             `json:"since_unix_ns"`
	Attempts        uint64            `json:"attempts"`
	Established     uint64            `json:"established"`
	Adopted         uint64            `json:"adopted"`
	Failures        map[string]uint64 `json:"failures,omitempty"` // by reason, as the next
	Closed          map[string]uint64 `json:"closed,omitempty"`
	Open            int64             `json:"open"`
	Connecting      int64             `json:"connecting"`
	OldestConnectNS uint64            `json:"oldest_connecting_ns,omitempty"`
	SentBytes       uint64            `json:"sent_bytes"`
	ReceivedBytes   uint64            `json:"received_bytes"`
	Retransmits     uint64            `json:"retransmits"`
	Connect         Histogram         `json:"connect"`
	FirstByte       Histogram         `json:"first_byte"`
	RTT             Histogram         `json:"rtt"`
}

// Labels say which edge it is.
type Labels struct {
	Role             string `json:"role"`
	LocalWorkload    string `json:"local_workload"`
	LocalNamespace   string `json:"local_namespace,omitempty"`
	PeerWorkload     string `json:"peer_workload"`
	PeerNamespace    string `json:"peer_namespace,omitempty"`
	Service          string `json:"service,omitempty"`
	ServiceNamespace string `json:"service_namespace,omitempty"`
	NetworkType      string `json:"network_type,omitempty"`
}

// Histogram has the exponential buckets of an edge.Histogram.
type Histogram struct {
	Zero    uint64   `json:"zero,omitempty"`
	Offset  int      `json:"offset,omitempty"`
	Buckets []uint64 `json:"buckets,omitempty"`
}

// EdgesOf makes an answer of a snapshot.
func EdgesOf(s *edge.Snapshot) []Edge {
	edges := make([]Edge, 0, len(s.Edges))
	for i := range s.Edges {
		k, sums := &s.Edges[i].Key, &s.Edges[i].Sums
		edges = append(edges, Edge{
			Labels: Labels{
				Role: k.Role.String(), LocalWorkload: k.LocalWorkload, LocalNamespace: k.LocalNamespace, PeerWorkload: k.PeerWorkload,
				PeerNamespace: k.PeerNamespace, Service: k.Service, ServiceNamespace: k.ServiceNamespace, NetworkType: k.NetworkType,
			},
			SinceUnixNS: sums.SinceUnixNS, Attempts: sums.Attempts, Established: sums.Established, Adopted: sums.Adopted,
			Failures: byReason(&sums.Failures), Closed: byReason(&sums.Closed), Open: sums.Open, Connecting: sums.Connecting,
			OldestConnectNS: sums.OldestConnectingNS, SentBytes: sums.SentBytes, ReceivedBytes: sums.ReceivedBytes, Retransmits: sums.Retransmits,
			Connect: histogramOf(&sums.ConnectDuration), FirstByte: histogramOf(&sums.FirstByteDuration), RTT: histogramOf(&sums.RTT),
		})
	}
	return edges
}

func byReason(counts *[connection.ReasonCount]uint64) map[string]uint64 {
	var named map[string]uint64
	for reason, n := range counts {
		if n > 0 {
			if named == nil {
				named = make(map[string]uint64)
			}
			named[connection.Reason(reason).String()] = n
		}
	}
	return named
}

func histogramOf(h *edge.Histogram) Histogram {
	return Histogram{Zero: h.Zero, Offset: h.Offset, Buckets: h.Exponential}
}

// Counts are of connections in some time. Begun are those of clients that were attempted, and those of servers that were accepted or refused.
type Counts struct {
	Begun         uint64 `json:"begun"`
	Established   uint64 `json:"established"`
	Failed        uint64 `json:"failed"`
	Closed        uint64 `json:"closed"`
	NotOK         uint64 `json:"not_ok"` // failed, or closed with another reason than ok
	SentBytes     uint64 `json:"sent_bytes"`
	ReceivedBytes uint64 `json:"received_bytes"`
	Retransmits   uint64 `json:"retransmits"`
}

// Rates are such counts a second.
type Rates struct {
	Begun         float64 `json:"begun"`
	NotOK         float64 `json:"not_ok"`
	SentBytes     float64 `json:"sent_bytes"`
	ReceivedBytes float64 `json:"received_bytes"`
}

// Latency is what connections of the interval took, in seconds; nil: there were none.
type Latency struct {
	ConnectP50   *float64 `json:"connect_p50_seconds,omitempty"`
	ConnectP99   *float64 `json:"connect_p99_seconds,omitempty"`
	FirstByteP50 *float64 `json:"first_byte_p50_seconds,omitempty"`
	FirstByteP99 *float64 `json:"first_byte_p99_seconds,omitempty"`
	RTTP50       *float64 `json:"rtt_p50_seconds,omitempty"`
}

// Row is one edge: what it was between two snapshots, and in all.
type Row struct {
	Labels
	Open            int64   `json:"open"`
	Connecting      int64   `json:"connecting"`
	OldestConnectNS uint64  `json:"oldest_connecting_ns,omitempty"`
	Total           Counts  `json:"total"`
	Interval        Counts  `json:"interval"`
	PerSecond       Rates   `json:"per_second"`
	Latency         Latency `json:"latency"`
	// Reasons are those of the interval that are not ok.
	Reasons map[string]uint64 `json:"reasons,omitempty"`
}

// Report is what top shows.
type Report struct {
	At              time.Time `json:"at"`
	IntervalSeconds float64   `json:"interval_seconds"`
	Rung            string    `json:"rung,omitempty"`
	Edges           []Row     `json:"edges"`
}

// Compare makes a report of two answers of one agent, or of an agent and the one that took its place.
func Compare(before, after *Edges) *Report {
	r := &Report{At: after.At, Rung: after.Rung, Edges: make([]Row, 0, len(after.Edges))}
	if after.MonotonicNS > before.MonotonicNS {
		r.IntervalSeconds = float64(after.MonotonicNS-before.MonotonicNS) / 1e9
	}
	earlier := make(map[Labels]*Edge, len(before.Edges))
	for i := range before.Edges {
		earlier[before.Edges[i].Labels] = &before.Edges[i]
	}
	for i := range after.Edges {
		r.Edges = append(r.Edges, row(earlier[after.Edges[i].Labels], &after.Edges[i], r.IntervalSeconds))
	}
	return r
}

func row(before, after *Edge, interval float64) Row {
	// Counters of an edge that was folded and came again, or of an agent that was killed, begin anew.
	if before == nil || before.SinceUnixNS != after.SinceUnixNS || after.Attempts < before.Attempts || after.Established < before.Established {
		before = new(Edge)
	}
	r := Row{Labels: after.Labels, Open: after.Open, Connecting: after.Connecting, OldestConnectNS: after.OldestConnectNS}
	r.Total = counts(after)
	then := counts(before)
	r.Interval = Counts{
		Begun: minus(r.Total.Begun, then.Begun), Established: minus(r.Total.Established, then.Established),
		Failed: minus(r.Total.Failed, then.Failed), Closed: minus(r.Total.Closed, then.Closed), NotOK: minus(r.Total.NotOK, then.NotOK),
		SentBytes: minus(r.Total.SentBytes, then.SentBytes), ReceivedBytes: minus(r.Total.ReceivedBytes, then.ReceivedBytes),
		Retransmits: minus(r.Total.Retransmits, then.Retransmits),
	}
	if interval > 0 {
		r.PerSecond = Rates{
			Begun: float64(r.Interval.Begun) / interval, NotOK: float64(r.Interval.NotOK) / interval,
			SentBytes: float64(r.Interval.SentBytes) / interval, ReceivedBytes: float64(r.Interval.ReceivedBytes) / interval,
		}
	}
	for _, of := range []struct{ now, then map[string]uint64 }{{after.Failures, before.Failures}, {after.Closed, before.Closed}} {
		for reason, n := range of.now {
			if n = minus(n, of.then[reason]); n > 0 && reason != connection.OK.String() {
				if r.Reasons == nil {
					r.Reasons = make(map[string]uint64)
				}
				r.Reasons[reason] += n
			}
		}
	}
	connect, first, rtt := since(&before.Connect, &after.Connect), since(&before.FirstByte, &after.FirstByte), since(&before.RTT, &after.RTT)
	r.Latency = Latency{
		ConnectP50: quantile(&connect, 0.5), ConnectP99: quantile(&connect, 0.99), FirstByteP50: quantile(&first, 0.5),
		FirstByteP99: quantile(&first, 0.99), RTTP50: quantile(&rtt, 0.5),
	}
	return r
}

func minus(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

func counts(e *Edge) Counts {
	c := Counts{Established: e.Established, SentBytes: e.SentBytes, ReceivedBytes: e.ReceivedBytes, Retransmits: e.Retransmits}
	for _, n := range e.Failures {
		c.Failed += n
	}
	c.NotOK = c.Failed
	for reason, n := range e.Closed {
		c.Closed += n
		if reason != connection.OK.String() {
			c.NotOK += n
		}
	}
	if c.Begun = e.Attempts; e.Role == connection.Server.String() {
		c.Begun = e.Established + c.Failed
	}
	return c
}

// since is what was observed between two moments.
func since(before, after *Histogram) edge.Histogram {
	h := edge.Histogram{Zero: minus(after.Zero, before.Zero), Offset: after.Offset, Exponential: make([]uint64, len(after.Buckets))}
	h.Count = h.Zero
	for i, n := range after.Buckets {
		// The window of buckets only grows, on either side.
		if was := i + after.Offset - before.Offset; was >= 0 && was < len(before.Buckets) {
			n = minus(n, before.Buckets[was])
		}
		h.Exponential[i] = n
		h.Count += n
	}
	return h
}

func quantile(h *edge.Histogram, q float64) *float64 {
	if h.Count == 0 {
		return nil
	}
	v := h.Quantile(q)
	return &v
}

// Sort is what edges are put in order by.
type Sort string

// The orders, from the largest to the smallest but for names.
const (
	ByRate     Sort = "rate"
	ByBytes    Sort = "bytes"
	ByFailures Sort = "failures"
	ByLatency  Sort = "latency"
	ByOpen     Sort = "open"
	ByName     Sort = "name"
)

// Sorts are all of them.
var Sorts = []Sort{ByRate, ByBytes, ByFailures, ByLatency, ByOpen, ByName}

// ParseSort reads --sort.
func ParseSort(text string) (Sort, error) {
	if s := Sort(text); slices.Contains(Sorts, s) {
		return s, nil
	}
	var names []string
	for _, s := range Sorts {
		names = append(names, string(s))
	}
	return "", fmt.Errorf("--sort %s: use one of %s", text, strings.Join(names, ", "))
}

func (l *Labels) compare(o *Labels) int {
	return cmp.Or(
		cmp.Compare(l.Role, o.Role), cmp.Compare(l.LocalNamespace, o.LocalNamespace), cmp.Compare(l.LocalWorkload, o.LocalWorkload),
		cmp.Compare(l.PeerNamespace, o.PeerNamespace), cmp.Compare(l.PeerWorkload, o.PeerWorkload),
		cmp.Compare(l.ServiceNamespace, o.ServiceNamespace), cmp.Compare(l.Service, o.Service), cmp.Compare(l.NetworkType, o.NetworkType),
	)
}

// Order sorts the edges.
func (r *Report) Order(by Sort) {
	latency := func(e *Row) float64 {
		if e.Latency.ConnectP99 == nil {
			return -1
		}
		return *e.Latency.ConnectP99
	}
	slices.SortFunc(r.Edges, func(a, b Row) int {
		first := 0
		switch by {
		case ByRate:
			first = cmp.Compare(b.PerSecond.Begun, a.PerSecond.Begun)
		case ByBytes:
			first = cmp.Compare(b.PerSecond.SentBytes+b.PerSecond.ReceivedBytes, a.PerSecond.SentBytes+a.PerSecond.ReceivedBytes)
		case ByFailures:
			first = cmp.Compare(b.PerSecond.NotOK, a.PerSecond.NotOK)
		case ByLatency:
			first = cmp.Compare(latency(&b), latency(&a))
		case ByOpen:
			first = cmp.Compare(b.Open+b.Connecting, a.Open+a.Connecting)
		}
		return cmp.Or(first, a.compare(&b.Labels))
	})
}

// EdgeFields are those that a filter of edges can ask for.
func EdgeFields() []filter.Field { return edgeFields }

var edgeFields = []filter.Field{
	{Name: "role", Values: []string{connection.Client.String(), connection.Server.String()}},
	{Name: "local.workload", Short: []string{"local"}},
	{Name: "local.namespace"},
	{Name: "peer.workload", Short: []string{"peer"}},
	{Name: "peer.namespace"},
	{Name: "service"},
	{Name: "service.namespace"},
	{Name: "network.type", Short: []string{"type"}, Values: []string{"ipv4", "ipv6"}},
	{Name: "rate", Type: filter.Number},
	{Name: "failures", Type: filter.Number},
	{Name: "sent", Type: filter.Number, Unit: filter.Bytes},
	{Name: "received", Type: filter.Number, Unit: filter.Bytes},
	{Name: "open", Type: filter.Number},
	{Name: "connecting", Type: filter.Number},
	{Name: "connect", Type: filter.Number, Unit: filter.Seconds},
	{Name: "first_byte", Type: filter.Number, Unit: filter.Seconds},
}

// value is a field of a row.
func (r *Row) value(field int) filter.Value {
	text := func(s string) filter.Value { return filter.Value{There: s != "", Text: s} }
	number := func(n float64) filter.Value { return filter.Value{There: true, Number: n} }
	perhaps := func(n *float64) filter.Value {
		if n == nil {
			return filter.Value{}
		}
		return number(*n)
	}
	switch edgeFields[field].Name {
	case "role":
		return text(r.Role)
	case "local.workload":
		return text(r.LocalWorkload)
	case "local.namespace":
		return text(r.LocalNamespace)
	case "peer.workload":
		return text(r.PeerWorkload)
	case "peer.namespace":
		return text(r.PeerNamespace)
	case "service":
		return text(r.Service)
	case "service.namespace":
		return text(r.ServiceNamespace)
	case "network.type":
		return text(r.NetworkType)
	case "rate":
		return number(r.PerSecond.Begun)
	case "failures":
		return number(r.PerSecond.NotOK)
	case "sent":
		return number(r.PerSecond.SentBytes)
	case "received":
		return number(r.PerSecond.ReceivedBytes)
	case "open":
		return number(float64(r.Open))
	case "connecting":
		return number(float64(r.Connecting))
	case "connect":
		return perhaps(r.Latency.ConnectP99)
	case "first_byte":
		return perhaps(r.Latency.FirstByteP99)
	}
	panic(errors.New("a field of edges without a value: " + edgeFields[field].Name))
}

// Keep leaves out the edges that a filter does not let through; nil lets all through.
func (r *Report) Keep(e *filter.Expression) {
	if e == nil {
		return
	}
	values := make([]filter.Value, len(e.Uses()))
	r.Edges = slices.DeleteFunc(r.Edges, func(row Row) bool {
		for i, field := range e.Uses() {
			values[i] = row.value(field)
		}
		return !e.Match(values)
	})
}
