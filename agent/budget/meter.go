package budget

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Source is what a Meter reads. All of it is injected, so that what comes out depends on what goes in alone.
type Source struct {
	Now func() time.Time
	// Sleep waits, or returns the context's error.
	Sleep func(context.Context, time.Duration) error
	// CPUs is how many the node has.
	CPUs int
	// Own is the CPU time of this process so far, Memory what of it is resident.
	Own    func() (time.Duration, error)
	Memory func() (uint64, error)
	// Programs is the time in the kernel programs that run at the cost of others, so far; it grows while the kernel measures.
	Programs func() (time.Duration, error)
	// Measure makes the kernel measure until stop is called. Measuring says that it does so all the time, for somebody else.
	Measure   func() (stop func() error, err error)
	Measuring func() bool
	// Work counts exactly how often the programs did what they are for, so far.
	Work func() (uint64, error)
}

// Measurement is what the agent took since the one before.
type Measurement struct {
	Agent    float64 // its own CPU time, of all CPUs
	Programs float64 // the same of its kernel programs; an upper bound, because measuring has a cost of its own
	Memory   uint64  // now, bytes
	// ProgramsErr says why Programs is missing: then it is 0.
	ProgramsErr error
}

// Reading is the sum.
func (m *Measurement) Reading() Reading { return Reading{CPU: m.Agent + m.Programs, Memory: m.Memory} }

// windowTime is how long the kernel measures for a measurement: while it does, every program of the machine pays some tens of
// nanoseconds a run.
const windowTime = 100 * time.Millisecond

// leastWork is what a window must have seen for its price to be taken.
const leastWork = 20

// Meter measures. Not safe for concurrent use.
type Meter struct {
	source Source

	began     bool
	now       time.Time
	own       time.Duration
	work      uint64
	programs  time.Duration
	measuring bool
	price     float64 // nanoseconds of the programs for each of Work, in the last window that saw enough
}

// NewMeter returns a meter. Its first measurement is since its making, or empty.
func NewMeter(source Source) *Meter {
	m := &Meter{source: source}
	_, _ = m.take(window{}) // what fails now fails again
	return m
}

// window is what the programs did while the kernel measured.
type window struct {
	time, length time.Duration
	work         uint64
	steady       bool // it measures all the time
	err          error
}

// Measure takes a window's time, and says what the agent took since the last call.
func (m *Meter) Measure(ctx context.Context) (Measurement, error) {
	w, err := m.look(ctx)
	if err != nil {
		return Measurement{}, err
	}
	return m.take(w)
}

// look opens a window, unless there is no need. The error is that of the context.
func (m *Meter) look(ctx context.Context) (window, error) {
	if m.source.Measuring() {
		return window{steady: true}, nil
	}
	var w window
	stop, err := m.source.Measure()
	if err != nil {
		return window{err: fmt.Errorf("measure programs: %w", err)}, nil
	}
	begin := m.source.Now()
	work, errWork := m.source.Work()
	before, errBefore := m.source.Programs()
	slept := m.source.Sleep(ctx, windowTime)
	after, errAfter := m.source.Programs()
	w.work, err = m.source.Work()
	w.length = m.source.Now().Sub(begin)
	w.work -= work
	w.time = after - before
	if w.err = errors.Join(errWork, errBefore, errAfter, err, stop()); w.err != nil {
		w.err = fmt.Errorf("measure programs: %w", w.err)
	}
	return w, slept
}

// take reads everything else, and makes a measurement of the differences.
func (m *Meter) take(w window) (Measurement, error) {
	now := m.source.Now()
	own, err := m.source.Own()
	if err != nil {
		return Measurement{}, fmt.Errorf("measure CPU time: %w", err)
	}
	var out Measurement
	if out.Memory, err = m.source.Memory(); err != nil {
		return Measurement{}, fmt.Errorf("measure memory: %w", err)
	}
	work, workErr := m.source.Work()
	programs, programsErr := m.source.Programs()
	out.ProgramsErr = errors.Join(w.err, workErr, programsErr)
	if elapsed := now.Sub(m.now); m.began && elapsed > 0 {
		whole := float64(elapsed) * float64(m.source.CPUs)
		out.Agent = float64(own-m.own) / whole
		if out.ProgramsErr == nil {
			spent := m.spent(w, elapsed, work-m.work)
			if w.steady && m.measuring {
				spent = float64(programs - m.programs)
			}
			out.Programs = spent / whole
		}
	}
	m.began, m.now, m.own, m.work, m.programs, m.measuring = true, now, own, work, programs, w.steady
	return out, nil
}

// spent estimates the nanoseconds in programs from a window: the price of a piece of work there, times the pieces that there were in all,
// which are counted. Where the window saw too few for a price, what it saw is taken for what was all the time, but not for less than the work
// at the last price: a burst falls between two windows as a rule.
func (m *Meter) spent(w window, elapsed time.Duration, work uint64) float64 {
	if w.work >= leastWork {
		m.price = float64(w.time) / float64(w.work)
		return m.price * float64(work)
	}
	spent := m.price * float64(work)
	if w.length > 0 {
		spent = max(spent, float64(w.time)*float64(elapsed)/float64(w.length))
	}
	return spent
}
