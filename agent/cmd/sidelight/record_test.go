package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/event"
)

// recorded is a "sidelight record" under test.
type recorded struct {
	t    *testing.T
	cmd  *exec.Cmd
	File string
	log  bytes.Buffer
	done chan struct{} // closed when log is complete
}

// startRecorder starts the program on a cgroup and waits until it is attached.
func startRecorder(t *testing.T, cgroup, file string, args ...string) *recorded {
	t.Helper()
	r := &recorded{t: t, File: file, done: make(chan struct{})}
	r.cmd = exec.Command(program, append([]string{"record", "--cgroup", cgroup, "--output", file}, args...)...)
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attached := make(chan struct{})
	go func() {
		defer close(r.done)
		for buf, told := make([]byte, 4096), false; ; {
			n, err := stderr.Read(buf)
			r.log.Write(buf[:n])
			if !told && (err != nil || strings.Contains(r.log.String(), "msg=recording")) {
				told = true
				close(attached)
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill()
			_ = r.wait()
		}
		if t.Failed() {
			t.Logf("recorder's log:\n%s", r.log.String())
		}
	})
	<-attached
	return r
}

// signal sends the recorder a signal.
func (r *recorded) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// wait waits for its end.
func (r *recorded) wait() error {
	<-r.done // Wait closes the pipe that the log comes through
	return r.cmd.Wait()
}

// stop ends the recorder as an operator would.
func (r *recorded) stop() {
	r.t.Helper()
	r.signal(syscall.SIGTERM)
	if err := r.wait(); err != nil {
		r.t.Fatalf("recorder: %v", err)
	}
}

// tally is what stands in a recording.
type tally struct {
	kinds  map[event.FrameKind]int
	events map[connection.Kind]int
	ended  int // connections, by their last event or by the sums of lost ones
	ok     bool
}

func (r *recorded) tally() tally {
	r.t.Helper()
	f, err := os.Open(r.File)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	all := tally{kinds: make(map[event.FrameKind]int), events: make(map[connection.Kind]int)}
	player, err := event.NewPlayer(f)
	if err != nil {
		return all // its header is not written yet
	}
	for {
		frame, err := player.Next()
		var damage *event.DamageError
		switch {
		case errors.As(err, &damage): // it is being written
			return all
		case errors.Is(err, io.EOF):
			all.ok = true
			return all
		case err != nil:
			r.t.Fatal(err)
		}
		all.kinds[frame.Kind]++
		all.ended += int(frame.Loss.Failed + frame.Loss.Closed)
		var e connection.Event
		if frame.Kind == event.FrameEvent && event.Decode(frame.Raw, &e) == nil {
			all.events[e.Kind]++
			if e.Kind == connection.Close {
				all.ended++
			}
		}
	}
}

// waitEnded waits until the recording has the end of so many connections' ends.
func (r *recorded) waitEnded(ends int) {
	r.t.Helper()
	eventually(r.t, "the recording of every end", func() error {
		if n := r.tally().ended; n != ends {
			return fmt.Errorf("%d of %d", n, ends)
		}
		return nil
	})
}

// waitSwept waits until the recording has another whole sweep.
func (r *recorded) waitSwept() {
	r.t.Helper()
	before := r.tally().kinds[event.FrameSweepBegin]
	eventually(r.t, "a sweep", func() error {
		if n := r.tally().kinds[event.FrameSweepEnd]; n <= before {
			return fmt.Errorf("%d sweeps as before", n)
		}
		return nil
	})
}

// replayed is what a replay gave.
type replayed struct {
	log, metrics, stderr string
	lines                []logLine
}

