// Package queue holds records between the pipeline, which must not wait, and a consumer that may have to.
package queue

import (
	"context"
	"sync"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// Queue is bounded by the number of records. What does not fit is dropped and counted, the newest first. Safe for concurrent
// use.
type Queue struct {
	limit int
	ready chan struct{}
	waits bool       // rather than drops
	room  *sync.Cond // of mu, signalled when there is some

	mu      sync.Mutex
	batches [][]enrich.Record
	records int
	dropped uint64
	closed  bool
}

// New returns a queue of at most limit records.
func New(limit int) *Queue {
	q := &Queue{limit: limit, ready: make(chan struct{}, 1)}
	q.room = sync.NewCond(&q.mu)
	return q
}

// Wait makes Consume wait for room rather than drop: for a source that is not in a hurry. To be called before all else.
func (q *Queue) Wait() { q.waits = true }

// Consume puts a batch in, whole or not at all: it makes the queue a pipeline.Sink.
func (q *Queue) Consume(batch []enrich.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	// A batch that is larger than the queue goes in alone.
	for q.waits && !q.closed && q.records > 0 && q.records+len(batch) > q.limit {
		q.room.Wait()
	}
	if q.closed || !q.waits && q.records+len(batch) > q.limit {
		q.dropped += uint64(len(batch))
		return
	}
	q.batches = append(q.batches, batch)
	q.records += len(batch)
	q.signal()
}

// Next takes out everything that waits, and waits itself for at least one batch. After Close it gives what is left and then
// false; when the context ends, false.
func (q *Queue) Next(ctx context.Context) ([][]enrich.Record, bool) {
	for {
		// Read before the queue is: a batch that came before the context ended is not left behind.
		ended := ctx.Err() != nil
		q.mu.Lock()
		batches, closed := q.batches, q.closed
		q.batches, q.records = nil, 0
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

// Len is the number of records that wait.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.records
}

func (q *Queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
