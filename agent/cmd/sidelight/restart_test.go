package main

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"
)

// lasting is an agent that is started again and again over the same pins.
type lasting struct {
	t      *testing.T
	cgroup string
	args   []string
	access string
	pins   string
	*agent // that runs, or ran last
}

func newLasting(t *testing.T, cgroup string, args ...string) *lasting {
	t.Helper()
	dir := t.TempDir()
	pins := fmt.Sprintf("/sys/fs/bpf/sidelight-test-%d-%d", os.Getpid(), places.Add(1))
	cleanPins(t, pins)
	return &lasting{
		t: t, cgroup: cgroup, access: filepath.Join(dir, "access.log"), pins: pins,
		args: append(withoutBudget(t, args), "--pin-directory", pins, "--state-directory", filepath.Join(dir, "state"), "--on-exit", "keep"),
	}
}

// start starts a program of the name, and waits until it is ready.
func (l *lasting) startOf(program string, more ...string) {
	l.t.Helper()
	a := newAgent(l.t)
	a.Access = l.access
	a.cmd = exec.Command(program, append(append([]string{
		"run", "--cgroup", l.cgroup, "--access-log", a.Access, "--metrics-address", "127.0.0.1:0",
	}, l.args...), more...)...)
	l.agent = a
	a.start()
}

func (l *lasting) restart() {
	l.t.Helper()
	l.startOf(program)
}

func (l *lasting) kill() {
	l.t.Helper()
	if err := l.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	_ = l.cmd.Wait()
}

// peers are a server and who connects to it, time and again.
type peers struct {
	t      *testing.T
	ns     netns.NsHandle
	cgroup string
	port   uint16
	count  int // so far
}

func newPeers(t *testing.T, cgroup string) *peers {
	t.Helper()
	p := &peers{t: t, ns: newNamespace(t), cgroup: cgroup}
	_, p.port = startServer(t, p.ns, filepath.Join(cgroup, "server"))
	return p
}

func (p *peers) connect(count int) {
	p.t.Helper()
	runScript(p.t, p.ns, filepath.Join(p.cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.port), Ending: clientCloses, Count: count, Request: 100, Response: 1000,
	})
	p.count += count
}

// checkLast wants everything that ever happened in the account, and a line for each end of each connection.
func (l *lasting) checkLast(count int) {
	l.t.Helper()
	l.waitClosed()
	r := l.audit()
	if r.Unaccounted != 0 || r.Kernel.Attempts != uint64(count) || r.Kernel.Closed["client"] != uint64(count) || r.Kernel.Closed["server"] != uint64(count) {
		l.t.Errorf("of %d connections: %+v", count, r)
	}
	eventually(l.t, "all lines", func() error {
		seen := make(map[string]int)
		lines := strings.Split(strings.TrimSpace(readFile(l.t, l.access)), "\n")
		for _, line := range lines {
			_, uid, ok := strings.Cut(line, `"log.record.uid":"`)
			if !ok {
				return fmt.Errorf("line %q", line)
			}
			uid, _, _ = strings.Cut(uid, `"`)
			if seen[uid]++; seen[uid] > 1 {
				l.t.Fatalf("two lines of %s", uid)
			}
		}
		if len(seen) != 2*count {
			return fmt.Errorf("%d lines, want %d", len(seen), 2*count)
		}
		return nil
	})
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

// buildWith builds the program with tags.
func buildWith(t *testing.T, tags string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sidelight")
	out, err := exec.Command("go", "build", "-tags", tags, "-o", path, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// programs are the ids of what is attached, by the name of the link.
func (l *lasting) programs() map[string]ebpf.ProgramID {
	l.t.Helper()
	ids := make(map[string]ebpf.ProgramID)
	paths, err := filepath.Glob(filepath.Join(l.set(), "link-*"))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, path := range paths {
		pinned, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			l.t.Fatal(err)
		}
		info, err := pinned.Info()
		pinned.Close()
		if err != nil {
			l.t.Fatal(err)
		}
		ids[filepath.Base(path)] = info.Program
	}
	return ids
}

// fails starts a version that does not work.
func (l *lasting) fails(bad string) {
	l.t.Helper()
	out, err := exec.Command(bad, append([]string{
		"run", "--cgroup", l.cgroup, "--access-log", l.access, "--metrics-address", "127.0.0.1:0",
	}, l.args...)...).CombinedOutput()
	if exitCode(err) != exitFailed || !strings.Contains(string(out), "the programs before it are put back") {
		l.t.Errorf("%v: %s", err, out)
	}
}

// TestRollback starts a version that does not work: the programs before it are put back, and the next agent goes on.
func TestRollback(t *testing.T) {
	w := newRestartWorld(t, restartMesh())
	bad := buildWith(t, "sidelight_unready")
	w.restart()
	w.stop()
	before := w.programs()
	w.both(500*time.Millisecond, func() {
		w.fails(bad)
	})
	if after := w.programs(); !maps.Equal(before, after) || len(after) < 8 {
		t.Errorf("programs were %v and are %v", before, after)
	}
	w.restart()
	if after := w.programs(); maps.Equal(before, after) {
		t.Errorf("programs are still %v", after)
	}
	w.both(time.Second, func() {})
	w.check()
}
