// Package tail shows the access log to whoever asks, as it is written: the same lines, those that a filter lets through.
//
// Nothing that a reader does can be felt by the pipeline. It puts the slices of a batch into a bounded queue, without looking at them; a goroutine of
// the reader's filters and encodes them into a bounded buffer, which another one writes with no lock held. What does not fit is lost to that reader,
// counted, and told to it. While nobody reads, a batch costs one load.
package tail

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/accesslog"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/filter"
)

// Bounds of one reader, and of all.
const (
	mostRecords = 1 << 14 // that wait for the filter: some 8 MB, a tenth of a second of what a node can do
	mostBytes   = 1 << 20 // of lines that wait to be written
	mostPiece   = 1 << 16 // of lines that are written at once, unless one is longer
	mostReaders = 16
	mostGuests  = mostReaders - 1 // so that there is a place for the owner
	mostOfGuest = 4               // of the same user
)

// LostEvent is the event name of a line that tells how many lines its reader lost before it.
const LostEvent = "sidelight.tail.lost"

// ErrMany says that there are as many readers as may be, and ErrManyOfYours that one user has as many as he may.
var (
	ErrMany        = fmt.Errorf("%d read already; wait until one ends", mostReaders)
	ErrManyOfYours = fmt.Errorf("%d of yours read already; end one", mostOfGuest)
)

// Tail is a pipeline.Sink of connections that ended. Safe for concurrent use.
type Tail struct {
	boot    attribute.Boot
	readers atomic.Pointer[[]*reader] // nil: none
	lost    atomic.Uint64

	mu     sync.Mutex // of who comes and goes
	ending chan struct{}
	end    sync.Once
}

// New returns a tail that nobody reads.
func New(boot attribute.Boot) *Tail { return &Tail{boot: boot, ending: make(chan struct{})} }

// Watched says whether anybody reads.
func (t *Tail) Watched() bool { return t.readers.Load() != nil }

// Readers returns how many read, and how many lines they have lost since the start, with those of readers that are gone.
func (t *Tail) Readers() (readers int, lost uint64) {
	if all := t.readers.Load(); all != nil {
		readers = len(*all)
	}
	return readers, t.lost.Load()
}

// Consume shows a batch to the readers. It waits for none of them.
func (t *Tail) Consume(batch []enrich.Record) {
	all := t.readers.Load()
	if all == nil {
		return
	}
	for _, r := range *all {
		t.lost.Add(r.offer(batch))
	}
}

// Close ends all readers, when they have what there is for them.
func (t *Tail) Close() { t.end.Do(func() { close(t.ending) }) }

// Stream is where lines go.
type Stream interface {
	io.Writer
	// Flush makes what was written visible to the reader.
	Flush() error
	// Abort makes a Write or Flush that hangs end soon; it is called during one.
	Abort()
}

// Options of one reader.
type Options struct {
	Filter *filter.Expression // nil: everything
	// Names adds the names of both ends to each line, for who shows them.
	Names bool
	// Guest is the id of a user who is not the agent's owner; 0: it is the owner.
	Guest uint32
}

// Follow writes lines until the context ends, the stream fails or Close is called. started is called when from now on nothing is missed.
func (t *Tail) Follow(ctx context.Context, to Stream, o Options, started func() error) error {
	r := newReader(t, o)
	if err := t.enter(r); err != nil {
		return err
	}
	defer t.leave(r)
	if err := started(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() { r.filter(ctx, t.ending) })
	helpers.Go(func() { r.hurry(over, t.ending, to) })
	defer helpers.Wait()
	defer cancel() // before they are waited for
	defer close(over)
	return r.write(ctx, to)
}

// patience is how long a write may hang when the agent stops. It is looked at several times, so that a machine that stands still is not taken for a reader
// who does.
const (
	patience = 100 * time.Millisecond
	looks    = 5
)

// hurry sees to it that who stops the agent does not wait for a reader that does not read: it aborts a write that hangs. One that goes on is let go on.
func (r *reader) hurry(over, ending <-chan struct{}, to Stream) {
	select {
	case <-ending:
	case <-over:
		return
	}
	last, seen := uint64(0), 0
	for {
		if now := r.writes.Load(); now%2 == 0 || now != last {
			last, seen = now, 0
		} else if seen++; seen == looks {
			to.Abort()
			return
		}
		select {
		case <-over:
			return
		case <-time.After(patience / looks):
		}
	}
}

func (t *Tail) enter(r *reader) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.ending:
		return errors.New("the agent stops")
	default:
	}
	var all []*reader
	if now := t.readers.Load(); now != nil {
		all = *now
	}
	guests, yours := 0, 0
	for _, o := range all {
		if o.guest != 0 {
			guests++
			if o.guest == r.guest {
				yours++
			}
		}
	}
	switch {
	case len(all) == mostReaders || r.guest != 0 && guests == mostGuests:
		return ErrMany
	case yours == mostOfGuest:
		return ErrManyOfYours
	}
	all = append(slices.Clone(all), r)
	t.readers.Store(&all)
	return nil
}

