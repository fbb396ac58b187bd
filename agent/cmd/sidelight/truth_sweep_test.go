package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
)

// sweepSockets is how many sockets TestSweepCost opens. A fifth of what is promised is enough to see that it got worse.
const (
	sweepSockets = "SIDELIGHT_TEST_SOCKETS"
	fewSockets   = 20_000
)

// sweepBudget is the CPU time that a sweep over 100,000 open sockets may cost, of which there is nothing new. Where there is something new
// of each, the kernel walks from the start of its table for every page that is read, and there are as few chains as CPUs: that cost
// grows with the square of the sockets, is shown, and is not held against the budget.
const sweepBudget = 200 * time.Millisecond

// TestSweepCost holds sockets open, both ends of loopback connections, and measures the CPU time of sweeps over them. It runs them
// by hand, in this process, on one thread: so the kernel's part can be told from the agent's, and nothing else is in the figure.
// Everything that a sweep does is in it: the iterator and its program, the copy, the decoding, the tracker, the edges. Of several
// sweeps it takes the cheapest: what others do to the machine only adds.
//
//	SIDELIGHT_TEST_SOCKETS=100000 go test -count=1 -v -run '^TestSweepCost$' ./agent/cmd/sidelight
func TestSweepCost(t *testing.T) {
	needRoot(t)
	sockets := fewSockets
	if n := os.Getenv(sweepSockets); n != "" {
		var err error
		if sockets, err = strconv.Atoi(n); err != nil {
			t.Fatal(err)
		}
	}
	cgroup := newCgroup(t, "holder")
	c := config.Default()
	c.Cgroup, c.MetricsAddress, c.StateDirectory, c.ReportInterval = cgroup, "127.0.0.1:0", t.TempDir(), time.Hour
	c.PinDirectory = config.Off
	n, err := newNode(t.Context(), c, nodeOptions{}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer n.release()
	if err := n.datapath.Attach(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	read := make(chan error, 1)
	go func() { read <- n.reader.Run(ctx, n.pipeline) }()
	startHolders(t, filepath.Join(cgroup, "holder"), sockets/2)
	stop()
	if err := <-read; err != nil {
		t.Fatal(err)
	}

	p := pipeline.New(pipeline.Options{
		Limit: c.MaxConnections, Clock: event.MeasureClock, Identify: n.enricher.Identify, Sinks: []pipeline.Sink{n.edges},
		Sweep: n.sweep, SweepInterval: time.Hour,
	})
	seen := 0
	stages := []struct {
		name  string
		sweep func() error
	}{
		{"all sockets told of: kernel", func() error { return n.datapath.Sweep(true, func([]byte) { seen++ }) }},
		{"all sockets told of: kernel and decoding", func() error { return n.sweep(true, func(*connection.Event) { seen++ }) }},
		{"all sockets told of: all", func() error {
			p.HandleSweep(true, n.sweep)
			p.HandleDrained(true)
			seen = int(p.Connections())
			return nil
		}},
		{"nothing new: all", func() error { p.HandleSweep(false, n.sweep); return nil }},
	}
	var cost time.Duration
	for _, s := range stages {
		var costs []time.Duration
		for range 7 {
			seen = 0
			before := cpuTime(t)
			if err := s.sweep(); err != nil {
				t.Fatal(err)
			}
			costs = append(costs, cpuTime(t)-before)
			// The last one has nothing to tell, and nothing may be forgotten for that.
			if s.name == stages[3].name {
				p.HandleDrained(false)
				seen = int(p.Connections())
			}
			if seen != sockets {
				t.Fatalf("%s: saw %d of %d sockets", s.name, seen, sockets)
			}
		}
		slices.Sort(costs)
		cost = costs[0]
		t.Logf("%d sockets, %s: %v of CPU for a sweep; all: %v", sockets, s.name, cost, costs)
	}
	if budget := sweepBudget * time.Duration(sockets) / 100_000; cost > budget {
		t.Errorf("a sweep over %d sockets costs %v of CPU, want at most %v", sockets, cost, budget)
	}
}

// cpuTime is that of this process so far.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// startHolders starts as many processes as the limit of open files asks for, each in a namespace of its own. They end with the test.
func startHolders(t *testing.T, cgroup string, connections int) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	most := min(int(limit.Max-100)/2, 25_000) // and no more than one address has ports for
	var holders []*process
	for left := connections; left > 0; left -= most {
		cmd := exec.Command(os.Args[0], strconv.Itoa(min(left, most)))
		cmd.Env = append(os.Environ(), peerRole+"=holder")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stdin.Close() })
		holders = append(holders, start(t, newNamespace(t), cgroup, cmd))
	}
	for _, h := range holders {
		if said := h.line(); said != "held" {
			t.Fatal(said)
		}
	}
}

// runHolder holds connections to itself until its input ends.
func runHolder() error {
	connections, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Port: 7}); err != nil {
		return err
	}
	if err := unix.Listen(listener, 128); err != nil {
		return err
	}
	for i := range connections {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(client, &unix.SockaddrInet4{Port: 7, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return fmt.Errorf("connect number %d: %w", i, err)
		}
		if _, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
			return err
		}
	}
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
