package edge

import (
	"fmt"
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
		{&got.ConnectDuration, &want.ConnectDuration},
		{&got.ConnectionDuration, &want.ConnectionDuration},
		{&got.RTT, &want.RTT},
		{&got.FirstByteDuration, &want.FirstByteDuration},
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
		case field.Name == "OldestConnectingNS" || field.Name == "sweep": // of the last sweep, no counters
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
		id := enrich.Identity{Local: &enrich.Workload{Name: "w" + strconv.FormatUint(e.CgroupID, 10)}, Peer: &enrich.Workload{Name: "p"}}
		if e.CgroupID%3 != 0 {
			id.Decision = &enrich.Decision{Service: &enrich.Service{Name: "s" + strconv.FormatUint(e.Key.Cookie%2, 10)}}
		}
		return id
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
	e.Reported = connection.Reported{SentBytes: e.Totals.SentBytes, ReceivedBytes: e.Totals.ReceivedBytes, Retransmits: e.Totals.Retransmits}
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

// check walks the list both ways: it has the edges without a live connection, oldest first, and no other.
func (l *idleList) check(t *Table) error {
	want := 0
	for key, e := range t.edges {
		if !key.IsOverflow() && e.sums.Open == 0 && e.sums.Connecting == 0 {
			want++
		}
		if e.key != key {
			return fmt.Errorf("%+v is under the key %+v", e.key, key)
		}
	}
	n := 0
	var last *entry
	for e := l.oldest; e != nil; e = e.newer {
		if !e.listed || e.older != last || t.edges[e.key] != e || last != nil && e.seen < last.seen || e.sums.Open != 0 || e.sums.Connecting != 0 {
			return fmt.Errorf("%+v is wrongly in the list", e)
		}
		n, last = n+1, e
	}
	if l.newest != last || n != want {
		return fmt.Errorf("%d in the list, want %d; its end is %p, want %p", n, want, l.newest, last)
	}
	return nil
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

			if err := table.idle.check(table); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
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
