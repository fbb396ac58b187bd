// Package edge aggregates connections by edge: role, local workload, peer. Its memory is bounded, and its sums stay exact when
// the bound is reached.
package edge

import (
	"sync"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
)

// Key is the identity of an edge: the labels of its metrics and nothing else.
type Key struct {
	Role           connection.Role
	LocalWorkload  string
	LocalNamespace string
	PeerWorkload   string
	PeerNamespace  string
	NetworkType    string // "ipv4" or "ipv6"
}

// Overflow is the workload name, on both sides, of the edge that takes what does not fit into the table.
const Overflow = "overflow"

// IsOverflow says whether the key is that edge's.
func (k Key) IsOverflow() bool {
	return k.LocalWorkload == Overflow && k.PeerWorkload == Overflow && k.NetworkType == ""
}

// KeyOf returns the edge of a record.
func KeyOf(r *enrich.Record) Key {
	return Key{
		Role:           r.Event.Role,
		LocalWorkload:  r.Identity.Local.Name,
		LocalNamespace: r.Identity.Local.Namespace,
		PeerWorkload:   r.Identity.Peer.Name,
		PeerNamespace:  r.Identity.Peer.Namespace,
		NetworkType:    attribute.NetworkType(&r.Event),
	}
}

// Sums are what is known of one edge since the table was made. Counters only grow.
type Sums struct {
	// SinceUnixNS is when the edge was first seen: where its counters start.
	SinceUnixNS int64

	Attempts    uint64
	Established uint64
	Failures    [connection.ReasonCount]uint64
	Closed      [connection.ReasonCount]uint64
	Open        int64
	Connecting  int64

	SentBytes     uint64
	ReceivedBytes uint64
	Retransmits   uint64

	ConnectDuration    Histogram // seconds
	ConnectionDuration Histogram // seconds
	RTT                Histogram // seconds
}

// Edge is a key with its sums.
type Edge struct {
	Key  Key
	Sums Sums
}

// Table is the set of edges. Safe for concurrent use.
type Table struct {
	mu     sync.Mutex
	limit  int
	edges  map[Key]*Sums
	folded uint64
}

// NewTable returns a table of at most limit edges beside the overflow edges, one for each role.
func NewTable(limit int) *Table {
	return &Table{limit: limit, edges: make(map[Key]*Sums)}
}

// Consume adds a batch of records.
func (t *Table) Consume(batch []enrich.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range batch {
		r := &batch[i]
		t.sums(KeyOf(r), r).add(r)
	}
}

func (t *Table) sums(key Key, r *enrich.Record) *Sums {
	if sums := t.edges[key]; sums != nil {
		return sums
	}
	if len(t.edges) >= t.limit {
		t.folded++
		overflow := Key{Role: key.Role, LocalWorkload: Overflow, PeerWorkload: Overflow}
		if sums := t.edges[overflow]; sums != nil {
			return sums
		}
		key = overflow
	}
	sums := newSums(r.Clock.WallNS(r.Event.EventNS))
	t.edges[key] = sums
	return sums
}

func newSums(sinceUnixNS int64) *Sums {
	return &Sums{
		SinceUnixNS:        sinceUnixNS,
		ConnectDuration:    NewHistogram(LatencyBounds),
		ConnectionDuration: NewHistogram(DurationBounds),
		RTT:                NewHistogram(LatencyBounds),
	}
}

const second = 1e9

func (s *Sums) add(r *enrich.Record) {
	e, c := &r.Event, &r.Change
	s.Attempts += uint64(c.Attempts)
	s.Established += uint64(c.Established)
	s.Open += int64(c.Open)
	s.Connecting += int64(c.Connecting)
	if c.Established != 0 && e.Role == connection.Client {
		s.ConnectDuration.Observe(float64(e.EstablishedNS-e.ConnectNS)/second, &r.Event)
	}
	if e.Kind != connection.Close {
		return
	}
	if c.Failed != 0 {
		s.Failures[e.Reason]++
	}
	if c.Closed != 0 {
		s.Closed[e.Reason]++
		s.ConnectionDuration.Observe(float64(e.EventNS-e.Key.StartNS)/second, &r.Event)
	}
	s.SentBytes += e.Totals.SentBytes
	s.ReceivedBytes += e.Totals.ReceivedBytes
	s.Retransmits += uint64(e.Totals.Retransmits)
	if e.Totals.RTTUS != 0 {
		s.RTT.Observe(float64(e.Totals.RTTUS)/1e6, &r.Event)
	}
}

// Snapshot is a copy of the table at one moment.
type Snapshot struct {
	Edges []Edge
	// Folded counts records that went to an overflow edge for want of room.
	Folded uint64
}

// Snapshot copies the table. The order of edges is arbitrary.
func (t *Table) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{Edges: make([]Edge, 0, len(t.edges)), Folded: t.folded}
	for key, sums := range t.edges {
		copied := *sums
		copied.ConnectDuration = sums.ConnectDuration.clone()
		copied.ConnectionDuration = sums.ConnectionDuration.clone()
		copied.RTT = sums.RTT.clone()
		s.Edges = append(s.Edges, Edge{Key: key, Sums: copied})
	}
	return s
}
