package outlier

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// everySecond fails after three checks, and is back after two.
var everySecond = model.HealthCheck{Interval: time.Second, Timeout: 200 * time.Millisecond, UnhealthyThreshold: 3, HealthyThreshold: 2}

func checking(h model.HealthCheck) model.Service {
	return model.Service{Name: name("cart"), Ports: []model.Port{{Port: 80}}, Health: h}
}

// network is a Dial in simulated time.
type network struct {
	mu      sync.Mutex
	errs    map[netip.Addr]error
	hangs   map[netip.Addr]bool
	dialed  map[netip.Addr][]time.Time
	running int
	most    int // at a time
}

func newNetwork() *network {
	return &network{errs: map[netip.Addr]error{}, hangs: map[netip.Addr]bool{}, dialed: map[netip.Addr][]time.Time{}}
}

func (n *network) dial(ctx context.Context, to netip.AddrPort) error {
	n.mu.Lock()
	n.dialed[to.Addr()] = append(n.dialed[to.Addr()], time.Now())
	n.running++
	n.most = max(n.most, n.running)
	hangs, err := n.hangs[to.Addr()], n.errs[to.Addr()]
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.running--
		n.mu.Unlock()
	}()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (n *network) set(e model.Endpoint, err error, hangs bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.errs[e.Addresses[0]], n.hangs[e.Addresses[0]] = err, hangs
}

func (n *network) times(e model.Endpoint) []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dialed[e.Addresses[0]]
}

// withChecker runs a checker in a bubble of simulated time.
func withChecker(t *testing.T, checks int, play func(t *testing.T, c *Checker, n *network, log *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n, log := newNetwork(), &bytes.Buffer{}
		c := NewChecker(n.dial, checks, func(Step) {}, slog.New(slog.NewTextHandler(log, nil)))
		c.random = func() float64 { return 0.5 } // no jitter, and the first check after half an interval
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { c.Run(ctx) })
		play(t, c, n, log)
		cancel()
		running.Wait()
	})
}

// pass lets simulated time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestThresholds plays checks: each letter is one, f fails, h hangs, s succeeds, x cannot be made.
func TestThresholds(t *testing.T) {
	none := everySecond
	none.UnhealthyThreshold, none.HealthyThreshold = 0, 0
	for _, test := range []struct {
		settings  model.HealthCheck
		checks    string
		out       string // after each check: o for out
		ejections uint64
	}{
		{everySecond, "ssssss", "......", 0},
		{everySecond, "ffsffs", "......", 0},
		{everySecond, "fffff", "..ooo", 1},
		{everySecond, "hhhh", "..oo", 1},
		{everySecond, "fffsfssf", "..oooo..", 1},
		{everySecond, "fffssffssfff", "..oo.......o", 2},
		{everySecond, "fxfxfsxs", "....ooo.", 1},
		{none, "fsfs", "o.o.", 2},
	} {
		t.Run(test.checks, func(t *testing.T) {
			withChecker(t, 1, func(t *testing.T, c *Checker, n *network, log *bytes.Buffer) {
				e := endpoints("cart", 1)
				c.SetSnapshot(mesh(checking(test.settings), e))
				pass(0)
				var got strings.Builder
				for _, check := range test.checks {
					n.set(e[0], map[rune]error{'f': syscall.ECONNREFUSED, 'x': syscall.EMFILE}[check], check == 'h')
					pass(time.Second)
					got.WriteByte(".o"[len(c.Out())])
				}
				if got.String() != test.out {
					t.Errorf("out %s, want %s", got.String(), test.out)
				}
				var ejections uint64
				for _, s := range c.Stats() {
					ejections += s.CheckEjections
				}
				if ejections != test.ejections {
					t.Errorf("%d ejections, want %d", ejections, test.ejections)
				}
				if said := strings.Count(log.String(), "cannot be made"); said != strings.Count(test.checks, "x") {
					t.Errorf("the log: %s", log.String())
				}
			})
		})
	}
}

