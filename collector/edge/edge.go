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
	// Service is what was dialled; empty without a mesh, and for what is no service.
	Service          string
	ServiceNamespace string
	NetworkType      string // "ipv4" or "ipv6"
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
	key := Key{
		Role:           role,
		LocalWorkload:  id.Local.Name,
		LocalNamespace: id.Local.Namespace,
		PeerWorkload:   id.Peer.Name,
		PeerNamespace:  id.Peer.Namespace,
		NetworkType:    attribute.NetworkType(peer),
	}
	if id.Decision != nil && id.Decision.Service != nil {
		key.Service, key.ServiceNamespace = id.Decision.Service.Name, id.Decision.Service.Namespace
	}
	return key
}

// OverflowOf is the key of the overflow edge of a role.
func OverflowOf(role connection.Role) Key {
	return Key{Role: role, LocalWorkload: Overflow, PeerWorkload: Overflow}
}

// Sums are what is known of one edge since the table was made. Counters only grow.
type Sums struct {
	// SinceUnixNS is when the edge was first seen: where its counters start.
	SinceUnixNS int64

	Attempts    uint64
	Established uint64
	Adopted     uint64 // open when the agent came
	Failures    [connection.ReasonCount]uint64
	Closed      [connection.ReasonCount]uint64
	Open        int64
	Connecting  int64
	// OldestConnectingNS is how long the connect had hung that hung longest, at the last sweep that saw one; 0 without any.
	OldestConnectingNS uint64
	sweep              uint32 // that sweep

	SentBytes      uint64
	ReceivedBytes  uint64
	Retransmits    uint64
	SYNRetransmits uint64 // of these, during the handshake

	ConnectDuration    Histogram // seconds
	FirstByteDuration  Histogram // seconds from the end of the handshake to the first byte received
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
	mu        sync.Mutex
	limit     int
	foldAfter time.Duration // 0 never
	clock     func() time.Duration
	edges     map[Key]*entry
	ends      map[ends]*entry // the same but for overflow edges, by what is quick to compare
	idle      idleList
	folded    uint64
	evicted   uint64
	// overflows is how many of the edges are overflow edges, which do not count towards the limit.
	overflows int
	aliases   *aliases
	decisions Decisions
}

// NewTable returns a table of at most limit edges beside the overflow edges, one for each role.
func NewTable(limit int) *Table {
	start := time.Now()
	return &Table{
		limit: limit, edges: make(map[Key]*entry), ends: make(map[ends]*entry), clock: func() time.Duration { return time.Since(start) },
		decisions: newDecisions(),
	}
}

// FoldAfter lets a full table make room for a new edge: the one that had no record for longest, and none for at least this time, and
// has nothing open or connecting, is folded into the overflow edge of its role and gone. It is called before the first record.
func (t *Table) FoldAfter(idle time.Duration) *Table {
	t.foldAfter = idle
	return t
}

// Clock gives the table another clock than that of this process, for records of another time. It is called before the first record.
func (t *Table) Clock(now func() time.Duration) { t.clock = now }

// Consume adds a batch of records.
func (t *Table) Consume(batch []enrich.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	for i := range batch {
		r := &batch[i]
		of := endsOf(r)
		e := t.ends[of]
		if e == nil {
			if e = t.entry(KeyOf(r), r.Clock.WallNS(r.Event.EventNS), now); !e.overflow {
				t.remember(e, of)
			}
		}
		e.sums.add(r)
		t.decisions.add(r)
		t.touch(e, now)
	}
}

// ConsumeLosses adds what lost events would have: sums, but no observation of a histogram. What the kernel had no room to keep by
// edge goes to the overflow edge of its role.
func (t *Table) ConsumeLosses(losses []enrich.Loss) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	for i := range losses {
		l := &losses[i]
		key := OverflowOf(l.Role)
		if l.Identity.Local != nil {
			key = keyOf(l.Role, l.Identity, l.Peer)
		}
		e := t.entry(key, l.At.UnixNano(), now)
		e.sums.addLoss(&l.Loss)
		t.touch(e, now)
	}
}

// entry finds or makes an edge, or the overflow edge of its role when there is no room.
func (t *Table) entry(key Key, sinceUnixNS int64, now time.Duration) *entry {
	if e := t.edges[key]; e != nil {
		return e
	}
	if key.IsOverflow() {
		return t.overflow(key.Role, sinceUnixNS)
	}
	var oldest *entry
	if len(t.edges)-t.overflows >= t.limit {
		if oldest = t.foldable(now); oldest == nil {
			t.folded++
			return t.overflow(key.Role, sinceUnixNS)
		}
	}
	e := &entry{key: key, sums: newSums(sinceUnixNS)}
	t.aliases.add(e) // before one is folded that may be of its name
	if oldest != nil {
		t.fold(oldest)
	}
	t.edges[key] = e
	return e
}

// overflow finds or makes the overflow edge of a role.
func (t *Table) overflow(role connection.Role, sinceUnixNS int64) *entry {
	key := OverflowOf(role)
	if e := t.edges[key]; e != nil {
		return e
	}
	e := &entry{key: key, sums: newSums(sinceUnixNS), overflow: true}
	t.edges[key] = e
	t.overflows++
	return e
}

func newSums(sinceUnixNS int64) Sums {
	return Sums{
		SinceUnixNS:        sinceUnixNS,
		ConnectDuration:    NewHistogram(LatencyBounds),
		FirstByteDuration:  NewHistogram(LatencyBounds),
		ConnectionDuration: NewHistogram(DurationBounds),
		RTT:                NewHistogram(LatencyBounds),
	}
}

