package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWayLacks: what was counted in and is nowhere on the way is unaccounted; what is there twice is not.
func TestWayLacks(t *testing.T) {
	for closes, want := range map[uint64]uint64{0: 0, 9: 0, 10: 0, 13: 3} {
		if got := newWay(closes, auditWay{Written: 4, Waiting: 3, Dropped: 2, Unused: 1}).Unaccounted; got != want {
			t.Errorf("of %d: %d unaccounted, want %d", closes, got, want)
		}
	}
}

// TestAudit asks a running agent, as text and as JSON, and one that is not there.
func TestAudit(t *testing.T) {
	needRoot(t)
	const count = 50
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	a := startAgent(t, cgroup)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count,
	})
	a.waitClosed()
	var report auditReport
	if err := json.Unmarshal([]byte(runIn(t, ".", program, "audit", "--json", "--metrics-address", a.Address)), &report); err != nil {
		t.Fatal(err)
	}
	if k := &report.Kernel; k.Attempts != count || k.Closed["client"] != count || k.Closed["server"] != count || k.Live() != 0 || report.Unaccounted != 0 {
		t.Errorf("got %+v", report)
	}
	runIn(t, ".", program, "audit", "--metrics-address", a.Address)
	a.stop()
	err := exec.CommandContext(t.Context(), program, "audit", "--metrics-address", a.Address).Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitInput {
		t.Errorf("asking an agent that is not there: %v", err)
	}
}
