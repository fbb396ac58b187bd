package budget

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestKeeper plays measurements, and looks at what was applied, said and counted.
func TestKeeper(t *testing.T) {
	var applied []Detail
	var steps []Step
	var breaches []Cause
	var refuse error
	var log bytes.Buffer
	k := NewKeeper(Options{
		Limits: halfCPU, Details: Details(everything), Pace: quick, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Apply: func(d Detail) error {
			if refuse != nil {
				return refuse
			}
			applied = append(applied, d)
			return nil
		},
		Stepped:  func(s Step) { steps = append(steps, s) },
		Breached: func(c Cause) { breaches = append(breaches, c) },
	})
	play := func(letters string) {
		for _, letter := range letters {
			k.Observe(Measurement{Agent: readings[letter].CPU / 2, Programs: readings[letter].CPU / 2})
		}
	}
	if s := k.State(); s.Measured || s.Detail.Rung != Full {
		t.Errorf("at first %+v", s)
	}
	play("oo")
	refuse = errors.New("no")
	play("oooo") // two steps that are not made
	if s := k.State(); s.Detail != (Detail{SpansOff, 0}) || s.Down != 1 || len(applied) != 1 || len(steps) != 1 {
		t.Errorf("while it cannot step: %+v, %v, %v", s, applied, steps)
	}
	if n := strings.Count(log.String(), "was not made"); n != 1 {
		t.Errorf("the log has it %d times: %s", n, log.String())
	}
	refuse = nil
	play("n")
	if s := k.State(); s.Detail != (Detail{LogSampling, 6}) || s.Down != 2 || s.Up != 0 || !s.Measured || s.Measurement.Agent != 0.2 {
		t.Errorf("when it can again: %+v", s)
	}
	if last := steps[len(steps)-1]; last.From != (Detail{SpansOff, 0}) || last.To != (Detail{LogSampling, 6}) || !last.Down() {
		t.Errorf("its step is %+v", last)
	}
	play("---------")
	if s := k.State(); s.Detail.Rung != Full || s.Up != 3 {
		t.Errorf("at the end: %+v", s)
	}
	play("o-o")
	// One for each time that it was over budget since it was at rest at the top.
	if !slices.Equal(breaches, []Cause{CPU, CPU, CPU}) {
		t.Errorf("breaches: %v", breaches)
	}
	k.Observe(Measurement{ProgramsErr: errors.New("not permitted")})
	k.Observe(Measurement{ProgramsErr: errors.New("not permitted")})
	if n := strings.Count(log.String(), "not permitted"); n != 1 {
		t.Errorf("the log has it %d times: %s", n, log.String())
	}
}

// TestKeeperRuns measures at each interval until the end, also when a measurement fails.
func TestKeeperRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		measured := 0
		k := NewKeeper(Options{
			Limits: halfCPU, Details: Details(everything), Pace: quick, Interval: 10 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Measure: func(context.Context) (Measurement, error) {
				measured++
				if measured < 3 {
					return Measurement{}, errors.New("no reading")
				}
				return Measurement{Agent: 1}, nil
			},
			Apply: func(Detail) error { return nil },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			k.Run(ctx)
			close(done)
		}()
		time.Sleep(45 * time.Second)
		synctest.Wait()
		if s := k.State(); measured != 4 || s.Detail.Rung != SpansOff || strings.Count(log.String(), "no reading") != 1 {
			t.Errorf("%d measurements, %+v, %s", measured, s, log.String())
		}
		cancel()
		<-done
	})
}
