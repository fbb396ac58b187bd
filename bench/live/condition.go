package live

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/workload"
)

// condition is what a workload runs under.
type condition struct {
	name      string
	observed  bool
	accessLog bool
	otlp      bool
}

// The conditions. The first is the base of all ratios, the second the harness's check of itself.
var (
	bare    = condition{name: "bare"}
	aa      = condition{name: "aa"}
	metrics = condition{name: "metrics", observed: true}
	logging = condition{name: "log", observed: true, accessLog: true}
	full    = condition{name: "full", observed: true, otlp: true}
)

// stand is a condition at work: its processes, and its account. Used by one goroutine.
type stand struct {
	condition
	cgroup  string // of the workload
	agent   *agent // nil when nothing is observed
	server  *exec.Cmd
	client  *exec.Cmd
	in      io.Writer // of the client
	out     *json.Decoder
	port    uint16
	ended   int // connections that have been made and closed
	visited int // addresses of the server that were used
}

// startStand makes the cgroup of a condition and starts its agent.
func (r *run) startStand(ctx context.Context, c condition, w work, index int) (*stand, error) {
	s := &stand{condition: c}
	var err error
	if s.cgroup, err = r.place.makeCgroup(c.name); err != nil {
		return nil, err
	}
	if c.observed {
		const firstPort = 9464
		s.agent, err = startAgent(ctx, r.place, r.self, r.options.Agent, c, firstPort+index, s.cgroup, w.settings)
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// startWorkload starts a server and a client in the condition's cgroup.
func (r *run) startWorkload(s *stand, kind workload.Kind) error {
	s.server = workload.NewServer(r.self, kind, workCPU())
	line, err := r.place.startAndRead(s.server, s.cgroup)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(line, 10, 16)
	if err != nil {
		return fmt.Errorf("server's port: %w", err)
	}
	s.port = uint16(port)
	s.client = workload.NewClient(r.self, kind, workCPU(), r.burn[s.name])
	if s.in, err = s.client.StdinPipe(); err != nil {
		return err
	}
	out, err := s.client.StdoutPipe()
	if err != nil {
		return err
	}
	s.out = json.NewDecoder(bufio.NewReader(out))
	return r.place.start(s.client, s.cgroup)
}

// endWorkload closes the connections that are open and ends both processes.
func (r *run) endWorkload(ctx context.Context, s *stand, open int) error {
	if _, err := s.do(ctx, workload.Command{}); err != nil {
		return err
	}
	s.ended += open
	// The server must have closed its ends, for the account.
	if _, err := settled(ctx, s.cgroup); err != nil {
		return err
	}
	r.place.end(s.client)
	r.place.end(s.server)
	return nil
}

// workCPU is the one on which workloads run.
func workCPU() int { return runtime.NumCPU() - 1 }

// do has the client do its work. Its connections go to an address that none of earlier slices went to.
func (s *stand) do(ctx context.Context, c workload.Command) (workload.Answer, error) {
	s.visited++
	c.To = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(s.visited >> 8), byte(s.visited)}), s.port)
	type outcome struct {
		answer workload.Answer
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		if o.err = json.NewEncoder(s.in).Encode(c); o.err == nil {
			o.err = s.out.Decode(&o.answer)
		}
		done <- o
	}()
	timer := time.NewTimer(sliceTime)
	defer timer.Stop()
	select {
	case o := <-done:
		if o.answer.Error != "" {
			o.err = errors.New(o.answer.Error)
		}
		if o.err != nil {
			return o.answer, fmt.Errorf("workload of %s: %w", s.name, o.err)
		}
		s.ended += o.answer.Connections
		return o.answer, nil
	case <-timer.C:
		return workload.Answer{}, fmt.Errorf("workload of %s: not done within %v", s.name, sliceTime)
	case <-ctx.Done():
		return workload.Answer{}, context.Cause(ctx)
	}
}

// sliceTime is how long a slice takes at most, on a machine with much else to do.
const sliceTime = time.Minute
