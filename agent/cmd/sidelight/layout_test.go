package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// givenOtherLayout is the environment variable with a program that was built with the tag sidelight_other_layout: a machine of the kernel matrix gets one.
const givenOtherLayout = "SIDELIGHT_TEST_OTHER_LAYOUT"

// otherLayoutProgram is one whose maps have another layout than those of the program under test.
func otherLayoutProgram(t *testing.T) string {
	t.Helper()
	if given := os.Getenv(givenOtherLayout); given != "" {
		return given
	}
	return buildWith(t, "sidelight_other_layout")
}

// TestLayoutChanges replaces agents by those of a build whose maps have another layout, and back, under load.
func TestLayoutChanges(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	other := otherLayoutProgram(t)
	w.restart()
	var sets []string
	for range 2 {
		for _, program := range []string{other, program} {
			w.both(func() {
				w.stop()
				w.startOf(program)
			})
			sets = append(sets, filepath.Base(w.set()))
		}
	}
	for i, set := range sets {
		if i > 0 && set == sets[i-1] || i > 1 && set != sets[i-2] {
			t.Errorf("sets of pins, one after the other: %v", sets)
		}
	}
	w.finish()
}

// TestLayoutChangeInterrupted kills an agent that changes the layout after some of its steps, or all of them if SIDELIGHT_TEST_RESTARTS is set. The next one
// gets to the end; one of the layout before takes the programs back that are still there, changes the layout again, or says what is to be done.
func TestLayoutChangeInterrupted(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	other := otherLayoutProgram(t)
	interrupted, bad := buildWith(t, "sidelight_other_layout,sidelight_interrupted"), buildWith(t, "sidelight_unready")
	w.restart()
	steps, refused, back := 0, 0, 0
	most := 4
	if os.Getenv("SIDELIGHT_TEST_RESTARTS") != "" {
		most = 1
	}
	next := 1
	for more := true; more && !t.Failed(); next += 1 + rand.IntN(most) {
		w.both(func() {
			w.stop()
			if more = w.interrupted(interrupted, next); more {
				steps++
			}
			if more && (steps == 1 || steps%3 == 0) { // an attempt to go back, which can be had as long as no link has moved
				out, err := w.command(bad).CombinedOutput()
				switch {
				case exitCode(err) == exitInput && strings.Contains(string(out), "did not get to the end"):
					refused++
				case exitCode(err) == exitFailed && strings.Contains(string(out), putBackAgain):
					back++
				case exitCode(err) == exitFailed && strings.Contains(string(out), noWayBack): // the change was done but for what is left of the old maps
				default:
					t.Errorf("after step %d: %v: %s", next, err, out)
				}
			}
			w.startOf(other)
		})
		if t.Failed() {
			t.Logf("after step %d", next)
		}
		w.stop()
		w.restart()
	}
	t.Logf("%d of %d steps, after %d of which the layout before could not be had, and after %d it could", steps, next, refused, back)
	if next < 30 || refused == 0 || back == 0 {
		t.Error("that is too few to say anything")
	}
	w.finish()
}

// interrupted starts an agent that is killed at a step, and kills it if there is none of that number. It tells which.
func (l *lasting) interrupted(program string, step int) bool {
	l.t.Helper()
	cmd := l.command(program)
	cmd.Env = append(os.Environ(), "SIDELIGHT_TEST_STEP="+strconv.Itoa(step))
	text := filepath.Join(l.t.TempDir(), "interrupted.log")
	file, err := os.Create(text)
	if err != nil {
		l.t.Fatal(err)
	}
	defer file.Close()
	cmd.Stderr = file
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	died := false
	eventually(l.t, "the agent to be killed, or to attach", func() error {
		select {
		case err := <-ended:
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
				l.t.Fatalf("step %d: %v: %s", step, err, readFile(l.t, text))
			}
			died = true
			return nil
		default:
		}
		if !strings.Contains(readFile(l.t, text), "metrics=") {
			return errors.New("neither has happened")
		}
		_ = cmd.Process.Kill()
		<-ended
		return nil
	})
	return died
}

