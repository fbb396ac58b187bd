package connection

import (
	"net/netip"
	"testing"
)

// end is one end of a connection; its methods are the events that the kernel sends of it.
type end struct {
	role        Role
	key         Key
	local, peer netip.AddrPort
	isn         uint32
}

func (e end) event(kind Kind) Event {
	event := Event{Kind: kind, Role: e.role, Key: e.key, Local: e.local, Peer: e.peer, ClientISN: e.isn}
	if e.role == Client {
		event.ConnectNS = e.key.StartNS + 10
	}
	return event
}

func (e end) preConnect() Event {
	event := e.event(PreConnect)
	event.EventNS = event.ConnectNS
	return event
}

func (e end) established() Event {
	event := e.event(Established)
	event.EstablishedNS = e.key.StartNS + 20
	event.EventNS = event.EstablishedNS
	return event
}

func (e end) closed() Event {
	event := e.event(Close)
	event.EstablishedNS = e.key.StartNS + 20
	event.EventNS = e.key.StartNS + 30
	event.Totals = Totals{SentBytes: 1, ReceivedBytes: 2, Retransmits: 3, RTTUS: 4, MinRTTUS: 5}
	return event
}

func (e end) failed(reason Reason) Event {
	event := e.event(Close)
	event.Reason = reason
	event.EventNS = e.key.StartNS + 30
	return event
}

var (
	addrA = netip.MustParseAddrPort("10.0.0.1:40001")
	addrB = netip.MustParseAddrPort("10.0.0.2:80")

	client = end{Client, Key{Cookie: 1, StartNS: 1000}, addrA, addrB, 77}
	server = end{Server, Key{Cookie: 2, StartNS: 1015}, addrB, addrA, 77}

	// The same socket after another connect().
	again = end{Client, Key{Cookie: 1, StartNS: 2000}, addrA, addrB, 78}
	// Not the other end of client: the ports were reused and the ISN tells.
	stranger = end{Server, Key{Cookie: 3, StartNS: 1020}, addrB, addrA, 99}
	other    = end{Client, Key{Cookie: 4, StartNS: 1000}, netip.MustParseAddrPort("10.0.0.1:40002"), addrB, 80}
)

// tells is what user space knows once it has the event, as the kernel keeps it: bpf/lib/connection.h.
func tells(e *Event) Told {
	told := ToldAttempt
	if e.Role == Server {
		told = 0
	}
	if e.Kind != PreConnect {
		told |= ToldEstablished
	}
	return told
}

// step is an event and what the tracker makes of it.
type step struct {
	event      Event
	want       Change
	clientSeen bool
}

var (
	attempt    = Change{Attempts: 1, Connecting: 1}
	success    = Change{Established: 1, Connecting: -1, Open: 1}
	accept     = Change{Established: 1, Open: 1}
	finish     = Change{Closed: 1, Open: -1}
	failure    = Change{Failed: 1, Connecting: -1}
	lateStart  = Change{Attempts: 1, Established: 1, Open: 1}
	lateFinish = Change{Established: 1, Closed: 1, Connecting: -1}
	// All at once: the gauges never saw it.
	whole       = Change{Attempts: 1, Established: 1, Closed: 1}
	wholeServed = Change{Established: 1, Closed: 1}
	wholeFailed = Change{Attempts: 1, Failed: 1}
)

