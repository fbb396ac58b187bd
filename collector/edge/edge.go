// Package edge aggregates connections by edge: role, local workload, peer. Its memory is bounded, and its sums stay exact when
// the bound is reached.
package edge

import (
	"net/netip"
	"sync"
	"time"

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
	return keyOf(r.Event.Role, r.Identity, r.Event.Peer.Addr())
}

func keyOf(role connection.Role, id enrich.Identity, peer netip.Addr) Key {
	return Key{
		Role:           role,
		LocalWorkload:  id.Local.Name,
		LocalNamespace: id.Local.Namespace,
		PeerWorkload:   id.Peer.Name,
		PeerNamespace:  id.Peer.Namespace,
		NetworkType:    attribute.NetworkType(peer),
	}
}

func overflowOf(role connection.Role) Key {
	return Key{Role: role, LocalWorkload: Overflow, PeerWorkload: Overflow}
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
	// overflows is how many of the edges are overflow edges, which do not count towards the limit.
	overflows int
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
		t.sums(KeyOf(r), r.Clock.WallNS(r.Event.EventNS)).add(r)
	}
}

// ConsumeLosses adds what lost events would have: sums, but no observation of a histogram. What the kernel had no room to keep by
// edge goes to the overflow edge of its role.
func (t *Table) ConsumeLosses(losses []enrich.Loss) {
	now := time.Now().UnixNano()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range losses {
		l := &losses[i]
		key := overflowOf(l.Role)
		if l.Identity.Local != nil {
			key = keyOf(l.Role, l.Identity, l.Peer)
		}
		t.sums(key, now).addLoss(&l.Loss)
	}
}

func (t *Table) sums(key Key, sinceUnixNS int64) *Sums {
	if sums := t.edges[key]; sums != nil {
		return sums
	}
	if overflow := overflowOf(key.Role); len(t.edges)-t.overflows >= t.limit && key != overflow {
		t.folded++
		if sums := t.edges[overflow]; sums != nil {
			return sums
		}
		key = overflow
	}
	if key.IsOverflow() {
		t.overflows++
	}
	sums := newSums(sinceUnixNS)
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

func (s *Sums) addLoss(l *connection.Loss) {
	s.Attempts += l.Attempts
	s.Established += l.Established
	s.Failures[l.Reason] += l.Failed
	s.Closed[l.Reason] += l.Closed
	s.Connecting -= int64(l.ConnectingDown)
	s.Open -= int64(l.OpenDown)
	s.SentBytes += l.SentBytes
	s.ReceivedBytes += l.ReceivedBytes
	s.Retransmits += l.Retransmits
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
	if e.Kind != connection.Close && e.Kind != connection.Sweep {
		return
	}
	s.SentBytes += e.Totals.SentBytes - e.Reported.SentBytes
	s.ReceivedBytes += e.Totals.ReceivedBytes - e.Reported.ReceivedBytes
	s.Retransmits += uint64(e.Totals.Retransmits) - e.Reported.Retransmits
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
	if e.Totals.RTTUS != 0 {
		s.RTT.Observe(float64(e.Totals.RTTUS)/1e6, &r.Event)
	}
}

// Folded counts records that went to an overflow edge for want of room.
func (t *Table) Folded() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.folded
}

// Snapshot is a copy of the table at one moment.
type Snapshot struct {
	Edges []Edge
}

// Snapshot copies the table. The order of edges is arbitrary.
func (t *Table) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{Edges: make([]Edge, 0, len(t.edges))}
	for key, sums := range t.edges {
		copied := *sums
		copied.ConnectDuration = sums.ConnectDuration.clone()
		copied.ConnectionDuration = sums.ConnectionDuration.clone()
		copied.RTT = sums.RTT.clone()
		s.Edges = append(s.Edges, Edge{Key: key, Sums: copied})
	}
	return s
}
