package edge

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// folding returns a table that folds after a minute, and its clock.
func folding(limit int) (*Table, *time.Duration) {
	table, now := NewTable(limit).FoldAfter(time.Minute), new(time.Duration)
	table.clock = func() time.Duration { return *now }
	return table, now
}

func client(workload string, start uint64) life {
	return life{
		role: connection.Client, local: workload, peer: "p", start: start, connect: 1e6, finish: 2e6,
		totals: connection.Totals{SentBytes: 100, ReceivedBytes: 7, Retransmits: 1, RTTUS: 10},
	}
}

// names are the workloads of the edges, sorted.
func names(t *Table) []string {
	var all []string
	for _, e := range t.Snapshot().Edges {
		all = append(all, e.Key.LocalWorkload)
	}
	slices.Sort(all)
	return all
}

func TestTheEdgeThatIsIdleLongestMakesRoom(t *testing.T) {
	table, now := folding(3)
	for i, workload := range []string{"a", "b", "c"} {
		*now = time.Duration(i) * time.Second
		table.Consume(records(client(workload, 1e9)))
	}
	for _, step := range []struct {
		at              time.Duration
		workload        string
		want            []string
		folded, evicted uint64
	}{
		{59 * time.Second, "d", []string{"a", "b", "c", Overflow}, 3, 0}, // nobody is idle for a minute
		{60 * time.Second, "e", []string{"b", "c", "e", Overflow}, 3, 1},
		{60 * time.Second, "f", []string{"b", "c", "e", Overflow}, 6, 1}, // b follows a second later
		{61 * time.Second, "c", []string{"b", "c", "e", Overflow}, 6, 1}, // known, and now the youngest
		{70 * time.Second, "g", []string{"c", "e", "g", Overflow}, 6, 2},
		{119 * time.Second, "h", []string{"c", "e", "g", Overflow}, 9, 2},
		{120 * time.Second, "a", []string{"a", "c", "g", Overflow}, 9, 3}, // it is back, anew
	} {
		*now = step.at
		table.Consume(records(client(step.workload, uint64(step.at)+1)))
		if got := names(table); !slices.Equal(got, step.want) {
			t.Fatalf("at %v, after %s: %v, want %v", step.at, step.workload, got, step.want)
		}
		if got := table.Counts(); got != (Counts{Edges: 3, Folded: step.folded, Evicted: step.evicted}) {
			t.Fatalf("at %v, after %s: %+v, want %d folded and %d evicted", step.at, step.workload, got, step.folded, step.evicted)
		}
	}
	for _, e := range table.Snapshot().Edges {
		// d, f and h never had an edge; a, b and e had one.
		if want := map[string]uint64{"a": 1, "c": 2, "g": 1, Overflow: 6}[e.Key.LocalWorkload]; e.Sums.Attempts != want || e.Sums.RTT.Count != want {
			t.Errorf("%s: %d attempts, %d round-trip times; want %d", e.Key.LocalWorkload, e.Sums.Attempts, e.Sums.RTT.Count, want)
		}
	}
}

func TestAnEdgeWithALiveConnectionStays(t *testing.T) {
	for name, live := range map[string]life{
		"open":       {role: connection.Client, local: "live", peer: "p", start: 1e9, connect: 1e6, withoutClose: true},
		"connecting": {role: connection.Client, local: "live", peer: "p", start: 1e9, withoutClose: true},
	} {
		table, now := folding(1)
		table.Consume(records(live))
		*now = time.Hour
		table.Consume(records(client("new", 2e9)))
		if got := names(table); !slices.Equal(got, []string{"live", Overflow}) {
			t.Errorf("%s: %v", name, got)
		}
		// Its end is a record as any other: the time counts from there.
		end := connection.Loss{Role: connection.Client, Peer: v4.Addr(), Closed: 1, OpenDown: 1}
		if name == "connecting" {
			end = connection.Loss{Role: connection.Client, Peer: v4.Addr(), Failed: 1, ConnectingDown: 1}
		}
		table.ConsumeLosses([]enrich.Loss{{Loss: end, Identity: records(live)[0].Identity}})
		for _, step := range []struct {
			after time.Duration
			want  []string
		}{{time.Minute - 1, []string{"live", Overflow}}, {time.Minute, []string{"new", Overflow}}} {
			*now = time.Hour + step.after
			table.Consume(records(client("new", 3e9)))
			if got := names(table); !slices.Equal(got, step.want) {
				t.Errorf("%s, %v after its end: %v, want %v", name, step.after, got, step.want)
			}
		}
	}
}

