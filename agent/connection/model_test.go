package connection

import (
	"iter"
	"math/rand/v2"
)

// The kernel's side in miniature: what bpf/lib/connection.h and bpf/prog/iter.h do to the state of a socket, in their order. The
// hooks of one socket come one after the other, because they hold its lock; a sweep comes between any two accesses of theirs.

// modelConn is struct mesh_connection, and what of the socket itself matters.
type modelConn struct {
	storage *modelStorage
	sent    uint64
}

// modelStorage is what a sweep can still hold when the socket has gone on.
type modelStorage struct {
	event    Event
	phase    int
	told     Told
	reported uint64
}

// reportedAll says that nothing may be reported any more: the close has told all. No total, and none that was read a little wrong
// on either side of zero, comes near it.
const reportedAll = 1 << 63

const (
	modelIdle = iota
	modelConnecting
	modelOpen
	modelClosed
)

// mutation is a fault put into the model, to see that the test sees it.
type mutation int

const (
	faithful        mutation = iota
	toldByClose              // the close reads told, and then writes it
	toldBySweep              // the sweep does
	toldByEvent              // an event does
	reportedBySweep          // the sweep writes what it reports without a look at what was there
	reportedByClose          // the close reads what was reported, and later writes
	toldWithoutRoom          // the sweep takes over as told what it then has no room to write
	stateUsedAgain           // a socket that connects again goes on with the storage that a sweep may hold
	endWithoutMark           // the close leaves its total as reported: a sweep that read the socket before it takes that for its own base
	mutations
)

var mutationNames = [mutations]string{
	"faithful", "told by close", "told by sweep", "told by event", "reported by sweep", "reported by close",
	"told without room", "state used again", "end without mark",
}

// model is a machine: its kernel, and the user space that reads from it. Whatever could go one way or another asks choose.
type model struct {
	mutation mutation
	choose   func(options int) int
	loses    func() bool // an event finds no room
	tracker  *Tracker[struct{}]
	conns    []*modelConn
	ring     []Event
	lost     []Event // closes, whose sums wait to be read
	sweeping bool
	want     sums // what happened
	got      sums // what user space makes of it
	next     uint64
}

func newModel(m mutation, choose func(int) int) *model {
	return &model{
		mutation: m, choose: choose, loses: func() bool { return choose(2) == 1 },
		tracker: NewTracker(1000, func(*Event) struct{} { return struct{}{} }),
	}
}

// pause is where others may come between.
type pause func()

// update is an atomic exchange of a value, or with a fault a load and a store.
func update[T any](at *T, torn bool, pause pause, to func(T) T) (before T) {
	before = *at
	if torn {
		pause()
	}
	*at = to(before)
	return before
}

// connect is connection_called() and connection_connect().
func (m *model) connect(c *modelConn, pause pause) {
	pause()
	m.next++
	now := m.next
	if c.storage == nil || m.mutation != stateUsedAgain {
		c.storage = new(modelStorage)
	} else {
		*c.storage = modelStorage{}
	}
	c.sent = 0
	c.storage.event = Event{Role: Client, Key: Key{Cookie: 1, StartNS: now}, ConnectNS: now, Local: addrA, Peer: addrB, ClientISN: uint32(now)}
	pause()
	m.want.attempts++
	m.want.connecting++
	c.storage.phase = modelConnecting
	m.emit(c, PreConnect, ToldAttempt, pause)
}

// accept is connection_passive().
func (m *model) accept(c *modelConn, pause pause) {
	pause()
	m.next++
	c.storage = new(modelStorage)
	c.storage.event = Event{Role: Server, Key: Key{Cookie: 2, StartNS: m.next}, EstablishedNS: m.next, Local: addrB, Peer: addrA}
	pause()
	m.want.established++
	m.want.open++
	c.storage.phase = modelOpen
	m.emit(c, Established, ToldEstablished, pause)
}

// establish is connection_active().
func (m *model) establish(c *modelConn, pause pause) {
	pause()
	c.storage.event.EstablishedNS = m.next
	m.want.established++
	m.want.connecting--
	m.want.open++
	pause()
	c.storage.phase = modelOpen
	m.emit(c, Established, ToldAttempt|ToldEstablished, pause)
}

// emit is emit_event().
func (m *model) emit(c *modelConn, kind Kind, tells Told, pause pause) {
	if m.loses() {
		return
	}
	event := c.storage.event
	event.Kind = kind
	pause()
	event.Told = update(&c.storage.told, m.mutation == toldByEvent, pause, func(t Told) Told { return t | tells })
	m.ring = append(m.ring, event)
}

// move sends some bytes.
func (m *model) move(c *modelConn, bytes uint64, pause pause) {
	pause()
	c.sent += bytes
	m.want.sent += bytes
}

