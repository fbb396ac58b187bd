package recording

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
)

// Replay runs a recording through a pipeline, in the recording's time and as fast as the sinks take it.
type Replay struct {
	player   *event.Player
	pipeline *pipeline.Pipeline
	facts    *enrich.Facts

	stats  event.Stats
	event  connection.Event
	swept  uint64
	losses []connection.Loss // since the last drain
	last   *account.Kernel
	broken error // that a sweep met

	offset atomic.Int64
	atNS   atomic.Uint64
}

// NewReplay returns a replay. Of the options it sets everything but Limit and the sinks. The facts are filled from the recording.
func NewReplay(player *event.Player, facts *enrich.Facts, options pipeline.Options) *Replay {
	r := &Replay{player: player, facts: facts}
	r.offset.Store(player.Header().ClockOffsetNS)
	r.atNS.Store(player.Header().MeasuredNS)
	options.Clock, options.Now, options.Identify, options.Losses, options.Sweep = r.Clock, r.Now, facts.Identify, r.takeLosses, nil
	r.pipeline = pipeline.New(options)
	return r
}

// Clock is the recorded clock. Safe for concurrent use.
func (r *Replay) Clock() connection.Clock { return connection.Clock{OffsetNS: r.offset.Load()} }

// Now is the wall time of the last recorded moment. Safe for concurrent use.
func (r *Replay) Now() time.Time { return r.Clock().Wall(r.atNS.Load()) }

// Connections is how many are followed now. Safe for concurrent use.
func (r *Replay) Connections() int64 { return r.pipeline.Connections() }

// Stats count the events that were played. Safe for concurrent use.
func (r *Replay) Stats() *event.Stats { return &r.stats }

// Sweeps is how many were played.
func (r *Replay) Sweeps() uint64 { return r.swept }

// Account is the kernel's account at the end of the recording; nil before Run has come to it.
func (r *Replay) Account() *account.Kernel { return r.last }

// Run plays everything that is whole. The error is an *event.DamageError where the recording is not.
func (r *Replay) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		f, err := r.player.Next()
		if err == nil {
			r.play(&f)
			err = r.broken
		}
		if err != nil {
			// Without FrameDrained, because the recording breaks off, the last batch is still here.
			r.pipeline.HandleDrained(false)
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
	return ctx.Err()
}

func (r *Replay) play(f *event.Frame) {
	switch f.Kind {
	case event.FrameEvent:
		r.stats.Received.Add(1)
		r.decode(f.Raw, r.pipeline.HandleEvent)
	case event.FrameDrained:
		r.atNS.Store(f.AtNS)
		r.pipeline.HandleDrained(f.Empty)
	case event.FrameSweepBegin:
		r.atNS.Store(f.AtNS)
		r.swept++
		r.pipeline.HandleSweep(f.All, r.sweep)
	case event.FrameLoss:
		r.losses = append(r.losses, f.Loss)
	case event.FrameClock:
		r.atNS.Store(f.AtNS)
		r.offset.Store(f.Clock.OffsetNS)
	case event.FrameCgroup:
		r.facts.AddCgroup(f.CgroupID, f.Name)
	case event.FrameProcess:
		r.facts.AddProcess(f.Owner, f.Name)
	case event.FrameAccount:
		r.last = f.Account
	}
}

func (r *Replay) decode(raw []byte, handle func(*connection.Event)) {
	if err := event.Decode(raw, &r.event); err != nil {
		r.stats.DecodeFailed.Add(1)
		return
	}
	r.stats.Decoded[r.event.Kind].Add(1)
	handle(&r.event)
}

var errNotWhole = errors.New("the recorded sweep did not see every socket")

// sweep plays the frames up to the end of the sweep.
func (r *Replay) sweep(_ bool, observe func(*connection.Event)) error {
	for {
		f, err := r.player.Next()
		switch {
		case err != nil:
			r.broken = err
			return nil // it is told once, by Run
		case f.Kind == event.FrameSweepRecord:
			r.decode(f.Raw, observe)
		case f.Kind == event.FrameSweepEnd && !f.Whole:
			return errNotWhole
		case f.Kind == event.FrameSweepEnd:
			return nil
		default:
			r.play(&f)
		}
	}
}

func (r *Replay) takeLosses() ([]connection.Loss, error) {
	losses := r.losses
	r.losses = nil
	return losses, nil
}
