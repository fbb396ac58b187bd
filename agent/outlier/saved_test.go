package outlier

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// resaved is what a process saves, as the next one reads it.
func resaved(t *testing.T, saved Saved) Saved {
	t.Helper()
	text, err := json.Marshal(saved)
	if err != nil {
		t.Fatal(err)
	}
	var read Saved
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	return read
}

func stateAt(clock *time.Time, snapshot *model.Snapshot) *State {
	s := NewState(Options{Now: func() time.Time { return *clock }, Logger: slog.New(slog.DiscardHandler)})
	s.SetSnapshot(snapshot)
	return s
}

// TestSaved hands what is known over to another state, while a is out for the second time, and b has failed twice.
func TestSaved(t *testing.T) {
	all := endpoints("cart", 4)
	clock := origin
	fail := func(s *State, endpoint string, times int) {
		for range times {
			s.Observe(name(endpoint), name("cart"), true, clock)
		}
	}
	first := stateAt(&clock, mesh(detecting(three), all))
	fail(first, "a", 3)
	clock = at(10)
	first.detector.Advance()
	fail(first, "a", 3)
	fail(first, "b", 2)
	clock = at(12)
	saved := resaved(t, first.Save())

	clock = at(15)
	next := stateAt(&clock, mesh(detecting(three), all))
	next.Restore(saved)
	if got, want := next.Stats(), first.Stats(); !reflect.DeepEqual(got, want) {
		t.Errorf("stats are %+v\nwant %+v", got, want)
	}
	if out := next.Out(); len(out) != 1 || out[name("a")] != Outlier || !next.Next().Equal(at(30)) {
		t.Errorf("out: %v until %v", out, next.Next())
	}
	fail(next, "b", 1) // its third in a row, and the second that may be out
	if out := next.Out(); len(out) != 2 {
		t.Errorf("out after the third failure: %v", out)
	}
	clock = at(30)
	next.detector.Advance()
	fail(next, "a", 3)
	if until := next.detector.out[name("a")].until; !until.Equal(at(60)) {
		t.Errorf("the third ejection is until %v, want %v", until, at(60))
	}

	// What is over is over, who moved is another, and no more are out than may be.
	clock = at(31)
	late := stateAt(&clock, mesh(detecting(three), all))
	late.Restore(saved)
	if out := late.Out(); len(out) != 0 {
		t.Errorf("out when it is over: %v", out)
	}
	clock = at(15)
	moved := slices.Clone(all)
	moved[0].Port++
	other := stateAt(&clock, mesh(detecting(three), moved))
	other.Restore(saved)
	if out := other.Out(); len(out) != 0 || len(other.Stats()) != 1 {
		t.Errorf("out where it moved: %v, known are %+v", out, other.Stats())
	}
	both := resaved(t, saved)
	both.Endpoints[1].Detected.Until = at(20)
	few := three
	few.MaxEjectionPercent = 0 // one always may be
	fewer := stateAt(&clock, mesh(detecting(few), all))
	fewer.Restore(both)
	if out := fewer.Out(); len(out) != 1 || out[name("a")] != Outlier {
		t.Errorf("out of which one may be: %v", out)
	}
}

func TestSavedChecks(t *testing.T) {
	all := endpoints("cart", 2)
	service := model.Service{Name: name("cart"), Health: model.HealthCheck{Interval: time.Hour, HealthyThreshold: 2}}
	clock := origin
	first := stateAt(&clock, mesh(service, all))
	*first.checker.targets[name("a")] = target{
		name: name("a"), service: name("cart"), place: first.checker.targets[name("a")].place, settings: service.Health, out: true, successes: 1, ejections: 3,
	}
	next := stateAt(&clock, mesh(service, all))
	next.Restore(resaved(t, first.Save()))
	if out := next.Out(); len(out) != 1 || out[name("a")] != HealthCheck {
		t.Errorf("out: %v", out)
	}
	if got, want := next.Stats(), first.Stats(); !reflect.DeepEqual(got, want) || len(got) != 1 || got[0].CheckEjections != 3 {
		t.Errorf("stats are %+v\nwant %+v", got, want)
	}
	if next.checker.targets[name("a")].successes != 1 {
		t.Error("a successful check was forgotten")
	}
}