// TestSchedule looks at when checks begin: the first within an interval, then one each interval, give or take a tenth.
func TestSchedule(t *testing.T) {
	withChecker(t, 100, func(t *testing.T, c *Checker, n *network, _ *bytes.Buffer) {
		random := 0.0
		c.random = func() float64 { // in order: 0, 0.1 .. 0.9, 0
			r := random
			random += 0.1
			if random >= 1 {
				random = 0
			}
			return r
		}
		begin := time.Now()
		e := endpoints("cart", 20)
		c.SetSnapshot(mesh(checking(everySecond), e))
		pass(100 * time.Second)
		var shortest, longest time.Duration = time.Hour, 0
		for i := range e {
			times := n.times(e[i])
			if len(times) < 90 || len(times) > 112 {
				t.Errorf("%d checks", len(times))
			}
			if first := times[0].Sub(begin); first < 0 || first >= time.Second {
				t.Errorf("the first after %v", first)
			}
			for j := 1; j < len(times); j++ {
				d := times[j].Sub(times[j-1])
				shortest, longest = min(shortest, d), max(longest, d)
			}
		}
		if shortest < 900*time.Millisecond || longest > 1100*time.Millisecond || shortest > 910*time.Millisecond || longest < 1070*time.Millisecond {
			t.Errorf("from %v to %v", shortest, longest)
		}
	})
}

// TestSlowChecks never overlap, and no more run at a time than may.
func TestSlowChecks(t *testing.T) {
	withChecker(t, 4, func(t *testing.T, c *Checker, n *network, _ *bytes.Buffer) {
		slow := everySecond
		slow.Timeout = 3 * time.Second
		e := endpoints("cart", 8)
		for i := range e {
			n.set(e[i], nil, true)
		}
		c.SetSnapshot(mesh(checking(slow), e))
		pass(60 * time.Second)
		if n.most != 4 {
			t.Errorf("%d at a time", n.most)
		}
		for i := range e {
			times := n.times(e[i])
			for j := 1; j < len(times); j++ {
				if d := times[j].Sub(times[j-1]); d < 3*time.Second {
					t.Errorf("one after %v", d)
				}
			}
			// Two rounds of four take 6 s.
			if len(times) < 9 || len(times) > 11 {
				t.Errorf("%d checks of %v", len(times), e[i].Name)
			}
		}
		if len(c.Out()) != 8 {
			t.Errorf("out: %v", c.Out())
		}
	})
}

// TestNoTimeout is that of the interval.
func TestNoTimeout(t *testing.T) {
	withChecker(t, 1, func(t *testing.T, c *Checker, n *network, _ *bytes.Buffer) {
		e := endpoints("cart", 1)
		n.set(e[0], nil, true)
		c.SetSnapshot(mesh(checking(model.HealthCheck{Interval: time.Second}), e))
		pass(1499 * time.Millisecond)
		if len(c.Out()) != 0 {
			t.Error("out too early")
		}
		pass(2 * time.Millisecond)
		if len(c.Out()) != 1 {
			t.Error("not out")
		}
	})
}

// TestCheckerSnapshots changes the mesh while a is out and b has failed once.
func TestCheckerSnapshots(t *testing.T) {
	e := endpoints("cart", 3)
	slower, stricter := everySecond, everySecond
	slower.Interval = 10 * time.Second
	stricter.UnhealthyThreshold = 1
	moved := endpoints("cart", 3)
	moved[0].Port++
	for _, test := range []struct {
		name    string
		next    *model.Snapshot
		out     bool // a, at once
		dropped bool
		checks  [3]int // in the next 3 s
	}{
		{"nothing", mesh(checking(everySecond), e), true, false, [3]int{3, 3, 3}},
		{"twins", mesh(checking(everySecond), append(endpoints("cart", 3), moved...)), true, false, [3]int{3, 3, 3}},
		{"a leaves", mesh(checking(everySecond), e[1:]), false, true, [3]int{0, 3, 3}},
		{"a moves", mesh(checking(everySecond), moved), false, true, [3]int{3, 3, 3}},
		{"no checks", mesh(checking(model.HealthCheck{}), e), false, true, [3]int{0, 0, 0}},
		{"other thresholds", mesh(checking(stricter), e), true, false, [3]int{3, 3, 3}},
		{"another interval", mesh(checking(slower), e), true, false, [3]int{0, 0, 0}},
		{"everything leaves", &model.Snapshot{}, false, true, [3]int{0, 0, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			withChecker(t, 8, func(t *testing.T, c *Checker, n *network, _ *bytes.Buffer) {
				var steps []Step
				c.stepped = func(s Step) { steps = append(steps, s) } // with c.mu held
				n.set(e[0], errors.New("no"), false)
				c.SetSnapshot(mesh(checking(everySecond), e))
				pass(3100 * time.Millisecond) // checks at 0.5, 1.5, 2.5 s
				if out := c.Out(); len(out) != 1 || len(steps) != 1 || steps[0].Change != Ejected || steps[0].Err == nil {
					t.Fatalf("out at first: %v, %v", out, steps)
				}
				// Again and again, as on each change of another service.
				var before [3]int
				for i := range e {
					before[i] = len(n.times(e[i]))
				}
				c.SetSnapshot(test.next)
				if out := len(c.Out()) == 1; out != test.out {
					t.Errorf("out: %t", out)
				}
				if dropped := len(steps) == 2 && steps[1].Change == Dropped; dropped != test.dropped {
					t.Errorf("steps: %v", steps)
				}
				for range 30 {
					pass(100 * time.Millisecond)
					c.SetSnapshot(test.next)
				}
				pass(0)
				for i := range e {
					if got := len(n.times(e[i])) - before[i]; got != test.checks[i] {
						t.Errorf("%d checks of %v, want %d", got, e[i].Name, test.checks[i])
					}
				}
			})
		})
	}
}

