package outlier

import (
	"slices"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// TestDetectorSnapshots changes the mesh while a is out until 10 s, ejected for the first time, and b has failed twice.
func TestDetectorSnapshots(t *testing.T) {
	all := endpoints("cart", 4)
	changed := func(change func(*model.OutlierDetection)) *model.Snapshot {
		settings := three
		change(&settings)
		return mesh(detecting(settings), all)
	}
	moved := slices.Clone(all)
	moved[0].Port++
	named := slices.Clone(all)
	named[0].Service = name("other")
	kept := Stats{Endpoint: name("a"), Service: name("cart"), Ejections: 1, Cause: Outlier, Until: at(10)}
	tests := []struct {
		name string
		next *model.Snapshot
		a    Stats
		b    uint32 // failing
		step bool   // a's ejection was dropped
	}{
		{"nothing", changed(func(*model.OutlierDetection) {}), kept, 2, false},
		{"another endpoint leaves", mesh(detecting(three), all[:3]), kept, 2, false},
		{"it leaves", mesh(detecting(three), all[1:]), Stats{}, 2, true},
		{"it moves", mesh(detecting(three), moved), Stats{}, 2, true},
		{"it is of another service", mesh(detecting(three), named), Stats{}, 2, true},
		{"the service leaves", &model.Snapshot{Endpoints: all}, Stats{}, 0, true},
		{"everything leaves", &model.Snapshot{}, Stats{}, 0, true},
		{"detection is off", changed(func(o *model.OutlierDetection) { o.ConsecutiveFailures = 0 }), Stats{}, 0, true},
		{"other times", changed(func(o *model.OutlierDetection) { o.BaseEjectionTime, o.MaxEjectionTime = time.Second, time.Second }), kept, 2, false},
		{"another number", changed(func(o *model.OutlierDetection) { o.ConsecutiveFailures = 2 }), kept, 2, false},
		{"a smaller share", changed(func(o *model.OutlierDetection) { o.MaxEjectionPercent = 0 }), kept, 2, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(mesh(detecting(three), all))
			b.observe("a", "fff", 0)
			b.observe("b", "ff", 0)
			b.steps = nil
			b.clock = at(5)
			b.SetSnapshot(test.next)
			if got := b.stats("a"); got != test.a {
				t.Errorf("a is %+v, want %+v", got, test.a)
			}
			if got := b.stats("b"); got.Failing != test.b {
				t.Errorf("b is %+v", got)
			}
			var want []Step
			if test.step {
				want = []Step{{Endpoint: name("a"), Service: name("cart"), Cause: Outlier, Change: Dropped}}
			}
			if !slices.Equal(b.steps, want) {
				t.Errorf("steps %v, want %v", b.steps, want)
			}
		})
	}
}

// TestSettingsChange applies new settings to old state.
func TestSettingsChange(t *testing.T) {
	b := newBench(mesh(detecting(three), endpoints("cart", 2)))
	b.observe("a", "fff", 0)
	b.observe("b", "ff", 0)
	lower := three
	lower.ConsecutiveFailures, lower.BaseEjectionTime, lower.MaxEjectionTime = 2, 5*time.Second, time.Minute
	b.SetSnapshot(mesh(detecting(lower), endpoints("cart", 2)))
	b.observe("b", "f", 1)
	b.observe("a", "ff", 11)
	// b has had more failures than are needed now; a, ejected once before, is out for twice the new base.
	if a, b := b.outUntil("a"), b.outUntil("b"); a != 21 || b != 6 {
		t.Errorf("a is out until %g s, b until %g s", a, b)
	}
}

// TestShrink takes endpoints that serve away, until those that are out are more than the share: who would be back first is back.
func TestShrink(t *testing.T) {
	settings := three
	settings.MaxEjectionPercent = 50
	all := endpoints("cart", 8)
	b := newBench(mesh(detecting(settings), all))
	for i, e := range []string{"c", "a", "d", "b"} {
		b.observe(e, "fff", float64(i))
	}
	b.steps = nil
	b.clock = at(5)
	b.SetSnapshot(mesh(detecting(settings), all[:5])) // 2 of 5
	dropped := func(e string) Step {
		return Step{Endpoint: name(e), Service: name("cart"), Cause: Outlier, Change: Dropped}
	}
	if want := []Step{dropped("c"), dropped("a")}; !slices.Equal(b.steps, want) {
		t.Errorf("steps %v, want %v", b.steps, want)
	}
	if d, b := b.outUntil("d"), b.outUntil("b"); d != 12 || b != 13 {
		t.Errorf("d is out until %g s, b until %g s", d, b)
	}
	// c is in service since 5 s and not since 10.
	b.advance(13)
	b.observe("c", "fff", 14)
	if got := b.outUntil("c"); got != 34 {
		t.Errorf("c is out until %g s", got)
	}
}

// TestTwins have one name. The first is the one that is there, and the service has one endpoint.
func TestTwins(t *testing.T) {
	settings := three
	twins := slices.Concat(endpoints("cart", 1), endpoints("cart", 1), endpoints("cart", 2))
	b := newBench(mesh(detecting(settings), twins))
	b.observe("a", "fff", 0)
	settings.MaxEjectionPercent = 50
	b.SetSnapshot(mesh(detecting(settings), twins))
	b.observe("b", "fff", 1)
	if out := b.Out(); len(out) != 1 || b.stats("b").Suppressed != 1 {
		t.Errorf("out %v of two, %+v", out, b.stats("b"))
	}
}
