package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// supervisor is systemd, or whoever else set NOTIFY_SOCKET: it hears when the agent is ready, when it stops and, if it set WATCHDOG_USEC, that the agent
// is alive (sd_notify(3)). Without the variable nobody hears anything.
type supervisor struct {
	logger *slog.Logger
	status string
	// alive says within the context whether the agent does its work. That this process runs says little.
	alive func(context.Context) bool
	tick  func(time.Duration) (ticks <-chan time.Time, stop func())

	stopWatching context.CancelFunc // nil: there is no watchdog
	watching     sync.WaitGroup
}

func (n *node) newSupervisor() *supervisor {
	return &supervisor{
		logger: n.logger, status: "attached to " + n.cgroup.Dir + ", metrics on " + n.server.Address(), tick: everySo,
		alive: n.alive,
	}
}

func (n *node) alive(ctx context.Context) bool {
	return readerWorks(ctx, n.reader.Drain, n.stats.Received.Load)
}

func everySo(interval time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(interval)
	return t.C, t.Stop
}

// readerWorks says whether the event reader gets on: it finds the ring empty, or it reads what keeps it from that. A load under which the ring never is
// empty is none to end the agent for.
func readerWorks(ctx context.Context, drain func(context.Context) error, received func() uint64) bool {
	before := received()
	return drain(ctx) == nil || received() != before
}

// notifyTime is how long a service manager that does not read may hold up whoever tells it something.
const notifyTime = time.Second

func (s *supervisor) tell(state string) {
	if err := notify(state); err != nil {
		s.logger.Warn("the service manager was not told; is NOTIFY_SOCKET right?", "state", state, "error", err)
	}
}

// notify is daemon.SdNotify, which has no bound of time: a full queue of NOTIFY_SOCKET would keep the agent from its end.
func notify(state string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialTimeout("unixgram", socket, notifyTime)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(notifyTime)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}

// ready is called once, when the agent works. The watchdog is fed from then on, until stopping.
func (s *supervisor) ready() {
	s.tell(daemon.SdNotifyReady + "\nSTATUS=" + s.status)
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.logger.Warn("the watchdog is not fed", "error", err)
		return
	}
	if within == 0 || os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stopWatching = cancel
	ticks, stop := s.tick(within / 2)
	s.watching.Go(func() {
		defer stop()
		s.watch(ctx, ticks, within/4)
	})
}

// watch feeds the watchdog at each tick, but a dead reader. The patience with it is half of an interval: a late answer is still in time.
func (s *supervisor) watch(ctx context.Context, ticks <-chan time.Time, patience time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		alive := s.alive(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case alive:
			s.tell(daemon.SdNotifyWatchdog)
		default:
			s.logger.Error("the event reader does not get on: the watchdog is not fed, and ends this agent if that lasts", "waited", patience)
		}
	}
}

// stopping is called when the agent begins to stop, for a fault or because it was told to. systemd's watchdog ends with it.
func (s *supervisor) stopping(fault error) {
	if s.stopWatching != nil {
		s.stopWatching()
		s.watching.Wait()
	}
	status := "what is pending is handed on"
	if fault != nil {
		// A line is the next assignment.
		status = strings.ReplaceAll(fault.Error(), "\n", "; ")
	}
	s.tell(daemon.SdNotifyStopping + "\nSTATUS=" + status)
}
