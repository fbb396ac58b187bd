package event

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Who asks gets his answer from a reading that began after the question, and that has handed on what was there then, however much comes meanwhile.
func TestAnswers(t *testing.T) {
	r := new(Reader)
	ask := func(until uint64) chan struct{} {
		w := waiter{until, make(chan struct{})}
		r.asked = append(r.asked, w)
		return w.done
	}
	answered := func(done chan struct{}) bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	if r.awaited() {
		t.Error("someone waits, but nobody asked")
	}
	first := ask(100)
	r.answer(100)
	if answered(first) || !r.awaited() {
		t.Error("the first has its answer from a reading that may have begun before the question")
	}
	r.arm()
	second := ask(100)
	r.answer(99)
	if answered(first) {
		t.Error("the first has its answer, and not all that it asked for was read")
	}
	r.answer(101)
	if !answered(first) || answered(second) || !r.awaited() {
		t.Errorf("after the reading the first has its answer: %v, the second: %v", answered(first), answered(second))
	}
	third := ask(200)
	r.end()
	if !answered(second) || !answered(third) {
		t.Errorf("after the end the second has its answer: %v, the third: %v", answered(second), answered(third))
	}
	if err := r.Drain(t.Context()); err != nil {
		t.Errorf("drain after the end: %v", err)
	}
	r.end() // closes no channel twice
}

func TestNewReaderOfNoRing(t *testing.T) {
	_, err := NewReader(&Rings{Now: new(ebpf.Map)}, time.Second, new(Stats))
	if err == nil || !strings.HasPrefix(err.Error(), "open ring: ") || errors.Unwrap(err) == nil {
		t.Errorf("error is %v, want one that says what was done and wraps why not", err)
	}
}

// The offset must turn a monotonic time into the wall time of the same moment. A second of slack is for a wall clock that is set
// meanwhile; a wrong sign, unit or clock is decades off, or the time since boot.
func TestMeasureClock(t *testing.T) {
	before := time.Now()
	monotonic := bpf.Monotonic()
	after := time.Now()
	wall := MeasureClock().Wall(monotonic)
	if wall.Before(before.Add(-time.Second)) || wall.After(after.Add(time.Second)) {
		t.Errorf("wall time is %v, want one between %v and %v", wall, before, after)
	}
}