func (s *Sums) addLoss(l *connection.Loss) {
	s.Attempts += l.Attempts
	s.Established += l.Established
	s.Adopted += l.Adopted
	s.Failures[l.Reason] += l.Failed
	s.Closed[l.Reason] += l.Closed
	s.Connecting -= int64(l.ConnectingDown)
	s.Open -= int64(l.OpenDown)
	s.SentBytes += l.SentBytes
	s.ReceivedBytes += l.ReceivedBytes
	s.Retransmits += l.Retransmits
	s.SYNRetransmits += l.SYNRetransmits
}

const second = 1e9

func (s *Sums) add(r *enrich.Record) {
	e, c := &r.Event, &r.Change
	s.Attempts += uint64(c.Attempts)
	s.Established += uint64(c.Established)
	s.Adopted += uint64(c.Adopted)
	s.Open += int64(c.Open)
	s.Connecting += int64(c.Connecting)
	if c.Established != 0 && e.Role == connection.Client && e.ConnectNS != 0 {
		s.ConnectDuration.Observe(float64(e.EstablishedNS-e.ConnectNS)/second, &r.Event)
	}
	if e.Kind != connection.Close && e.Kind != connection.Sweep {
		return
	}
	sent, received, retransmits, synRetransmits := e.Moved()
	s.SentBytes += sent
	s.ReceivedBytes += received
	s.Retransmits += retransmits
	s.SYNRetransmits += synRetransmits
	if e.Kind != connection.Close {
		if e.EstablishedNS == 0 {
			s.hangs(r)
		}
		return
	}
	if c.Failed != 0 {
		s.Failures[e.Reason]++
	}
	if c.Closed != 0 {
		s.Closed[e.Reason]++
		if e.StartKnown() {
			s.ConnectionDuration.Observe(float64(e.EventNS-e.Key.StartNS)/second, &r.Event)
		}
		if e.Role == connection.Client && e.OpenKnown() && e.Totals.FirstReceivedNS != 0 {
			s.FirstByteDuration.Observe(float64(e.Totals.FirstReceivedNS-e.EstablishedNS)/second, &r.Event)
		}
	}
	if e.Totals.RTTUS != 0 {
		s.RTT.Observe(float64(e.Totals.RTTUS)/1e6, &r.Event)
	}
}

// hangs takes note of a connect that a sweep found under way.
func (s *Sums) hangs(r *enrich.Record) {
	since := r.Event.ConnectNS
	if since == 0 { // adopted
		since = r.Event.Key.StartNS
	}
	age := r.Event.EventNS - since
	if r.Sweep != s.sweep {
		s.sweep, s.OldestConnectingNS = r.Sweep, 0
	}
	s.OldestConnectingNS = max(s.OldestConnectingNS, age)
}

// Restore puts in edges of an earlier table, of which the snapshot was the last: counters go on from there. Gauges begin with 0, for whoever counts what is
// open now. It is called before the first record; edges beyond the limit go to the overflow edge of their role.
func (t *Table) Restore(of Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	t.decisions.restore(&of.Decisions)
	var folded []*Edge
	for i := range of.Edges {
		key, sums := of.Edges[i].Key, &of.Edges[i].Sums
		sums.Open, sums.Connecting, sums.OldestConnectingNS = 0, 0, 0
		// Those of this version: what was saved with others is left out.
		if !sums.sameBounds() {
			continue
		}
		e := t.entry(key, sums.SinceUnixNS, now)
		e.sums.fold(sums)
		e.sums.SinceUnixNS = min(e.sums.SinceUnixNS, sums.SinceUnixNS)
		t.touch(e, now)
		if e.overflow && !key.IsOverflow() {
			folded = append(folded, &of.Edges[i])
		}
	}
	for i := range of.Gone {
		folded = append(folded, &of.Gone[i])
	}
	for _, f := range folded {
		t.aliases.restore(f.Key, &f.Sums)
	}
}

// sameBounds tells whether histograms can be added to those of a new edge.
func (s *Sums) sameBounds() bool {
	return s.ConnectDuration.hasBounds(LatencyBounds) && s.FirstByteDuration.hasBounds(LatencyBounds) &&
		s.ConnectionDuration.hasBounds(DurationBounds) && s.RTT.hasBounds(LatencyBounds)
}

// Counts are of the table itself.
type Counts struct {
	Edges   int    // with metrics of their own
	Folded  uint64 // records that went to an overflow edge for want of room
	Evicted uint64 // edges that were folded into an overflow edge, to make room
}

// Counts returns them as they stand.
func (t *Table) Counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Counts{Edges: len(t.edges) - t.overflows, Folded: t.folded, Evicted: t.evicted}
}

// Snapshot is a copy of the table at one moment.
type Snapshot struct {
	Edges []Edge
	// Gone are counters of edges that were folded into the overflow edge of their role, whose sums have them, for each name of KeepAliases of which there
	// is another edge. They have the key of one such edge, and no histograms.
	Gone      []Edge
	Decisions Decisions
}

// Snapshot copies the table. The order of edges is arbitrary.
func (t *Table) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{Edges: make([]Edge, 0, len(t.edges)), Gone: t.aliases.snapshot(), Decisions: t.decisions.clone()}
	for key, e := range t.edges {
		sums := &e.sums
		copied := *sums
		copied.ConnectDuration = sums.ConnectDuration.clone()
		copied.ConnectionDuration = sums.ConnectionDuration.clone()
		copied.RTT = sums.RTT.clone()
		copied.FirstByteDuration = sums.FirstByteDuration.clone()
		if copied.Connecting <= 0 {
			copied.OldestConnectingNS = 0
		}
		s.Edges = append(s.Edges, Edge{Key: key, Sums: copied})
	}
	return s
}
