package event

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

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

// Reader drains a ring. The kernel wakes it only when much is pending; otherwise it looks by itself every interval.
type Reader struct {
	// Tap, if set before Run, gets the bytes of every record before they are decoded. They are valid during the call only.
	Tap func(raw []byte)

	ring     *ringbuf.Reader
	interval time.Duration
	stats    *Stats

	mu sync.Mutex
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
	return &Reader{ring: r, interval: interval, stats: stats}, nil
}

// Pending returns how many bytes wait in the ring. Safe for concurrent use.
func (r *Reader) Pending() int { return r.ring.AvailableBytes() }

// Close ends a Run and frees the ring's mapping.
func (r *Reader) Close() error { return r.ring.Close() }

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
	if err := r.ring.Flush(); err != nil {
		return fmt.Errorf("flush ring: %w", err)
	}
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
	// Flush makes the ring give what it holds and then ErrFlushed; it fails only when the ring is closed, which ends Run too.
	stop := context.AfterFunc(ctx, func() { _ = r.ring.Flush() })
	defer stop()
	defer r.end()
	var record ringbuf.Record
	var event connection.Event
	pending, stopping := 0, false
	r.ring.SetDeadline(time.Now().Add(r.interval))
	for {
		switch err := r.ring.ReadInto(&record); {
		case err == nil:
			r.stats.Received.Add(1)
			if r.Tap != nil {
				r.Tap(record.RawSample)
			}
			if err := Decode(record.RawSample, &event); err != nil {
				r.stats.DecodeFailed.Add(1)
				continue
			}
			r.stats.Decoded[event.Kind].Add(1)
			h.HandleEvent(&event)
			if pending++; pending == batchEvents {
				pending = 0
				h.HandleDrained(false)
			}
		// Submits without a wake-up leave the poll asleep: the library reads the ring empty before it reports either.
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ringbuf.ErrFlushed):
			pending = 0
			h.HandleDrained(true)
			if stopping {
				return nil
			}
			// Once more after the end was asked for: this look may have been before it.
			stopping = ctx.Err() != nil
			if r.empty() || stopping {
				_ = r.ring.Flush()
			}
			r.ring.SetDeadline(time.Now().Add(r.interval))
		case errors.Is(err, ringbuf.ErrClosed):
			h.HandleDrained(false)
			return nil
		default:
			return fmt.Errorf("read ring: %w", err)
		}
	}
}
