package edge

import (
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

var (
	v4 = netip.MustParseAddrPort("192.0.2.1:80")
	v6 = netip.MustParseAddrPort("[2001:db8::1]:80")
)

// life is a whole connection's worth of events at given seconds of the monotonic clock, without times that did not happen.
type life struct {
	role            connection.Role
	local, peer     string
	addr            netip.AddrPort
	start           uint64
	connect, finish uint64 // nanoseconds from start to the end of the handshake and of TCP; connect 0 for a failure
	reason          connection.Reason
	totals          connection.Totals
	withoutClose    bool
}

// records runs lives through a tracker, one after the other.
func records(lives ...life) []enrich.Record {
	var batch []enrich.Record
	var current *life
	kernel := make(fixture.Kernel)
	tracker := connection.NewTracker(1<<20, func(*connection.Event) enrich.Identity {
		return enrich.Identity{
			Local: &enrich.Workload{Name: current.local, Namespace: "a"}, Peer: &enrich.Workload{Name: current.peer, Namespace: "b"},
		}
	})
	for i := range lives {
		current = &lives[i]
		e := connection.Event{
			Kind: connection.PreConnect, Role: current.role, Key: connection.Key{Cookie: uint64(i + 1), StartNS: current.start},
			Local: v4, Peer: current.addr, EventNS: current.start, ClientISN: uint32(i),
		}
		if !e.Peer.IsValid() {
			e.Peer = v4
		}
		observe := func() {
			kernel.Tell(&e)
			r := enrich.Record{Clock: connection.Clock{OffsetNS: 1000}}
			tracker.Observe(&e, &r)
			batch = append(batch, r)
		}
		if current.role == connection.Client {
			e.ConnectNS = current.start
			observe()
		}
		if current.connect != 0 {
			e.Kind, e.EstablishedNS = connection.Established, current.start+current.connect
			e.EventNS = e.EstablishedNS
			observe()
		}
		if !current.withoutClose {
			e.Kind, e.EventNS, e.Reason, e.Totals = connection.Close, current.start+current.finish, current.reason, current.totals
			observe()
		}
	}
	return batch
}

// numbers are the sums without histograms, to compare.
type numbers struct {
	Since                                         int64
	Attempts, Established, Failed, Closed         uint64
	Open, Connecting                              int64
	Sent, Received, Retransmits                   uint64
	ConnectDurations, ConnectionDurations, RTTs   uint64
	ConnectSeconds, ConnectionSeconds, RTTSeconds float64
}

func numbersOf(s *Sums) numbers {
	n := numbers{
		Since: s.SinceUnixNS, Attempts: s.Attempts, Established: s.Established, Open: s.Open, Connecting: s.Connecting,
		Sent: s.SentBytes, Received: s.ReceivedBytes, Retransmits: s.Retransmits,
		ConnectDurations: s.ConnectDuration.Count, ConnectionDurations: s.ConnectionDuration.Count, RTTs: s.RTT.Count,
		ConnectSeconds: s.ConnectDuration.Sum, ConnectionSeconds: s.ConnectionDuration.Sum, RTTSeconds: s.RTT.Sum,
	}
	for reason := range connection.ReasonCount {
		n.Failed += s.Failures[reason]
		n.Closed += s.Closed[reason]
	}
	return n
}

func byKey(s Snapshot) map[Key]*Sums {
	edges := make(map[Key]*Sums)
	for i := range s.Edges {
		edges[s.Edges[i].Key] = &s.Edges[i].Sums
	}
	return edges
}

func TestSumsPerEdge(t *testing.T) {
	const ms = 1_000_000
	table := NewTable(100)
	table.Consume(records(
		life{
			role: connection.Client, local: "shop", peer: "db", start: 1e9, connect: ms, finish: 250 * ms,
			totals: connection.Totals{SentBytes: 10, ReceivedBytes: 20, Retransmits: 1, RTTUS: 500},
		},
		life{
			role: connection.Client, local: "shop", peer: "db", start: 2e9, connect: 3 * ms, finish: 750 * ms, reason: connection.ResetByPeer,
			totals: connection.Totals{SentBytes: 1, ReceivedBytes: 2, RTTUS: 1500},
		},
		life{
			role: connection.Client, local: "shop", peer: "db", start: 3e9, finish: 5 * ms, reason: connection.Refused,
			totals: connection.Totals{Retransmits: 2},
		},
		life{role: connection.Client, local: "shop", peer: "db", start: 4e9, withoutClose: true},
		life{role: connection.Client, local: "shop", peer: "db", addr: v6, start: 5e9, connect: ms, withoutClose: true},
		life{
			role: connection.Server, local: "shop", peer: "db", start: 6e9, connect: ms, finish: 2 * ms,
			totals: connection.Totals{SentBytes: 7, ReceivedBytes: 8, RTTUS: 250},
		},
	))
	key := Key{Role: connection.Client, LocalWorkload: "shop", LocalNamespace: "a", PeerWorkload: "db", PeerNamespace: "b", NetworkType: "ipv4"}
	overIPv6, server := key, key
	overIPv6.NetworkType = "ipv6"
	server.Role = connection.Server
	want := map[Key]numbers{
		key: {
			Since: 1e9 + 1000, Attempts: 4, Established: 2, Failed: 1, Closed: 2, Connecting: 1, Sent: 11, Received: 22, Retransmits: 3,
			ConnectDurations: 2, ConnectSeconds: 0.004, ConnectionDurations: 2, ConnectionSeconds: 1, RTTs: 2, RTTSeconds: 0.002,
		},
		overIPv6: {Since: 5e9 + 1000, Attempts: 1, Established: 1, Open: 1, ConnectDurations: 1, ConnectSeconds: 0.001},
		server: {
			Since: 6e9 + 1*ms + 1000, Established: 1, Closed: 1, Sent: 7, Received: 8,
			ConnectionDurations: 1, ConnectionSeconds: 0.002, RTTs: 1, RTTSeconds: 0.00025,
		},
	}
	snapshot := table.Snapshot()
	edges := byKey(snapshot)
	if table.Counts().Folded != 0 || len(edges) != len(want) {
		t.Errorf("%d edges, %d records folded; want %d and none", len(edges), table.Counts().Folded, len(want))
	}
	for k, n := range want {
		if edges[k] == nil {
			t.Errorf("no edge %+v", k)
		} else if got := numbersOf(edges[k]); got != n {
			t.Errorf("edge %+v:\n got %+v\nwant %+v", k, got, n)
		}
	}
	if s := edges[key]; s.Failures[connection.Refused] != 1 || s.Closed[connection.OK] != 1 || s.Closed[connection.ResetByPeer] != 1 {
		t.Errorf("reasons: failures %v, closed %v", s.Failures, s.Closed)
	}
}

func TestKeyHasNoAddress(t *testing.T) {
	// Metrics are told apart by names only: an address or a port in the key would make a series for each.
	allowed := []string{"Role", "LocalWorkload", "LocalNamespace", "PeerWorkload", "PeerNamespace", "Service", "ServiceNamespace", "NetworkType"}
	for field := range reflect.TypeFor[Key]().Fields() {
		if !slices.Contains(allowed, field.Name) {
			t.Errorf("key has the field %s", field.Name)
		}
	}
}

func TestOverflowKeepsSumsExact(t *testing.T) {
	const limit, workloads = 3, 10
	var lives []life
	for i := range workloads {
		for _, role := range []connection.Role{connection.Client, connection.Server} {
			lives = append(lives, life{
				role: role, local: "w" + strconv.Itoa(i), peer: "p", start: uint64(i+1) * 1e9, connect: 1e6, finish: 2e6,
				totals: connection.Totals{SentBytes: 100, ReceivedBytes: 7, Retransmits: 1, RTTUS: 10},
			})
		}
	}
	batch := records(lives...)
	roomy, tight := NewTable(1000), NewTable(limit)
	roomy.Consume(batch)
	tight.Consume(batch)
	snapshot := tight.Snapshot()
	edges := byKey(snapshot)

	if len(edges) != limit+2 {
		t.Errorf("%d edges, want %d and an overflow edge for each role", len(edges), limit)
	}
	folded := uint64(0)
	for i := range batch {
		if edges[KeyOf(&batch[i])] == nil {
			folded++
		}
	}
	if tight.Counts().Folded != folded || folded == 0 {
		t.Errorf("%d records folded, want %d", tight.Counts().Folded, folded)
	}
	for _, role := range []connection.Role{connection.Client, connection.Server} {
		overflow := Key{Role: role, LocalWorkload: Overflow, PeerWorkload: Overflow}
		if !overflow.IsOverflow() || edges[overflow] == nil {
			t.Fatalf("no overflow edge of role %v", role)
		}
		got, want := sumOf(snapshot, role), sumOf(roomy.Snapshot(), role)
		if got != want {
			t.Errorf("sums over all edges of role %v:\n got %+v\nwant %+v", role, got, want)
		}
	}
	// An edge that was there before the table was full is still counted apart.
	first := Key{Role: connection.Client, LocalWorkload: "w0", LocalNamespace: "a", PeerWorkload: "p", PeerNamespace: "b", NetworkType: "ipv4"}
	before := *edges[first]
	tight.Consume(records(lives[0]))
	after := byKey(tight.Snapshot())[first]
	if after.Attempts != before.Attempts+1 || after.SentBytes != before.SentBytes+100 {
		t.Errorf("a known edge after the overflow: %d attempts, %d bytes; want %d and %d", after.Attempts, after.SentBytes, before.Attempts+1, before.SentBytes+100)
	}
}

func TestLossesAddTheSumsOfTheEventsThatWereLost(t *testing.T) {
	// Two connections of one edge: the Close of either is lost; of the second one everything before it, too.
	lives := []life{
		{role: connection.Client, local: "shop", peer: "db", start: 1e9, connect: 1e6, finish: 2e6, totals: connection.Totals{SentBytes: 10, ReceivedBytes: 20, Retransmits: 1}},
		{role: connection.Client, local: "shop", peer: "db", start: 2e9, connect: 1e6, finish: 2e6, totals: connection.Totals{SentBytes: 3, ReceivedBytes: 4, Retransmits: 5}},
	}
	batch := records(lives...)
	complete, lossy := NewTable(10), NewTable(10)
	complete.Consume(batch)
	lossy.Consume(batch[:2])
	identity := batch[0].Identity
	lossy.ConsumeLosses([]enrich.Loss{{
		Loss: connection.Loss{
			Role: connection.Client, Peer: v4.Addr(), Attempts: 1, Established: 1, Closed: 2, OpenDown: 1, SentBytes: 13, ReceivedBytes: 24, Retransmits: 6,
		},
		Identity: identity,
	}})
	key := KeyOf(&batch[0])
	got, want := numbersOf(byKey(lossy.Snapshot())[key]), numbersOf(byKey(complete.Snapshot())[key])
	// What was lost cannot be observed: histograms have what came.
	want.ConnectDurations, want.ConnectSeconds = 1, 0.001
	want.ConnectionDurations, want.ConnectionSeconds = 0, 0
	if got != want || len(lossy.Snapshot().Edges) != 1 {
		t.Errorf("in %d edges\n got %+v\nwant %+v", len(lossy.Snapshot().Edges), got, want)
	}
}

func TestLossesWithoutAnEdgeGoToTheOverflowEdgeOfTheirRole(t *testing.T) {
	table := NewTable(10)
	table.ConsumeLosses([]enrich.Loss{
		{Loss: connection.Loss{Role: connection.Client, Reason: connection.Timeout, Attempts: 4, Failed: 5, ConnectingDown: 1}},
		{Loss: connection.Loss{Role: connection.Server, Established: 2, Closed: 2, SentBytes: 9}},
	})
	edges := byKey(table.Snapshot())
	client, server := edges[Key{Role: connection.Client, LocalWorkload: Overflow, PeerWorkload: Overflow}], edges[Key{Role: connection.Server, LocalWorkload: Overflow, PeerWorkload: Overflow}]
	if client == nil || server == nil || len(edges) != 2 {
		t.Fatalf("edges %v, want the two overflow edges", edges)
	}
	if client.SinceUnixNS == 0 || client.Failures[connection.Timeout] != 5 || client.Attempts != 4 || client.Connecting != -1 {
		t.Errorf("client %+v", numbersOf(client))
	}
	if server.Closed[connection.OK] != 2 || server.Established != 2 || server.SentBytes != 9 {
		t.Errorf("server %+v", numbersOf(server))
	}
	if folded := table.Counts().Folded; folded != 0 {
		t.Errorf("%d folded, and the table has room", folded)
	}
}

// sumOf adds up all edges of a role: whatever the table's limit, the same.
func sumOf(s Snapshot, role connection.Role) numbers {
	var sum numbers
	for i := range s.Edges {
		if s.Edges[i].Key.Role != role {
			continue
		}
		n := numbersOf(&s.Edges[i].Sums)
		sum.Attempts += n.Attempts
		sum.Established += n.Established
		sum.Failed += n.Failed
		sum.Closed += n.Closed
		sum.Open += n.Open
		sum.Connecting += n.Connecting
		sum.Sent += n.Sent
		sum.Received += n.Received
		sum.Retransmits += n.Retransmits
		sum.ConnectDurations += n.ConnectDurations
		sum.ConnectionDurations += n.ConnectionDurations
		sum.RTTs += n.RTTs
	}
	return sum
}

func TestOnlyTheOverflowEdgeIsTheOverflowEdge(t *testing.T) {
	// A workload may be called so.
	if k := (Key{Role: connection.Client, LocalWorkload: Overflow, PeerWorkload: Overflow, NetworkType: "ipv4"}); k.IsOverflow() {
		t.Errorf("%+v is taken for the overflow edge", k)
	}
}

func TestSnapshotIsADeepCopy(t *testing.T) {
	batch := records(life{role: connection.Client, local: "a", peer: "b", start: 1e9, connect: 1e6, finish: 2e6, totals: connection.Totals{RTTUS: 100}})
	made := func() *Table {
		table := NewTable(10)
		table.Consume(batch)
		return table
	}
	table := made()
	kept := table.Snapshot()
	table.Consume(batch)
	if want := made().Snapshot(); !reflect.DeepEqual(kept, want) {
		t.Errorf("a snapshot changed with its table:\n got %+v\nwant %+v", kept, want)
	}
	table = made()
	spoiled := table.Snapshot()
	for i := range spoiled.Edges {
		s := &spoiled.Edges[i].Sums
		s.Attempts = 99
		spoil(&s.ConnectDuration)
		spoil(&s.ConnectionDuration)
		spoil(&s.RTT)
	}
	if got, want := table.Snapshot(), made().Snapshot(); !reflect.DeepEqual(got, want) {
		t.Errorf("the table changed with a snapshot:\n got %+v\nwant %+v", got, want)
	}
}

func TestConcurrentConsumeAndSnapshot(t *testing.T) {
	const writers, rounds = 4, 200
	batch := records(
		life{role: connection.Client, local: "a", peer: "b", start: 1e9, connect: 1e6, finish: 2e6, totals: connection.Totals{SentBytes: 1, RTTUS: 100}},
		life{role: connection.Server, local: "b", peer: "a", start: 1e9, connect: 1e6, finish: 2e6, totals: connection.Totals{SentBytes: 1}},
	)
	table := NewTable(1) // so that overflow is in it
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range rounds {
				table.Consume(batch)
			}
		})
		wg.Go(func() {
			for range rounds {
				for _, e := range table.Snapshot().Edges {
					// A batch is seen whole or not at all.
					if s := &e.Sums; s.Open != 0 || s.Established != s.Closed[connection.OK] || s.SentBytes != s.Established {
						t.Errorf("half a batch in a snapshot: %+v", numbersOf(s))
						return
					}
				}
			}
		})
	}
	wg.Wait()
	total := uint64(0)
	for _, e := range table.Snapshot().Edges {
		total += e.Sums.Established
	}
	if total != 2*writers*rounds {
		t.Errorf("%d connections, want %d", total, 2*writers*rounds)
	}
}

// BenchmarkConsume is the cost of one record, in batches of the usual size over a hundred edges.
func BenchmarkConsume(b *testing.B) {
	var lives []life
	for i := range 100 {
		lives = append(lives, life{
			role: connection.Client, local: "w" + strconv.Itoa(i), peer: "p", start: uint64(i) * 1e6, connect: 1e6, finish: 2e6,
			totals: connection.Totals{SentBytes: 1000, ReceivedBytes: 1000, RTTUS: 100},
		})
	}
	batch := records(lives...)
	table := NewTable(1000)
	table.Consume(batch)
	b.ReportAllocs()
	for b.Loop() {
		table.Consume(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch)), "ns/record")
}
