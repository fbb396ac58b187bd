package budget

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// node is a machine whose time goes by only in Sleep: what programs do there costs them time, which shows while it is measured.
type node struct {
	now       time.Time
	own       time.Duration
	shown     time.Duration
	work      uint64
	measured  int // by how many
	always    bool
	rate      float64 // of work, a second
	price     time.Duration
	idleShare float64 // of a CPU, in programs, without work
	err       error
	windows   int
}

func (n *node) pass(d time.Duration) {
	n.now = n.now.Add(d)
	before := n.work
	n.work += uint64(n.rate * d.Seconds())
	if n.measured > 0 || n.always {
		n.shown += time.Duration(n.work-before)*n.price + time.Duration(n.idleShare*float64(d))
	}
}

func (n *node) source() Source {
	return Source{
		Now:  func() time.Time { return n.now },
		CPUs: 4,
		Sleep: func(ctx context.Context, d time.Duration) error {
			n.pass(d)
			return ctx.Err()
		},
		Own:      func() (time.Duration, error) { return n.own, nil },
		Memory:   func() (uint64, error) { return 77 << 20, nil },
		Programs: func() (time.Duration, error) { return n.shown, nil },
		Work:     func() (uint64, error) { return n.work, nil },
		Measure: func() (func() error, error) {
			if n.err != nil {
				return nil, n.err
			}
			n.measured++
			n.windows++
			return func() error { n.measured--; return nil }, nil
		},
		Measuring: func() bool { return n.always },
	}
}

func TestMeter(t *testing.T) {
	const second = time.Second
	for _, c := range []struct {
		name   string
		around func(n *node, m *Meter)
		agent  float64
		progs  float64
	}{
		{"idle", func(n *node, _ *Meter) { n.pass(9900 * time.Millisecond) }, 0, 0},
		{"own time", func(n *node, _ *Meter) { n.pass(9900 * time.Millisecond); n.own += 2 * second }, 0.05, 0},
		{
			// 1000 a second for 10 s at 2 us: 20 ms of 40 s.
			"steady work",
			func(n *node, _ *Meter) { n.rate, n.price = 1000, 2*time.Microsecond; n.pass(9900 * time.Millisecond) }, 0, 0.02 / 40,
		},
		{
			// Nine tenths of the work is before the window. A share of the window alone would say a tenth.
			"a burst before the window",
			func(n *node, _ *Meter) {
				n.price, n.rate = 2*time.Microsecond, 20_000
				n.pass(second)
				n.rate = 300
				n.pass(8900 * time.Millisecond)
			}, 0, (20_000 + 0.3*8900 + 30) * 2e-6 / 40,
		},
		{
			// Too little in the window for a price: its own share stands for all the time.
			"programs without work",
			func(n *node, _ *Meter) { n.idleShare = 0.01; n.pass(9900 * time.Millisecond) }, 0, 0.01 / 4,
		},
		{
			// The burst missed the window, but the price is known from the one before.
			"a burst at the last price",
			func(n *node, m *Meter) {
				n.price, n.rate = 2*time.Microsecond, 1000
				if _, err := m.Measure(context.Background()); err != nil {
					panic(err)
				}
				n.pass(9900 * time.Millisecond)
				n.rate = 0
			}, 0, 9900 * 2e-6 / 40,
		},
		{
			// Somebody else has the statistics on: all of it is seen, without a window.
			"measured all the time",
			func(n *node, m *Meter) {
				n.always, n.idleShare = true, 0.04
				if _, err := m.Measure(context.Background()); err != nil {
					panic(err)
				}
				n.pass(10 * second)
			}, 0, 0.01,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &node{now: time.Unix(1000, 0)}
			m := NewMeter(n.source())
			c.around(n, m)
			got, err := m.Measure(t.Context())
			if err != nil || got.ProgramsErr != nil {
				t.Fatal(err, got.ProgramsErr)
			}
			if math.Abs(got.Agent-c.agent) > 1e-9 || math.Abs(got.Programs-c.progs) > 1e-9 || got.Memory != 77<<20 {
				t.Errorf("got %+v, want %v of CPUs and %v in programs", got, c.agent, c.progs)
			}
			if r := got.Reading(); r.CPU != got.Agent+got.Programs || r.Memory != got.Memory {
				t.Errorf("reading %+v", r)
			}
			if n.measured != 0 || n.always != (n.windows == 0) {
				t.Errorf("%d still measure, after %d windows", n.measured, n.windows)
			}
		})
	}
}

// TestMeterWithoutPrivilege has no statistics: the agent's own time counts.
func TestMeterWithoutPrivilege(t *testing.T) {
	n := &node{now: time.Unix(1000, 0), err: errors.New("operation not permitted")}
	m := NewMeter(n.source())
	n.pass(10 * time.Second)
	n.own += time.Second
	got, err := m.Measure(t.Context())
	if err != nil || math.Abs(got.Agent-1./40) > 1e-9 || got.Programs != 0 || got.ProgramsErr == nil || !strings.Contains(got.ProgramsErr.Error(), "not permitted") {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestMeterEnds stops in the middle of a window, which is closed.
func TestMeterEnds(t *testing.T) {
	n := &node{now: time.Unix(1000, 0)}
	m := NewMeter(n.source())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Measure(ctx); !errors.Is(err, context.Canceled) || n.measured != 0 {
		t.Errorf("error %v, %d still measure", err, n.measured)
	}
}

// TestProcess reads this process and this machine.
func TestProcess(t *testing.T) {
	before, err := OwnTime()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if now, _ := OwnTime(); now-before > 20*time.Millisecond {
			break
		}
	}
	if now, _ := OwnTime(); now-before < 20*time.Millisecond {
		t.Errorf("this used %v of CPU", now-before)
	}
	memory, err := OwnMemory()
	if err != nil || memory < 1<<20 || memory > 1<<32 {
		t.Errorf("%d bytes are resident: %v", memory, err)
	}
	if NodeCPUs() < 1 {
		t.Errorf("%d CPUs", NodeCPUs())
	}
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8,10-11": 7, "": 0, "a": 0, "3-1": 0, "1-": 0} {
		if got := countList(list); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
}
