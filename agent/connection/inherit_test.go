package connection

import (
	"math/rand/v2"
	"testing"
)

// TestInherit has one agent take the place of another, which was killed or had stopped reading some time before: whatever was lost meanwhile, the gauges of the second are
// what is open and connecting as soon as it has swept, and nothing when all has ended.
func TestInherit(t *testing.T) {
	for _, loss := range []float64{0, 0.3, 0.9} {
		for seed := range uint64(200) {
			testInherit(t, rand.New(rand.NewPCG(seed, 2)), loss)
			if t.Failed() {
				t.Fatalf("with seed %d and loss %v", seed, loss)
			}
		}
	}
}

func testInherit(t *testing.T, random *rand.Rand, loss float64) {
	t.Helper()
	lives, _ := randomLives(random, 60)
	// What happens, in the order of its time. Each connection's times are those of its events.
	var all []Event
	at := uint64(1_000_000) // after the starts of all
	for left := len(lives); left > 0; {
		i := random.IntN(len(lives))
		if len(lives[i]) == 0 {
			continue
		}
		at++
		lives[i][0].EventNS = at
		for j := range lives[i] {
			switch lives[i][0].Kind {
			case PreConnect:
				lives[i][j].ConnectNS = at
			case Established:
				lives[i][j].EstablishedNS = at
			}
		}
		all = append(all, lives[i][0])
		if lives[i] = lives[i][1:]; len(lives[i]) == 0 {
			left--
		}
	}
	stops := random.IntN(len(all))             // the first agent reads nothing from here on
	cut := stops + random.IntN(len(all)-stops) // the second has read the ring to its end

	told := make(map[Key]Told)
	live := make(map[Key]Event)
	tracker := NewTracker(1000, func(*Event) struct{} { return struct{}{} })
	tracker.Inherit(^uint64(0))
	var got sums
	var record Record[struct{}]
	observe := func(e *Event) {
		tracker.Observe(e, &record)
		got.add(&record)
	}
	var ring []Event
	for i := range all {
		if i == cut {
			for j := range ring {
				observe(&ring[j])
			}
			ring = nil
			if got.open != 0 || got.connecting != 0 {
				t.Errorf("before there was a sweep %d are open and %d connecting", got.open, got.connecting)
			}
			until := all[i].EventNS
			tracker.Inherit(until)
			open, connecting := 0, 0
			tracker.BeginSweep()
			for key, e := range live {
				if e.EstablishedNS != 0 {
					open++
				} else {
					connecting++
				}
				e.Kind, e.EventNS, e.Told = Sweep, until, told[key]
				if told[key] |= tells(&e); e.EstablishedNS == 0 {
					told[key] = e.Told | ToldAttempt
				}
				observe(&e)
			}
			tracker.EndSweep()
			if got.open != open || got.connecting != connecting {
				t.Errorf("after the sweep %d are open and %d connecting, want %d and %d", got.open, got.connecting, open, connecting)
			}
		}
		e := all[i]
		e.Told = told[e.Key]
		if live[e.Key] = e; e.Kind == Close {
			delete(live, e.Key)
		}
		if random.Float64() < loss {
			// Sums of before are read with the ring, and are in no gauge.
			if e.Kind == Close && i >= cut {
				got.addLoss(&e)
			}
			continue
		}
		told[e.Key] |= tells(&e)
		switch {
		case i < stops: // the first agent's
		case i < cut:
			ring = append(ring, e)
		default:
			observe(&e)
		}
	}
	if got.open != 0 || got.connecting != 0 {
		t.Errorf("when all have ended %d are open and %d connecting", got.open, got.connecting)
	}
}
