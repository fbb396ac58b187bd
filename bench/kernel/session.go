package kernel

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/lab"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// session is a process that makes connections in a cgroup of its own, and programs on that cgroup, or none.
type session struct {
	cgroup  string
	process *connections
	*attached
	ring *ringbuf.Reader // nil without ours
}

// open starts a session; attach may be nil.
func open(attach func(cgroup string) (*attached, error)) (*session, error) {
	s := new(session)
	if err := s.start(attach); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func openMesh(o options) (*session, error) {
	return open(func(cgroup string) (*attached, error) { return attachMesh(cgroup, o) })
}

func (s *session) start(attach func(string) (*attached, error)) error {
	root, err := datapath.OpenCgroup("")
	if err != nil {
		return err
	}
	if s.cgroup, err = os.MkdirTemp(root.Dir, "sidelight-bench-kernel-"); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if s.process, err = startConnections(s.cgroup); err != nil {
		return err
	}
	if attach == nil {
		return nil
	}
	if s.attached, err = attach(s.cgroup); err != nil || s.collection == nil {
		return err
	}
	s.ring, err = ringbuf.NewReader(s.collection.Maps[bpf.EventsMap])
	return err
}

// close takes everything away again. Safe for a session that was not started whole.
func (s *session) close() error {
	var errs []error
	if s.process != nil {
		errs = append(errs, s.process.stop())
	}
	if s.ring != nil {
		errs = append(errs, s.ring.Close())
	}
	if s.attached != nil {
		s.attached.close()
	}
	if s.cgroup != "" {
		errs = append(errs, lab.RemoveCgroup(s.cgroup))
	}
	return errors.Join(errs...)
}

// drain empties the ring, and returns how many bytes were in it, headers included.
func (s *session) drain() (bytes uint64, err error) {
	var record ringbuf.Record
	s.ring.SetDeadline(time.Now())
	for {
		switch err := s.ring.ReadInto(&record); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return bytes, nil
		case err != nil:
			return bytes, fmt.Errorf("read ring: %w", err)
		}
		const header = 8 // BPF_RINGBUF_HDR_SZ
		bytes += header + uint64(len(record.RawSample))
	}
}

// cost is what the programs of a session cost so far.
type cost struct {
	runs, instructions   uint64
	time                 time.Duration
	emptyRuns            uint64
	emptyTime            time.Duration
	sweepInstructions    uint64
	reserveFailed, bytes uint64
}

func (s *session) read() (c cost, err error) {
	executed := func(name string) (n uint64, err error) {
		if m := s.counts[name]; m != nil {
			err = m.Lookup(uint32(0), &n)
		}
		return n, err
	}
	for i, p := range hooked {
		stats, err := s.collection.Programs[s.name(p.name)].Stats()
		if err != nil {
			return c, err
		}
		c.runs, c.time = c.runs+stats.RunCount, c.time+stats.Runtime
		n, err := executed(s.name(p.name))
		if err != nil {
			return c, err
		}
		c.instructions += n
		if len(s.empty) == 0 {
			continue
		}
		if stats, err = s.empty[i].Stats(); err != nil {
			return c, err
		}
		c.emptyRuns, c.emptyTime = c.emptyRuns+stats.RunCount, c.emptyTime+stats.Runtime
	}
	if c.sweepInstructions, err = executed(sweepProgram); err != nil {
		return c, err
	}
	var perCPU []bpf.Account
	if err := s.collection.Maps["account"].Lookup(uint32(0), &perCPU); err != nil {
		return c, fmt.Errorf("read account: %w", err)
	}
	for i := range perCPU {
		for _, n := range perCPU[i].ReserveFailed {
			c.reserveFailed += n
		}
	}
	return c, nil
}

// cost returns what a script cost.
func (s *session) cost(of script, family, count int) (c cost, err error) {
	if _, err := s.drain(); err != nil {
		return c, err
	}
	before, err := s.read()
	if err != nil {
		return c, err
	}
	if err := s.process.make(of, family, count); err != nil {
		return c, err
	}
	after, err := s.read()
	if err != nil {
		return c, err
	}
	if after.reserveFailed != 0 {
		return c, errors.New("the ring was full, which costs otherwise: make fewer connections at a time")
	}
	bytes, err := s.drain()
	return cost{
		runs: after.runs - before.runs, instructions: after.instructions - before.instructions, time: after.time - before.time,
		emptyRuns: after.emptyRuns - before.emptyRuns, emptyTime: after.emptyTime - before.emptyTime, bytes: bytes,
	}, err
}

// sweep returns the instructions of one sweep, and how many sockets it told of.
func (s *session) sweep() (instructions uint64, told int, err error) {
	before, err := s.read()
	if err != nil {
		return 0, 0, err
	}
	iterator, err := link.AttachIter(link.IterOptions{Program: s.collection.Programs[sweepProgram], Map: s.collection.Maps["connections"]})
	if err != nil {
		return 0, 0, fmt.Errorf("attach iterator: %w", err)
	}
	defer iterator.Close()
	run, err := iterator.Open()
	if err != nil {
		return 0, 0, fmt.Errorf("open iterator: %w", err)
	}
	defer run.Close()
	records, err := io.ReadAll(run)
	if err != nil {
		return 0, 0, fmt.Errorf("read iterator: %w", err)
	}
	after, err := s.read()
	return after.sweepInstructions - before.sweepInstructions, len(records) / bpf.CloseEventSize, err
}
