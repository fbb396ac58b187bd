package main

import (
	"os"
	"testing"
)

// checkLast wants everything that ever happened in the account, and a line for each end of each connection.
func (l *lasting) checkLast(count int) {
	l.t.Helper()
	l.waitClosed()
	r := l.audit()
	if r.Unaccounted != 0 || r.Kernel.Attempts != uint64(count) || r.Kernel.Closed["client"] != uint64(count) || r.Kernel.Closed["server"] != uint64(count) {
		l.t.Errorf("of %d connections: %+v", count, r)
	}
	l.linesOnce(2 * count)
}

// TestRestart stops agents and kills them while connections go on: what happens without an agent is counted and logged by the next, and all of it once.
func TestRestart(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup)
	l.restart()
	p.connect(20)
	l.stop()
	p.connect(30)
	l.restart()
	l.checkLast(50)
	eventually(t, "counters go on", l.wants(map[string]uint64{
		`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: 50,
		`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: 50,
		`sidelight_tcp_received_bytes_total{role="client"}`:                50 * 1000,
		`sidelight_tcp_connection_open{role="client"}`:                     0,
	}))
	p.connect(10)
	l.kill()
	p.connect(40)
	l.restart()
	l.checkLast(100)
	l.stop()
	l.startOf(program, "--on-exit", "remove")
	p.connect(5)
	l.checkLast(105)
	l.stop()
	if _, err := os.Stat(l.pins); !os.IsNotExist(err) {
		t.Errorf("pins are left: %v", err)
	}
}
