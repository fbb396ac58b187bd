package outlier

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// withState runs a state.
func withState(t *testing.T, options Options, play func(s *State)) {
	t.Helper()
	s := NewState(options)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	defer running.Wait()
	defer cancel()
	play(s)
}

func changed(s *State) bool {
	select {
	case <-s.Changed():
		return true
	default:
		return false
	}
}

// plainLog logs without times.
func plainLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// TestState has endpoints out for either reason, and both, in simulated time.
func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, log := newNetwork(), &bytes.Buffer{}
		service := detecting(three)
		service.Ports = []model.Port{{Port: 80}}
		service.Health = model.HealthCheck{Interval: time.Second, Timeout: time.Second, UnhealthyThreshold: 1, HealthyThreshold: 1}
		e := endpoints("cart", 3)
		begin := time.Now()
		seconds := func(f float64) time.Time { return begin.Add(time.Duration(f * float64(time.Second))) }
		fail := func(s *State, endpoint string, times int) {
			for range times {
				s.Observe(name(endpoint), name("cart"), true, time.Now())
			}
		}
		withState(t, Options{Dial: n.dial, Logger: plainLog(log)}, func(s *State) {
			s.checker.random = func() float64 { return 0.5 } // checks at 0.5, 1.5 s and so on
			s.SetSnapshot(mesh(service, e))
			pass(100 * time.Millisecond)
			if out := s.Out(); len(out) != 0 || changed(s) || !s.Next().IsZero() || len(s.Stats()) != 0 {
				t.Errorf("at first: %v, %v", out, s.Stats())
			}
			fail(s, "a", 3)
			fail(s, "b", 3)
			n.set(e[1], syscall.ECONNREFUSED, false)
			n.set(e[2], syscall.ECONNREFUSED, false)
			fail(s, "c", 1)
			pass(900 * time.Millisecond) // 1 s
			want := map[model.Name]Cause{name("a"): Outlier, name("b"): HealthCheck, name("c"): HealthCheck}
			if out := s.Out(); !maps.Equal(out, want) || !changed(s) || changed(s) || s.Next() != seconds(10.1) {
				t.Errorf("out %v, next %v", out, s.Next())
			}
			cart := name("cart")
			stats := []Stats{
				{Endpoint: name("a"), Service: cart, Ejections: 1, Cause: Outlier, Until: seconds(10.1)},
				{Endpoint: name("b"), Service: cart, Ejections: 1, CheckEjections: 1, FailingChecks: 1, Cause: HealthCheck},
				{Endpoint: name("c"), Service: cart, CheckEjections: 1, Failing: 1, FailingChecks: 1, Cause: HealthCheck},
			}
			if got := s.Stats(); !slices.Equal(got, stats) {
				t.Errorf("stats %+v, want %+v", got, stats)
			}
			n.set(e[1], nil, false)
			pass(time.Second) // 2 s: b answers again, and is an outlier still
			want[name("b")] = Outlier
			if out := s.Out(); !maps.Equal(out, want) || !changed(s) {
				t.Errorf("at 2 s out %v", out)
			}
			pass(8*time.Second + 99*time.Millisecond) // 10.099 s
			if out := s.Out(); !maps.Equal(out, want) || changed(s) {
				t.Errorf("at 10.099 s out %v", out)
			}
			pass(2 * time.Millisecond)
			want = map[model.Name]Cause{name("c"): HealthCheck}
			if out := s.Out(); !maps.Equal(out, want) || !changed(s) || !s.Next().IsZero() {
				t.Errorf("at 10.101 s out %v", out)
			}
			s.SetSnapshot(mesh(service, e[:2]))
			if out := s.Out(); len(out) != 0 || !changed(s) {
				t.Errorf("when c left, out %v", out)
			}
			// An ejection that ends before the one that Run waits for.
			fail(s, "a", 3)
			pass(time.Second)
			brief := service
			brief.Outlier.BaseEjectionTime = 2 * time.Second
			s.SetSnapshot(mesh(brief, e[:2]))
			pass(10 * time.Second) // b has been in service for so long that its multiple is 1 again
			fail(s, "b", 3)
			changed(s)
			pass(2*time.Second + time.Millisecond)
			if out := s.Out(); !maps.Equal(out, map[model.Name]Cause{name("a"): Outlier}) || !changed(s) {
				t.Errorf("when b is back, out %v", out)
			}
		})
		line := func(message, endpoint, cause, more string) string {
			return fmt.Sprintf("level=INFO msg=%s endpoint=shop/%s service=shop/cart cause=%s%s\n", message, endpoint, cause, more)
		}
		until := func(f float64) string { return " until=" + seconds(f).Format("2006-01-02T15:04:05.000Z07:00") }
		text := line(`"endpoint ejected"`, "a", "outlier", until(10.1)) + line(`"endpoint ejected"`, "b", "outlier", until(10.1)) +
			line(`"endpoint ejected"`, "b", "health_check", ` error="connection refused"`) +
			line(`"endpoint ejected"`, "c", "health_check", ` error="connection refused"`) +
			line(`"endpoint back"`, "b", "health_check", "") + line(`"endpoint back"`, "a", "outlier", "") + line(`"endpoint back"`, "b", "outlier", "") +
			line(`"ejection dropped with a change of the mesh"`, "c", "health_check", "")
		got := sortChecks(log.String())
		if !strings.HasPrefix(got, text) {
			t.Errorf("the log:\n%swant:\n%s", got, text)
		}
		if rest := strings.TrimPrefix(got, text); strings.Count(rest, "ejected") != 2 || strings.Count(rest, "back") != 1 {
			t.Errorf("the rest of the log:\n%s", rest)
		}
	})
}

