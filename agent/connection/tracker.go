package connection

import "hash/maphash"

// Change is what an event adds to the sums of its edge. Every event of a connection counts each step once, however many
// events before it were lost: a Close without its Established counts both.
type Change struct {
	Attempts    uint8
	Established uint8
	Failed      uint8
	Closed      uint8
	Connecting  int8 // to the gauge
	Open        int8 // to the gauge
}

// Record is what is known of a connection at one moment.
type Record[I any] struct {
	Event    Event
	Change   Change
	Identity I
	Clock    Clock // set by whoever hands the record on
	// ClientSeen says of a server's record that the other end of the connection was followed here too.
	ClientSeen bool
}

// Stats are the tracker's own counters.
type Stats struct {
	Connections int // followed now
	Untracked   uint64
}

// Tracker follows connections from their first event to their last. Methods must not be called concurrently.
//
// I is what the caller knows of a connection's two ends. It is asked for once, at the first event that is seen, and stays the
// same for the connection's life, so that what one edge counted as opened is closed on the same edge.
type Tracker[I any] struct {
	identify  func(*Event) I
	limit     int
	followed  map[Key]followed[I]
	seed      maphash.Seed
	clients   map[uint64]struct{} // hashes of wire, of the followed clients
	untracked uint64
}

type followed[I any] struct {
	identity    I
	attempted   bool
	established bool
	clientSeen  bool
}

// NewTracker returns a tracker that follows at most limit connections at a time.
func NewTracker[I any](limit int, identify func(*Event) I) *Tracker[I] {
	return &Tracker[I]{
		identify: identify, limit: limit, followed: make(map[Key]followed[I]),
		seed: maphash.MakeSeed(), clients: make(map[uint64]struct{}),
	}
}

// Stats returns the tracker's counters.
func (t *Tracker[I]) Stats() Stats {
	return Stats{Connections: len(t.followed), Untracked: t.untracked}
}

// Observe fills record from an event and says whether there is something to tell. It keeps no reference to either.
//
// A connection over the limit is not followed: its first events are passed over and counted as untracked, and its Close, which
// carries everything, counts all of it at once. Sums come out exact, the gauges lack it while it lives.
func (t *Tracker[I]) Observe(event *Event, record *Record[I]) bool {
	state, found := t.followed[event.Key]
	if !found {
		if event.Kind != Close && len(t.followed) >= t.limit {
			t.untracked++
			return false
		}
		state.identity = t.identify(event)
		wire := maphash.Comparable(t.seed, event.wire())
		if event.Role == Client {
			t.clients[wire] = struct{}{}
		} else {
			_, state.clientSeen = t.clients[wire]
		}
	}
	var change Change
	if event.Role == Client && !state.attempted {
		state.attempted = true
		change.Attempts = 1
		change.Connecting++
	}
	if event.EstablishedNS != 0 && !state.established {
		state.established = true
		change.Established = 1
		change.Open++
		if event.Role == Client {
			change.Connecting--
		}
	}
	switch {
	case event.Kind != Close:
		t.followed[event.Key] = state
	case state.established:
		change.Closed = 1
		change.Open--
	default:
		change.Failed = 1
		change.Connecting--
	}
	if event.Kind == Close {
		delete(t.followed, event.Key)
		if event.Role == Client {
			delete(t.clients, maphash.Comparable(t.seed, event.wire()))
		}
	}
	record.Event = *event
	record.Change = change
	record.Identity = state.identity
	record.ClientSeen = state.clientSeen
	return true
}