// TestGoneWhileChecked forgets the result of a check of what left meanwhile, also where it is back under the same name.
func TestGoneWhileChecked(t *testing.T) {
	withChecker(t, 8, func(t *testing.T, c *Checker, n *network, _ *bytes.Buffer) {
		c.stepped = func(s Step) { t.Errorf("%+v", s) }
		once := everySecond
		once.UnhealthyThreshold, once.Timeout = 1, time.Minute
		e := endpoints("cart", 1)
		n.set(e[0], nil, true)
		c.SetSnapshot(mesh(checking(once), e))
		pass(time.Second)
		c.SetSnapshot(&model.Snapshot{})
		n.set(e[0], nil, false)
		c.SetSnapshot(mesh(checking(once), e))
		pass(2 * time.Minute)
		if out, stats := c.Out(), c.Stats(); len(out) != 0 || len(stats) != 0 {
			t.Errorf("out %v, %v", out, stats)
		}
		if times := n.times(e[0]); len(times) != 121 {
			t.Errorf("%d checks, want 1 that is forgotten and 120", len(times))
		}
	})
}

// TestSnapshotWhileChecked begins no second check of what is being checked.
func TestSnapshotWhileChecked(t *testing.T) {
	withChecker(t, 8, func(t *testing.T, c *Checker, n *network, _ *bytes.Buffer) {
		slow := everySecond
		slow.Timeout = time.Minute
		e := endpoints("cart", 1)
		n.set(e[0], nil, true)
		for range 10 {
			c.SetSnapshot(mesh(checking(slow), e))
			pass(time.Second)
		}
		if times := n.times(e[0]); len(times) != 1 {
			t.Errorf("%d checks", len(times))
		}
	})
}

// TestEndWhileChecked says nothing of the endpoint.
func TestEndWhileChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		c := NewChecker(n.dial, 8, func(s Step) { t.Errorf("%+v", s) }, slog.New(slog.DiscardHandler))
		once := everySecond
		once.UnhealthyThreshold, once.Timeout = 1, time.Minute
		e := endpoints("cart", 1)
		n.set(e[0], nil, true)
		c.SetSnapshot(mesh(checking(once), e))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		c.Run(ctx)
		if times, stats := n.times(e[0]), c.Stats(); len(times) != 1 || len(stats) != 0 {
			t.Errorf("%d checks, %+v", len(times), stats)
		}
	})
}

// TestNothingToCheck says once of endpoints that have no port.
func TestNothingToCheck(t *testing.T) {
	withChecker(t, 8, func(t *testing.T, c *Checker, n *network, log *bytes.Buffer) {
		s := checking(everySecond)
		s.Ports = []model.Port{{}}
		e := endpoints("cart", 2)
		e[0].Port, e[1].Port = 0, 0
		c.SetSnapshot(mesh(s, e))
		c.SetSnapshot(mesh(s, e))
		pass(10 * time.Second)
		if len(n.dialed) != 0 || strings.Count(log.String(), "endpoints=2 endpoint=shop/a") != 1 {
			t.Errorf("%v, %s", n.dialed, log.String())
		}
	})
}
