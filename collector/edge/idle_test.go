package edge

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
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
			case name == "SinceUnixNS" || name == "Open" || name == "Connecting": // not folded, or zero when it happens
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
		case field.Name == "SinceUnixNS" || field.Name == "Open" || field.Name == "Connecting":
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

// totals are the sums over all edges of a role. Sums of seconds differ by rounding, and are compared apart.
func totals(s Snapshot, role connection.Role) Sums {
	sum := newSums(0)
	for i := range s.Edges {
		if e := &s.Edges[i]; e.Key.Role == role {
			sum.fold(&e.Sums)
			sum.Open += e.Sums.Open
			sum.Connecting += e.Sums.Connecting
		}
	}
	return sum
}

func sameSums(got, want Sums) error {
	for _, h := range []struct{ got, want *Histogram }{
		{&got.ConnectDuration, &want.ConnectDuration}, {&got.ConnectionDuration, &want.ConnectionDuration}, {&got.RTT, &want.RTT},
	} {
		if err := sameHistogram(h.got, h.want); err != nil {
			return err
		}
		*h.got, *h.want = Histogram{}, Histogram{}
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("got %+v, want %+v", got, want)
	}
	return nil
}

// decreased says which counter of an edge went back.
func decreased(before, after *Sums) string {
	b, a := reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem()
	for field, value := range b.Fields() {
		switch now := a.FieldByName(field.Name); {
		case value.CanUint() && now.Uint() < value.Uint():
			return field.Name
		case value.Kind() == reflect.Array:
			for i := range value.Len() {
				if now.Index(i).Uint() < value.Index(i).Uint() {
					return field.Name
				}
			}
		case field.Type == reflect.TypeFor[Histogram]():
			was, is := value.Addr().Interface().(*Histogram), now.Addr().Interface().(*Histogram)
			for i, n := range was.Classic {
				if is.Classic[i] < n {
					return field.Name
				}
			}
			if is.Count < was.Count || is.Sum < was.Sum || is.Zero < was.Zero {
				return field.Name
			}
		}
	}
	return ""
}

// world makes random events of connections that live side by side.
type world struct {
	random  *rand.Rand
	kernel  fixture.Kernel
	tracker *connection.Tracker[enrich.Identity]
	live    []*connection.Event
	now     uint64
	cookie  uint64
}

func newWorld(seed uint64) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 0)), kernel: make(fixture.Kernel), now: 1e9}
	w.tracker = connection.NewTracker(1<<20, func(e *connection.Event) enrich.Identity {
		return enrich.Identity{Local: &enrich.Workload{Name: "w" + strconv.FormatUint(e.CgroupID, 10)}, Peer: &enrich.Workload{Name: "p"}}
	})
	return w
}

// record is that of a random event: of a new connection or a live one.
func (w *world) record() enrich.Record {
	w.now += 1 + w.random.Uint64N(1e9)
	var e *connection.Event
	i := w.random.IntN(len(w.live) + 3)
	if i >= len(w.live) {
		w.cookie++
		e = &connection.Event{
			Kind: connection.PreConnect, Role: connection.Role(1 + w.random.IntN(2)), Key: connection.Key{Cookie: w.cookie, StartNS: w.now}, ConnectNS: w.now,
			Local: v4, Peer: []netip.AddrPort{v4, v6}[w.random.IntN(2)], CgroupID: w.random.Uint64N(12), ClientISN: uint32(w.cookie),
		}
		w.live = append(w.live, e)
		i = len(w.live) - 1
		if e.Role == connection.Server {
			e.Kind, e.EstablishedNS = connection.Established, w.now
		}
	} else {
		e = w.live[i]
		switch {
		case e.EstablishedNS == 0 && w.random.IntN(2) == 0:
			e.Kind, e.EstablishedNS = connection.Established, w.now
		case w.random.IntN(3) == 0:
			e.Kind = connection.Sweep
			e.Totals.SentBytes += w.random.Uint64N(1000)
		default:
			e.Kind, e.Reason = connection.Close, connection.Reason(w.random.IntN(int(connection.ReasonCount)))
			e.Totals.ReceivedBytes += w.random.Uint64N(1000)
			e.Totals.RTTUS = uint32(w.random.IntN(1000))
			w.live = slices.Delete(w.live, i, i+1)
		}
	}
	e.EventNS = w.now
	w.kernel.Tell(e)
	r := enrich.Record{Clock: connection.Clock{OffsetNS: 1000}}
	w.tracker.Observe(e, &r)
	e.Reported = connection.Reported{SentBytes: e.Totals.SentBytes, ReceivedBytes: e.Totals.ReceivedBytes, Retransmits: uint64(e.Totals.Retransmits)}
	return r
}

