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
	case e.Role == Server: // refused before there was a socket
		c.Failed = 1
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
	// As of a Decision: 0 where there is none.
	Service     uint32
	Destination uint32
	Refused     bool // by the mesh

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
// tracker: see ChangeOf. What is equal is kept once, so few of I should differ.
type Tracker[I comparable] struct {
	identify   func(*Event) I
	limit      int
	followed   follows
	identities identities[I]
	seed       maphash.Seed
	clients    map[uint64]struct{} // hashes of wire, of the followed clients
	sweep      uint32              // the number of the current one
	inherited  uint64              // see Inherit
}

// NewTracker returns a tracker that follows at most limit connections at a time. Of those over the limit the identity is asked for
// at each event.
func NewTracker[I comparable](limit int, identify func(*Event) I) *Tracker[I] {
	return &Tracker[I]{
		identify: identify, limit: limit, followed: newFollows(), identities: newIdentities[I](),
		seed: maphash.MakeSeed(), clients: make(map[uint64]struct{}),
	}
}

// Inherit says that until a moment of CLOCK_MONOTONIC somebody else was told of connections, or nobody was. What happened before is in no gauge, though it is in the sums,
// whoever reads it when: a connection comes into its gauge when something of later is seen of it, a sweep if nothing else, and is not taken away when it ended before. So
// the gauges are right though the ends of connections were lost that nobody can tell from others. Whoever does not know the moment yet says the end of all time, and later
// one that is after all that was observed.
func (t *Tracker[I]) Inherit(until uint64) { t.inherited = until }

// Len returns how many connections are followed now. One whose Close was lost stays until the next sweep.
func (t *Tracker[I]) Len() int { return t.followed.used }

// BeginSweep is called before all live sockets are observed with a Sweep each.
func (t *Tracker[I]) BeginSweep() { t.sweep++ }

// EndSweep forgets the connections that were not seen since BeginSweep: their Close was lost. It is called when all events from
// before the end of the sweep were observed.
func (t *Tracker[I]) EndSweep() {
	var lost []Key // to forget one moves others
	for i := range t.followed.slots {
		if f := &t.followed.slots[i]; f.who != 0 && f.seen != t.sweep {
			lost = append(lost, f.key)
		}
	}
	for _, key := range lost {
		at, _ := t.followed.find(key)
		t.forget(at)
	}
}

func (t *Tracker[I]) forget(at int) {
	f := &t.followed.slots[at]
	if f.who&whoClient != 0 {
		delete(t.clients, f.wire)
	}
	t.identities.release(f.who >> whoShift)
	t.followed.remove(at)
}

// Observe fills record from an event, but for the clock. It keeps no reference to either.
func (t *Tracker[I]) Observe(event *Event, record *Record[I]) {
	record.Event = *event
	record.Change = ChangeOf(event)
	record.Sweep = t.sweep
	before := event.EventNS < t.inherited
	if before {
		record.Change.Connecting, record.Change.Open = 0, 0
	}
	at, found := t.followed.find(event.Key)
	if !found {
		t.first(at, event, record, before)
		return
	}
	f := &t.followed.slots[at]
	if f.who&whoBefore != 0 && !before {
		f.who &^= whoBefore
		inherit(event, t.inherited, &record.Change)
	}
	record.Identity = t.identities.kept[f.who>>whoShift].identity
	record.ClientSeen = f.who&whoClientSeen != 0
	if event.Kind == Close {
		t.forget(at)
	} else {
		f.seen = t.sweep
	}
}

// first is for a connection that is not followed, and says at which slot it would be.
func (t *Tracker[I]) first(at int, event *Event, record *Record[I], before bool) {
	record.Identity = t.identify(event)
	record.ClientSeen = false
	stays := event.Kind != Close && t.followed.used < t.limit
	if t.inherited != 0 && !before && (stays || event.Kind == Close) {
		inherit(event, t.inherited, &record.Change)
	}
	if event.Role == Client && !stays {
		return
	}
	f := follow{key: event.Key, wire: maphash.Comparable(t.seed, event.wire()), seen: t.sweep}
	if event.Role == Client {
		f.who = whoClient
		t.clients[f.wire] = struct{}{}
	} else if _, record.ClientSeen = t.clients[f.wire]; record.ClientSeen {
		f.who = whoClientSeen
	}
	if before {
		f.who |= whoBefore
	}
	if stays {
		f.who |= t.identities.take(record.Identity, t.followed.used) << whoShift
		t.followed.add(at, f)
	}
}

// inherit adds to the gauges what was told until a moment, of a connection that is in none.
func inherit(e *Event, until uint64, c *Change) {
	switch {
	case e.Told&ToldEstablished != 0:
		if e.EstablishedNS < until {
			c.Open++
		}
	case e.Told&ToldAttempt != 0:
		if max(e.ConnectNS, e.Key.StartNS) < until {
			c.Connecting++
		}
	}
}
