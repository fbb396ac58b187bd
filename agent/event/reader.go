package event

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// Stats count what came out of the ring. Safe for concurrent use.
type Stats struct {
	Received     atomic.Uint64
	DecodeFailed atomic.Uint64
	// Decoded counts by connection.Kind.
	Decoded [int(connection.Sweep) + 1]atomic.Uint64
}

// Handler takes what the ring gives, in one goroutine.
type Handler interface {
	// HandleEvent is called for every event. It must not keep the pointer.
	HandleEvent(*connection.Event)
	// HandleDrained is called when the ring was read empty, and now and then while it never is: the moment to hand on a batch.
	HandleDrained(empty bool)
}

// Progress says how far what was read has got. Its methods are called from Run's goroutine.
type Progress interface {
	// Handled is called when all records before a position were handled, which is that of a record.
	Handled(position uint64)
	// HandedOn returns up to which of these positions everything has left this process, or lies where it outlives it.
	HandedOn() uint64
}

// AgainHandler is a Handler that takes events which an agent before this one has counted, and may not have handed on. What it gets is
// followed by HandleDrained as other events are.
type AgainHandler interface {
	HandleAgain(event *connection.Event, position uint64)
}

// Reader drains a ring. While there are events the kernel wakes it only when much is pending; otherwise it looks by itself every interval. When
// an interval went by without any, it goes to sleep until the kernel wakes it for the next.
type Reader struct {
	// Tap, if set before Run, gets the bytes of every record before they are decoded. They are valid during the call only.
	Tap func(raw []byte)
	// Asleep, if set before Run, tells the kernel whether the reader is asleep. Without it the reader never is.
	Asleep func(bool) error
	// MostAsleep is how long it sleeps at most, so that HandleDrained is called now and then.
	MostAsleep time.Duration
	// Progress, if set before Run, keeps records in the ring until they are handed on, but at most half of the ring: who is killed leaves them to
	// the next reader. Without it they leave the ring when they were handled.
	Progress Progress
	// Counted is the position before which records were counted by a reader before this one: the handler gets them by HandleAgain. Set before Run.
	Counted uint64
	// Position, if set before Run, hears how far the ring was read, as programs count: now and then, and before each wait.
	Position func(uint64)

	ring     *chain // nil once closed
	interval time.Duration
	stats    *Stats
	// wake is the ring once more, in the runtime's own poller: to wait there takes no thread, and no other to look after that one.
	wake *os.File
	conn syscall.RawConn
	// Of Run only, but for the first.
	position atomic.Uint64 // of the next record to be read
	event    connection.Event
	fence    atomic.Uint32
	held     []uint64 // positions of batches that were handled and are still in the ring

	open sync.RWMutex // held for reading while the ring is looked at

	mu    sync.Mutex
	poked bool // the next wait is to end at once
	// Who waits in Drain: asked is not yet seen by Run, armed is answered when the ring was read, and handed on, up to a position.
	asked, armed []waiter
	ended        bool
}

type waiter struct {
	until uint64
	done  chan struct{}
}

// batchEvents bounds how many events go by before HandleDrained is called on a ring that is never empty.
const batchEvents = 1024

// NewReader opens rings. The interval is the age an event can reach before it is read.
func NewReader(rings *Rings, interval time.Duration, stats *Stats) (*Reader, error) {
	opened, err := openChain(rings)
	if err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	reader := &Reader{ring: opened, interval: interval, stats: stats}
	reader.position.Store(opened.released())
	if err := reader.poll(rings.Now.FD()); err != nil {
		return nil, errors.Join(fmt.Errorf("open ring: wait for it: %w", err), opened.close())
	}
	return reader, nil
}

func (r *Reader) poll(ring int) error {
	fd, err := unix.FcntlInt(uintptr(ring), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else the runtime does not poll it
		unix.Close(fd)
		return err
	}
	r.wake = os.NewFile(uintptr(fd), "ring")
	if r.conn, err = r.wake.SyscallConn(); err == nil {
		err = r.wake.SetReadDeadline(time.Time{})
	}
	if err != nil {
		r.wake.Close()
	}
	return err
}

