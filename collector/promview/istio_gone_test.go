package promview

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

// aging is a table of a clock of its own, of which edges are folded that were idle for a minute.
type aging struct {
	*edge.Table
	now time.Duration
}

func newAging(limit int) *aging {
	a := &aging{Table: edge.NewTable(limit).FoldAfter(time.Minute).KeepAliases(IstioName)}
	a.Clock(func() time.Duration { return a.now })
	return a
}

// connection has a connection come and go.
func (a *aging) connection(role connection.Role, local, peer, address string, reason connection.Reason) {
	r := enrich.Record{
		Event: connection.Event{
			Kind: connection.Close, Role: role, Reason: reason, Key: connection.Key{StartNS: 1e9}, EstablishedNS: 2e9, EventNS: 3e9 + uint64(a.now),
			Peer: netip.AddrPortFrom(netip.MustParseAddr(address), 80), Totals: connection.Totals{SentBytes: 100, ReceivedBytes: 7},
		},
		Identity: enrich.Identity{Local: &enrich.Workload{Name: local}, Peer: &enrich.Workload{Name: peer}},
		Clock:    fixture.Clock,
	}
	r.Change.Attempts, r.Change.Established, r.Change.Closed = 1, 1, 1
	a.Consume([]enrich.Record{r})
}

func (a *aging) scrape(t *testing.T) map[string][]series {
	t.Helper()
	read := scraped(t, gather(t, New(a.Snapshot, clock).IstioAliases("Kubernetes", nil)))
	consistent(t, read)
	return read
}

const (
	ipv4, ipv6 = "192.0.2.1", "2001:db8::1"
	opened     = "istio_tcp_connections_opened_total"
)

// What was folded of a name that goes on stays with it: it does not fall, and nothing is there twice.
func TestIstioKeepsWhatIsFolded(t *testing.T) {
	table := newAging(2)
	expect := func(what string, web, overflow float64) {
		t.Helper()
		read := table.scrape(t)
		for workload, want := range map[string]float64{"web": web, edge.Overflow: overflow} {
			for name, each := range map[string]float64{
				opened: 1, "istio_tcp_connections_closed_total": 1, "istio_tcp_sent_bytes_total": 7, "istio_tcp_received_bytes_total": 100,
			} {
				if got := total(read[name], "source_workload", workload); got != want*each {
					t.Errorf("%s: %s of %s is %v, want %v", what, name, workload, got, want*each)
				}
			}
		}
	}
	for range 3 {
		table.connection(connection.Client, "web", "cart", ipv4, connection.OK)
	}
	table.now += time.Minute
	table.connection(connection.Client, "web", "cart", ipv6, connection.ResetByPeer)
	expect("two that are one", 4, 0)
	table.connection(connection.Client, "new", "cart", ipv4, connection.OK)
	if n := table.Counts().Evicted; n != 1 {
		t.Fatalf("%d are folded", n)
	}
	expect("one is folded", 4, 0)
	table.connection(connection.Client, "web", "cart", ipv6, connection.OK)
	expect("the other goes on", 5, 0)

	// The next agent has what this one had.
	next := newAging(2)
	next.Restore(table.Snapshot())
	if got := total(next.scrape(t)[opened], "source_workload", "web"); got != 5 {
		t.Errorf("the next agent has %v of them, want 5", got)
	}
	// With less room it has all of it or nothing, whichever edge came first.
	next = newAging(1)
	next.Restore(table.Snapshot())
	if got := total(next.scrape(t)[opened], "source_workload", "web"); got != 5 && got != 0 {
		t.Errorf("the next agent with less room has %v of them", got)
	}

	table.now += time.Minute
	table.connection(connection.Client, "new", "cart", ipv4, connection.OK)
	table.connection(connection.Client, "other", "cart", ipv4, connection.OK)
	if n := table.Counts().Evicted; n != 2 {
		t.Fatalf("%d are folded", n)
	}
	expect("both are folded", 0, 5)
	table.now += time.Minute
	table.connection(connection.Client, "web", "cart", ipv4, connection.OK)
	expect("it comes back", 1, 7) // and new, which had 2, is folded
}

// No series of Istio's falls while it is there, whatever is folded, and together they are always ours.
func TestIstioNeverFalls(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 1))
	of := func(some ...string) string { return some[random.IntN(len(some))] }
	table := newAging(8)
	before := make(map[string]float64)
	kept, evicted := 0, uint64(0)
	for range 200 {
		table.now += time.Duration(random.IntN(20)) * time.Second
		table.connection(connection.Role(1+random.IntN(2)), of("web", "cart", "unknown", edge.Overflow), of("web", "external", "unknown", edge.Overflow), of(ipv4, ipv6),
			connection.Reason(random.IntN(int(connection.ReasonCount))))
		now := make(map[string]float64)
		for name, all := range table.scrape(t) {
			if name != opened && name != "istio_tcp_connections_closed_total" && name != "istio_tcp_sent_bytes_total" && name != "istio_tcp_received_bytes_total" {
				continue
			}
			for _, s := range all {
				id := fmt.Sprint(name, s.labels)
				if now[id] = s.value; s.value < before[id] {
					t.Fatalf("%s falls from %v to %v", id, before[id], s.value)
				}
			}
		}
		before = now
		kept += len(table.Snapshot().Gone)
		if random.IntN(50) == 0 { // another agent
			evicted += table.Counts().Evicted
			next := newAging(8)
			next.now = table.now
			next.Restore(table.Snapshot())
			table = next
		}
	}
	if evicted == 0 || kept == 0 {
		t.Errorf("%d are folded, %d are kept", evicted, kept)
	}
}
