// Package queue holds records between the pipeline, which must not wait, and a consumer that may have to.
package queue

import (
	"context"
	"slices"
	"sync"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Queue is bounded by the number of records. What does not fit is dropped and counted, the newest first. Safe for concurrent use.
type Queue struct {
	limit int
	ready chan struct{}
	waits bool       // rather than drops
	room  *sync.Cond // of mu, signalled when there is some

	mu      sync.Mutex
	batches [][]enrich.Record
	records int
	held    int // records that Next gave and Done did not hear of
	dropped uint64
	marks   []mark // in the order of their records
	taken   uint64 // records, ever
	done    uint64 // of these
	marked  uint64 // the last mark of which all are
	// markedTaken is how many records there were at that mark.
	markedTaken uint64
	closed      bool

	fair bool
	// shares counts the records in the queue by workload, while more than half of it is used; nil else.
	shares map[*enrich.Workload]int
}

// New returns a queue of at most limit records.
func New(limit int) *Queue {
	q := &Queue{limit: limit, ready: make(chan struct{}, 1)}
	q.room = sync.NewCond(&q.mu)
	return q
}

// Wait makes Consume wait for room rather than drop: for a source that is not in a hurry. To be called before all else.
func (q *Queue) Wait() { q.waits = true }

// NewFair returns a queue in which one workload cannot take the room of all others: its second half is for those that hold less than
// an equal part of it. Of a batch what has a right to the room goes in.
func NewFair(limit int) *Queue {
	q := New(limit)
	q.fair = true
	return q
}

// Consume puts a batch in, unless the queue is fair whole or not at all: it makes the queue a pipeline.Sink.
func (q *Queue) Consume(batch []enrich.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	// A batch that is larger than the queue goes in alone.
	for q.waits && !q.closed && q.records > 0 && q.records+len(batch) > q.limit {
		q.room.Wait()
	}
	if q.fair && !q.waits && !q.closed && q.records+len(batch) > q.limit/2 {
		offered := len(batch)
		batch = q.admit(batch)
		q.dropped += uint64(offered - len(batch))
		if len(batch) == 0 {
			return
		}
	}
	if q.closed || !q.waits && q.records+len(batch) > q.limit {
		q.dropped += uint64(len(batch))
		return
	}
	q.batches = append(q.batches, batch)
	q.records += len(batch)
	q.taken += uint64(len(batch))
	q.signal()
}

// admit returns the records of a batch that have a right to the room that is left. It is the batch itself if all of them have.
func (q *Queue) admit(batch []enrich.Record) []enrich.Record {
	if q.shares == nil {
		q.shares = make(map[*enrich.Workload]int)
		for _, b := range q.batches {
			for i := range b {
				q.shares[b[i].Identity.Local]++
			}
		}
	}
	room, refused := q.limit-q.records, 0
	var admitted []enrich.Record
	for i := range batch {
		w := batch[i].Identity.Local
		held := q.shares[w]
		others := len(q.shares)
		if held == 0 {
			others++
		}
		if used := i - refused; used < room && (q.records+used < q.limit/2 || held < max(1, q.limit/2/others)) {
			q.shares[w] = held + 1
			if refused > 0 {
				admitted = append(admitted, batch[i])
			}
			continue
		}
		if refused == 0 {
			admitted = slices.Clone(batch[:i]) // and no room for the refused: it would wait as long as the admitted
		}
		refused++
	}
	if refused == 0 {
		return batch
	}
	return admitted
}

// Next takes out everything that waits, and waits itself for at least one batch. Until Done it still counts as waiting. After Close it
// gives what is left and then false; when the context ends, false.
func (q *Queue) Next(ctx context.Context) ([][]enrich.Record, bool) {
	for {
		// Read before the queue is: a batch that came before the context ended is not left behind.
		ended := ctx.Err() != nil
		q.mu.Lock()
		batches, closed := q.batches, q.closed
		q.held += q.records
		q.batches, q.records, q.shares = nil, 0, nil
		q.room.Broadcast()
		q.mu.Unlock()
		switch {
		case len(batches) > 0:
			return batches, true
		case closed:
			q.signal() // whoever else waits is to end too
			return nil, false
		case ended:
			return nil, false
		}
		select {
		case <-q.ready:
		case <-ctx.Done():
		}
	}
}

// Done says that so many records of what Next gave are counted elsewhere.
func (q *Queue) Done(records int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held -= records
	q.done += uint64(records)
}

// mark is a position up to which all records are done when so many are.
type mark struct{ taken, position uint64 }

// Mark says that all records before a position are in the queue, or were dropped. Positions only grow.
func (q *Queue) Mark(position uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.marks); n > 0 && q.marks[n-1].taken == q.taken {
		q.marks[n-1].position = position
		return
	}
	q.marks = append(q.marks, mark{q.taken, position})
}

// Marked returns the last position that Mark was told of which nobody has a record any more; 0 without one. Exact says that nobody is done with a
// record of a later position either.
func (q *Queue) Marked() (position uint64, exact bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	gone := 0
	for ; gone < len(q.marks) && q.marks[gone].taken <= q.done; gone++ {
		q.marked, q.markedTaken = q.marks[gone].position, q.marks[gone].taken
	}
	q.marks = append(q.marks[:0], q.marks[gone:]...)
	return q.marked, q.markedTaken == q.done
}

// Close makes Next end once the queue is empty. What comes later is dropped and counted. Safe twice.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.room.Broadcast()
	q.signal()
}

// Dropped counts records that found no room.
func (q *Queue) Dropped() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Waiting is the number of records that nobody is done with: those in the queue and those that Next gave.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.records + q.held
}

func (q *Queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