// Tell has Position hear how far the ring was read by whoever read it before.
func (r *Reader) Tell() {
	r.open.RLock()
	defer r.open.RUnlock()
	if r.ring != nil && r.Position != nil {
		r.Position(r.ring.inNow(max(r.Counted, r.position.Load())))
	}
}

// Settle is called before Run, when nobody writes to an old ring any more.
func (r *Reader) Settle() {
	r.open.Lock()
	defer r.open.Unlock()
	if r.ring != nil {
		r.ring.settle()
	}
}

// Pending returns how many bytes in the ring are not read yet. Safe for concurrent use.
func (r *Reader) Pending() int {
	r.open.RLock()
	defer r.open.RUnlock()
	if r.ring == nil {
		return 0
	}
	return int(r.ring.written() - r.position.Load())
}

// Close ends a Run and frees the ring's mapping. Safe twice.
func (r *Reader) Close() error {
	_ = r.wake.Close() // twice is no harm
	r.open.Lock()
	defer r.open.Unlock()
	if r.ring == nil {
		return nil
	}
	err := r.ring.close()
	r.ring = nil
	return err
}

// Drain returns when everything that was submitted before the call was handled, or when Run has ended. Safe for concurrent use.
func (r *Reader) Drain(ctx context.Context) error {
	w := waiter{r.Written(), make(chan struct{})}
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return nil
	}
	r.asked = append(r.asked, w)
	r.mu.Unlock()
	r.poke()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Written is how far the ring was written; 0 once it is closed. Safe for concurrent use.
func (r *Reader) Written() uint64 {
	r.open.RLock()
	defer r.open.RUnlock()
	if r.ring == nil {
		return 0
	}
	return r.ring.written()
}

// arm is called before the ring is read: who asked before has what he waits for when that was handed on.
func (r *Reader) arm() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.armed = append(r.armed, r.asked...)
	r.asked = nil
}

// answer is called when all before a position was handed on.
func (r *Reader) answer(position uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.armed = slices.DeleteFunc(r.armed, func(w waiter) bool {
		if w.until > position {
			return false
		}
		close(w.done)
		return true
	})
}

// asks says whether somebody asked since arm.
func (r *Reader) asks() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.asked) > 0
}

// awaited says whether somebody waits.
func (r *Reader) awaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.armed)+len(r.asked) > 0
}

func (r *Reader) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for _, w := range append(r.armed, r.asked...) {
		close(w.done)
	}
	r.armed, r.asked = nil, nil
}

// Run reads until the context ends, then reads what is pending at that moment, and returns nil.
func (r *Reader) Run(ctx context.Context, h Handler) error {
	stop := context.AfterFunc(ctx, r.poke)
	defer stop()
	defer r.end()
	const everything = ^uint64(0)
	slept, until := false, uint64(everything)
	for {
		// Looked at before the ring is: what was submitted before the end was asked for is read, and no more, because programs that stay go on.
		stopping := ctx.Err() != nil
		if stopping && until == everything {
			until = r.Written()
		}
		r.arm()
		found, empty, open := r.drain(ctx, h, until)
		if !open {
			h.HandleDrained(false)
			return nil
		}
		r.open.RLock()
		if r.ring != nil {
			r.handled(h, empty)
		}
		r.open.RUnlock()
		if stopping && r.position.Load() >= until {
			return nil
		}
		if !empty || stopping || r.awaited() {
			runtime.Gosched() // an event is about to be there
			continue
		}
		// A sleep is followed by a look after one interval at least: the handler may have begun something that it ends then.
		if slept = !found && !slept && r.sleep(); slept {
			r.wait(r.MostAsleep)
			_ = r.Asleep(false) // it worked before
		} else {
			r.wait(r.interval)
		}
	}
}

// drain reads the ring empty, or up to a position, and says whether there was anything in it, whether it is empty, and whether it is still open. It comes back
// before that when somebody waits for something else.
func (r *Reader) drain(ctx context.Context, h Handler, until uint64) (found, empty, open bool) {
	r.open.RLock()
	defer r.open.RUnlock()
	if r.ring == nil {
		return false, false, false
	}
	stopping := ctx.Err() != nil
	pending := 0
	for position := r.position.Load(); ; {
		sample, after := r.ring.next(position)
		if after == position {
			return found, true, true
		}
		if position >= until {
			return found, false, true
		}
		position = after
		r.position.Store(position)
		if sample == nil {
			continue
		}
		found = true
		r.handle(h, sample, position)
		if pending++; pending == batchEvents {
			pending = 0
			if !stopping && ctx.Err() != nil || r.asks() {
				return found, false, true
			}
			r.handled(h, false)
		}
	}
}

