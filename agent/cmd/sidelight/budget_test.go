package main

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/budget"
)

// sampledLine is what the tests of sampling read of a line.
type sampledLine struct {
	logLine
	Probability *float64 `json:"sidelight.sampling_probability"`
}

// TestBudgetRungs puts an agent on every place of the ladder, down and up again, makes connections on each, and holds some open from one place
// to the next. Sums are exact and the account closes on all of them; failures are always in the log, and the lines stand for all the others.
func TestBudgetRungs(t *testing.T) {
	needRoot(t)
	const good, bad, held = 1000, 50, 10
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	grpc := freePort(t)
	b := startBackend(t, grpc, freePort(t))
	a := startNode(t, nodeSettings{
		Config: writeConfig(t, "otlp: {protocol: grpc}"), Cgroup: cgroup, Endpoint: "http://" + grpc,
	})
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	at, client := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), filepath.Join(cgroup, "client")
	connect := func(ending string, count int) {
		runScript(t, ns, client, script{Addr: at, Ending: ending, Count: count, Parallel: 20, Request: 100, Response: 1000})
	}
	details := budget.Details(budget.Telling{Spans: true, Logs: true, AllEvents: true, AnyEvents: true})
	places := append([]budget.Detail(nil), details...)
	for i := len(details) - 2; i >= 0; i-- {
		places = append(places, details[i])
	}
	var offset int64
	var made, failed, open uint64
	var spans, lines, out int
	release := func() {}
	for i, d := range places {
		a.force(d)
		// What is open now is of the place before; it is read on this one.
		opened := open
		release()
		until := filepath.Join(t.TempDir(), fmt.Sprint(i))
		holder := startScript(t, ns, client, script{
			Addr: at, Ending: clientHolds, Count: held, Parallel: held, Request: 100, Response: 1000, Until: until,
		})
		release = func() {
			writeFile(t, until, "")
			holder.line()
			holder.end()
		}
		connect(clientCloses, good)
		connect(clientResets, bad)
		made, failed, open = made+good+bad+held, failed+bad, held
		eventually(t, "the account of "+d.Rung.String(), func() error {
			if live := a.audit().Kernel.Live(); live != 2*held {
				return fmt.Errorf("%d are live", live)
			}
			text, err := a.scrape()
			if err != nil {
				return err
			}
			for name, want := range map[string]uint64{
				`sidelight_tcp_connection_attempts_total{role="client"}`:                       made,
				`sidelight_tcp_connection_established_total{role="client"}`:                    made,
				`sidelight_tcp_connection_established_total{role="server"}`:                    made,
				`sidelight_tcp_connection_open{role="client"}`:                                 held,
				`sidelight_tcp_connection_open{role="server"}`:                                 held,
				`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`:             made - failed - held,
				`sidelight_tcp_connection_closed_total{reason="reset_by_local",role="client"}`: failed,
				`sidelight_tcp_connection_closed_total{reason="reset_by_peer",role="server"}`:  failed,
				`sidelight_tcp_sent_bytes_total{role="client"}`:                                made * (headerBytes + 100),
				`sidelight_tcp_received_bytes_total{role="server"}`:                            made * (headerBytes + 100),
				`sidelight_tcp_received_bytes_total{role="client"}`:                            made * 1000,
				`sidelight_dropped_total{stage="ring"}`:                                        0,
				`sidelight_accounting_unaccounted`:                                             0,
			} {
				if got, _ := find(text, name); got != want {
					return fmt.Errorf("%s is %d, want %d", name, got, want)
				}
			}
			return nil
		})
		report := a.audit()
		if report.Unaccounted != 0 {
			t.Errorf("%v: %d unaccounted: %+v", d, report.Unaccounted, report)
		}
		// Ended on this place, both ends: those before it are known.
		ended := 2 * (good + bad + int(opened))
		eventually(t, "the log", func() error { // what is on its way to a file or a pipeline
			if report = a.audit(); report.AccessLog.Waiting+report.Receiver["logs"].Waiting+report.Receiver["traces"].Waiting > 0 {
				return fmt.Errorf("some waits: %+v", report.AccessLog)
			}
			return nil
		})
		var got []sampledLine
		got, offset = readLogFrom[sampledLine](t, a.Access, offset)
		checkSampled(t, d, got, ended, 2*bad)
		if d.Rung != budget.CountersOnly {
			lines, out = lines+len(got), out+ended-len(got)
		}
		if d.Rung == budget.Full {
			spans += ended
		}
		if w := report.AccessLog; int(w.Written) != lines || int(w.SampledOut) != out || w.Dropped != 0 {
			t.Errorf("%v: the account of the access log is %+v, want %d lines and %d sampled out", d, w, lines, out)
		}
		if w := report.Receiver["logs"]; int(w.Written) != lines || int(w.SampledOut) != out {
			t.Errorf("%v: the account of logs is %+v, want %d and %d sampled out", d, w, lines, out)
		}
		if w := report.Receiver["traces"]; int(w.Written) != spans || int(w.Written+w.SampledOut) != lines+out {
			t.Errorf("%v: the account of spans is %+v, want %d and %d sampled out", d, w, spans, lines+out-spans)
		}
	}
	release()
	a.waitClosed()
	a.stop()
	_, end := readLogFrom[sampledLine](t, a.Access, 0)
	rest, _ := readLogFrom[sampledLine](t, a.Access, offset)
	if end == 0 || len(rest) != 2*held {
		t.Errorf("%d lines of those that were held at the end, want %d", len(rest), 2*held)
	}
	if r := b.Received(); r.Logs != lines+2*held || r.UniqueLogs != r.Logs || r.Spans != spans+2*held {
		t.Errorf("the backend has %d logs (%d different) and %d spans, want %d and %d", r.Logs, r.UniqueLogs, r.Spans, lines+2*held, spans+2*held)
	}
}