// TestLayoutChangeUninstalled takes everything off in the midst of a change: nothing is left of either set.
func TestLayoutChangeUninstalled(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	interrupted := buildWith(t, "sidelight_other_layout,sidelight_interrupted")
	for _, step := range []int{2, 6, 15, 28} {
		w.restart()
		w.stop()
		if !w.interrupted(interrupted, step) {
			t.Fatalf("there is no step %d", step)
		}
		if out, err := exec.Command(program, "uninstall", "--pin-directory", w.pins).CombinedOutput(); err != nil || string(out) != "removed "+w.pins+"\n" {
			t.Errorf("after step %d: %v: %s", step, err, out)
		}
		if _, err := os.Stat(w.pins); !os.IsNotExist(err) {
			t.Errorf("after step %d: %v", step, err)
		}
		// Nobody's policies are in force any more.
		to := netip.MustParseAddrPort(serverV4(1))
		if got := w.rogue.do(meshOrder{To: to, Count: 1}); got.Answers[serverV4(1)] != 1 {
			t.Errorf("after step %d: rogue: %+v", step, got)
		}
	}
}

// TestLayoutChangeHolds changes layout and sizes of maps while connections are open: limits go on to count them, and nothing is held in the end.
func TestLayoutChangeHolds(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV6(1))
	other := otherLayoutProgram(t)
	w.write(serviceYAML("shop", 1, ", limits: {maxConnections: 5}") + endpointsYAML("shop", ""))
	l := newLasting(t, w.cgroup)
	w.state = filepath.Join(filepath.Dir(l.access), "state")
	sized := func(backends int) string {
		file := filepath.Join(t.TempDir(), "sized.yaml")
		writeFile(t, file, fmt.Sprintf("%s\nmesh: {max_backends: %d, max_limits: %d}\n", noBudget, backends, backends))
		return file
	}
	policySized := filepath.Join(t.TempDir(), "policies.yaml")
	writeFile(t, policySized, noBudget+"\nmesh: {max_policy_entries: 100000}\n")
	mesh := []string{"--mesh", w.file}
	l.startOf(program, mesh...)
	w.agent = l.agent
	c := w.client("client")
	shop := to(serviceV4(1), 80)
	full := func(when string) {
		t.Helper()
		w.expect(when, c.do(meshOrder{To: shop, Count: 3}), nil, only("ECONNREFUSED", 3))
	}
	w.expect("first", c.do(meshOrder{To: shop, Count: 5, Workers: 5, Hold: true}), only(serverV4(1), 5), nil)
	full("before")
	for _, way := range []struct {
		name    string
		program string
		args    []string
	}{
		{"other layout", other, mesh},
		{"back", program, mesh},
		{"larger maps", program, append(mesh, "--config", sized(100000))},
		{"larger maps of another layout", other, append(mesh, "--config", sized(200000))},
		{"smaller maps keep their room", program, append(mesh, "--config", sized(1000))},
		{"room for policies only", program, append(mesh, "--config", policySized)},
	} {
		l.stop()
		full(way.name + ", without an agent")
		l.startOf(way.program, way.args...)
		w.agent = l.agent
		full(way.name)
		if r := l.audit(); r.Unaccounted != 0 {
			t.Errorf("%s: %+v", way.name, r)
		}
	}
	if got := c.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("cut: %+v", got)
	}
	w.idle()
	w.expect("after", c.do(meshOrder{To: shop, Count: 5, Workers: 5, Hold: true}), only(serverV4(1), 5), nil)
	full("after")
	c.do(meshOrder{Release: true})
	w.idle()
	l.waitClosed()
	if r := l.audit(); r.Unaccounted != 0 || r.Kernel.Closed["client"] != 10 || r.Kernel.Closed["server"] != 10 {
		t.Errorf("of 10 connections: %+v", r)
	}
	l.stop()
}

// TestLayoutChangeVerdicts gives policies more room, and changes their layout: counts of verdicts go on.
func TestLayoutChangeVerdicts(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	other := otherLayoutProgram(t)
	sized := filepath.Join(t.TempDir(), "sized.yaml")
	writeFile(t, sized, noBudget+"\nmesh: {max_policy_entries: 100000}\n")
	w.restart()
	check := func(when string) {
		t.Helper()
		w.both(func() {})
		eventually(t, when, func() error {
			// What is left over of a connection that has ended is judged as well, and dropped without a word.
			want := uint64(w.denied) + w.audit().Kernel.Strays
			return w.wants(map[string]uint64{`sidelight_policy_verdicts_total{verdict="deny"}`: want})()
		})
	}
	check("first")
	w.stop()
	w.startOf(program, "--config", sized)
	check("more room")
	w.stop()
	w.startOf(other, "--config", sized)
	check("other layout")
	w.check()
	w.stop()
}

