package status

import (
	"context"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what others than the agent's owner can take of it over the control socket. There is more of each in all than they have together, so that the owner is
// not locked out.
const (
	mostConnections        = 64
	mostGuestConnections   = 48
	mostConnectionsOfGuest = 16
	mostAnswers            = 6 // that are made or written at once: each is in memory as a whole
	mostGuestAnswers       = 4
	mostAnswersOfGuest     = 2
	// answerTime is how long one may take, from when it has its place. It is what our own commands wait for.
	answerTime = 30 * time.Second
	// writeTime is that of what has no other bound.
	writeTime = 2 * answerTime
	// idleTime is how long a connection may stay without a request.
	idleTime = 10 * time.Second
	// mostHeader is of a request; it has room for the longest filter.
	mostHeader = 32 << 10
)

// unknownGuest is the id of a user whom the kernel does not tell.
const unknownGuest = math.MaxUint32

// Guest returns the id of the user who makes a request; 0: it is the agent's owner.
func Guest(ctx context.Context) uint32 {
	if uid, known := ctx.Value(callerKey{}).(uint32); known {
		return guestOf(uid)
	}
	return unknownGuest
}

// guestOf is 0 of root and of who the agent runs as.
func guestOf(uid uint32) uint32 {
	if int(uid) == os.Geteuid() {
		return 0
	}
	return uid
}

// places are a number of something. Safe for concurrent use.
type places struct {
	most, mostGuests, mostOfGuest int

	mu            sync.Mutex
	taken, guests int
	of            map[uint32]int // guests
	freed         chan struct{}  // closed when one is; nil: nobody waits
}

func newPlaces(most, mostGuests, mostOfGuest int) *places {
	return &places{most: most, mostGuests: mostGuests, mostOfGuest: mostOfGuest, of: make(map[uint32]int)}
}

// take takes a place if there is one, and else returns what is closed when there may be.
func (p *places) take(guest uint32) (freed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken == p.most || guest != 0 && (p.guests == p.mostGuests || p.of[guest] == p.mostOfGuest) {
		if p.freed == nil {
			p.freed = make(chan struct{})
		}
		return p.freed
	}
	p.taken++
	if guest != 0 {
		p.guests++
		p.of[guest]++
	}
	return nil
}

func (p *places) give(guest uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if guest != 0 {
		p.guests--
		if p.of[guest]--; p.of[guest] == 0 {
			delete(p.of, guest)
		}
	}
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// wait takes a place as soon as there is one.
func (p *places) wait(ctx context.Context, guest uint32) error {
	for {
		freed := p.take(guest)
		if freed == nil {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Answers bounds what answers take that are made in memory: how many there are at once, and for how long one may take them.
type Answers struct {
	places *places
	within time.Duration
}

// NewAnswers returns the bounds of one control socket.
func NewAnswers() *Answers {
	return &Answers{newPlaces(mostAnswers, mostGuestAnswers, mostAnswersOfGuest), answerTime}
}

// Bound has a handler wait for a place, and cuts who does not take the answer.
func (a *Answers) Bound(handler http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guest := Guest(r.Context())
		waiting, cancel := context.WithTimeout(r.Context(), a.within)
		defer cancel()
		if err := a.places.wait(waiting, guest); err != nil {
			http.Error(w, "too many ask at once; ask again later", http.StatusServiceUnavailable)
			return
		}
		defer a.places.give(guest)
		within, end := time.Now().Add(a.within), http.NewResponseController(w)
		// Of a connection that cannot have a deadline there is none to be cut.
		_ = end.SetReadDeadline(within)
		_ = end.SetWriteDeadline(within)
		handler(w, r)
	})
}

// bounded accepts no more connections than there are places for: who has none is hung up on.
type bounded struct {
	net.Listener
	places *places
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, known := callerOf(c)
		guest := uint32(unknownGuest)
		if known {
			guest = guestOf(uid)
		}
		if b.places.take(guest) == nil {
			return &connection{Conn: c, uid: uid, known: known, free: sync.OnceFunc(func() { b.places.give(guest) })}, nil
		}
		c.Close()
	}
}

// connection is one that has a place, and who made it.
type connection struct {
	net.Conn
	uid   uint32
	known bool
	free  func()
}

func (c *connection) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// callerOf tells who connected: the kernel says so.
func callerOf(c net.Conn) (uid uint32, known bool) {
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0, false
	}
	var caller *unix.Ucred
	if err := raw.Control(func(fd uintptr) { caller, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || caller == nil {
		return 0, false
	}
	return caller.Uid, true
}

type callerKey struct{}

// withCaller keeps who connected.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	if of, ok := c.(*connection); ok && of.known {
		return context.WithValue(ctx, callerKey{}, of.uid)
	}
	return ctx
}

// OwnerOnly is a handler for root, and for who the agent runs as. Members of the group may look, and change nothing.
func OwnerOnly(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if Guest(r.Context()) != 0 {
			http.Error(w, "only its owner may ask this of an agent", http.StatusForbidden)
			return
		}
		handler.ServeHTTP(w, r)
	})
}