func TestTracker(t *testing.T) {
	tests := []struct {
		name  string
		limit int // 10 if not set
		steps []step
		want  int // followed at the end
	}{
		{
			name: "client",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.established(), want: success},
				{event: client.closed(), want: finish},
			},
		},
		{
			name: "server",
			steps: []step{
				{event: server.established(), want: accept},
				{event: server.closed(), want: finish},
			},
		},
		{
			name: "refused",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.failed(Refused), want: failure},
			},
		},
		{
			name: "reset when it was open is closed, not failed",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.established(), want: success},
				{event: func() Event { e := client.closed(); e.Reason = ResetByPeer; return e }(), want: finish},
			},
		},
		{
			name:  "connecting",
			steps: []step{{event: client.preConnect(), want: attempt}},
			want:  1,
		},
		{
			name: "pre_connect lost",
			steps: []step{
				{event: client.established(), want: lateStart},
				{event: client.closed(), want: finish},
			},
		},
		{
			name: "established lost",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.closed(), want: lateFinish},
			},
		},
		{name: "only the client's close", steps: []step{{event: client.closed(), want: whole}}},
		{name: "only the server's close", steps: []step{{event: server.closed(), want: wholeServed}}},
		{name: "only the close of a failure", steps: []step{{event: client.failed(Timeout), want: wholeFailed}}},
		{
			name: "the same event twice counts once",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.preConnect(), want: Change{}},
				{event: client.established(), want: success},
				{event: client.established(), want: Change{}},
			},
			want: 1,
		},
		{
			name: "a socket that connects again",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.failed(Refused), want: failure},
				{event: again.preConnect(), want: attempt},
				{event: again.established(), want: success},
				{event: again.closed(), want: finish},
			},
		},
		{
			name: "a socket that connects again before its first close is read",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: again.preConnect(), want: attempt},
				{event: client.failed(Aborted), want: failure},
				{event: again.established(), want: success},
			},
			want: 1,
		},
		{
			name:  "over the limit it counts the same",
			limit: 1,
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: other.preConnect(), want: attempt},
				{event: other.established(), want: success},
				{event: other.closed(), want: finish},
				{event: client.established(), want: success},
			},
			want: 1,
		},
		{
			name:  "what was over the limit is followed as soon as there is room",
			limit: 1,
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: other.preConnect(), want: attempt},
				{event: client.failed(Timeout), want: failure},
				{event: other.established(), want: success},
				{event: other.closed(), want: finish},
			},
		},
		{
			name: "both ends are here",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.established(), want: success},
				{event: server.established(), want: accept, clientSeen: true},
				{event: client.closed(), want: finish},
				// Asked at the first event: the client's end came before.
				{event: server.closed(), want: finish, clientSeen: true},
			},
		},
		{
			name: "the server's first event is its last",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: server.closed(), want: wholeServed, clientSeen: true},
			},
			want: 1,
		},
		{
			name: "another client of the same addresses",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: stranger.established(), want: accept},
				{event: stranger.closed(), want: finish},
			},
			want: 1,
		},
		{
			name: "the client is gone",
			steps: []step{
				{event: client.preConnect(), want: attempt},
				{event: client.failed(Aborted), want: failure},
				{event: server.established(), want: accept},
			},
			want: 1,
		},
		{
			name:  "the client is over the limit",
			limit: 1,
			steps: []step{
				{event: other.preConnect(), want: attempt},
				{event: client.preConnect(), want: attempt},
				{event: other.failed(Refused), want: failure},
				{event: server.established(), want: accept},
			},
			want: 1,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			limit := test.limit
			if limit == 0 {
				limit = 10
			}
			tracker := NewTracker(limit, func(*Event) string { return "" })
			told := make(map[Key]Told)
			for i, s := range test.steps {
				s.event.Told = told[s.event.Key]
				told[s.event.Key] |= tells(&s.event)
				// Observe fills a record whole, so what it held before must not show.
				record := Record[string]{Event: Event{CgroupID: 1}, Change: Change{Closed: 9}, Identity: "old", ClientSeen: true}
				tracker.Observe(&s.event, &record)
				if want := (Record[string]{Event: s.event, Change: s.want, ClientSeen: s.clientSeen}); record != want {
					t.Errorf("step %d:\ngot  %+v\nwant %+v", i, record, want)
				}
			}
			if got := tracker.Len(); got != test.want {
				t.Errorf("%d connections are followed, want %d", got, test.want)
			}
		})
	}
}

// A connection that is counted as opened on one edge must be closed on the same, whatever the files say by then.
func TestIdentityStays(t *testing.T) {
	asked := 0
	tracker := NewTracker(10, func(*Event) int {
		asked++
		return asked
	})
	for i, s := range []struct {
		event Event
		want  int
	}{
		{client.preConnect(), 1},
		{server.established(), 2},
		{client.established(), 1},
		{client.closed(), 1},
		{server.closed(), 2},
		{again.closed(), 3},
	} {
		var record Record[int]
		tracker.Observe(&s.event, &record)
		if record.Identity != s.want {
			t.Errorf("step %d: identity is %d, want %d", i, record.Identity, s.want)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times for 3 connections", asked)
	}
}

// Over the limit nothing is kept, so it is asked each time.
func TestIdentityOverLimit(t *testing.T) {
	asked := 0
	tracker := NewTracker(0, func(*Event) int {
		asked++
		return asked
	})
	var record Record[int]
	for i, event := range []Event{client.preConnect(), client.established(), server.established()} {
		tracker.Observe(&event, &record)
		if record.Identity != i+1 {
			t.Errorf("event %d has the identity %d", i, record.Identity)
		}
	}
	if tracker.Len() != 0 || len(tracker.clients) != 0 {
		t.Errorf("%d connections and %d clients are kept", tracker.Len(), len(tracker.clients))
	}
}

// A connection whose Close was lost is forgotten by the sweep that does not see it; one that was seen, or that began meanwhile, is not.
func TestSweepForgets(t *testing.T) {
	tracker := NewTracker(10, func(*Event) string { return "" })
	observe := func(event Event) {
		var record Record[string]
		tracker.Observe(&event, &record)
	}
	observe(client.preConnect())
	observe(server.established())
	observe(other.preConnect())
	tracker.BeginSweep()
	swept := server.established()
	swept.Kind = Sweep
	observe(swept)
	observe(again.preConnect())
	tracker.EndSweep()
	for key, want := range map[Key]bool{client.key: false, other.key: false, server.key: true, again.key: true} {
		if _, got := tracker.followed.find(key); got != want {
			t.Errorf("%v is followed: %v, want %v", key, got, want)
		}
	}
	if len(tracker.clients) != 1 {
		t.Errorf("%d clients are kept, want the one that began meanwhile", len(tracker.clients))
	}
}

// The clock belongs to whoever hands the record on.
func TestObserveLeavesClock(t *testing.T) {
	tracker := NewTracker(10, func(*Event) int { return 0 })
	event, record := client.preConnect(), Record[int]{Clock: Clock{OffsetNS: 5}}
	tracker.Observe(&event, &record)
	if record.Clock.OffsetNS != 5 {
		t.Errorf("clock is %+v, want it left alone", record.Clock)
	}
}
