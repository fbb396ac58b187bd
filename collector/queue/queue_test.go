package queue

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// batch has records with the given cookies.
func batch(cookies ...uint64) []enrich.Record {
	records := make([]enrich.Record, len(cookies))
	for i, c := range cookies {
		records[i].Event.Key = connection.Key{Cookie: c}
	}
	return records
}

// numbered has n records that count up from first.
func numbered(first, n int) []enrich.Record {
	var cookies []uint64
	for i := range n {
		cookies = append(cookies, uint64(first+i))
	}
	return batch(cookies...)
}

func cookies(batches [][]enrich.Record) []uint64 {
	var all []uint64
	for _, b := range batches {
		for i := range b {
			all = append(all, b[i].Event.Key.Cookie)
		}
	}
	return all
}

func TestABatchGoesInWholeOrNotAtAll(t *testing.T) {
	q := New(5)
	for _, step := range []struct {
		batch        []enrich.Record
		len, dropped int
	}{
		{batch(1, 2, 3), 3, 0},
		{batch(4, 5, 6), 3, 3}, // two would fit
		{batch(7), 4, 3},       // a smaller one still does
		{batch(8), 5, 3},
		{batch(9), 5, 4},
	} {
		q.Consume(step.batch)
		if q.len() != step.len || q.Dropped() != uint64(step.dropped) {
			t.Fatalf("after %v: %d wait, %d dropped; want %d and %d", cookies([][]enrich.Record{step.batch}), q.len(), q.Dropped(), step.len, step.dropped)
		}
	}
	batches, ok := q.Next(t.Context())
	if got := cookies(batches); !ok || len(batches) != 3 || !slices.Equal(got, []uint64{1, 2, 3, 7, 8}) {
		t.Errorf("Next = %v in %d batches, %v; want 1 2 3 7 8 in three", got, len(batches), ok)
	}
	if q.len() != 0 {
		t.Errorf("%d wait after Next, want none", q.len())
	}
	q.Consume(numbered(0, 5))
	q.Consume(numbered(5, 6)) // never fits
	if q.len() != 5 || q.Dropped() != 4+6 {
		t.Errorf("after Next: %d wait, %d dropped; want 5 and 10", q.len(), q.Dropped())
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(10)
		var got []uint64
		done := make(chan bool, 1)
		go func() {
			batches, ok := q.Next(t.Context())
			got = cookies(batches)
			done <- ok
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("Next returned without a batch")
		default:
		}
		q.Consume(batch(1))
		if ok := <-done; !ok || !slices.Equal(got, []uint64{1}) {
			t.Errorf("Next = %v, %v", got, ok)
		}
	})
}

func TestNextAfterCloseGivesTheRestThenFalse(t *testing.T) {
	q := New(10)
	q.Consume(batch(1, 2))
	q.Close()
	q.Close()
	q.Consume(batch(3))
	if q.Dropped() != 1 {
		t.Errorf("%d dropped, want the one that came after Close", q.Dropped())
	}
	if batches, ok := q.Next(t.Context()); !ok || !slices.Equal(cookies(batches), []uint64{1, 2}) {
		t.Errorf("Next = %v, %v; want 1 2", cookies(batches), ok)
	}
	for range 2 {
		if batches, ok := q.Next(t.Context()); ok || batches != nil {
			t.Errorf("Next = %v, %v; want nothing", batches, ok)
		}
	}
}

func TestCloseWakesEveryoneWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(10)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if batches, ok := q.Next(t.Context()); ok {
					t.Errorf("Next = %v, true; want false", batches)
				}
			})
		}
		synctest.Wait()
		q.Close()
		wg.Wait()
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	q := New(10)
	done := make(chan bool)
	go func() {
		_, ok := q.Next(ctx)
		done <- ok
	}()
	cancel()
	if <-done {
		t.Error("Next = true after its context ended")
	}
	q.Consume(batch(1))
	if batches, ok := q.Next(ctx); !ok || !slices.Equal(cookies(batches), []uint64{1}) {
		t.Errorf("Next = %v, %v; what waits comes before the end of the context", cookies(batches), ok)
	}
	if _, ok := q.Next(ctx); ok {
		t.Error("Next = true with nothing to give")
	}
}

