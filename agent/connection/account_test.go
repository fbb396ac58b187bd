package connection

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// sums are what an edge makes of all records.
type sums struct {
	attempts, established, failed, closed int
	connecting, open                      int
	sent                                  uint64
}

// addLoss adds what the kernel keeps of a Close that is lost: bpf/lib/lost.h.
func (s *sums) addLoss(e *Event) {
	change := ChangeOf(e)
	loss := Loss{
		Attempts: uint64(change.Attempts), Established: uint64(change.Established), Failed: uint64(change.Failed),
		Closed: uint64(change.Closed), SentBytes: e.Totals.SentBytes - e.Reported.SentBytes,
	}
	if e.Role == Client && e.Told == ToldAttempt {
		loss.ConnectingDown = 1
	}
	if e.Told&ToldEstablished != 0 {
		loss.OpenDown = 1
	}
	s.attempts += int(loss.Attempts)
	s.established += int(loss.Established)
	s.failed += int(loss.Failed)
	s.closed += int(loss.Closed)
	s.connecting -= int(loss.ConnectingDown)
	s.open -= int(loss.OpenDown)
	s.sent += loss.SentBytes
}

func (s *sums) add(r *Record[struct{}]) {
	s.attempts += int(r.Change.Attempts)
	s.established += int(r.Change.Established)
	s.failed += int(r.Change.Failed)
	s.closed += int(r.Change.Closed)
	s.connecting += int(r.Change.Connecting)
	s.open += int(r.Change.Open)
	s.sent += r.Event.Totals.SentBytes - r.Event.Reported.SentBytes
}

// TestSumsAreTrue is the promise "every connection is accounted for": whatever is lost or comes between, the sums are those of what
// happened.
func TestSumsAreTrue(t *testing.T) {
	const connections = 300
	for _, limit := range []int{connections, connections / 20, 0} {
		for _, loss := range []float64{0, 0.3, 1} {
			t.Run(fmt.Sprintf("limit %d loss %v", limit, loss), func(t *testing.T) {
				for seed := range uint64(20) {
					testSums(t, rand.New(rand.NewPCG(seed, 1)), connections, limit, loss)
					if t.Failed() {
						t.Fatalf("with seed %d", seed)
					}
				}
			})
		}
	}
}

func testSums(t *testing.T, random *rand.Rand, connections, limit int, loss float64) {
	t.Helper()
	lives, want := randomLives(random, connections)
	tracker := NewTracker(limit, func(*Event) struct{} { return struct{}{} })
	told := make(map[Key]Told)
	lost := 0
	var got sums
	var record Record[struct{}]
	for len(lives) > 0 {
		i := random.IntN(len(lives))
		event := lives[i][0]
		if lives[i] = lives[i][1:]; len(lives[i]) == 0 {
			lives[i] = lives[len(lives)-1]
			lives = lives[:len(lives)-1]
		}
		event.Told = told[event.Key]
		if random.Float64() < loss {
			if event.Kind == Close {
				got.addLoss(&event)
				lost++
			}
			continue
		}
		told[event.Key] |= tells(&event)
		tracker.Observe(&event, &record)
		got.add(&record)
		if got.connecting < 0 || got.open < 0 {
			t.Fatalf("a gauge is below zero: %+v", got)
		}
		if lost == 0 && limit >= connections && got.connecting+got.open != tracker.Len() {
			t.Fatalf("%+v, but %d connections are followed", got, tracker.Len())
		}
	}
	if got != want {
		t.Errorf("sums are %+v, want %+v", got, want)
	}
	// A connection whose Close is lost stays, and nothing else does.
	if followed, clients := tracker.Len(), len(tracker.clients); followed > lost || clients > followed {
		t.Errorf("when all are closed and %d closes were lost, %d connections and %d clients are kept", lost, followed, clients)
	}
}

// randomLives makes connections, each the list of its events in order, and tells what they come to.
func randomLives(random *rand.Rand, connections int) ([][]Event, sums) {
	var lives [][]Event
	var truth sums
	for i := range connections {
		clientAddr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(i))
		// Half of the cookies serve twice: a socket that connects again.
		c := end{Client, Key{Cookie: uint64(i / 2), StartNS: uint64(1000 + i)}, clientAddr, addrB, random.Uint32()}
		truth.attempts++
		if random.IntN(3) == 0 {
			truth.failed++
			lives = append(lives, []Event{c.preConnect(), c.failed(Refused)})
			continue
		}
		closed := c.closed()
		closed.Totals.SentBytes = random.Uint64N(1 << 40)
		truth.established++
		truth.closed++
		truth.sent += closed.Totals.SentBytes
		lives = append(lives, []Event{c.preConnect(), c.established(), closed})
		if random.IntN(2) == 0 {
			continue
		}
		// The server's end is here too.
		s := end{Server, Key{Cookie: uint64(connections + i), StartNS: c.key.StartNS}, addrB, clientAddr, c.isn}
		truth.established++
		truth.closed++
		truth.sent += s.closed().Totals.SentBytes
		lives = append(lives, []Event{s.established(), s.closed()})
	}
	return lives, truth
}
