package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// TestDemo runs the demo as a script would: the account closes, every kind of service shows what it is there for, and nothing is
// left behind.
func TestDemo(t *testing.T) {
	needRoot(t)
	cmd := demoProgram(t, "--json", "--duration", stretched(5*time.Second).String())
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
	wantNothingLeft(t, cmd)
}

// TestDemoInterrupted presses Ctrl-C.
func TestDemoInterrupted(t *testing.T) {
	needRoot(t)
	cmd := demoProgram(t, "--duration", "1m")
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
	wantNothingLeft(t, cmd)
}

// demoProgram is a demo with a directory of its own for what is temporary: others may run beside it.
func demoProgram(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := exec.CommandContext(t.Context(), program, append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	return cmd
}

// wantNothingLeft looks for what a demo that ended has made. Its namespaces have no name, and go with its processes, without which its cgroups
// cannot be removed.
func wantNothingLeft(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	root, err := datapath.OpenCgroup("")
	if err != nil {
		t.Fatal(err)
	}
	_, temporary, _ := strings.Cut(cmd.Env[len(cmd.Env)-1], "=")
	for _, pattern := range []string{filepath.Join(root.Dir, "sidelight-demo-"+itoa(cmd.Process.Pid)), filepath.Join(temporary, "*")} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}
