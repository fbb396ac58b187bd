package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// TestDemo runs the demo as a script would: the account closes, every kind of service shows what it is there for, and nothing is
// left behind.
func TestDemo(t *testing.T) {
	needRoot(t)
	cmd := exec.CommandContext(t.Context(), program, "demo", "--json", "--duration", "5s")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, &stderr, out)
	}
	if stderr.Len() > 0 {
		t.Errorf("it had something to say: %s", &stderr)
	}
	var report demoReport
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	if !report.Closes || report.Account.Unaccounted != 0 {
		t.Errorf("the account does not close: %+v", report.Account)
	}
	reasons := map[string]string{
		"good.service": "ok", "slow.service": "ok", "six.service": "ok", "resets.service": "reset_by_peer", "refuses.service": "refused",
		"gone.service": "unreachable",
	}
	seen := make(map[string]bool)
	total := uint64(0)
	for _, e := range report.Edges {
		total += uint64(e.Total())
		if e.Role != "client" {
			continue
		}
		seen[e.Peer] = true
		if e.Failures[reasons[e.Peer]]+e.Closed[reasons[e.Peer]] == 0 {
			t.Errorf("%s: want some %s: %+v", e.Peer, reasons[e.Peer], e)
		}
		if e.Open != 0 || e.Connecting != 0 {
			t.Errorf("%s: something is still open: %+v", e.Peer, e)
		}
	}
	if len(seen) != len(reasons) {
		t.Errorf("edges to %v, want %v", seen, reasons)
	}
	if ended := report.Account.Kernel.Failed + report.Account.Kernel.Closed["client"] + report.Account.Kernel.Closed["server"]; total != ended {
		t.Errorf("edges have %d connections, the kernel %d", total, ended)
	}
	wantNothingLeft(t)
}

// TestDemoInterrupted presses Ctrl-C.
func TestDemoInterrupted(t *testing.T) {
	needRoot(t)
	cmd := exec.Command(program, "demo", "--duration", "1m")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	root, err := datapath.OpenCgroup("")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the demo's cgroups", func() error {
		_, err := filepath.EvalSymlinks(filepath.Join(root.Dir, "sidelight-demo-"+itoa(cmd.Process.Pid), "client.service"))
		return err
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%v: %s", err, &out)
		}
	case <-time.After(patiently(t, 20*time.Second)):
		_ = cmd.Process.Kill()
		t.Fatal("it does not end")
	}
	wantNothingLeft(t)
}

func wantNothingLeft(t *testing.T) {
	t.Helper()
	root, err := datapath.OpenCgroup("")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{filepath.Join(root.Dir, "sidelight-demo-*"), "/tmp/sidelight-demo-*", "/run/netns/*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}
