package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/budget"
)

// sampledLine is what the tests of sampling read of a line.
type sampledLine struct {
	logLine
	Probability *float64 `json:"sidelight.sampling_probability"`
}

// sampledLines reads the lines of the access log from an offset on, and returns the next offset.
func sampledLines(t *testing.T, path string, from int64) ([]sampledLine, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(from, 0); err != nil {
		t.Fatal(err)
	}
	var lines []sampledLine
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		var l sampledLine
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			t.Fatalf("%v: %s", err, scanner.Text())
		}
		lines = append(lines, l)
		from += int64(len(scanner.Bytes())) + 1
	}
	return lines, from
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
		got, offset = sampledLines(t, a.Access, offset)
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
	_, end := sampledLines(t, a.Access, 0)
	rest, _ := sampledLines(t, a.Access, offset)
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
