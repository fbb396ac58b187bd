package pipeline

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

var local, peer = &enrich.Workload{Name: "web"}, &enrich.Workload{Name: "database"}

func identify(*connection.Event) enrich.Identity { return enrich.Identity{Local: local, Peer: peer} }

// ticking is a clock whose offset says how often it was read.
func ticking() func() connection.Clock {
	reads := int64(0)
	return func() connection.Clock {
		reads++
		return connection.Clock{OffsetNS: reads}
	}
}

// sink keeps what it gets, and writes its name down each time.
type sink struct {
	name    string
	calls   *strings.Builder
	batches [][]enrich.Record
}

func (s *sink) Consume(batch []enrich.Record) {
	s.calls.WriteString(s.name)
	s.batches = append(s.batches, slices.Clone(batch))
}

// event is one of the connection with a cookie.
func event(kind connection.Kind, cookie uint64) connection.Event {
	e := connection.Event{Kind: kind, Role: connection.Client, Key: connection.Key{Cookie: cookie, StartNS: 1}, ConnectNS: 2}
	if kind != connection.PreConnect {
		e.EstablishedNS = 3
	}
	return e
}

// brief is what the tests look at of a record.
type brief struct {
	kind   connection.Kind
	cookie uint64
	clock  int64
}

func brieves(batches [][]enrich.Record) [][]brief {
	var out [][]brief
	for _, batch := range batches {
		var one []brief
		for _, r := range batch {
			one = append(one, brief{r.Event.Kind, r.Event.Key.Cookie, r.Clock.OffsetNS})
		}
		out = append(out, one)
	}
	return out
}

const (
	pre         = connection.PreConnect
	established = connection.Established
	closed      = connection.Close
)

func TestBatches(t *testing.T) {
	drained := connection.Event{} // in a list of events, the moment when the ring is empty
	tests := []struct {
		name            string
		limit           int
		events          []connection.Event
		want            [][]brief
		wantConnections int64
	}{
		{name: "nothing at all"},
		{name: "empty drains", events: []connection.Event{drained, drained}},
		{
			name:   "a batch that is not yet drained is not handed on",
			events: []connection.Event{event(pre, 1)},
		},
		{
			name:   "one batch in the order of events",
			events: []connection.Event{event(pre, 1), event(pre, 2), event(established, 1), drained},
			want:   [][]brief{{{pre, 1, 1}, {pre, 2, 1}, {established, 1, 1}}}, wantConnections: 2,
		},
		{
			name:   "the clock is read once a batch, and not for an empty drain",
			events: []connection.Event{drained, event(pre, 1), event(established, 1), drained, drained, event(closed, 1), drained},
			want:   [][]brief{{{pre, 1, 1}, {established, 1, 1}}, {{closed, 1, 2}}},
		},
		{
			name: "over the limit", limit: 1,
			events: []connection.Event{event(pre, 1), event(pre, 2), event(established, 2), event(closed, 2), drained},
			want:   [][]brief{{{pre, 1, 1}, {pre, 2, 1}, {established, 2, 1}, {closed, 2, 1}}}, wantConnections: 1,
		},
		{
			name: "counts are those of the last drain", limit: 1,
			events: []connection.Event{event(pre, 1), drained, event(pre, 2), event(closed, 1)},
			want:   [][]brief{{{pre, 1, 1}}}, wantConnections: 1,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			limit := test.limit
			if limit == 0 {
				limit = 10
			}
			got := &sink{calls: new(strings.Builder)}
			p := New(Options{Limit: limit, Clock: ticking(), Identify: identify, Sinks: []Sink{got}})
			var one connection.Event // the reader hands on the same one over and over
			for _, one = range test.events {
				if one == drained {
					p.HandleDrained(true)
				} else {
					p.HandleEvent(&one)
				}
			}
			if !reflect.DeepEqual(brieves(got.batches), test.want) {
				t.Errorf("\ngot  %v\nwant %v", brieves(got.batches), test.want)
			}
			if p.Connections() != test.wantConnections {
				t.Errorf("%d connections, want %d", p.Connections(), test.wantConnections)
			}
		})
	}
}

