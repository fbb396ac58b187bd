package edge

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// decided is a step of a client's connection that the mesh decided in so many nanoseconds.
func decided(kind connection.Kind, cookie uint64, ns uint32, told connection.Told) connection.Event {
	e := ended(cookie)
	e.Kind, e.Told, e.Decision.DecisionNS = kind, told, ns
	switch kind {
	case connection.PreConnect:
		e.EstablishedNS, e.EventNS = 0, e.ConnectNS
	case connection.Established:
		e.EventNS = e.EstablishedNS
	}
	return e
}

// refusedIn is a refusal that took so many nanoseconds to decide.
func refusedIn(role connection.Role, cookie uint64, ns uint32) connection.Event {
	e := refused(role, connection.Denied, cookie)
	e.Decision.DecisionNS = ns
	return e
}

func consumed(t *Table, clock connection.Clock, events ...connection.Event) {
	batch := observed(through(cart), events...)
	for i := range batch {
		batch[i].Clock = clock
	}
	t.Consume(batch)
}

// counts are those of the classic buckets, by the index of their bounds.
func counts(at map[int]uint64) []uint64 {
	all := make([]uint64, len(DecisionBounds)+1)
	for i, n := range at {
		all[i] = n
	}
	return all
}

// TestDecisionsAreCountedOnce has each connect of a client that the mesh decided counted, whichever event is the first to get through, and nothing else.
func TestDecisionsAreCountedOnce(t *testing.T) {
	table := NewTable(10)
	if d := table.Snapshot().Decisions; d.SinceUnixNS != 0 || d.Duration.Count != 0 {
		t.Errorf("before anything: %+v", d)
	}
	const told, all = connection.ToldAttempt, connection.ToldAttempt | connection.ToldEstablished
	alone := ended(9) // nothing of the mesh's
	alone.Flags, alone.Decision.DecisionNS = 0, 5000
	server := ended(10) // what was said of its SYN has no time
	server.Role = connection.Server
	early := decided(connection.Close, 11, 7000, all) // counted by an agent before
	clock := connection.Clock{OffsetNS: 1_000_000_000_000}
	consumed(table, clock, alone, server, refusedIn(connection.Server, 12, 700), early)
	if d := table.Snapshot().Decisions; d.SinceUnixNS != 0 || d.Duration.Count != 0 {
		t.Errorf("of nobody's connect: %+v", d)
	}
	consumed(table, clock,
		decided(connection.PreConnect, 1, 250, 0), decided(connection.Established, 1, 250, told), decided(connection.Close, 1, 250, all),
		decided(connection.Established, 2, 251, 0), decided(connection.Close, 2, 251, all),
		decided(connection.Close, 3, 1000, 0),
		refusedIn(connection.Client, 4, 900), refusedIn(connection.Client, 5, 4_000_000_000), refusedIn(connection.Client, 6, 0),
	)
	d := table.Snapshot().Decisions
	want := counts(map[int]uint64{0: 2, 1: 1, 2: 2, len(DecisionBounds): 1})
	if d.Duration.Count != 6 || !slices.Equal(d.Duration.Classic, want) || d.Duration.Zero != 1 {
		t.Errorf("%d, of which 0 are %d, in %v; want 6, 1 and %v", d.Duration.Count, d.Duration.Zero, d.Duration.Classic, want)
	}
	var sum float64
	for _, ns := range []float64{250, 251, 1000, 900, 4_000_000_000} {
		sum += ns / 1e9
	}
	if d.Duration.Sum != sum {
		t.Errorf("the sum is %v, want %v", d.Duration.Sum, sum)
	}
	// The first was told at 1 s of the monotonic clock.
	if d.SinceUnixNS != 1_001_000_000_000 {
		t.Errorf("since %d", d.SinceUnixNS)
	}
	first := decided(connection.PreConnect, 1, 250, 0)
	if trace := first.Trace(); d.Duration.Exemplars[0].TraceID != trace.ID || d.Duration.Exemplars[0].SpanID != trace.ClientSpan {
		t.Errorf("the exemplar is %+v, want the trace %x", d.Duration.Exemplars[0], trace.ID)
	}
}

// TestDecisionsOfOverflowingEdges are counted all the same.
func TestDecisionsOfOverflowingEdges(t *testing.T) {
	table := NewTable(1)
	for cookie, service := range []*enrich.Service{cart, find, nil} {
		table.Consume(observed(through(service), decided(connection.Close, uint64(cookie), 600, 0)))
	}
	if n := table.Snapshot().Decisions.Duration.Count; n != 3 {
		t.Errorf("%d decisions, want 3", n)
	}
}

// TestDecisionsGoOn in the next table, by way of the file that the sums are saved in.
func TestDecisionsGoOn(t *testing.T) {
	table := NewTable(10)
	clock := connection.Clock{OffsetNS: 1_000_000_000_000}
	consumed(table, clock, refusedIn(connection.Client, 1, 400), refusedIn(connection.Client, 2, 3000))
	taken := table.Snapshot()
	consumed(table, clock, refusedIn(connection.Client, 3, 400))
	if taken.Decisions.Duration.Count != 2 {
		t.Error("a snapshot is no copy")
	}
	text, err := json.Marshal(taken.Decisions)
	if err != nil {
		t.Fatal(err)
	}
	var saved Decisions
	if err := json.Unmarshal(text, &saved); err != nil {
		t.Fatal(err)
	}
	next := NewTable(10)
	next.Restore(Snapshot{Decisions: saved})
	if got := next.Snapshot().Decisions; !reflect.DeepEqual(got, taken.Decisions) {
		t.Errorf("%+v, want %+v", got, taken.Decisions)
	}
	consumed(next, connection.Clock{OffsetNS: 2_000_000_000_000}, refusedIn(connection.Client, 4, 20_000))
	got, want := next.Snapshot().Decisions, counts(map[int]uint64{1: 1, 4: 1, 6: 1})
	if got.Duration.Count != 3 || !slices.Equal(got.Duration.Classic, want) || got.SinceUnixNS != taken.Decisions.SinceUnixNS {
		t.Errorf("%d in %v since %d, want 3 in %v since %d", got.Duration.Count, got.Duration.Classic, got.SinceUnixNS, want, taken.Decisions.SinceUnixNS)
	}

	// Those of another version, and none.
	other := saved
	other.Duration = NewHistogram(LatencyBounds)
	other.Duration.Count = 9
	for _, d := range []Decisions{other, {}} {
		fresh := NewTable(10)
		fresh.Restore(Snapshot{Decisions: d})
		if got := fresh.Snapshot().Decisions; got.SinceUnixNS != 0 || got.Duration.Count != 0 || len(got.Duration.Classic) != len(DecisionBounds)+1 {
			t.Errorf("of %+v came %+v", d, got)
		}
	}
}