// checkSampled holds the lines of one place against what ended there, of which some failed.
func checkSampled(t *testing.T, d budget.Detail, lines []sampledLine, ended, failed int) {
	t.Helper()
	if d.Rung == budget.CountersOnly {
		if len(lines) > 0 {
			t.Errorf("%v: %d lines", d, len(lines))
		}
		return
	}
	sampled := d.Rung >= budget.LogSampling
	sum, failures, odd := 0.0, 0, 0
	ends := make(map[string]int)
	for _, l := range lines {
		if sampled != (l.Probability != nil) {
			t.Fatalf("%v: a line has the probability %v", d, l.Probability)
		}
		p := 1.0
		if sampled {
			p = *l.Probability
		}
		sum += 1 / p
		switch {
		case l.Reason != "ok":
			failures++
		case sampled && p == 1: // slow
			odd++
		case p != d.Probability():
			t.Errorf("%v: a line has the probability %v", d, p)
		default:
			ends[l.TraceID]++
		}
	}
	if failures != failed {
		t.Errorf("%v: %d failures are in the log, want %d", d, failures, failed)
	}
	for trace, n := range ends {
		if n != 2 && odd == 0 {
			t.Errorf("%v: %d ends of the trace %s are in the log", d, n, trace)
		}
	}
	if !sampled {
		if len(lines) != ended {
			t.Errorf("%v: %d lines, want %d", d, len(lines), ended)
		}
		return
	}
	// Both ends fall the same way: of half as many choices each counts twice.
	p, choices := d.Probability(), float64(ended-failed)/2
	if deviation := 2 * math.Sqrt(choices*(1-p)/p); math.Abs(sum-float64(ended)) > 5*deviation {
		t.Errorf("%v: %d lines stand for %.0f connections, there were %d, and the standard deviation is %.0f", d, len(lines), sum, ended, deviation)
	}
}

// stepsOf reads the agent's own log for what the budget did.
func (b *budgetAgent) stepsOf() (steps []string) {
	text, err := os.ReadFile(b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`the overhead budget: telling \w+.* from=(\w+) to=(\w+) cause=(\w+)`).FindAllStringSubmatch(string(text), -1) {
		steps = append(steps, m[1]+" "+m[2]+" "+m[3])
	}
	return steps
}

// lastOf is empty for none.
func lastOf(steps []string) string {
	if len(steps) == 0 {
		return ""
	}
	return steps[len(steps)-1]
}