func TestFoldLeavesNoFieldOut(t *testing.T) {
	// Whatever is added to Sums must be folded, or sums over all edges are no longer exact.
	fill := func(s *Sums) {
		v := reflect.ValueOf(s).Elem()
		for field, value := range v.Fields() {
			switch name := field.Name; {
			case name == "SinceUnixNS" || name == "Open" || name == "Connecting" || name == "OldestConnectingNS" || name == "sweep": // not folded, or zero when it happens
			case value.CanUint():
				value.SetUint(3)
			case value.CanInt():
				value.SetInt(3)
			case value.Kind() == reflect.Array:
				for i := range value.Len() {
					value.Index(i).SetUint(3)
				}
			case field.Type == reflect.TypeFor[Histogram]():
				h := value.Addr().Interface().(*Histogram)
				h.Observe(0, &connection.Event{})
				h.Observe(2, &connection.Event{EventNS: 1})
				h.Observe(1000, &connection.Event{EventNS: 1})
			default:
				t.Fatalf("Sums.%s: a %v, which this test does not know", name, field.Type)
			}
		}
	}
	a, b := newSums(1), newSums(1)
	fill(&a)
	fill(&b)
	a.fold(&b)
	for field, value := range reflect.ValueOf(&a).Elem().Fields() {
		single := reflect.ValueOf(&b).Elem().FieldByName(field.Name)
		switch {
		case field.Name == "SinceUnixNS" || field.Name == "Open" || field.Name == "Connecting" ||
			field.Name == "OldestConnectingNS" || field.Name == "sweep":
		case value.CanUint():
			if value.Uint() != 6 {
				t.Errorf("%s is %d, want 6", field.Name, value.Uint())
			}
		case value.CanInt():
			if value.Int() != 6 {
				t.Errorf("%s is %d, want 6", field.Name, value.Int())
			}
		case value.Kind() == reflect.Array:
			for i := range value.Len() {
				if value.Index(i).Uint() != 6 {
					t.Errorf("%s[%d] is %d, want 6", field.Name, i, value.Index(i).Uint())
				}
			}
		default:
			h, one := value.Addr().Interface().(*Histogram), single.Addr().Interface().(*Histogram)
			if h.Count != 6 || h.Zero != 2 || h.Sum != 2*one.Sum {
				t.Errorf("%s: %+v", field.Name, h)
			}
		}
	}
}

func TestMergedHistogramIsThatOfAllObservations(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		parts, whole := []Histogram{NewHistogram(LatencyBounds), NewHistogram(LatencyBounds)}, NewHistogram(LatencyBounds)
		for i := range random.IntN(20) {
			value := math.Exp2(random.Float64()*40 - 30)
			if random.IntN(10) == 0 {
				value = 0
			}
			from := &connection.Event{EventNS: uint64(i+1) * 2e9, ClientISN: uint32(i), Role: connection.Client}
			parts[random.IntN(2)].Observe(value, from)
			whole.Observe(value, from)
		}
		merged := parts[0].clone()
		merged.merge(&parts[1])
		if err := sameHistogram(&merged, &whole); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(merged.Exemplars, whole.Exemplars) {
			t.Fatalf("exemplars %v, want the latest %v", merged.Exemplars, whole.Exemplars)
		}
	}
}

func sameHistogram(got, want *Histogram) error {
	buckets := func(h *Histogram) map[int]uint64 {
		all := make(map[int]uint64)
		for i, n := range h.Exponential {
			if n > 0 {
				all[h.Offset+i] = n
			}
		}
		return all
	}
	if got.Count != want.Count || got.Zero != want.Zero || !slices.Equal(got.Classic, want.Classic) || math.Abs(got.Sum-want.Sum) > 1e-9*want.Sum ||
		!reflect.DeepEqual(buckets(got), buckets(want)) {
		return fmt.Errorf("got %+v, want %+v", got, want)
	}
	return nil
}

func TestKnownEdgesCostNoAllocation(t *testing.T) {
	var lives []life
	for i := range 20 {
		lives = append(lives, client("w"+strconv.Itoa(i), uint64(i)*1e6))
	}
	batch := records(lives...)
	table, _ := folding(10) // half of them in the overflow edge
	table.Consume(batch)
	if got := testing.AllocsPerRun(100, func() { table.Consume(batch) }); got != 0 {
		t.Errorf("%v allocations for %d records", got, len(batch))
	}
}

// BenchmarkConsumeNewNames is the cost of a record of a name that was never there, on a full table of which all, or none, is idle.
func BenchmarkConsumeNewNames(b *testing.B) {
	for name, step := range map[string]time.Duration{"fold": time.Hour, "overflow": 0} {
		for _, limit := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, limit), func(b *testing.B) {
				table, now := folding(limit)
				one := records(client("w", 1))
				consume := func(i int) {
					w := enrich.Workload{Name: "w" + strconv.Itoa(i)}
					for j := range one {
						one[j].Identity.Local = &w
					}
					table.Consume(one)
				}
				for i := range limit {
					consume(i)
				}
				b.ReportAllocs()
				for i := limit; b.Loop(); i++ {
					*now += step
					consume(i)
				}
			})
		}
	}
}
