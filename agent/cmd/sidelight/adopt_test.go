package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

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