func (w *world) loss() enrich.Loss {
	l := enrich.Loss{Loss: connection.Loss{
		Role: connection.Role(1 + w.random.IntN(2)), Reason: connection.Reason(w.random.IntN(int(connection.ReasonCount))),
		Attempts: w.random.Uint64N(3), Closed: w.random.Uint64N(3), Failed: w.random.Uint64N(3), SentBytes: w.random.Uint64N(99),
	}}
	if w.random.IntN(2) == 0 {
		l.Peer = v4.Addr()
		l.Identity = enrich.Identity{Local: &enrich.Workload{Name: "w" + strconv.Itoa(w.random.IntN(12))}, Peer: &enrich.Workload{Name: "p"}}
	}
	return l
}

// TestWhateverIsFoldedSumsStayExact runs random records through tables of tiny limits: sums over all edges are those of all records,
// always; no counter of an edge goes back while it exists; and only an idle edge without a live connection goes.
func TestWhateverIsFoldedSumsStayExact(t *testing.T) {
	evicted, folded := uint64(0), uint64(0)
	for seed := range uint64(40) {
		w, limit := newWorld(seed), 1+int(seed%5)
		table, now := folding(limit)
		roomy := NewTable(1 << 20)
		before, seen := make(map[Key]*Sums), make(map[Key]time.Duration)
		for step := range 100 {
			*now += time.Duration(w.random.Int64N(int64(40 * time.Second)))
			var batch []enrich.Record
			for range w.random.IntN(6) {
				r := w.record()
				batch = append(batch, r)
			}
			table.Consume(batch)
			roomy.Consume(batch)
			losses := make([]enrich.Loss, w.random.IntN(2))
			for i := range losses {
				losses[i] = w.loss()
			}
			table.ConsumeLosses(losses)
			roomy.ConsumeLosses(losses)

			snapshot := table.Snapshot()
			for _, role := range []connection.Role{connection.Client, connection.Server} {
				if err := sameSums(totals(snapshot, role), totals(roomy.Snapshot(), role)); err != nil {
					t.Fatalf("seed %d, step %d, %vs: %v", seed, step, role, err)
				}
			}
			after := byKey(snapshot)
			own := 0
			for key, sums := range after {
				if !key.IsOverflow() {
					own++
				}
				if was := before[key]; was != nil && was.SinceUnixNS == sums.SinceUnixNS {
					if field := decreased(was, sums); field != "" {
						t.Fatalf("seed %d, step %d: %s of %+v went back", seed, step, field, key)
					}
				}
			}
			if own > limit || own != table.Counts().Edges {
				t.Fatalf("seed %d, step %d: %d edges, the limit is %d; counted are %+v", seed, step, own, limit, table.Counts())
			}
			for key, was := range before {
				is := after[key]
				if is != nil && (is.SinceUnixNS == was.SinceUnixNS || key.IsOverflow()) {
					if is.SinceUnixNS != was.SinceUnixNS {
						t.Fatalf("seed %d, step %d: an overflow edge began anew", seed, step)
					}
					continue
				}
				if idle := *now - seen[key]; idle < time.Minute || was.Open != 0 || was.Connecting != 0 || key.IsOverflow() {
					t.Fatalf("seed %d, step %d: %+v is gone, idle for %v, %d open and %d connecting", seed, step, key, idle, was.Open, was.Connecting)
				}
			}
			for i := range batch {
				seen[KeyOf(&batch[i])] = *now
			}
			for i := range losses {
				if l := &losses[i]; l.Identity.Local != nil {
					seen[keyOf(l.Role, l.Identity, l.Peer)] = *now
				}
			}
			before = after
		}
		evicted += table.Counts().Evicted
		folded += table.Counts().Folded
	}
	if evicted < 100 || folded < 100 {
		t.Errorf("%d edges evicted and %d records folded: the test proves little", evicted, folded)
	}
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
