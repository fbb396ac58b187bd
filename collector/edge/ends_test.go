package edge

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// TestEdgeOfEqualNames holds that workloads are told apart by name only, and that nothing leads to an edge that was folded.
func TestEdgeOfEqualNames(t *testing.T) {
	now := time.Duration(0)
	table := NewTable(1).FoldAfter(time.Second)
	table.Clock(func() time.Duration { return now })
	peer := &enrich.Workload{Name: "peer"}
	consume := func(local *enrich.Workload) {
		now += time.Minute
		table.Consume([]enrich.Record{{
			Event:  connection.Event{Kind: connection.Established, Role: connection.Server, Peer: netip.MustParseAddrPort("10.0.0.1:80")},
			Change: connection.Change{Attempts: 1}, Identity: enrich.Identity{Local: local, Peer: peer},
		}})
	}
	attempts := func(name string) (n uint64) {
		for _, e := range table.Snapshot().Edges {
			if e.Key.LocalWorkload == name {
				n += e.Sums.Attempts
			}
		}
		return n
	}
	// One more than the ends that an edge may have, twice.
	var same []*enrich.Workload
	for range mostEnds + 1 {
		same = append(same, &enrich.Workload{Name: "same"})
	}
	for range 2 {
		for _, w := range same {
			consume(w)
		}
	}
	if got := attempts("same"); got != 2*(mostEnds+1) || table.Counts().Edges != 1 {
		t.Errorf("%d attempts on %d edges, want %d on one", got, table.Counts().Edges, 2*(mostEnds+1))
	}
	other := &enrich.Workload{Name: "other"}
	consume(other) // folds
	consume(same[0])
	if got := attempts("same"); got != 1 || table.Counts().Evicted != 2 {
		t.Errorf("%d attempts on the edge that came again, %d were folded; want 1 and 2", got, table.Counts().Evicted)
	}
	if got := attempts(Overflow); got != 2*(mostEnds+1)+1 {
		t.Errorf("%d attempts on the overflow edge, want %d", got, 2*(mostEnds+1)+1)
	}
	if len(table.ends) != 1 {
		t.Errorf("%d ends lead to edges, want those of the one edge", len(table.ends))
	}
}