func (t *Tail) leave(r *reader) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(*t.readers.Load()), func(o *reader) bool { return o == r })
	if len(all) == 0 {
		t.readers.Store(nil)
		return
	}
	t.readers.Store(&all)
}

// reader is one who reads.
type reader struct {
	tail    *Tail
	matcher *matcher // nil: everything
	names   bool
	guest   uint32
	writes  atomic.Uint64 // odd: one is under way

	offered chan struct{} // something is in batches
	mu      sync.Mutex
	batches [][]enrich.Record
	records int
	missed  uint64 // records that found no room, and nobody knows whether the filter would have let them through

	encoded chan struct{} // something is in lines, or lost
	out     sync.Mutex    // never held while writing
	lines   []byte
	lost    uint64 // after these
	done    bool   // there will be no more
}

func newReader(t *Tail, o Options) *reader {
	r := &reader{tail: t, names: o.Names, guest: o.Guest, offered: make(chan struct{}, 1), encoded: make(chan struct{}, 1)}
	if o.Filter != nil {
		r.matcher = newMatcher(o.Filter, t.boot)
	}
	return r
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// offer takes as much of a batch as there is room for, and returns how many records found none.
func (r *reader) offer(batch []enrich.Record) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := min(mostRecords-r.records, len(batch))
	missed := uint64(len(batch) - room)
	r.missed += missed
	if room > 0 {
		r.batches = append(r.batches, batch[:room])
		r.records += room
	}
	signal(r.offered)
	return missed
}

// filter encodes what the filter lets through.
func (r *reader) filter(ctx context.Context, ending <-chan struct{}) {
	defer func() {
		r.out.Lock()
		r.done = true
		r.out.Unlock()
		signal(r.encoded)
	}()
	var line []byte
	for {
		last := false
		select {
		case <-r.offered:
		case <-ctx.Done():
			return
		case <-ending:
			last = true
		}
		r.mu.Lock()
		batches, missed := r.batches, r.missed
		r.batches, r.records, r.missed = nil, 0, 0
		r.mu.Unlock()
		for _, batch := range batches {
			for i := range batch {
				if ctx.Err() != nil {
					return // it is gone, and an expression can take its time
				}
				if r.matcher == nil || r.matcher.match(&batch[i]) {
					line = r.append(line[:0], &batch[i])
					r.put(line)
				}
			}
		}
		if missed > 0 {
			r.lose(missed)
		}
		if last {
			return
		}
	}
}

// append makes a line.
func (r *reader) append(line []byte, record *enrich.Record) []byte {
	line = accesslog.AppendLine(line, r.tail.boot, record)
	if !r.names {
		return line
	}
	return accesslog.AppendNames(line, record)
}

// put takes a line, unless it has to wait for too many others.
func (r *reader) put(line []byte) {
	r.out.Lock()
	if len(r.lines)+len(line)+mostNote > mostBytes {
		r.lost++
		r.tail.lost.Add(1)
	} else {
		r.lines = append(r.note(r.lines), line...)
	}
	r.out.Unlock()
	signal(r.encoded)
}

// mostNote is the length of the longest line of note.
const mostNote = 128

// note says behind lines how many were lost after them, if any were. It is called with r.out.
func (r *reader) note(lines []byte) []byte {
	if r.lost > 0 {
		lines = fmt.Appendf(lines, "{\"event.name\":%q,\"sidelight.lost\":%d}\n", LostEvent, r.lost)
		r.lost = 0
	}
	return lines
}

// lose counts what found no room before the filter.
func (r *reader) lose(missed uint64) {
	r.out.Lock()
	r.lost += missed
	r.out.Unlock()
	signal(r.encoded)
}

// write writes what was encoded until there will be no more.
func (r *reader) write(ctx context.Context, to Stream) error {
	var buf []byte
	for {
		select {
		case <-r.encoded:
		case <-ctx.Done():
			return nil
		}
		r.out.Lock()
		buf, r.lines = r.note(r.lines), buf[:0]
		done := r.done
		r.out.Unlock()
		if len(buf) > 0 {
			// In pieces, so that it shows who reads slowly and who does not read.
			for rest := buf; len(rest) > 0; {
				n := pieceOf(rest)
				r.writes.Add(1)
				_, err := to.Write(rest[:n])
				if r.writes.Add(1); err != nil {
					return err
				}
				rest = rest[n:]
			}
			r.writes.Add(1)
			err := to.Flush()
			if r.writes.Add(1); err != nil {
				return err
			}
		}
		if done {
			return nil
		}
	}
}

// pieceOf is how much of lines is written at once: whole ones, for who reads them as they come.
func pieceOf(lines []byte) int {
	if len(lines) <= mostPiece {
		return len(lines)
	}
	end := bytes.LastIndexByte(lines[:mostPiece], '\n')
	if end < 0 {
		end = bytes.IndexByte(lines, '\n')
	}
	return end + 1
}

func hexadecimal(b []byte) string { return hex.EncodeToString(b) }
