package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// TestAdoption starts the agent when connections are open: it counts them as open, by role, and sees what they move from then on and
// their end. The lines have the bytes of the whole life, and the metrics what was moved since.
func TestAdoption(t *testing.T) {
	needRoot(t)
	const count, request, response, late = 50, 1000, 5000, 70
	for _, c := range []struct {
		name  string
		addr  string
		bound bool
	}{
		{"v4", "127.0.0.1", false},
		{"v6", "::1", false},
		{"v4-mapped", "::ffff:127.0.0.1", false},
		// A port of the client's own choice is no sign of its role.
		{"bound", "127.0.0.1", true},
		{"bound, v6", "::1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cgroup, outside := newCgroup(t, "client", "server"), newCgroup(t)
			ns := newNamespace(t)
			server, port := startServer(t, ns, filepath.Join(cgroup, "server"), peerMPTCP+"=off")
			_, otherPort := startServer(t, ns, outside)
			until := filepath.Join(t.TempDir(), "end")
			s := script{
				Addr: netip.AddrPortFrom(netip.MustParseAddr(c.addr), port), Ending: clientHolds, Count: count, Parallel: count,
				Request: request, Response: response, Late: late, Until: until, Bound: c.bound,
			}
			client := startHolding(t, ns, filepath.Join(cgroup, "client"), s)
			// None of the agent's business.
			s.Addr = netip.AddrPortFrom(s.Addr.Addr(), otherPort)
			other := startHolding(t, ns, outside, s)
			waitSockets(t, ns, established, 4*count)

			a := startAgent(t, cgroup)
			// Only those that are new have a handshake.
			s.Addr, s.Ending = netip.AddrPortFrom(s.Addr.Addr(), port), clientCloses
			runScript(t, ns, filepath.Join(cgroup, "client"), s)
			want := func(open, lateSent uint64) func() error {
				return a.wants(map[string]uint64{
					`sidelight_tcp_connection_adopted_total{role="client"}`:     count,
					`sidelight_tcp_connection_adopted_total{role="server"}`:     count,
					`sidelight_tcp_connection_open{role="client"}`:              open,
					`sidelight_tcp_connection_open{role="server"}`:              open,
					`sidelight_tcp_connection_attempts_total{role="client"}`:    count,
					`sidelight_tcp_connection_established_total{role="client"}`: count,
					`sidelight_tcp_connection_established_total{role="server"}`: count,
					`sidelight_tcp_sent_bytes_total{role="client"}`:             count*(headerBytes+request) + lateSent,
					`sidelight_tcp_received_bytes_total{role="server"}`:         count*(headerBytes+request) + lateSent,
					`sidelight_tcp_sent_bytes_total{role="server"}`:             count * response,
					`sidelight_tcp_received_bytes_total{role="client"}`:         count * response,
				})
			}
			eventually(t, "the sums of adopted connections", want(count, 0))
			if err := os.WriteFile(until, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			client.end()
			other.end()
			a.waitClosed()
			if err := want(0, count*late)(); err != nil {
				t.Error(err)
			}
			audit := a.audit()
			a.stop()
			if audit.Unaccounted != 0 || audit.Kernel.AdoptFailed != 0 || audit.Kernel.UntrackedClosed != 0 {
				t.Errorf("the account does not close: %+v", audit)
			}
			ends := make(map[string]int) // of each trace
			for _, l := range a.adoptedLines() {
				ends[l.TraceID]++
				pid, sent, received := client.Process.Pid, uint64(headerBytes+request+late), uint64(response)
				if l.Role == "server" {
					pid, sent, received = server.Process.Pid, received, sent
				}
				if l.Reason != "ok" || l.PID != pid || l.Sent != sent || l.Received != received || l.Duration != nil || l.Connect != nil {
					t.Fatalf("want pid %d, %d and %d bytes, and no times: %+v", pid, sent, received, l)
				}
			}
			if len(ends) != count {
				t.Errorf("%d traces for %d connections", len(ends), count)
			}
			for trace, n := range ends {
				if n != 2 {
					t.Errorf("trace %s has %d ends", trace, n)
				}
			}
			if lines := len(a.lines()); lines != 4*count {
				t.Errorf("%d lines, want %d", lines, 4*count)
			}
		})
	}
}

