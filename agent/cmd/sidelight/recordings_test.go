package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/event"
)

// Needs root: the recordings are made anew by the running kernel. See "make recordings".
var update = flag.Bool("update", false, "make testdata/recordings anew, and what is expected of them")

// aRecording is a scenario: make records it, check holds a replay against what was done.
type aRecording struct {
	name  string
	make  func(t *testing.T, file string)
	check func(t *testing.T, r replayed)
}

// Sizes of the scenario "mix": requests have a header before them.
const (
	mixRequest  = 100
	mixResponse = 1000
)

var recordings = []aRecording{
	{
		// Connections of each kind, one that is open during a sweep and one that is open at the end.
		name: "mix",
		make: func(t *testing.T, file string) {
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			r := startRecorder(t, cgroup, file, "--config", writeConfig(t))
			_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
			client := filepath.Join(cgroup, "client")
			run := func(s script) { runScript(t, ns, client, s) }
			run(script{Addr: at("127.0.0.1", port), Ending: clientCloses, Count: 5, Request: mixRequest, Response: mixResponse})
			run(script{Addr: at("::1", port), Ending: serverCloses, Count: 4, Request: mixRequest, Response: mixResponse})
			run(script{Addr: at("127.0.0.1", 1), Ending: connectOnly, Count: 3})
			run(script{Addr: at("::1", port), Ending: serverResets, Count: 2, Request: mixRequest})
			until, never := filepath.Join(t.TempDir(), "end"), filepath.Join(t.TempDir(), "never")
			held := script{Addr: at("127.0.0.1", port), Ending: clientHolds, Count: 1, Request: mixRequest, Response: mixResponse, Until: until}
			p := startHolding(t, ns, client, held)
			waitSockets(t, ns, established, 2*(1))
			r.waitSwept()
			if err := os.WriteFile(until, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			p.end()
			r.waitEnded(2*(5+4+2+1) + 3)
			held.Until = never
			startHolding(t, ns, client, held) // killed with the test
			waitSockets(t, ns, established, 2*(1))
			r.stop()
			if k := r.tally().kinds; k[event.FrameSweepRecord] < 4 {
				t.Errorf("%d records of sweeps, want one of each end of two connections at least", k[event.FrameSweepRecord])
			}
		},
		check: func(t *testing.T, r replayed) {
			wantLines(t, r, map[logLine]int{
				{NetworkType: "ipv4", Role: "client", Reason: "ok", Sent: headerBytes + mixRequest, Received: mixResponse}:                       6,
				{NetworkType: "ipv4", Role: "server", Reason: "ok", Sent: mixResponse, Received: headerBytes + mixRequest}:                       6,
				{NetworkType: "ipv6", Role: "client", Reason: "ok", Sent: headerBytes + mixRequest, Received: mixResponse}:                       4,
				{NetworkType: "ipv6", Role: "server", Reason: "ok", Sent: mixResponse, Received: headerBytes + mixRequest}:                       4,
				{NetworkType: "ipv4", Role: "client", Reason: "refused", ErrorType: "refused"}:                                                   3,
				{NetworkType: "ipv6", Role: "client", Reason: "reset_by_peer", ErrorType: "reset_by_peer", Sent: headerBytes + mixRequest}:       2,
				{NetworkType: "ipv6", Role: "server", Reason: "reset_by_local", ErrorType: "reset_by_local", Received: headerBytes + mixRequest}: 2,
			})
			wantValues(t, r, map[string]uint64{
				`sidelight_tcp_connection_attempts_total{role="client"}`:                       16,
				`sidelight_tcp_connection_established_total{role="client"}`:                    13,
				`sidelight_tcp_connection_established_total{role="server"}`:                    13,
				`sidelight_tcp_connection_failures_total{reason="refused",role="client"}`:      3,
				`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`:             10,
				`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`:             10,
				`sidelight_tcp_connection_closed_total{reason="reset_by_peer",role="client"}`:  2,
				`sidelight_tcp_connection_closed_total{reason="reset_by_local",role="server"}`: 2,
				`sidelight_tcp_connection_open{role="client"}`:                                 1,
				`sidelight_tcp_connection_open{role="server"}`:                                 1,
				`sidelight_tcp_connection_connecting{role="client"}`:                           0,
				`sidelight_tcp_sent_bytes_total{role="client"}`:                                13 * (headerBytes + mixRequest),
				`sidelight_tcp_received_bytes_total{role="client"}`:                            11 * mixResponse,
				`sidelight_tcp_sent_bytes_total{role="server"}`:                                11 * mixResponse,
				`sidelight_tcp_received_bytes_total{role="server"}`:                            13 * (headerBytes + mixRequest),
			})
			if !strings.Contains(r.stderr, "27 connections ended, 2 are open; 0 closes without room are in it as sums, 0 events or connections unaccounted\n") {
				t.Errorf("it said %s", r.stderr)
			}
		},
	},
	{
		// More than the ring has room for: lines are missing, and no sum is.
		name: "loss",
		make: func(t *testing.T, file string) {
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			r := startRecorder(t, cgroup, file, "--config", writeConfig(t, "ring_bytes: 4096"))
			_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
			r.signal(syscall.SIGSTOP)
			runScript(t, ns, filepath.Join(cgroup, "client"), script{
				Addr: at("127.0.0.1", port), Ending: clientCloses, Count: lossCount, Request: mixRequest, Response: mixResponse,
			})
			r.signal(syscall.SIGCONT)
			r.waitEnded(2 * lossCount)
			r.stop()
		},
		check: func(t *testing.T, r replayed) {
			wantValues(t, r, map[string]uint64{
				`sidelight_tcp_connection_attempts_total{role="client"}`:           lossCount,
				`sidelight_tcp_connection_established_total{role="client"}`:        lossCount,
				`sidelight_tcp_connection_established_total{role="server"}`:        lossCount,
				`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: lossCount,
				`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: lossCount,
				`sidelight_tcp_connection_open{role="client"}`:                     0,
				`sidelight_tcp_connection_open{role="server"}`:                     0,
				`sidelight_tcp_sent_bytes_total{role="client"}`:                    lossCount * (headerBytes + mixRequest),
				`sidelight_tcp_received_bytes_total{role="client"}`:                lossCount * mixResponse,
			})
			var lost int
			m := regexp.MustCompile(`0 are open; (\d+) closes without room are in it as sums, 0 events or connections unaccounted\n`).FindStringSubmatch(r.stderr)
			if m == nil {
				t.Fatalf("it said %s", r.stderr)
			}
			if _, err := fmt.Sscan(m[1], &lost); err != nil || lost == 0 || lost+len(r.lines) != 2*lossCount {
				t.Errorf("%d lines and %d lost, want %d together and some lost", len(r.lines), lost, 2*lossCount)
			}
		},
	},
}

const lossCount = 200

// wantLines wants exactly these lines, but for what differs from one recording to the next.
func wantLines(t *testing.T, r replayed, want map[logLine]int) {
	t.Helper()
	got := make(map[logLine]int)
	for _, l := range r.lines {
		if l.PID == 0 || l.Executable == "" || !strings.HasSuffix(l.Cgroup, "/"+l.Role) {
			t.Errorf("a line without its process or its cgroup: %+v", l)
		}
		l.UID, l.TraceID, l.ServerPort, l.PID, l.Executable, l.Cgroup = "", "", 0, 0, "", ""
		got[l]++
	}
	for l, n := range want {
		if got[l] != n {
			t.Errorf("want %d of %+v, got %d", n, l, got[l])
		}
		delete(got, l)
	}
	for l, n := range got {
		t.Errorf("%d lines that nobody expected: %+v", n, l)
	}
}

func wantValues(t *testing.T, r replayed, want map[string]uint64) {
	t.Helper()
	for name, n := range want {
		if got := value(t, r.metrics, name); got != n {
			t.Errorf("%s is %d, want %d", name, got, n)
		}
	}
}

// TestRecordings replays the recordings in testdata twice each: both times what comes out is what is expected, byte for byte. It
// needs neither root nor a kernel with BPF.
func TestRecordings(t *testing.T) {
	for _, s := range recordings {
		t.Run(s.name, func(t *testing.T) {
			base := filepath.Join("testdata", "recordings", s.name)
			if *update {
				needRoot(t)
				made := filepath.Join(t.TempDir(), "new.rec")
				s.make(t, made)
				relabel(t, made, base+".rec")
			}
			first := replayFile(t, base+".rec")
			s.check(t, first)
			if *update && !t.Failed() {
				writeFile(t, base+".log", first.log)
				writeFile(t, base+".prom", first.metrics)
			}
			for _, r := range []replayed{first, replayFile(t, base+".rec")} {
				if r.log != readFile(t, base+".log") {
					t.Errorf("the access log is not %s.log:\n%s", base, r.log)
				}
				if r.metrics != readFile(t, base+".prom") {
					t.Errorf("the metrics are not %s.prom:\n%s", base, r.metrics)
				}
			}
		})
	}
}

// relabel copies a recording with another header: that of no machine in particular.
func relabel(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	player, err := event.NewPlayer(in)
	if err != nil {
		t.Fatal(err)
	}
	header := *player.Header()
	header.Kernel, header.Host, header.BootID = "6.1.0", "node1", "01234567-89ab-cdef-0123-456789abcdef"
	var out strings.Builder
	writer, err := event.NewWriter(&out, header)
	if err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := player.Next()
		if err != nil {
			t.Fatal(err)
		}
		if frame.Kind == event.FrameEnd {
			break
		}
		if err := writer.Write(&frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.End(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, out.String())
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