// end is connection_close().
func (m *model) end(c *modelConn, pause pause) {
	pause()
	s := c.storage
	established := s.phase == modelOpen
	if s.phase = modelClosed; established {
		m.want.closed++
		m.want.open--
	} else {
		m.want.failed++
		m.want.connecting--
	}
	event := s.event
	event.Kind = Close
	event.Totals.SentBytes = c.sent
	pause()
	event.Told = update(&s.told, m.mutation == toldByClose, pause, func(t Told) Told { return t | ToldAttempt | ToldEstablished | ToldEnd })
	pause()
	event.Reported.SentBytes = update(&s.reported, m.mutation == reportedByClose, pause, func(uint64) uint64 {
		if m.mutation == endWithoutMark {
			return c.sent
		}
		return reportedAll
	})
	if m.loses() {
		m.lost = append(m.lost, event)
		return
	}
	m.ring = append(m.ring, event)
}

// sweep is mesh_sweep() for one socket, and the reading of what it writes.
func (m *model) sweep(c *modelConn, pause pause) {
	s := c.storage
	for again := true; again; {
		if s == nil || s.phase != modelConnecting && s.phase != modelOpen {
			return
		}
		pause()
		out := s.event
		out.Kind = Sweep
		pause()
		// Without the lock: some bytes too many or too few, below zero too.
		out.Totals.SentBytes = c.sent + uint64(m.choose(3)) - 1
		again = m.choose(2) == 1 // no room: this socket comes again
		if again && m.mutation != toldWithoutRoom {
			m.choose = oneIn(m.choose)
			continue
		}
		var tells Told
		if out.Role == Client {
			tells |= ToldAttempt
		}
		if out.EstablishedNS != 0 {
			tells |= ToldEstablished
		}
		pause()
		out.Told = update(&s.told, m.mutation == toldBySweep, pause, func(t Told) Told { return t | tells })
		if out.Told&ToldEnd != 0 {
			return
		}
		pause()
		before := s.reported
		pause()
		if s.reported == before && before != reportedAll || m.mutation == reportedBySweep {
			s.reported = out.Totals.SentBytes
			out.Reported.SentBytes = before
		} else {
			out.Reported.SentBytes = out.Totals.SentBytes
		}
		if !again {
			m.observe(&out)
		}
	}
}

// oneIn keeps an exhaustive search from having no room for ever: the second look always has.
func oneIn(choose func(int) int) func(int) int {
	return func(options int) int {
		if options == 2 {
			return 0
		}
		return choose(options)
	}
}

func (m *model) observe(e *Event) {
	var record Record[struct{}]
	m.tracker.Observe(e, &record)
	m.got.add(&record)
}

// read is what pipeline and reader do when they look: all of the ring, what was lost, and the end of the last sweep.
func (m *model) read() {
	for i := range m.ring {
		m.observe(&m.ring[i])
	}
	m.ring = nil
	for i := range m.lost {
		m.got.addLoss(&m.lost[i])
	}
	m.lost = nil
	if m.sweeping {
		m.tracker.EndSweep()
		m.sweeping = false
	}
}

// sweepAll begins a sweep, as the pipeline does when the ring is empty, and looks at every socket.
func (m *model) sweepAll(pause pause) {
	m.read()
	m.tracker.BeginSweep()
	m.sweeping = true
	for _, c := range m.conns {
		m.sweep(c, pause)
	}
}

// Before what only user space sees there is no pause: it reads when all is over, or in one go.

// thread is something that runs up to its next pause.
type thread func() (struct{}, bool)

func newThread(run func(pause)) thread {
	next, _ := iter.Pull(func(yield func(struct{}) bool) {
		run(func() { yield(struct{}{}) })
	})
	return next
}

// interleave runs threads to their ends, in the order that choose gives.
func interleave(choose func(int) int, threads ...thread) {
	for len(threads) > 0 {
		i := 0
		if len(threads) > 1 {
			i = choose(len(threads))
		}
		if _, more := threads[i](); !more {
			threads = append(threads[:i], threads[i+1:]...)
		}
	}
}

// everyWay runs f with a choose for each way that there is, until f says that it has seen enough. It returns how many there were.
func everyWay(f func(choose func(int) int) bool) (ways int) {
	var path, options []int
	for {
		ways++
		i := 0
		options = options[:0]
		enough := f(func(n int) int {
			if i == len(path) {
				path = append(path, 0)
			}
			options = append(options, n)
			i++
			return path[i-1]
		})
		path = path[:i]
		for len(path) > 0 && path[len(path)-1] == options[len(path)-1]-1 {
			path = path[:len(path)-1]
		}
		if enough || len(path) == 0 {
			return ways
		}
		path[len(path)-1]++
	}
}

// anyWay chooses by chance.
func anyWay(random *rand.Rand) func(int) int { return random.IntN }