// sleepless is a context that ends in the moment when Next goes to sleep, after a last batch came.
type sleepless struct {
	context.Context
	beforeSleep func()
}

func (c sleepless) Done() <-chan struct{} {
	c.beforeSleep()
	return c.Context.Done()
}

func TestNothingIsLeftWhenTheContextEndsAfterConsume(t *testing.T) {
	// Both the batch and the end wake Next, and it is woken by either at random.
	for range 100 {
		q := New(10)
		ctx, cancel := context.WithCancel(t.Context())
		batches, ok := q.Next(sleepless{ctx, func() {
			q.Consume(batch(1))
			cancel()
		}})
		if !ok || !slices.Equal(cookies(batches), []uint64{1}) {
			t.Fatalf("Next = %v, %v, and %d left behind; want 1", cookies(batches), ok, q.len())
		}
	}
}

func TestConcurrentUseLosesNothing(t *testing.T) {
	const writers, rounds, size = 4, 500, 3
	q := New(100)
	var writing, reading sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range rounds {
				q.Consume(numbered((w*rounds+i)*size, size))
				_, _ = q.len(), q.Dropped()
			}
		})
	}
	var mu sync.Mutex
	seen := make(map[uint64]int)
	for range 2 {
		reading.Go(func() {
			for {
				batches, ok := q.Next(t.Context())
				if !ok {
					return
				}
				mu.Lock()
				for _, c := range cookies(batches) {
					seen[c]++
				}
				mu.Unlock()
			}
		})
	}
	writing.Wait()
	q.Close()
	reading.Wait()
	for c, n := range seen {
		if n != 1 {
			t.Errorf("record %d came %d times", c, n)
		}
	}
	if total := uint64(len(seen)) + q.Dropped(); total != writers*rounds*size {
		t.Errorf("%d taken and %d dropped, want %d together", len(seen), q.Dropped(), writers*rounds*size)
	}
}

// TestWait fills a queue that waits: nothing is dropped, a batch that is larger than the queue goes in alone, and Close lets go.
func TestWait(t *testing.T) {
	const limit, batches = 10, 200
	q := New(limit)
	q.Wait()
	sizes := []int{1, 3, 10, 25}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range batches {
			q.Consume(make([]enrich.Record, sizes[i%len(sizes)]))
		}
	}()
	var got []int
	for len(got) < batches {
		taken, ok := q.Next(t.Context())
		if !ok {
			t.Fatal("it ended")
		}
		records := 0
		for _, batch := range taken {
			got = append(got, len(batch))
			records += len(batch)
		}
		if records > limit && len(taken) > 1 {
			t.Fatalf("%d records waited in %d batches, the limit is %d", records, len(taken), limit)
		}
	}
	<-done
	for i, n := range got {
		if n != sizes[i%len(sizes)] {
			t.Fatalf("batch %d has %d records", i, n)
		}
	}
	if q.Dropped() != 0 {
		t.Errorf("%d were dropped", q.Dropped())
	}
	q.Consume(make([]enrich.Record, limit))
	let := make(chan struct{})
	go func() {
		defer close(let)
		q.Consume(make([]enrich.Record, 2))
	}()
	q.Close()
	<-let
	if q.Dropped() != 2 {
		t.Errorf("%d were dropped at the end, want 2", q.Dropped())
	}
}

func TestWhatNextGaveWaitsUntilDone(t *testing.T) {
	q := New(5)
	q.Consume(batch(1, 2, 3))
	if _, ok := q.Next(t.Context()); !ok || q.Waiting() != 3 || q.len() != 0 {
		t.Errorf("%d wait, %d in the queue; want 3 and none", q.Waiting(), q.len())
	}
	q.Consume(numbered(4, 5)) // there is room for as many as ever
	q.Done(2)
	if q.Waiting() != 6 || q.Dropped() != 0 {
		t.Errorf("%d wait, %d dropped; want 6 and none", q.Waiting(), q.Dropped())
	}
}

// len is the number of records in the queue.
func (q *Queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.records
}
