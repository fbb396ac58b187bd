package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/status"
	"github.com/sidelight-mesh/sidelight/bpf"
)

func pinDirectory(c *config.Config) string {
	if c.PinDirectory == config.Off {
		return ""
	}
	return c.PinDirectory
}

// handoverTime is how long a running agent may take to hand over: it hands on what it has read.
const handoverTime = 30 * time.Second

// takeOver opens the outputs, and makes sure that no other agent attends to the pins. If one does, and is to hand over, whatever can be wrong with this
// one is found before that one is asked.
func (n *node) takeOver(ctx context.Context, kernel datapath.Options, asked bool) error {
	open := func() error { return n.open(&n.config, n.boot) }
	if kernel.Pin == "" {
		return open()
	}
	var locked *datapath.LockedError
	switch err := datapath.Free(kernel.Pin); {
	case err == nil:
		return open()
	case !asked || !errors.As(err, &locked):
		return err
	}
	// Most of a start is done before there is no agent.
	var err error
	if n.datapath, err = datapath.Prepare(kernel); err != nil {
		return err
	}
	if err := open(); err != nil {
		return err
	}
	// If that agent has the address, it gives it back.
	if n.server, err = status.Listen(n.config.MetricsAddress); err != nil && !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	if err := n.handedOver(ctx, locked); err != nil {
		return err
	}
	if n.log == nil {
		return nil
	}
	return n.log.Reopen() // it may have been rotated since
}

// handedOver asks the other agent to hand over, and waits until it has.
func (n *node) handedOver(ctx context.Context, locked *datapath.LockedError) error {
	ctx, cancel := context.WithTimeout(ctx, handoverTime)
	defer cancel()
	if _, err := status.AskControl(ctx, filepath.Join(n.config.StateDirectory, controlSocket), handoverPath); err != nil {
		return fmt.Errorf("take over from process %d: %w", locked.PID, err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := datapath.Free(locked.Dir); !errors.As(err, &locked) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("take over from process %d: it did not end within %v", locked.PID, handoverTime)
		case <-tick.C:
		}
	}
}

// letGo decides what becomes of what is pinned when this agent ends, for err or because it was told to, and says whether it stays.
func (n *node) letGo(err error) (keep bool) {
	select {
	case <-n.handover:
		keep = true
	default:
		// Who ends by a fault leaves the data path to whoever is started next, as one that is killed does.
		keep = err != nil || n.config.Keep()
	}
	if keep && n.config.PinDirectory != config.Off {
		n.datapath.Keep()
		// A lower rung of the budget is this agent's.
		_ = n.datapath.SetSilent(silentKinds(n.config.Events))
		return true
	}
	return false
}

// mostLossReads is how often it is tried to find a moment about which nothing is lost.
const mostLossReads = 100

// inherit is for a kernel side that others counted for before: see pipeline.Options.Inherit. nil: this agent is the first.
func (n *node) inherit() func() ([]connection.Loss, uint64, error) {
	if !n.datapath.Resumed() {
		return nil
	}
	return func() (all []connection.Loss, until uint64, err error) {
		for range mostLossReads {
			losses, err := n.datapath.Losses()
			if all = append(all, losses...); err != nil {
				return all, until, err
			}
			until = bpf.Monotonic()
			losses, err = n.datapath.Losses()
			if all = append(all, losses...); err != nil || len(losses) == 0 {
				return all, until, err // the first read has all that was lost until then
			}
		}
		return all, until, nil
	}
}

// commit makes sure that this agent works, and gives up the way back. If it does not, the programs before it are put back.
func (n *node) commit(ctx context.Context) error {
	if !n.datapath.Resumed() {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, n.config.UpgradeTimeout)
	defer cancel()
	// Who is told to stop meanwhile has not failed.
	if err := n.works(within); err != nil && ctx.Err() == nil {
		if back := n.datapath.Rollback(); back != nil {
			return errors.Join(fmt.Errorf("this version does not work: %w", err), back)
		}
		return fmt.Errorf("this version does not work, the programs before it are put back: %w", err)
	}
	return n.datapath.Commit()
}

// works tells whether events come through, and tries until the context ends: an event that is being written when the ring is looked at is not there yet.
func (n *node) works(ctx context.Context) error {
	if failsReadiness {
		return errors.New("it was built to fail")
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		report, err := n.report(ctx)
		if err == nil && report.Unaccounted == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
			continue
		}
		if err == nil {
			err = fmt.Errorf("%d are unaccounted", report.Unaccounted)
		}
		return err
	}
}

// keepAlive tells the programs that an agent is there, often enough where that is what policies hold by. Elsewhere Handled says it, whenever the ring is
// looked at: a tick a second would be most of what an idle agent costs.
func (s *succession) keepAlive(ctx context.Context) {
	if s.n.config.Mesh.FailClosedAfter == 0 {
		return
	}
	s.alive.Go(func() {
		tick := time.NewTicker(aliveInterval)
		defer tick.Stop()
		for {
			s.ledger.Alive()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}
