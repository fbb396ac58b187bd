package outlier

import (
	"slices"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// three is three failures in a row, then 10 s, 20 s, up to 35 s.
var three = model.OutlierDetection{
	ConsecutiveFailures: 3, BaseEjectionTime: 10 * time.Second, MaxEjectionTime: 35 * time.Second, MaxEjectionPercent: 100,
}

// TestEjection plays outcomes of connects to one endpoint.
func TestEjection(t *testing.T) {
	type outcomes struct {
		at    float64
		what  string  // f failed, s succeeded
		until float64 // then it is out until then; 0: it is in service
	}
	unbounded := three
	unbounded.MaxEjectionTime = 0
	short := three
	short.MaxEjectionTime = 4 * time.Second
	once := three
	once.ConsecutiveFailures = 1
	tests := []struct {
		name       string
		settings   model.OutlierDetection
		play       []outcomes
		ejections  uint64
		suppressed uint64
		failing    uint32
	}{
		{"two are not enough", three, []outcomes{{1, "ff", 0}}, 0, 0, 2},
		{"three are", three, []outcomes{{1, "ff", 0}, {2, "f", 12}}, 1, 0, 0},
		{"a success between", three, []outcomes{{1, "ffsff", 0}}, 0, 0, 2},
		{"one is enough", once, []outcomes{{0, "f", 10}}, 1, 0, 0},
		{"nothing counts while it is out", three, []outcomes{{0, "fff", 10}, {5, "ffffff", 10}, {9.999, "s", 10}, {10, "ff", 0}}, 1, 0, 2},
		{"nor what is older than its return", three, []outcomes{{0, "fff", 10}, {11, "f", 0}, {9, "ff", 0}, {11, "f", 0}, {11, "f", 31}}, 2, 0, 0},
		{
			"each lasts longer, to the most", once,
			[]outcomes{{0, "f", 10}, {10, "f", 30}, {30, "f", 60}, {60, "f", 95}, {95, "f", 130}},
			5, 0, 0,
		},
		// After 9.9 s in service the multiple is what it was; after 10 one less; after 25 two less; it does not go below none.
		{"9.9 s in service change nothing", once, []outcomes{{0, "f", 10}, {10, "f", 30}, {39.9, "f", 69.9}}, 3, 0, 0},
		{"10 s in service take one off", once, []outcomes{{0, "f", 10}, {10, "f", 30}, {40, "f", 60}}, 3, 0, 0},
		{"25 s in service take two off", once, []outcomes{{0, "f", 10}, {10, "f", 30}, {55, "f", 65}}, 3, 0, 0},
		{"1000 s in service take all off", once, []outcomes{{0, "f", 10}, {10, "f", 30}, {1030, "f", 1040}, {1040, "f", 1060}}, 4, 0, 0},
		// At the most the multiple is 4 and stays so: four times 10 s in service and it begins anew, however often it was ejected.
		{
			"it does not grow beyond the most", once,
			[]outcomes{{0, "f", 10}, {10, "f", 30}, {30, "f", 60}, {60, "f", 95}, {95, "f", 130}, {130, "f", 165}, {205, "f", 215}},
			7, 0, 0,
		},
		{"without a most it grows", unbounded, []outcomes{{0, "fff", 10}, {10, "fff", 30}, {30, "fff", 60}, {60, "fff", 100}}, 4, 0, 0},
		{"a most below the base holds", short, []outcomes{{0, "fff", 4}, {4, "fff", 8}}, 2, 0, 0},
		{"off without a number", model.OutlierDetection{BaseEjectionTime: time.Second, MaxEjectionPercent: 100}, []outcomes{{0, "fffff", 0}}, 0, 0, 0},
		{"off without a time", model.OutlierDetection{ConsecutiveFailures: 1, MaxEjectionPercent: 100}, []outcomes{{0, "fffff", 0}}, 0, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(mesh(detecting(test.settings), endpoints("cart", 1)))
			for _, o := range test.play {
				b.observe("a", o.what, o.at)
				if got := b.outUntil("a"); got != o.until {
					t.Errorf("after %s at %g s it is out until %g s, want %g", o.what, o.at, got, o.until)
				}
			}
			s := b.stats("a")
			if s.Ejections != test.ejections || s.Suppressed != test.suppressed || s.Failing != test.failing {
				t.Errorf("in the end %+v", s)
			}
		})
	}
}

// TestShare is how many endpoints of a service may be out.
func TestShare(t *testing.T) {
	for _, test := range []struct {
		endpoints int
		percent   uint32
		allowed   int
	}{
		{1, 0, 1},
		{1, 10, 1},
		{10, 0, 1},
		{9, 10, 1},
		{10, 10, 1},
		{19, 10, 1},
		{20, 10, 2},
		{10, 25, 2},
		{3, 50, 1},
		{4, 50, 2},
		{10, 99, 9},
		{10, 100, 10},
		{10, 1000, 10},
		{1000, 33, 330},
	} {
		settings := three
		settings.MaxEjectionPercent = test.percent
		b := newBench(mesh(detecting(settings), endpoints("cart", test.endpoints)))
		for _, e := range endpoints("cart", test.endpoints) {
			b.observe(e.Name.Name, "fff", 0)
		}
		var ejected, suppressed int
		for _, s := range b.Stats() {
			ejected += int(s.Ejections)
			suppressed += int(s.Suppressed)
		}
		if out := len(b.Out()); out != test.allowed || ejected != test.allowed || suppressed != test.endpoints-test.allowed || len(b.steps) != ejected {
			t.Errorf("%d %% of %d: %d out, %d ejected, %d suppressed, %d steps, want %d",
				test.percent, test.endpoints, out, ejected, suppressed, len(b.steps), test.allowed)
		}
	}
}