// TestAdoptionConnecting starts the agent while connects hang: each is an attempt, which fails when their process is killed.
func TestAdoptionConnecting(t *testing.T) {
	needRoot(t)
	const count = 50
	cgroup := newCgroup(t)
	ns := newNamespace(t)
	swallow(t, ns)
	if err := lab.In(ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syn_retries", []byte("6"), 0) }); err != nil {
		t.Fatal(err)
	}
	client := startScript(t, ns, cgroup, script{
		Addr: netip.MustParseAddrPort("192.0.2.1:1"), Ending: connectOnly, Count: count, Parallel: count,
	})
	waitSockets(t, ns, synSent, count)
	a := startAgent(t, cgroup, "--config", writeConfig(t, ""))
	eventually(t, "the connects that hang", func() error {
		metrics := a.metrics()
		if n, _ := find(metrics, `sidelight_tcp_connection_connecting{role="client"}`); n != count {
			return fmt.Errorf("%d are connecting", n)
		}
		if age, _ := find(metrics, `sidelight_tcp_connection_connecting_oldest_seconds{role="client"}`); age == 0 {
			return fmt.Errorf("none is older than a second")
		}
		return nil
	})
	if err := client.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = client.Wait() // it was killed
	a.waitClosed()
	// How often it tries depends on the kernel: tcp_syn_linear_timeouts.
	retransmits := mibs(t, ns)["TcpExtTCPSynRetrans"]
	if err := a.wants(map[string]uint64{
		`sidelight_tcp_connection_attempts_total{role="client"}`:                  count,
		`sidelight_tcp_connection_failures_total{reason="aborted",role="client"}`: count,
		`sidelight_tcp_connection_connecting{role="client"}`:                      0,
		`sidelight_tcp_connection_connecting_oldest_seconds{role="client"}`:       0,
		`sidelight_tcp_retransmits_total{role="client"}`:                          retransmits,
		`sidelight_tcp_syn_retransmits_total{role="client"}`:                      retransmits,
	})(); err != nil {
		t.Error(err)
	}
	if u := a.audit().Unaccounted; u != 0 {
		t.Errorf("%d are unaccounted", u)
	}
	a.stop()
	lines := a.adoptedLines()
	if len(lines) != count {
		t.Errorf("%d lines, want %d", len(lines), count)
	}
	for _, l := range lines {
		if l.Reason != "aborted" || l.PID != client.Process.Pid || l.Duration != nil {
			t.Fatalf("want a connect of process %d, aborted: %+v", client.Process.Pid, l)
		}
		retransmits -= l.SYNRetransmits
	}
	if retransmits != 0 {
		t.Errorf("%d SYNs that were sent again are in no line", int64(retransmits))
	}
}

// States of a socket, as /proc/net/tcp has them; of an open one nothing waits in either queue.
const (
	established = " 01 00000000:00000000 "
	synSent     = " 02 "
)

// waitSockets waits until the namespace's own tables have count sockets of a state.
func waitSockets(t *testing.T, ns netns.NsHandle, state string, count int) {
	t.Helper()
	eventually(t, "the sockets", func() error {
		return lab.In(ns, func() error {
			found := 0
			for _, name := range []string{"tcp", "tcp6"} {
				table, err := os.ReadFile("/proc/thread-self/net/" + name)
				if err != nil {
					return err
				}
				found += strings.Count(string(table), state)
			}
			if found != count {
				return fmt.Errorf("%d sockets", found)
			}
			return nil
		})
	})
}

// wants compares metrics with what they have to be.
func (a *agent) wants(want map[string]uint64) func() error {
	return func() error {
		metrics := a.metrics()
		for name, value := range want {
			if got, _ := find(metrics, name); got != value {
				return fmt.Errorf("%s is %d, want %d", name, got, value)
			}
		}
		return nil
	}
}

// adoptedLine is what the tests read of a line of an adopted connection.
type adoptedLine struct {
	logLine
	Adopted        bool    `json:"sidelight.adopted"`
	Duration       *uint64 `json:"sidelight.duration_ns"`
	Connect        *uint64 `json:"sidelight.connect_ns"`
	SYNRetransmits uint64  `json:"sidelight.syn_retransmits"`
}

func (a *agent) adoptedLines() []adoptedLine {
	a.t.Helper()
	var adopted []adoptedLine
	for _, l := range readLog[adoptedLine](a.t, a.Access) {
		if l.Adopted {
			adopted = append(adopted, l)
		}
	}
	return adopted
}

// TestServerBeforeAgent starts the server first: its socket listens already when the agent comes, and still every accepted
// connection has the server's process.
func TestServerBeforeAgent(t *testing.T) {
	needRoot(t)
	const count = 100
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	server, port := startServer(t, ns, filepath.Join(cgroup, "server"), peerMPTCP+"=off")
	a := startAgent(t, cgroup)
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 5,
	})
	a.waitClosed()
	a.stop()
	servers := 0
	for _, l := range a.lines() {
		if l.Role != "server" {
			continue
		}
		servers++
		if l.PID != server.Process.Pid || l.Executable != filepath.Base(os.Args[0]) {
			t.Fatalf("want process %d: %+v", server.Process.Pid, l)
		}
	}
	if servers != count {
		t.Errorf("%d server lines, want %d", servers, count)
	}
}

// TestOutside makes connections in another cgroup: none of the agent's business.
func TestOutside(t *testing.T) {
	needRoot(t)
	cgroup, other := newCgroup(t), newCgroup(t)
	ns := newNamespace(t)
	a := startAgent(t, cgroup)
	_, port := startServer(t, ns, other)
	runScript(t, ns, other, script{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: 10})
	a.waitClosed()
	a.stop()
	if lines := a.lines(); len(lines) != 0 {
		t.Errorf("lines of somebody else's connections: %+v", lines)
	}
}
