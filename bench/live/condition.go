package live

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
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
	in      io.Writer
	out     *json.Decoder
	port    uint16
	ended   int // connections that have been made and closed
	visited int // addresses of the server that were used
}

// startStand starts the agent of a condition, then its workload.
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
	if w.kind == "" {
		return s, nil
	}
	cpu := workCPU()
	line, err := r.place.startAndRead(workload.NewServer(r.self, w.kind, cpu), s.cgroup)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(line, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("server's port: %w", err)
	}
	s.port = uint16(port)
	client := workload.NewClient(r.self, w.kind, cpu, r.burn[c.name])
	if s.in, err = client.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := client.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = json.NewDecoder(bufio.NewReader(out))
	return s, r.place.start(client, s.cgroup)
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