// TestSuppressed counts failures from 0 again after an ejection that was not made.
func TestSuppressed(t *testing.T) {
	settings := three
	settings.MaxEjectionPercent = 50
	b := newBench(mesh(detecting(settings), endpoints("cart", 2)))
	b.observe("a", "fff", 0)
	b.observe("b", "fffff", 1)
	if s := b.stats("b"); s.Suppressed != 1 || s.Ejections != 0 || s.Failing != 2 || s.Cause != None {
		t.Errorf("while a is out: %+v", s)
	}
	b.advance(10)
	b.observe("b", "f", 10)
	if s := b.stats("b"); s.Suppressed != 1 || s.Ejections != 1 || s.Until != at(20) {
		t.Errorf("when a is back: %+v", s)
	}
}

// TestObserveOthers gives outcomes of what is not under detection.
func TestObserveOthers(t *testing.T) {
	b := newBench(mesh(detecting(three), endpoints("cart", 1)))
	for range 5 {
		b.Observe(name("z"), name("cart"), true, at(0))
		b.Observe(name("a"), name("other"), true, at(0))
		b.Observe(model.Name{}, model.Name{}, true, at(0))
		b.Observe(name("z"), name("cart"), false, at(0))
	}
	b.observe("a", "ff", 0)
	b.Observe(name("a"), name("other"), false, at(0))
	if s := b.Stats(); len(s) != 1 || s[0].Failing != 2 || len(b.steps) != 0 {
		t.Errorf("%+v, %v", s, b.steps)
	}
}

// TestAdvance ends ejections at their time, in order.
func TestAdvance(t *testing.T) {
	b := newBench(mesh(detecting(three), endpoints("cart", 3)))
	if next := b.Next(); !next.IsZero() || !b.advance(0).IsZero() {
		t.Errorf("at first the next is %v", next)
	}
	b.observe("b", "fff", 1)
	b.observe("a", "fff", 2)
	b.observe("c", "fff", 1)
	if next := b.Next(); next != at(11) {
		t.Errorf("the next is %v", next)
	}
	b.steps = nil
	for _, test := range []struct {
		at   float64
		next time.Time
		out  int
	}{{10.999, at(11), 3}, {11, at(12), 1}, {12, time.Time{}, 0}, {13, time.Time{}, 0}} {
		if next := b.advance(test.at); next != test.next || len(b.Out()) != test.out || b.Next() != test.next {
			t.Errorf("at %g s: next %v, out %v", test.at, next, b.Out())
		}
	}
	back := func(e string) Step {
		return Step{Endpoint: name(e), Service: name("cart"), Cause: Outlier, Change: Back}
	}
	if want := []Step{back("b"), back("c"), back("a")}; !slices.Equal(b.steps, want) {
		t.Errorf("steps %v, want %v", b.steps, want)
	}
}

// TestObserveAllocates nothing, but for what is new.
func TestObserveAllocates(t *testing.T) {
	settings := three
	settings.MaxEjectionPercent = 0
	b := newBench(mesh(detecting(settings), endpoints("cart", 2)))
	b.observe("a", "fff", 0)
	b.observe("b", "fff", 1)
	service, a, c, other := name("cart"), name("a"), name("b"), name("z")
	if n := testing.AllocsPerRun(1000, func() {
		b.Observe(a, service, true, at(2))     // it is out
		b.Observe(c, service, false, at(2))    // success
		b.Observe(c, service, true, at(2))     // failure
		b.Observe(c, service, false, at(2))    // success after a failure
		b.Observe(other, service, true, at(2)) // unknown
		for range 3 {
			b.Observe(c, service, true, at(2)) // suppressed
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	settings := three
	settings.MaxEjectionPercent = 0
	all := endpoints("cart", 10000)
	d := newBench(mesh(detecting(settings), all))
	d.observe(all[0].Name.Name, "fff", 0) // so that the others are not ejected
	for _, kind := range []struct {
		name   string
		failed func(int) bool
	}{
		{"succeed", func(int) bool { return false }},
		{"fail", func(int) bool { return true }},
		{"half", func(i int) bool { return i&1 == 0 }},
	} {
		for i := range all { // the first failure of each is told
			d.Observe(all[i].Name, all[i].Service, true, at(1))
		}
		b.Run(kind.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				e := &all[i%len(all)]
				d.Observe(e.Name, e.Service, kind.failed(i), at(1))
				i++
			}
		})
	}
}

func BenchmarkSetSnapshot(b *testing.B) {
	m := mesh(detecting(three), endpoints("cart", 50000))
	d := newBench(m)
	b.ReportAllocs()
	for b.Loop() {
		d.SetSnapshot(m)
	}
}