// TestBudgetLadder gives an agent a budget that a load breaks: it goes down until it is within, settles, and climbs to the top when the load
// ends. Nothing is lost of what it counts.
func TestBudgetLadder(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	grpc := freePort(t)
	b := startBackend(t, grpc, freePort(t))
	state := filepath.Join(t.TempDir(), "state")
	file := filepath.Join(t.TempDir(), "sidelight.yaml")
	writeFile(t, file, "state_directory: "+state+"\notlp: {protocol: grpc}\nbudget: {cpu: 1%, memory: off}\n")
	a := startNode(t, nodeSettings{
		Config: file, Cgroup: cgroup, Endpoint: "http://" + grpc,
		Interval: 100 * time.Millisecond, Pace: budget.Pace{Down: 2, Up: 4, MostUp: 64}, Profile: 200 * time.Millisecond, Rest: time.Hour,
	})
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	// Some 3,000 connections a second, for as long as 40 readings and more take: several times what the limit allows, on a slow machine too.
	const count = 12_000
	load := startScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 10,
		Request: 100, Response: 1000, Think: 2 * time.Millisecond,
	})
	if word := load.line(); word == saysThird || word == saysRest {
		t.Fatalf("it said %s", word)
	}
	load.end()
	down, up := 0, 0
	for _, s := range a.stepsOf() {
		if strings.HasSuffix(s, " room") {
			up++
		} else {
			down++
		}
	}
	t.Logf("under load: %v", a.stepsOf())
	// A step up after 4 readings at the earliest, which is taken back, then after 8, 16, 32; and some more on a machine that others use.
	if down < 1 || up > 5 || down-up < 1 {
		t.Errorf("%d steps down and %d up under load", down, up)
	}
	eventually(t, "the top of the ladder", func() error {
		steps := a.stepsOf()
		if last := lastOf(steps); last != "spans_off full room" {
			return fmt.Errorf("steps: %v", steps)
		}
		return nil
	})
	a.waitClosed()
	// Not more often: who asks is in what is measured, too.
	const pause = time.Second
	eventuallyEvery(t, pause, time.Minute, "the account", func() error {
		r := a.audit()
		w, l, s := r.AccessLog, r.Receiver["logs"], r.Receiver["traces"]
		if r.Unaccounted != 0 {
			t.Errorf("%d unaccounted: %+v", r.Unaccounted, r)
		}
		told := 2*count - r.Kernel.SampledOut["close"] // the others are in the sums
		if w.Written+w.SampledOut != told || l.Written+l.SampledOut != told || s.Written+s.SampledOut != told {
			return fmt.Errorf("of %d: %+v, %+v, %+v", told, w, l, s)
		}
		if r.Kernel.SampledOut["close"] != r.Kernel.Aggregated+r.Kernel.Totalled {
			return fmt.Errorf("%d closes were not sent, sums are of %d", r.Kernel.SampledOut["close"], r.Kernel.Aggregated+r.Kernel.Totalled)
		}
		return nil
	})
	var steps []string
	eventuallyEvery(t, pause, 2*time.Minute, "the sums", func() error {
		steps = a.stepsOf()
		return a.wants(map[string]uint64{
			`sidelight_tcp_connection_attempts_total{role="client"}`:           count,
			`sidelight_tcp_connection_established_total{role="server"}`:        count,
			`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: count,
			`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: count,
			`sidelight_tcp_sent_bytes_total{role="client"}`:                    count * (headerBytes + 100),
			`sidelight_tcp_received_bytes_total{role="client"}`:                count * 1000,
			`sidelight_tcp_connection_open{role="client"}`:                     0,
			`sidelight_budget_rung`:                                            0,
			`sidelight_budget_steps_total{}`:                                   uint64(len(steps)),
		})()
	})
	t.Logf("after it: %v", steps[down+up:])
	files, err := filepath.Glob(filepath.Join(state, "profiles", "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("profiles: %v, %v; want one", files, err)
	}
	a.stop()
	own := b.Received().Own
	if len(own) != len(steps) {
		t.Errorf("%d log records of steps arrived, want %d", len(own), len(steps))
	}
	for i, record := range own {
		said := fmt.Sprint(record.Attributes["sidelight.budget.from"], " ", record.Attributes["sidelight.budget.to"], " ", record.Attributes["sidelight.budget.cause"])
		if i < len(steps) && (said != steps[i] || record.Workload != "sidelight" || record.Attributes["sidelight.budget.cpu_limit_ratio"] != 0.01) {
			t.Errorf("step %d: %q of %q: %v; want %q", i, said, record.Workload, record.Attributes, steps[i])
		}
	}
}

// TestBudgetMemory gives an agent less memory than it needs: it goes to the bottom of the ladder, where its sums are exact, and writes
// what holds the memory.
func TestBudgetMemory(t *testing.T) {
	needRoot(t)
	const count = 500
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	state := filepath.Join(t.TempDir(), "state")
	file := filepath.Join(t.TempDir(), "sidelight.yaml")
	writeFile(t, file, "state_directory: "+state+"\nbudget: {cpu: off, memory: 32MiB}\nreport_interval: 200ms\n")
	a := startNode(t, nodeSettings{
		Config: file, Cgroup: cgroup, Interval: time.Millisecond, Pace: budget.Pace{Down: 2, Up: 4, MostUp: 64},
		Profile: time.Millisecond, Rest: time.Hour,
	})
	want := []string{
		"full log_sampling memory", "log_sampling log_sampling memory", "log_sampling closes_only memory", "closes_only counters_only memory",
	}
	eventually(t, "the bottom of the ladder", func() error {
		if steps := a.stepsOf(); !slices.Equal(steps, want) {
			return fmt.Errorf("steps: %v", steps)
		}
		return nil
	})
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 10, Request: 100, Response: 1000,
	})
	a.waitClosed()
	eventually(t, "the sums", a.wants(map[string]uint64{
		`sidelight_tcp_connection_attempts_total{role="client"}`:           count,
		`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: count,
		`sidelight_tcp_sent_bytes_total{role="client"}`:                    count * (headerBytes + 100),
		`sidelight_accounting_unaccounted`:                                 0,
		`sidelight_budget_rung`:                                            uint64(budget.CountersOnly),
		`sidelight_budget_steps_total{direction="down"}`:                   uint64(len(want)),
		`sidelight_budget_memory_limit_bytes`:                              32 << 20,
	}))
	eventually(t, "profiles of heap and CPU", func() error {
		files, err := filepath.Glob(filepath.Join(state, "profiles", "breach-*.pprof"))
		if err != nil || len(files) != 2 {
			return fmt.Errorf("files: %v, %w", files, err)
		}
		return nil
	})
	a.stop()
	if lines := a.lines(); len(lines) != 0 {
		t.Errorf("%d lines", len(lines))
	}
}