// replayFile runs a replay to its good end.
func replayFile(t *testing.T, file string, args ...string) replayed {
	t.Helper()
	dir := t.TempDir()
	log, metrics := filepath.Join(dir, "access.log"), filepath.Join(dir, "metrics.prom")
	cmd := exec.CommandContext(t.Context(), program, append([]string{"replay", file, "--access-log", log, "--metrics", metrics}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("replay: %v\n%s", err, stderr.String())
	}
	a := agent{t: t, Access: log}
	return replayed{log: readFile(t, log), metrics: readFile(t, metrics), stderr: stderr.String(), lines: a.lines()}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRecord records what the golden recordings hold, on this kernel, and wants of the replay what was done.
func TestRecord(t *testing.T) {
	needRoot(t)
	for _, s := range recordings {
		t.Run(s.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "test.rec")
			s.make(t, file)
			s.check(t, replayFile(t, file))
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode is %v (%v)", info.Mode(), err)
			}
		})
	}
}

// TestRecordBesideRun lets run and record observe the same connections: the replay's lines are those of run, but for the moments that
// each program measures for itself.
func TestRecordBesideRun(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	a := startAgent(t, cgroup)
	r := startRecorder(t, cgroup, filepath.Join(t.TempDir(), "test.rec"), "--config", writeConfig(t))
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	ends := 0
	for _, s := range []script{
		{Addr: at("127.0.0.1", port), Ending: clientCloses, Count: 200, Parallel: 20, Request: 100, Response: 5000},
		{Addr: at("::1", port), Ending: serverCloses, Count: 100, Parallel: 10, Response: 70_000},
		{Addr: at("::ffff:127.0.0.1", port), Ending: serverResets, Count: 50, Parallel: 5, Request: 10},
		{Addr: at("127.0.0.1", port), Ending: clientResets, Count: 50, Parallel: 5, Request: 10, Response: 20},
		{Addr: at("::1", 1), Ending: connectOnly, Count: 50},
	} {
		runScript(t, ns, filepath.Join(cgroup, "client"), s)
		if ends += s.Count; s.Ending != connectOnly {
			ends += s.Count
		}
	}
	a.waitClosed()
	a.stop()
	r.waitEnded(ends)
	r.stop()
	count := func(lines []logLine) map[logLine]int {
		counts := make(map[logLine]int)
		for _, l := range lines {
			l.UID = "" // it has the start in it
			counts[l]++
		}
		return counts
	}
	want, got := count(a.lines()), count(replayFile(t, r.File).lines)
	if len(want) != ends {
		t.Errorf("run wrote %d different lines, want %d", len(want), ends)
	}
	for l, n := range want {
		if got[l] != n {
			t.Errorf("the replay has %d of %+v, run has %d", got[l], l, n)
		}
		delete(got, l)
	}
	for l := range got {
		t.Errorf("run has no %+v", l)
	}
}

func at(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// TestRecordDiskFull gives the recorder a file system of few pages. It must say so and end, and what was written can be played.
func TestRecordDiskFull(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	r := startRecorder(t, cgroup, filepath.Join(dir, "test.rec"))
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	client := filepath.Join(cgroup, "client")
	runScript(t, ns, client, script{Addr: at("127.0.0.1", port), Ending: clientCloses, Count: 20})
	r.waitEnded(40)
	runScript(t, ns, client, script{Addr: at("127.0.0.1", port), Ending: clientCloses, Count: 500, Parallel: 10})
	if err := r.wait(); r.cmd.ProcessState.ExitCode() != exitFailed {
		t.Errorf("recorder: %v, want exit code %d", err, exitFailed)
	}
	if log := r.log.String(); !strings.Contains(log, "no space left on device; "+r.File+" can be replayed up to where it breaks off") {
		t.Errorf("got: %s", log)
	}
	whole := r.tally()
	if whole.ok || whole.ended < 40 {
		t.Errorf("the file has %+v", whole)
	}
	out, err := exec.CommandContext(t.Context(), program, "replay", r.File).Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(string(exit.Stderr), "breaks off at byte") {
		t.Errorf("replay: %v", err)
	}
	if lines := strings.Count(string(out), "\n"); lines != whole.ended {
		t.Errorf("%d lines of %d ends that are whole", lines, whole.ended)
	}
}