// sortChecks puts the third and fourth line in order: two checks that end at the same time.
func sortChecks(log string) string {
	lines := strings.SplitAfter(log, "\n")
	if len(lines) > 4 {
		slices.Sort(lines[2:4])
	}
	return strings.Join(lines, "")
}

// TestStateClock is that of Options: an hour of it passes at once.
func TestStateClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		clock := origin
		now := func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return clock
		}
		withState(t, Options{Now: now, Dial: newNetwork().dial, Logger: slog.New(slog.DiscardHandler)}, func(s *State) {
			s.SetSnapshot(mesh(detecting(three), endpoints("cart", 1)))
			for range 3 {
				s.Observe(name("a"), name("cart"), true, now())
			}
			synctest.Wait()
			if len(s.Out()) != 1 {
				t.Error("a is not out")
			}
			mu.Lock()
			clock = clock.Add(time.Hour)
			mu.Unlock()
			pass(10 * time.Second)
			if len(s.Out()) != 0 {
				t.Error("a is still out")
			}
		})
	})
}

// TestLogOverflow is bounded, and says how much it missed.
func TestLogOverflow(t *testing.T) {
	var log bytes.Buffer
	s := NewState(Options{Logger: plainLog(&log)})
	settings := three
	settings.ConsecutiveFailures = 1
	all := endpoints("cart", maxSteps+10)
	s.SetSnapshot(mesh(detecting(settings), all))
	for i := range all {
		s.Observe(all[i].Name, name("cart"), true, time.Now())
	}
	s.log()
	if n := strings.Count(log.String(), "endpoint ejected"); n != maxSteps || !strings.Contains(log.String(), "steps=10\n") {
		t.Errorf("%d steps", n)
	}
}

// TestListeners checks real listeners that come and go.
func TestListeners(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			l := listen(t, net.JoinHostPort(host, "0"))
			to := l.Addr().(*net.TCPAddr).AddrPort()
			service := model.Service{Name: name("cart"), Ports: []model.Port{{Port: 1}}, Health: model.HealthCheck{
				Interval: 10 * time.Millisecond, Timeout: 5 * time.Second, UnhealthyThreshold: 2, HealthyThreshold: 2,
			}}
			e := []model.Endpoint{{Name: name("a"), Service: name("cart"), Addresses: []netip.Addr{to.Addr()}, Port: to.Port()}}
			withState(t, Options{Logger: slog.New(slog.DiscardHandler)}, func(s *State) {
				s.SetSnapshot(mesh(service, e))
				for range 5 { // checks
					conn, err := l.Accept()
					if err != nil {
						t.Fatal(err)
					}
					conn.Close()
				}
				if out := s.Out(); len(out) != 0 {
					t.Errorf("out while it answers: %v", out)
				}
				l.Close()
				waitFor(t, s, map[model.Name]Cause{name("a"): HealthCheck})
				again := listen(t, to.String())
				go drain(again)
				waitFor(t, s, map[model.Name]Cause{})
				again.Close()
				waitFor(t, s, map[model.Name]Cause{name("a"): HealthCheck})
			})
		})
	}
}

func drain(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}

// waitFor waits until something is out.
func waitFor(t *testing.T, s *State, want map[model.Name]Cause) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !maps.Equal(s.Out(), want) {
		select {
		case <-s.Changed():
		case <-deadline:
			t.Fatalf("out %v, want %v", s.Out(), want)
		}
	}
}

// TestConcurrent does everything at once, for the race detector; in the end nothing is out that is not in the mesh.
func TestConcurrent(t *testing.T) {
	service := detecting(model.OutlierDetection{
		ConsecutiveFailures: 2, BaseEjectionTime: time.Millisecond, MaxEjectionTime: 3 * time.Millisecond, MaxEjectionPercent: 50,
	})
	service.Ports = []model.Port{{Port: 80}}
	service.Health = model.HealthCheck{Interval: time.Millisecond, UnhealthyThreshold: 1, HealthyThreshold: 1}
	all := endpoints("cart", 12)
	n := newNetwork()
	for i := range all {
		if i%3 == 0 {
			n.set(all[i], syscall.ECONNREFUSED, false)
		}
	}
	withState(t, Options{Dial: n.dial, Checks: 3, Logger: slog.New(slog.DiscardHandler)}, func(s *State) {
		var busy sync.WaitGroup
		do := func(times int, f func(i int)) {
			busy.Go(func() {
				for i := range times {
					f(i)
				}
			})
		}
		for range 2 {
			do(20000, func(i int) { s.Observe(all[i%12].Name, name("cart"), i%7 != 0, time.Now()) })
		}
		do(300, func(i int) { s.SetSnapshot(mesh(service, all[i%5:])) })
		do(300, func(int) { s.Stats() })
		do(300, func(int) { s.Out(); s.Next(); changed(s) })
		busy.Wait()
		s.SetSnapshot(mesh(service, all[6:]))
		for e := range s.Out() {
			if !slices.ContainsFunc(all[6:], func(m model.Endpoint) bool { return m.Name == e }) {
				t.Errorf("%v is out", e)
			}
		}
	})
}

// TestCauses are what the log and metrics have.
func TestCauses(t *testing.T) {
	for cause, want := range map[Cause]string{None: "", Outlier: "outlier", HealthCheck: "health_check"} {
		if got := cause.String(); got != want {
			t.Errorf("%d is %q, want %q", cause, got, want)
		}
	}
}
