package main

import (
	"errors"
	"fmt"
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

// command is a start of the agent. One that goes on although it should end does not go on for ever.
func (l *lasting) command(program string, more ...string) *exec.Cmd {
	return exec.CommandContext(l.t.Context(), program, append(append([]string{
		"run", "--cgroup", l.cgroup, "--access-log", l.access, "--metrics-address", "127.0.0.1:0",
	}, l.args...), more...)...)
}

// startOf starts a program, and waits until it is ready.
func (l *lasting) startOf(program string, more ...string) {
	l.t.Helper()
	a := newAgent(l.t)
	a.Access, a.cmd = l.access, l.command(program, more...)
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

// linesOnce waits for so many lines of the access log, and wants no uid twice.
func (l *lasting) linesOnce(want int) {
	l.t.Helper()
	eventually(l.t, "all lines", func() error {
		lines := strings.Split(readFile(l.t, l.access), "\n")
		lines = lines[:len(lines)-1] // what comes after the last newline is being written
		if len(lines) < want {
			return fmt.Errorf("%d lines, want %d", len(lines), want)
		}
		seen := make(map[string]bool, len(lines))
		for _, line := range lines {
			_, uid, _ := strings.Cut(line, `"log.record.uid":"`)
			uid, _, _ = strings.Cut(uid, `"`)
			if uid == "" || seen[uid] {
				l.t.Fatalf("a second line of the uid %q, of %d: %s", uid, len(lines), line)
			}
			seen[uid] = true
		}
		if len(lines) != want {
			l.t.Fatalf("%d lines, want %d", len(lines), want)
		}
		return nil
	})
}

// refused starts an agent that is to say why it does not, and to change nothing.
func (l *lasting) refused(want string, more ...string) {
	l.t.Helper()
	cmd := l.command(program, more...)
	limit := time.AfterFunc(patiently(l.t, time.Minute), func() { _ = cmd.Cancel() })
	defer limit.Stop()
	out, err := cmd.CombinedOutput()
	if code := exitCode(err); code != exitInput || !strings.Contains(string(out), want) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
		l.t.Errorf("exit code %d, and it says\n%s\nwant one line with %q", code, out, want)
	}
}

func exitCode(err error) int {
	exit := &exec.ExitError{}
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// set is the directory of the pins in force.
func (l *lasting) set() string {
	l.t.Helper()
	sets, err := filepath.Glob(filepath.Join(l.pins, "????????????????"))
	if err != nil || len(sets) != 1 {
		l.t.Fatalf("sets of pins: %v, %v", sets, err)
	}
	return sets[0]
}

// hasSource says whether the program can be built here: a machine of the kernel matrix has no compiler, and no source.
func hasSource() bool {
	_, err := os.Stat("run.go")
	return err == nil
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

// What a version says that does not work: from one whose maps have another layout there is no way back but to start another.
const (
	putBackAgain = "this version does not work, the programs before it are put back"
	noWayBack    = "there is no way back to the programs before"
)

// fails starts a version that does not work, and says so.
func (l *lasting) fails(bad, text string) {
	l.t.Helper()
	out, err := l.command(bad).CombinedOutput()
	if exitCode(err) != exitFailed || !strings.Contains(string(out), text) {
		l.t.Errorf("%v: %s", err, out)
	}
}
