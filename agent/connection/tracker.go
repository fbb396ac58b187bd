package connection

import (
	"hash/maphash"
	"net/netip"
)

// Change is what an event adds to the sums of its edge. The kernel keeps with the socket what was told of a connection, and says so
// in each event: every step counts once, in the first event that gets through.
type Change struct {
	Attempts    uint8
	Established uint8
	Adopted     uint8
	Failed      uint8
	Closed      uint8
	Connecting  int8 // to the gauge
	Open        int8 // to the gauge
}

// ChangeOf returns what an event adds.
func ChangeOf(e *Event) Change {
	var c Change
	adopted := e.Flags&AdoptedOpen != 0
	if e.Role == Client && !adopted && e.Told&ToldAttempt == 0 {
		c.Attempts = 1
		c.Connecting++
	}
	if e.EstablishedNS != 0 && e.Told&ToldEstablished == 0 {
		c.Open++
		switch {
		case adopted:
			c.Adopted = 1
		case e.Role == Client:
			c.Established = 1
			c.Connecting--
		default:
			c.Established = 1
		}
	}
	switch {
	case e.Kind != Close:
	case e.EstablishedNS != 0:
		c.Closed = 1
		c.Open--
	default:
		c.Failed = 1
		c.Connecting--
	}
	return c
}

// Loss is what connections of one edge and reason added up to whose Close found no room in the kernel's ring: the sums of the
// events that were lost, since the last Loss.
type Loss struct {
	// Key of the edge. All but Role and Reason are zero where there was no room for that either.
	Role     Role
	Reason   Reason
	CgroupID uint64
	Peer     netip.Addr

	Attempts       uint64
	Established    uint64
	Adopted        uint64
	Failed         uint64
	Closed         uint64
	ConnectingDown uint64 // told as connecting before
	OpenDown       uint64 // told as open before
	SentBytes      uint64
	ReceivedBytes  uint64
	Retransmits    uint64
	SYNRetransmits uint64
}

// Record is what is known of a connection at one moment.
type Record[I any] struct {
	Event    Event
	Change   Change
	Identity I
	Clock    Clock // set by whoever hands the record on
	// Sweep is the number of the sweep during or after which the event was observed.
	Sweep uint32
	// ClientSeen says of a server's record that the other end of the connection was followed here too.
	ClientSeen bool
	// Sampling is set on the way to the log, while that is sampled.
	Sampling Sampling
}

// Tracker follows connections from their first event to their last. Methods must not be called concurrently.
//
// I is what the caller knows of a connection's two ends. It is asked for once, at the first event that is seen, and stays the
// same for the connection's life, so that what one edge counted as opened is closed on the same edge. Sums do not depend on the
// tracker: see ChangeOf.
type Tracker[I any] struct {
	identify func(*Event) I
	limit    int
	followed map[Key]followed[I]
	seed     maphash.Seed
	clients  map[uint64]struct{} // hashes of wire, of the followed clients
	sweep    uint32              // the number of the current one
}

type followed[I any] struct {
	identity   I
	wire       uint64 // the key in clients
	seen       uint32 // the number of the sweep during or after which it was seen last
	client     bool
	clientSeen bool
}

// NewTracker returns a tracker that follows at most limit connections at a time. Of those over the limit the identity is asked for
// at each event.
func NewTracker[I any](limit int, identify func(*Event) I) *Tracker[I] {
	return &Tracker[I]{
		identify: identify, limit: limit, followed: make(map[Key]followed[I]),
		seed: maphash.MakeSeed(), clients: make(map[uint64]struct{}),
	}
}

// Len returns how many connections are followed now. One whose Close was lost stays until the next sweep.
func (t *Tracker[I]) Len() int { return len(t.followed) }

// BeginSweep is called before all live sockets are observed with a Sweep each.
func (t *Tracker[I]) BeginSweep() { t.sweep++ }

// EndSweep forgets the connections that were not seen since BeginSweep: their Close was lost. It is called when all events from
// before the end of the sweep were observed.
func (t *Tracker[I]) EndSweep() {
	for key, state := range t.followed {
		if state.seen != t.sweep {
			t.forget(key, &state)
		}
	}
}

func (t *Tracker[I]) forget(key Key, state *followed[I]) {
	delete(t.followed, key)
	if state.client {
		delete(t.clients, state.wire)
	}
}

// Observe fills record from an event, but for the clock. It keeps no reference to either.
func (t *Tracker[I]) Observe(event *Event, record *Record[I]) {
	state, found := t.followed[event.Key]
	if !found {
		state.identity = t.identify(event)
		state.wire = maphash.Comparable(t.seed, event.wire())
		if state.client = event.Role == Client; !state.client {
			_, state.clientSeen = t.clients[state.wire]
		}
	}
	state.seen = t.sweep
	switch {
	case event.Kind == Close && found:
		t.forget(event.Key, &state)
	case event.Kind != Close && (found || len(t.followed) < t.limit):
		t.followed[event.Key] = state
		if state.client {
			t.clients[state.wire] = struct{}{}
		}
	}
	record.Event = *event
	record.Change = ChangeOf(event)
	record.Identity = state.identity
	record.ClientSeen = state.clientSeen
	record.Sweep = t.sweep
}