// TestLayoutChangeOfMesh starts agents with a mesh and without one over the same data path: connections are followed throughout.
func TestLayoutChangeOfMesh(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV6(1))
	w.write(serviceYAML("shop", 1, "") + endpointsYAML("shop", ""))
	l := newLasting(t, w.cgroup)
	w.state = filepath.Join(filepath.Dir(l.access), "state")
	c := w.client("client")
	made := 0
	hold := func(address string, port int) {
		t.Helper()
		w.expect(address, c.do(meshOrder{To: to(address, port), Count: 4, Workers: 2, Hold: true}), only(serverV4(1), 4), nil)
		made += 4
	}
	l.startOf(program)
	hold("127.0.1.1", 8080)
	l.stop()
	l.startOf(program, "--mesh", w.file)
	hold(serviceV4(1), 80)
	hold("127.0.1.1", 8080)
	links := len(l.programs())
	l.kill()
	l.startOf(program)
	hold("127.0.1.1", 8080)
	if after := l.programs(); len(after) != 3 {
		t.Errorf("%d links with a mesh, and without one %v", links, after)
	}
	l.stop()
	l.startOf(program, "--mesh", w.file)
	hold(serviceV4(1), 80)
	if got := c.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("cut: %+v", got)
	}
	defer func() {
		if t.Failed() {
			t.Logf("%+v", l.audit())
			t.Log(l.metrics())
		}
	}()
	l.checkLast(made)
	w.agent = l.agent
	w.idle()
	l.stop()
}

// TestLayoutChangeAdopted changes the layout while there are connections from before the first agent, whose ends some kernels show to tracing programs only.
func TestLayoutChangeAdopted(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV6(1))
	l := newLasting(t, w.cgroup)
	other := otherLayoutProgram(t)
	c := w.client("client")
	w.expect("before", c.do(meshOrder{To: to("127.0.1.1", 8080), Count: 6, Workers: 2, Hold: true}), only(serverV4(1), 6), nil)
	l.restart()
	l.stop()
	l.startOf(other)
	l.kill()
	l.restart()
	if got := c.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("cut: %+v", got)
	}
	l.waitClosed()
	r := l.audit()
	for _, role := range []string{"client", "server"} {
		if k := &r.Kernel; r.Unaccounted != 0 || k.Adopted[role] != 6 || k.Closed[role] != 6 || k.Established[role] != 0 {
			t.Errorf("of 6 adopted connections: %+v", r)
		}
	}
	l.linesOnce(12)
	l.stop()
}

// TestLayoutChangeSums changes the layout while there are sums of connections that nobody has read: they are read once.
func TestLayoutChangeSums(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup)
	other := otherLayoutProgram(t)
	file := filepath.Join(t.TempDir(), "silent.yaml")
	writeFile(t, file, noBudget+"\nevents: none\n")
	sums := func(when string) {
		t.Helper()
		eventually(t, when, func() error {
			r := l.audit()
			if k := &r.Kernel; r.Unaccounted != 0 || k.Attempts != uint64(p.count) || k.Closed["client"] != uint64(p.count) || k.Aggregated != 2*uint64(p.count) {
				return fmt.Errorf("of %d connections: %+v", p.count, r)
			}
			return nil
		})
	}
	l.startOf(program, "--config", file)
	p.connect(10)
	l.waitClosed()
	sums("first")
	for i, program := range []string{other, program, other} {
		l.stop()
		p.connect(20)
		l.startOf(program, "--config", file)
		p.connect(5)
		l.waitClosed()
		sums(fmt.Sprint("change ", i))
		eventually(t, "counters", l.wants(map[string]uint64{
			`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: uint64(p.count),
			`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: uint64(p.count),
			`sidelight_tcp_received_bytes_total{role="client"}`:                uint64(p.count) * 1000,
			`sidelight_tcp_connection_open{role="client"}`:                     0,
		}))
	}
	l.stop()
}
