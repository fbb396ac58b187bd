package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAsleep lets an agent fall asleep again and again, and each time a connection must wake it: by itself it would look in an hour.
func TestAsleep(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("report_interval: 1h\ndrain_interval: 20ms\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, cgroup, "--config", config)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"), peerMPTCP+"=off")
	for i := range 20 {
		a.waitStill()
		runScript(t, ns, filepath.Join(cgroup, "client"), script{
			Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: 1, Parallel: 1, Request: 1, Response: 1,
		})
		a.waitLines(2 * (i + 1))
	}
	a.stop()
}

// waitStill returns when the agent has not run for ten times its interval.
func (a *agent) waitStill() {
	a.t.Helper()
	var last string
	since := time.Now()
	eventually(a.t, "the agent to fall asleep", func() error {
		now := ""
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", a.cmd.Process.Pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			text, _ := os.ReadFile(task) // a thread that has ended
			now += string(text)
		}
		if now != last {
			last, since = now, time.Now()
		}
		if still := time.Since(since); still < 200*time.Millisecond {
			return fmt.Errorf("it ran %v ago", still)
		}
		return nil
	})
}
