package budget

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// DefaultInterval is from one measurement to the next.
const DefaultInterval = 10 * time.Second

// Options of a Keeper.
type Options struct {
	Limits   Limits
	Details  []Detail
	Pace     Pace
	Interval time.Duration
	Sleep    func(context.Context, time.Duration) error // nil is Sleep
	Measure  func(context.Context) (Measurement, error)
	// Apply makes a place on the ladder so. It is tried again at the next measurement when it fails.
	Apply func(Detail) error
	// Stepped hears of each step, after it was applied; nil for nobody.
	Stepped func(Step)
	// Breached hears of the first reading over budget since the ladder was last at its top and within it; nil for nobody.
	Breached func(Cause)
	Logger   *slog.Logger
}

// State is what a keeper knows.
type State struct {
	Detail      Detail
	Measurement Measurement
	Measured    bool // Measurement is there
	Up, Down    uint64
}

// Keeper measures, decides and applies, in one goroutine.
type Keeper struct {
	options Options
	ladder  *Ladder
	failing bool  // to measure, or to apply; the log has it
	unseen  bool  // the programs' time is missing; the log has it
	episode bool  // of a breach
	pending *Step // made on the ladder, not yet applied

	mu    sync.Mutex
	state State
}

// NewKeeper returns a keeper that has done nothing yet.
func NewKeeper(options Options) *Keeper {
	if options.Sleep == nil {
		options.Sleep = Sleep
	}
	return &Keeper{options: options, ladder: NewLadder(options.Details, options.Limits, options.Pace)}
}

// State returns what it knows. Safe for concurrent use.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Run works until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	for k.options.Sleep(ctx, k.options.Interval) == nil {
		m, err := k.options.Measure(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.fail("the agent's own cost is not known, its budget is not kept", err)
			continue
		}
		k.Observe(m)
	}
}

// Observe takes a measurement, and makes the step that it leads to.
func (k *Keeper) Observe(m Measurement) {
	if m.ProgramsErr != nil && !k.unseen {
		k.options.Logger.Warn("the budget is kept of the agent's own CPU time alone, that of its programs is not known", "error", m.ProgramsErr)
	}
	k.unseen = m.ProgramsErr != nil
	r := m.Reading()
	cause := k.options.Limits.over(r)
	if cause != Room && !k.episode {
		k.episode = true
		if k.options.Breached != nil {
			k.options.Breached(cause)
		}
	}
	step, stepped := k.ladder.Observe(r)
	at := k.ladder.At()
	if cause == Room && at.Rung == Full {
		k.episode = false
	}
	k.mu.Lock()
	k.state.Measurement, k.state.Measured = m, true
	k.mu.Unlock()
	if stepped {
		if k.pending != nil {
			step.From = k.pending.From
		}
		k.pending = &step
	}
	if k.pending == nil {
		k.failing = false
		return
	}
	if err := k.options.Apply(at); err != nil {
		k.fail("a step of the overhead budget was not made", err)
		return
	}
	step, k.pending, k.failing = *k.pending, nil, false
	k.mu.Lock()
	k.state.Detail = at
	if step.Down() {
		k.state.Down++
	} else {
		k.state.Up++
	}
	k.mu.Unlock()
	if k.options.Stepped != nil {
		k.options.Stepped(step)
	}
}

func (k *Keeper) fail(message string, err error) {
	if !k.failing {
		k.options.Logger.Error(message, "error", err)
	}
	k.failing = true
}