func TestRecord(t *testing.T) {
	got := &sink{calls: new(strings.Builder)}
	p := New(Options{Limit: 10, Clock: ticking(), Identify: identify, Sinks: []Sink{got}})
	e := event(pre, 1)
	p.HandleEvent(&e)
	p.HandleDrained(true)
	want := [][]enrich.Record{{{
		Event: e, Change: connection.Change{Attempts: 1, Connecting: 1},
		Identity: enrich.Identity{Local: local, Peer: peer}, Clock: connection.Clock{OffsetNS: 1},
	}}}
	if !reflect.DeepEqual(got.batches, want) {
		t.Errorf("\ngot  %+v\nwant %+v", got.batches, want)
	}
}

// TestSinksShareBatches hands every sink the same batch, and the memory of a batch to the next; what is for keeping is not touched again.
func TestSinksShareBatches(t *testing.T) {
	var calls strings.Builder
	var starts []*enrich.Record
	look := func(batch []enrich.Record) { starts = append(starts, &batch[0]) }
	a, b, kept := &sink{name: "a", calls: &calls}, &sink{name: "b", calls: &calls}, &sink{name: "k", calls: &calls}
	p := New(Options{
		Limit: 10, Clock: ticking(), Identify: identify, Sinks: []Sink{tap{a, look}, tap{b, look}}, Finished: []Sink{tap{kept, look}},
	})
	const events = 200
	for range 2 {
		for cookie := range uint64(events) {
			e := event(closed, cookie)
			p.HandleEvent(&e)
		}
		p.HandleDrained(true)
	}
	if got := calls.String(); got != "abkabk" {
		t.Errorf("sinks were called in the order %s, want abkabk", got)
	}
	for i := range 2 {
		for _, s := range []*sink{a, b, kept} {
			if got := len(s.batches[i]); got != events {
				t.Errorf("batch %d of sink %s has %d records, want %d", i, s.name, got, events)
			}
		}
	}
	if starts[0] != starts[1] || starts[0] != starts[3] || starts[0] != starts[4] {
		t.Error("a batch was copied for a sink, or the next lies elsewhere")
	}
	if starts[0] == starts[2] || starts[2] == starts[5] || starts[0] == starts[5] {
		t.Error("what may be kept lies where another batch does")
	}
}

// tap looks at batches before a sink does.
type tap struct {
	*sink
	look func(batch []enrich.Record)
}

func (t tap) Consume(batch []enrich.Record) {
	t.look(batch)
	t.sink.Consume(batch)
}

// TestNothingOfAnEarlierBatchStays fills each record whole: the memory of a batch is that of the one before.
func TestNothingOfAnEarlierBatchStays(t *testing.T) {
	got := &sink{calls: new(strings.Builder)}
	p := New(Options{Limit: 10, Clock: ticking(), Identify: identify, Sinks: []Sink{got}})
	full := event(closed, 7)
	full.Totals = connection.Totals{SentBytes: 1, ReceivedBytes: 2, FirstSentNS: 3, FirstReceivedNS: 4, Retransmits: 5, SYNRetransmits: 6, RTTUS: 7}
	full.Reported = connection.Reported{SentBytes: 1, ReceivedBytes: 2, Retransmits: 3, SYNRetransmits: 4}
	full.Reason, full.Flags, full.Told = connection.Timeout, connection.Adopted, connection.ToldAttempt
	p.HandleEvent(&full)
	p.HandleDrained(true)
	empty := event(pre, 8)
	p.HandleEvent(&empty)
	p.HandleDrained(true)
	want := enrich.Record{
		Event: empty, Change: connection.Change{Attempts: 1, Connecting: 1}, Identity: enrich.Identity{Local: local, Peer: peer},
		Clock: connection.Clock{OffsetNS: 2},
	}
	if got.batches[1][0] != want {
		t.Errorf("\ngot  %+v\nwant %+v", got.batches[1][0], want)
	}
}

func TestNoSinks(t *testing.T) {
	p := New(Options{Limit: 10, Clock: ticking(), Identify: identify})
	e := event(pre, 1)
	p.HandleEvent(&e)
	p.HandleDrained(true)
	if p.Connections() != 1 {
		t.Errorf("%d connections, want 1", p.Connections())
	}
}

// lossSink keeps what it gets.
type lossSink struct{ losses [][]enrich.Loss }

func (s *lossSink) ConsumeLosses(losses []enrich.Loss) { s.losses = append(s.losses, losses) }

