// Package recording writes down what the kernel told, and plays it again through a pipeline. The file is agent/event's.
package recording

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
)

// Options say where a Recorder has its facts from: from where a pipeline would.
type Options struct {
	Writer *event.Writer
	// Start is the clock in the recording's header.
	Start connection.Clock
	Clock func() connection.Clock
	// Monotonic is CLOCK_MONOTONIC.
	Monotonic func() uint64
	Identify  func(*connection.Event) enrich.Identity
	Losses    func() ([]connection.Loss, error)
	// Sweep calls back with the bytes of each live connection, or without all only of those of which there is something new.
	Sweep         func(all bool, record func(raw []byte)) error
	SweepInterval time.Duration
	// Failed is called once, when nothing more can be recorded.
	Failed func(error)
}

// Recorder is an event.Handler that writes down what a pipeline.Pipeline in its place would have got, and when, so that a Replay of it does
// what that would have done. It is called from one goroutine.
type Recorder struct {
	options  Options
	stats    Stats
	clock    connection.Clock
	inBatch  bool   // the clock was looked at since the last batch
	dirty    bool   // something was written since the last FrameDrained
	sweptNS  uint64 // when the last sweep was
	decoded  connection.Event
	cgroups  map[uint64]string
	owners   map[connection.Owner]string
	failed   bool
	lossy    bool  // a close was lost since the last sweep over all
	lossErr  error // of the last look
	sweepErr error // of the last sweep
}

// Stats count what was written.
type Stats struct{ Events, Sweeps, Losses uint64 }

const (
	// clockStep is how far the clock may move before it is written down.
	clockStep = time.Millisecond
	// factLimit bounds what is remembered as written. Over it facts are written again.
	factLimit = 65536
)

// NewRecorder returns a recorder.
func NewRecorder(options Options) *Recorder {
	return &Recorder{
		options: options, clock: options.Start,
		cgroups: make(map[uint64]string), owners: make(map[connection.Owner]string),
	}
}

// Stats returns what was written so far.
func (r *Recorder) Stats() Stats { return r.stats }

// Record takes the bytes of an event as they came: it is an event.Reader's Tap.
func (r *Recorder) Record(raw []byte) {
	r.stats.Events++
	r.record(event.FrameEvent, raw)
}

func (r *Recorder) record(kind event.FrameKind, raw []byte) {
	r.mark()
	// What cannot be decoded is recorded too, and counted by whoever plays it.
	if event.Decode(raw, &r.decoded) == nil {
		r.facts(&r.decoded)
	}
	r.write(&event.Frame{Kind: kind, Raw: raw})
}

// mark looks at the clock at the first event of a batch, as a pipeline does.
func (r *Recorder) mark() {
	if r.inBatch {
		return
	}
	r.inBatch = true
	now := r.options.Clock()
	if moved := time.Duration(now.OffsetNS - r.clock.OffsetNS); moved.Abs() > clockStep {
		r.clock = now
		r.write(&event.Frame{Kind: event.FrameClock, AtNS: r.options.Monotonic(), Clock: now})
	}
}

// facts writes down who is at the ends of an event's connection, unless the last word on it was the same.
func (r *Recorder) facts(e *connection.Event) {
	id := r.options.Identify(e)
	if path, known := r.cgroups[e.CgroupID]; !known || path != id.Local.Cgroup {
		remember(r.cgroups, e.CgroupID, id.Local.Cgroup)
		r.write(&event.Frame{Kind: event.FrameCgroup, CgroupID: e.CgroupID, Name: id.Local.Cgroup})
	}
	if id.Process == nil {
		return
	}
	if name, known := r.owners[e.Owner]; !known || name != id.Process.Executable {
		remember(r.owners, e.Owner, id.Process.Executable)
		r.write(&event.Frame{Kind: event.FrameProcess, Owner: e.Owner, Name: id.Process.Executable})
	}
}

func remember[K comparable](facts map[K]string, key K, fact string) {
	if len(facts) >= factLimit {
		clear(facts)
	}
	facts[key] = fact
}

func (r *Recorder) write(f *event.Frame) {
	r.dirty = f.Kind != event.FrameDrained
	r.check(r.options.Writer.Write(f))
}

func (r *Recorder) check(err error) {
	if err != nil && !r.failed {
		r.failed = true
		r.options.Failed(err)
	}
}

// HandleEvent has nothing to do: Record had the bytes before.
func (r *Recorder) HandleEvent(*connection.Event) {}

// HandleDrained writes down what was lost, and that the ring was drained, and sweeps when it is time.
func (r *Recorder) HandleDrained(empty bool) {
	now := r.options.Monotonic()
	r.drained(empty, now)
	if empty && now-r.sweptNS >= uint64(r.options.SweepInterval) {
		r.sweep(now)
	}
	if empty {
		r.check(r.options.Writer.Flush())
	}
}

func (r *Recorder) drained(empty bool, now uint64) {
	losses, err := r.options.Losses()
	if err != nil && r.lossErr == nil {
		// Nothing is gone: the sums stay in the kernel until a look succeeds.
		slog.Error("read sums of lost events", "error", err)
	}
	r.lossErr = err
	if len(losses) > 0 {
		r.lossy = true
		r.mark() // they are dated
	}
	for i := range losses {
		l := &losses[i]
		if l.Peer.IsValid() {
			r.facts(&connection.Event{CgroupID: l.CgroupID})
		}
		r.stats.Losses++
		r.write(&event.Frame{Kind: event.FrameLoss, Loss: *l})
	}
	r.inBatch = false
	if r.dirty { // an idle agent writes nothing
		r.write(&event.Frame{Kind: event.FrameDrained, AtNS: now, Empty: empty})
	}
}

func (r *Recorder) sweep(now uint64) {
	r.sweptNS = now
	r.stats.Sweeps++
	all := r.lossy // as a pipeline does
	r.write(&event.Frame{Kind: event.FrameSweepBegin, AtNS: now, All: all})
	err := r.options.Sweep(all, func(raw []byte) { r.record(event.FrameSweepRecord, raw) })
	r.lossy = all && err != nil
	if err != nil && r.sweepErr == nil {
		slog.Error("sweep over live sockets", "error", err)
	}
	r.sweepErr = err
	r.write(&event.Frame{Kind: event.FrameSweepEnd, Whole: err == nil})
	r.inBatch = false
}

// Finish ends the recording when the programs are off and the ring is read empty: with a last look at what was lost and at what is
// still open, and the kernel's account.
func (r *Recorder) Finish(kernel account.Kernel) error {
	now := r.options.Monotonic()
	r.sweep(now)
	r.drained(true, now)
	r.write(&event.Frame{Kind: event.FrameAccount, Account: &kernel})
	if err := r.options.Writer.End(); err != nil {
		return err
	}
	if r.lossErr != nil {
		return fmt.Errorf("record what was lost: %w", r.lossErr)
	}
	if r.sweepErr != nil {
		return fmt.Errorf("record open connections: %w", r.sweepErr)
	}
	return nil
}
