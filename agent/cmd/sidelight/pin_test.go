package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestPinFaults starts agents over pins that are not as an agent leaves them: each says what and where, and the data path goes on.
func TestPinFaults(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup)
	l.restart()
	p.connect(5)
	l.refused(fmt.Sprintf("process %d, attends to %s", l.cmd.Process.Pid, l.pins))
	// Who could not go on with it does not take it over.
	elsewhere := newCgroup(t)
	l.refused("and not to "+elsewhere, "--takeover", "--cgroup", elsewhere)
	l.refused("open access log", "--takeover", "--access-log", "/nowhere/access.log")
	l.stop()

	// Something of somebody else's.
	for _, foreign := range []string{filepath.Join(l.pins, "cilium"), filepath.Join(l.set(), "maps")} {
		if err := os.Mkdir(foreign, 0o700); err != nil {
			t.Fatal(err)
		}
		l.refused(foreign + ": it is nothing that Sidelight pins")
		if out, err := exec.Command(program, "uninstall", "--pin-directory", l.pins).CombinedOutput(); exitCode(err) != exitInput || !strings.Contains(string(out), foreign) {
			t.Errorf("uninstall: %v\n%s", err, out)
		}
		if err := os.Remove(foreign); err != nil {
			t.Fatal(err)
		}
	}

	// A map that is missing, and one of another kind in its place.
	lost := filepath.Join(l.set(), "map-lost")
	pinned, err := ebpf.LoadPinnedMap(lost, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	m, err := pinned.Clone() // which does not know where it was pinned
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	l.refused(lost + ": the map is missing")
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(lost); err != nil {
		t.Fatal(err)
	}
	l.refused(lost + ": ")
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(lost); err != nil {
		t.Fatal(err)
	}

	// Another layout, of a version that does not say what its records are made of.
	mesh := filepath.Join(t.TempDir(), "mesh.yaml")
	writeFile(t, mesh, serviceYAML("shop", 1, ""))
	formats := filepath.Join(l.set(), "map-formats")
	said, err := ebpf.LoadPinnedMap(formats, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	if err := os.Remove(formats); err != nil {
		t.Fatal(err)
	}
	l.refused("cannot be carried over: it has no map formats", "--mesh", mesh)
	again, err := said.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Pin(formats); err != nil {
		t.Fatal(err)
	}

	// Another cgroup, a place that is no bpffs, and one that does not exist.
	l.refused("and not to "+elsewhere, "--cgroup", elsewhere)
	l.refused("it is not in a bpffs", "--pin-directory", filepath.Join(t.TempDir(), "pins"))
	l.refused("look at /nowhere", "--pin-directory", "/nowhere/pins")

	// All of that has left the data path as it was.
	p.connect(7)
	l.restart()
	l.checkLast(12)
	l.stop()
	if out, err := exec.Command(program, "uninstall", "--pin-directory", l.pins).CombinedOutput(); err != nil || string(out) != "removed "+l.pins+"\n" {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	if out, err := exec.Command(program, "uninstall", "--pin-directory", l.pins).CombinedOutput(); err != nil || string(out) != "nothing is pinned in "+l.pins+"\n" {
		t.Errorf("uninstall of nothing: %v\n%s", err, out)
	}
}

// TestPinReadOnly starts an agent where the bpffs cannot be written to.
func TestPinReadOnly(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	l := newLasting(t, newCgroup(t))
	l.refused("read-only", "--pin-directory", filepath.Join(dir, "sidelight"))
}
