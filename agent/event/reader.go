package event

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
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

// Reader drains a ring. While there are events the kernel wakes it only when much is pending; otherwise it looks by itself every interval. When
// an interval went by without any, it goes to sleep until the kernel wakes it for the next.
type Reader struct {
	// Tap, if set before Run, gets the bytes of every record before they are decoded. They are valid during the call only.
	Tap func(raw []byte)
	// Asleep, if set before Run, tells the kernel whether the reader is asleep. Without it the reader never is.
	Asleep func(bool) error
	// MostAsleep is how long it sleeps at most, so that HandleDrained is called now and then.
	MostAsleep time.Duration

	ring     *ringbuf.Reader
	interval time.Duration
	stats    *Stats
	// wake is the ring once more, in the runtime's own poller: to wait there takes no thread, and no other to look after that one.
	wake *os.File
	conn syscall.RawConn
	// Of Run only.
	record ringbuf.Record
	event  connection.Event
	fence  atomic.Uint32

	mu    sync.Mutex
	poked bool // the next wait is to end at once
	// Who waits in Drain: asked is not yet seen by Run, armed waits for the next time the ring is found empty.
	asked, armed []chan struct{}
	ended        bool
}

// batchEvents bounds how many events go by before HandleDrained is called on a ring that is never empty.
const batchEvents = 1024

// NewReader opens the ring. The interval is the age an event can reach before it is read.
func NewReader(ring *ebpf.Map, interval time.Duration, stats *Stats) (*Reader, error) {
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	r.SetDeadline(time.Unix(1, 0)) // it never waits: it reads what is there
	reader := &Reader{ring: r, interval: interval, stats: stats}
	if err := reader.poll(ring.FD()); err != nil {
		r.Close()
		return nil, fmt.Errorf("open ring: wait for it: %w", err)
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

// Pending returns how many bytes wait in the ring. Safe for concurrent use.
func (r *Reader) Pending() int { return r.ring.AvailableBytes() }

// Close ends a Run and frees the ring's mapping.
func (r *Reader) Close() error {
	_ = r.wake.Close() // twice is no harm
	return r.ring.Close()
}

// Drain returns when everything that was submitted before the call was handled, or when Run has ended. Safe for concurrent use.
func (r *Reader) Drain(ctx context.Context) error {
	done := make(chan struct{})
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return nil
	}
	r.asked = append(r.asked, done)
	r.mu.Unlock()
	r.poke()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// empty is called when the ring was found empty. It answers who asked before the reading began that found it so, and says
// whether someone asked since.
func (r *Reader) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, done := range r.armed {
		close(done)
	}
	r.armed, r.asked = r.asked, nil
	return len(r.armed) > 0
}

func (r *Reader) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for _, done := range append(r.armed, r.asked...) {
		close(done)
	}
	r.armed, r.asked = nil, nil
}

// Run reads until the context ends, then reads what is pending at that moment, and returns nil.
func (r *Reader) Run(ctx context.Context, h Handler) error {
	stop := context.AfterFunc(ctx, r.poke)
	defer stop()
	defer r.end()
	slept := false
	for {
		// Looked at before the ring is: what was submitted before the end was asked for is read.
		stopping := ctx.Err() != nil
		found, err := r.drain(h)
		if errors.Is(err, ringbuf.ErrClosed) {
			h.HandleDrained(false)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ring: %w", err)
		}
		h.HandleDrained(true)
		asked := r.empty()
		if stopping {
			return nil
		}
		if asked {
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

// drain reads the ring empty, and says whether there was anything in it.
func (r *Reader) drain(h Handler) (found bool, err error) {
	pending := 0
	for {
		switch err := r.ring.ReadInto(&r.record); {
		case err == nil:
			found = true
			r.stats.Received.Add(1)
			if r.Tap != nil {
				r.Tap(r.record.RawSample)
			}
			if err := Decode(r.record.RawSample, &r.event); err != nil {
				r.stats.DecodeFailed.Add(1)
				continue
			}
			r.stats.Decoded[r.event.Kind].Add(1)
			h.HandleEvent(&r.event)
			if pending++; pending == batchEvents {
				pending = 0
				h.HandleDrained(false)
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return found, nil
		default:
			return found, err
		}
	}
}

// sleep tells the kernel that the reader goes to sleep, and says whether it may. A program that has an event commits it before it looks
// whether the reader sleeps, and the reader says that it sleeps before it looks whether there is an event: so one sees the other.
func (r *Reader) sleep() bool {
	if r.Asleep == nil || r.MostAsleep <= r.interval || r.Asleep(true) != nil {
		return false
	}
	r.fence.Swap(1) // no load below is done before the store above
	if r.ring.AvailableBytes() > 0 {
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
		done := waited
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