func TestLosses(t *testing.T) {
	byEdge := connection.Loss{Role: connection.Client, Reason: connection.Refused, CgroupID: 7, Peer: netip.MustParseAddr("10.0.0.1"), Failed: 3}
	total := connection.Loss{Role: connection.Server, Closed: 4}
	answers := []struct {
		losses []connection.Loss
		err    error
	}{{}, {losses: []connection.Loss{byEdge, total}}, {err: errors.New("no")}, {}}
	got, now := &lossSink{}, time.Unix(5, 6)
	p := New(Options{
		Limit: 10, Clock: ticking(), LossSinks: []LossSink{got}, Now: func() time.Time { return now },
		Identify: func(e *connection.Event) enrich.Identity {
			if e.CgroupID != 7 || e.Peer.Addr() != byEdge.Peer {
				t.Errorf("asked for %+v", e)
			}
			return identify(e)
		},
		Losses: func() ([]connection.Loss, error) {
			answer := answers[0]
			answers = answers[1:]
			return answer.losses, answer.err
		},
	})
	for range 4 {
		p.HandleDrained(true)
	}
	want := [][]enrich.Loss{{{Loss: byEdge, Identity: enrich.Identity{Local: local, Peer: peer}, At: now}, {Loss: total, At: now}}}
	if !reflect.DeepEqual(got.losses, want) {
		t.Errorf("\ngot  %+v\nwant %+v", got.losses, want)
	}
}

// TestFinished gives those who only want connections that ended no others.
func TestFinished(t *testing.T) {
	var calls strings.Builder
	all, finished := &sink{name: "a", calls: &calls}, &sink{name: "f", calls: &calls}
	p := New(Options{Limit: 10, Clock: ticking(), Identify: identify, Sinks: []Sink{all}, Finished: []Sink{finished}})
	for _, batch := range [][]connection.Event{
		{event(pre, 1), event(established, 1)},
		{event(pre, 2), event(closed, 1), event(closed, 2)},
		{event(closed, 3)},
	} {
		for _, e := range batch {
			p.HandleEvent(&e)
		}
		p.HandleDrained(true)
	}
	want := [][]brief{{{closed, 1, 2}, {closed, 2, 2}}, {{closed, 3, 3}}}
	if !reflect.DeepEqual(brieves(finished.batches), want) {
		t.Errorf("\ngot  %v\nwant %v", brieves(finished.batches), want)
	}
	if calls.String() != "aafaf" || len(all.batches[1]) != 3 {
		t.Errorf("calls were %s, want aafaf; the second batch: %v", &calls, brieves(all.batches[1:2]))
	}
}

// TestWanted: while nobody wants connections that ended, they are not even copied.
func TestWanted(t *testing.T) {
	finished, wanted := &sink{calls: new(strings.Builder)}, false
	p := New(Options{Limit: 10, Clock: ticking(), Identify: identify, Finished: []Sink{finished}, Wanted: func() bool { return wanted }})
	var e connection.Event
	feed := func(cookie uint64) {
		e = event(closed, cookie)
		p.HandleEvent(&e)
		p.HandleDrained(true)
	}
	feed(1)
	if n := testing.AllocsPerRun(100, func() { feed(2) }); n != 0 || len(finished.batches) != 0 {
		t.Errorf("%v allocations and %d batches for nobody", n, len(finished.batches))
	}
	wanted = true
	feed(3)
	wanted = false
	feed(4)
	if got := brieves(finished.batches); len(got) != 1 || got[0][0].cookie != 3 {
		t.Errorf("got %v", got)
	}
}

// TestFinishedTakesNoRoom gives those who may keep a batch for long no more memory than it needs.
func TestFinishedTakesNoRoom(t *testing.T) {
	finished := &sink{calls: new(strings.Builder)}
	room := 0
	look := func(batch []enrich.Record) { room = cap(batch) }
	p := New(Options{Limit: 10, Clock: ticking(), Identify: identify, Finished: []Sink{tap{finished, look}}})
	for n := range 200 {
		for cookie := range uint64(n + 1) {
			e := event(closed, cookie)
			p.HandleEvent(&e)
		}
		p.HandleDrained(true)
		if got := len(finished.batches[n]); got != n+1 || room != got {
			t.Fatalf("%d records in the room of %d, want %d", got, room, n+1)
		}
	}
}

