package queue

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// of gives records a workload.
func of(w *enrich.Workload, batch []enrich.Record) []enrich.Record {
	for i := range batch {
		batch[i].Identity.Local = w
	}
	return batch
}

// count is how many records of each workload Next gives.
func count(t *testing.T, q *Queue) map[*enrich.Workload]int {
	t.Helper()
	batches, ok := q.Next(t.Context())
	if !ok {
		t.Fatal("nothing")
	}
	counts := make(map[*enrich.Workload]int)
	for _, b := range batches {
		for i := range b {
			counts[b[i].Identity.Local]++
		}
	}
	return counts
}

func TestAFloodLeavesRoomForTheOthers(t *testing.T) {
	flood, quiet := &enrich.Workload{Name: "flood"}, &enrich.Workload{Name: "quiet"}
	q := NewFair(100)
	for round := range 2 { // what Next gave is forgotten
		for i := range 20 {
			q.Consume(of(flood, numbered(0, 30)))
			q.Consume(slices.Concat(of(flood, numbered(0, 3)), of(quiet, numbered(i, 1)), of(flood, numbered(0, 3))))
		}
		got := count(t, q)
		// The first half is of whoever comes first: one of the quiet one is in it.
		if got[quiet] != 20 || got[flood] != 49 {
			t.Errorf("%d of the quiet one and %d of the flood, want all 20 and the rest of the first half", got[quiet], got[flood])
		}
		if want := uint64((round + 1) * (20*36 - 49)); q.Dropped() != want {
			t.Errorf("%d dropped, want %d", q.Dropped(), want)
		}
	}
}

func TestAQueueThatIsNotFairIsOfWhoComesFirst(t *testing.T) {
	q := New(100)
	q.Consume(of(&enrich.Workload{}, numbered(0, 100)))
	q.Consume(of(&enrich.Workload{}, numbered(0, 1)))
	if q.Dropped() != 1 || q.len() != 100 {
		t.Errorf("%d dropped of 101, %d wait", q.Dropped(), q.len())
	}
}

func TestAFairQueueLeavesTheBatchAlone(t *testing.T) {
	// It is shared with other sinks.
	a, b := &enrich.Workload{Name: "a"}, &enrich.Workload{Name: "b"}
	q := NewFair(10)
	batch := slices.Concat(of(a, numbered(0, 8)), of(b, numbered(8, 4)), of(a, numbered(12, 2)))
	kept := slices.Clone(batch)
	q.Consume(batch)
	if !slices.Equal(batch, kept) {
		t.Error("the batch was changed")
	}
	batches, _ := q.Next(t.Context())
	if got := cookies(batches); !slices.Equal(got, []uint64{0, 1, 2, 3, 4, 8, 9}) || q.Dropped() != 7 {
		t.Errorf("%v, %d dropped; want 5 of the first workload, 2 of the second, in their order", got, q.Dropped())
	}
}

// TestFairQueueCountsEverything with random workloads: what goes in and what is dropped add up, the limit holds, and a workload is
// refused only when it has its part or the queue is full.
func TestFairQueueCountsEverything(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		limit := 2 + random.IntN(60)
		workloads := make([]enrich.Workload, 1+random.IntN(8))
		q, offered, taken := NewFair(limit), 0, 0
		wanted := make(map[*enrich.Workload]int)
		for range random.IntN(30) {
			batch := numbered(0, random.IntN(20))
			for i := range batch {
				w := &workloads[min(random.IntN(len(workloads)), random.IntN(len(workloads)))]
				batch[i].Identity.Local = w
				wanted[w]++
			}
			offered += len(batch)
			q.Consume(batch)
			if q.len() > limit {
				t.Fatalf("%d wait, the limit is %d", q.len(), limit)
			}
			if q.len() > 0 && random.IntN(5) == 0 {
				for _, n := range count(t, q) {
					taken += n
				}
				clear(wanted)
			}
		}
		if left := q.len(); left > 0 {
			full := left == limit
			for w, n := range count(t, q) {
				taken += n
				if part := max(1, limit/2/len(wanted)); n < min(part, wanted[w]) && !full {
					t.Fatalf("%d of %d taken of a workload whose part is %d, and %d of %d is used", n, wanted[w], part, left, limit)
				}
			}
		}
		if uint64(offered) != uint64(taken)+q.Dropped() {
			t.Fatalf("%d offered, %d taken, %d dropped", offered, taken, q.Dropped())
		}
	}
}

// TestTheRefusedTakeNoRoom: what waits holds no more memory than what the limit allows, however little of each batch was admitted.
func TestTheRefusedTakeNoRoom(t *testing.T) {
	const limit = 1000
	flood, quiet := &enrich.Workload{Name: "flood"}, &enrich.Workload{Name: "quiet"}
	q := NewFair(limit)
	for i := range limit {
		q.Consume(slices.Concat(of(flood, numbered(0, 100)), of(quiet, numbered(i, 1)), of(flood, numbered(0, 100))))
	}
	batches, ok := q.Next(t.Context())
	if !ok {
		t.Fatal("nothing")
	}
	records, room := 0, 0
	for _, b := range batches {
		records, room = records+len(b), room+cap(b)
	}
	if records > limit || room > 2*limit {
		t.Errorf("%d records in the room of %d, the limit is %d", records, room, limit)
	}
}
