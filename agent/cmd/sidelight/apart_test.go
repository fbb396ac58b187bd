package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// apart is set in the environment of a test process that has a mount namespace of its own.
const apart = "SIDELIGHT_TEST_APART"

// runApart runs this process again in a mount namespace of its own, so that what the agents under test mount ends with it, however it
// ends. It says whether it did; without root there is nothing to mount.
func runApart() (code int, ran bool) {
	if os.Getuid() != 0 || os.Getenv(apart) != "" {
		return 0, false
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), apart+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Unshareflags make its mounts private, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var ended *exec.ExitError
	if err := cmd.Run(); errors.As(err, &ended) {
		return max(ended.ExitCode(), 1), true
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "run in a mount namespace:", err)
		return 1, true
	}
	return 0, true
}

// TestBPFFS takes bpffs away: run mounts it, and the next run finds it; record has no use for it.
func TestBPFFS(t *testing.T) {
	needRoot(t)
	if os.Getenv(apart) == "" {
		t.Fatal("this process has no mount namespace of its own")
	}
	mounted := func() bool {
		var fs unix.Statfs_t
		if err := unix.Statfs(datapath.BPFFS, &fs); err != nil {
			t.Fatal(err)
		}
		return fs.Type == unix.BPF_FS_MAGIC
	}
	for mounted() {
		if err := unix.Unmount(datapath.BPFFS, 0); err != nil {
			t.Fatal(err)
		}
	}
	cgroup := newCgroup(t)
	record := exec.Command(program, "record", "--cgroup", cgroup, "--duration", "1ms", "--output", t.TempDir()+"/events")
	if out, err := record.CombinedOutput(); err != nil {
		t.Fatalf("record: %v\n%s", err, out)
	}
	if mounted() {
		t.Error("record has mounted bpffs")
	}
	for range 2 {
		a := startAgent(t, cgroup)
		if !mounted() {
			t.Error("run has not mounted bpffs")
		}
		a.stop()
		if mounted() {
			t.Error("run has left bpffs mounted, and nothing in it")
		}
	}
	// What is kept is in it, and so is what others pin.
	l := newLasting(t, cgroup)
	l.restart()
	l.stop()
	if !mounted() {
		t.Error("what is kept has no bpffs")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(datapath.BPFFS, "other")); err != nil {
		t.Fatal(err)
	}
	runIn(t, ".", program, "uninstall", "--pin-directory", l.pins)
	if !mounted() {
		t.Error("uninstall has unmounted what somebody else uses")
	}
	if err := unix.Unmount(datapath.BPFFS, 0); err != nil {
		t.Fatal(err)
	}
	if mounted() {
		t.Error("the second run has mounted it once more")
	}
	// That of its own it unmounts.
	l.restart()
	l.stop()
	runIn(t, ".", program, "uninstall", "--pin-directory", l.pins)
	if mounted() {
		t.Error("uninstall has left bpffs mounted")
	}
}