// TestSweepTellsNews hands on what a sweep found if it is new, in batches, and forgets what a sweep over all did not find, which it asks
// for when a close was lost.
func TestSweepTellsNews(t *testing.T) {
	const sockets = 2*sweepBatch + 5
	var swept []connection.Event
	got := &sink{calls: new(strings.Builder)}
	var lost []connection.Loss
	var asked []bool
	p := New(Options{
		Losses: func() ([]connection.Loss, error) { found := lost; lost = nil; return found, nil },
		Limit:  2 * sockets, Clock: ticking(), Identify: identify, Sinks: []Sink{got}, SweepInterval: 1,
		Sweep: func(all bool, observe func(*connection.Event)) error {
			asked = append(asked, all)
			for i := range swept {
				observe(&swept[i])
			}
			return nil
		},
	})
	for cookie := range uint64(sockets) {
		e := event(connection.Sweep, cookie)
		swept = append(swept, e)
	}
	records := func() (n int) {
		for _, b := range got.batches {
			n += len(b)
		}
		got.batches = nil
		return n
	}
	// Nobody has been told of any of them.
	p.HandleDrained(true)
	if len(got.batches) != 3 || len(got.batches[0]) != sweepBatch {
		t.Errorf("%d batches, the first of %d records", len(got.batches), len(got.batches[0]))
	}
	if n := records(); n != sockets {
		t.Errorf("%d records, want %d", n, sockets)
	}
	for i := range swept {
		swept[i].Told = connection.ToldAttempt | connection.ToldEstablished
		swept[i].Totals = connection.Totals{SentBytes: 10, ReceivedBytes: 20, Retransmits: 30, RTTUS: uint32(i)}
		swept[i].Reported = connection.Reported{SentBytes: 10, ReceivedBytes: 20, Retransmits: 30}
	}
	p.HandleDrained(true)
	if n := records(); n != 0 || p.Connections() != sockets {
		t.Errorf("%d records with nothing new, %d connections, want %d", n, p.Connections(), sockets)
	}
	swept[1].Totals.SentBytes++
	swept[2].Totals.ReceivedBytes++
	swept[3].Totals.Retransmits++
	swept[4].Told = connection.ToldAttempt
	swept[5].Totals.SentBytes-- // what was reported too much is taken back
	swept = swept[:10]
	p.HandleDrained(true)
	if n := records(); n != 5 {
		t.Errorf("%d records, want 5", n)
	}
	// The others may just have nothing new.
	p.HandleDrained(true)
	if p.Connections() != sockets {
		t.Errorf("%d connections, want %d", p.Connections(), sockets)
	}
	lost = []connection.Loss{{Role: connection.Client}}
	p.HandleDrained(true)
	// Now the others are gone, which is known when the ring is empty again.
	p.HandleDrained(true)
	if want := []bool{false, false, false, false, true, false}; !slices.Equal(asked, want) {
		t.Errorf("sweeps over all: %v, want %v", asked, want)
	}
	if p.Connections() != int64(len(swept)) {
		t.Errorf("%d connections, want %d", p.Connections(), len(swept))
	}
}

// TestInheritedLosses: what was lost before the ring was read to its end is in no gauge of this process, whoever had been told of it; what is lost later is.
func TestInheritedLosses(t *testing.T) {
	for _, inherits := range []bool{false, true} {
		got := new(lossSink)
		loss := []connection.Loss{{Role: connection.Client, Closed: 3, OpenDown: 2, ConnectingDown: 1}}
		o := Options{
			Limit: 10, Clock: ticking(), Identify: identify, LossSinks: []LossSink{got},
			Losses: func() ([]connection.Loss, error) { return slices.Clone(loss), nil },
		}
		fails := true
		if inherits {
			o.Inherit = func() ([]connection.Loss, uint64, error) {
				if fails {
					return slices.Clone(loss), 0, errors.New("no")
				}
				return slices.Clone(loss), 7, nil
			}
		}
		p := New(o)
		p.HandleDrained(false)
		p.HandleDrained(true) // and looks twice if it inherits, the second time in vain
		fails = false
		p.HandleDrained(true)
		before := len(got.losses)
		if want := map[bool]int{false: 3, true: 5}[inherits]; before != want {
			t.Fatalf("inherits %v: %d losses, want %d", inherits, before, want)
		}
		p.HandleDrained(true)
		for i, losses := range got.losses {
			l := losses[0]
			gauges := !inherits || i >= before
			if l.Closed != 3 || gauges != (l.OpenDown == 2) || gauges != (l.ConnectingDown == 1) || !gauges && l.OpenDown+l.ConnectingDown != 0 {
				t.Errorf("inherits %v: loss %d is %+v", inherits, i, l)
			}
		}
	}
}