// handle takes the record that ends at a position.
func (r *Reader) handle(h Handler, sample []byte, position uint64) {
	if position <= r.Counted {
		again, ok := h.(AgainHandler)
		if ok && Decode(sample, &r.event) == nil {
			again.HandleAgain(&r.event, position)
		}
		return
	}
	r.stats.Received.Add(1)
	if r.Tap != nil {
		r.Tap(sample)
	}
	if err := Decode(sample, &r.event); err != nil {
		r.stats.DecodeFailed.Add(1)
		return
	}
	r.stats.Decoded[r.event.Kind].Add(1)
	h.HandleEvent(&r.event)
}

// handled hands on a batch, and gives back the room of those that have left. The ring is held open.
func (r *Reader) handled(h Handler, empty bool) {
	h.HandleDrained(empty)
	position := r.position.Load()
	if r.Position != nil {
		r.Position(r.ring.inNow(position))
	}
	released := position
	if r.Progress != nil {
		r.Progress.Handled(position)
		released = r.release(position)
	}
	if released > r.ring.released() || r.ring.spent(released) {
		r.ring.release(released)
	}
	r.answer(position)
}

// Release gives back the room of what was read up to a position, whatever Progress says. Call it when Run has ended.
func (r *Reader) Release(position uint64) {
	r.open.RLock()
	defer r.open.RUnlock()
	if r.ring == nil {
		return
	}
	to := r.ring.released()
	for _, p := range append(r.held, r.position.Load()) {
		if p <= position {
			to = max(to, p)
		}
	}
	r.ring.release(to)
}

// release returns up to where the ring's room is given back: what was handed on, and all but half of the ring in any case.
func (r *Reader) release(position uint64) uint64 {
	if n := len(r.held); n == 0 || r.held[n-1] != position {
		r.held = append(r.held, position)
	}
	to := r.Progress.HandedOn()
	to = max(to, r.ring.most(position))
	released := r.ring.released()
	gone := 0
	for _, p := range r.held {
		if p > to {
			break
		}
		released = max(released, p)
		gone++
	}
	r.held = append(r.held[:0], r.held[gone:]...)
	return released
}

// sleep tells the kernel that the reader goes to sleep, and says whether it may. A program that has an event commits it before it looks
// whether the reader sleeps, and the reader says that it sleeps before it looks whether there is an event: so one sees the other.
func (r *Reader) sleep() bool {
	if r.Asleep == nil || r.MostAsleep <= r.interval || r.Asleep(true) != nil {
		return false
	}
	r.fence.Swap(1) // no load below is done before the store above
	if r.Pending() > 0 {
		_ = r.Asleep(false) // it worked before
		return false
	}
	return true
}

// wait returns when the kernel wakes the reader, when someone pokes it, or after a time.
func (r *Reader) wait(most time.Duration) {
	r.mu.Lock()
	if poked := r.poked; poked || r.wake.SetReadDeadline(time.Now().Add(most)) != nil {
		r.poked = false
		r.mu.Unlock()
		return // closed, if not poked: the ring tells
	}
	r.mu.Unlock()
	waited := false
	// Whatever ends it, the ring is looked at.
	_ = r.conn.Read(func(uintptr) bool {
		// What came since the last look, and has woken this file before it was waited for, does not do so again.
		done := waited || r.Pending() > 0
		waited = true
		return done
	})
	// Why it was poked till now is seen before the next wait.
	r.mu.Lock()
	r.poked = false
	r.mu.Unlock()
}

// poke ends a wait, the one that is under way or else the next. Safe for concurrent use.
func (r *Reader) poke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.poked = true
	_ = r.wake.SetReadDeadline(time.Unix(1, 0)) // fails only when it is closed, which ends waits too
}
