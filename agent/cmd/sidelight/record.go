package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/recording"
	"github.com/sidelight-mesh/sidelight/bpf"
)

func recordCommand() *cobra.Command {
	var file, output string
	var duration time.Duration
	flags := config.Default()
	cmd := &cobra.Command{
		Use:   "record --output FILE",
		Short: "Attach to a cgroup and write what the kernel tells to a file, for replay",
		Long: `Attach to a cgroup and write what the kernel tells of its connections to a file, for "sidelight replay": events, looks at open
connections, what was lost, and who is behind a cgroup or a process. No payload is recorded; addresses and names of programs are, so
the file is for its owner's eyes. Of a file of --config the keys report_interval, drain_interval, ring_bytes, cgroup and log_level count.

It ends with SIGINT, SIGTERM or after --duration. The exit code is 1 when the file lacks anything that the kernel told.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := resolve(file, nil, &flags, cmd.Flags(), func(string) (string, bool) { return "", false })
			switch {
			case err != nil:
			case output == "":
				err = errors.New("no --output: name a file that does not exist yet")
			case duration < 0:
				err = fmt.Errorf("--duration %v: use a positive time, such as 30s", duration)
			}
			if err != nil {
				return inputError{err}
			}
			return record(cmd.Context(), c, output, duration)
		},
	}
	f := cmd.Flags()
	f.StringVar(&output, "output", "", "`FILE` to make; it must not exist")
	f.StringVar(&flags.Cgroup, "cgroup", "", "cgroup2 `DIR` to attach to (default the root of cgroup2)")
	f.DurationVar(&duration, "duration", 0, "`TIME` to record for, such as 30s; until a signal if 0")
	f.StringVar(&file, "config", "", "configuration `FILE` (YAML), as of run")
	f.StringVar(&flags.LogLevel, "log-level", flags.LogLevel, "`LEVEL` of the agent's own log: debug, info, warn, error")
	return cmd
}

// recorder is a "sidelight record" under way.
type recorder struct {
	kernelSide
	file     *os.File
	recorder *recording.Recorder
	failed   chan error
}

func record(ctx context.Context, c config.Config, output string, duration time.Duration) error {
	c.PinDirectory = config.Off        // it leaves nothing behind
	c.Traces = config.Default().Traces // and changes nothing
	level, err := c.Level()
	if err != nil {
		return inputError{err}
	}
	logger := newLogger(level)
	slog.SetDefault(logger)
	r := &recorder{failed: make(chan error, 2)}
	defer r.release()
	if err := r.prepare(&c, output); err != nil {
		return inputError{err}
	}
	if err := r.attach(logger); err != nil {
		return errors.Join(err, r.file.Close(), os.Remove(output))
	}
	logger.Info("recording", "cgroup", r.cgroup.Dir, "output", output)
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	}
	began := time.Now()
	a, err := r.run(ctx)
	size, _ := r.file.Seek(0, 2)
	if err := errors.Join(err, r.file.Close()); err != nil {
		return fmt.Errorf("%w; %s can be replayed up to where it breaks off", err, output)
	}
	stats := r.recorder.Stats()
	fmt.Fprintf(os.Stderr, "sidelight: recorded %d events and %d sweeps in %v, %d bytes in %s; %d closes without room are in it as sums, %d events or connections unaccounted\n",
		stats.Events, stats.Sweeps, time.Since(began).Round(time.Millisecond), size, output, a.Kernel.Aggregated+a.Kernel.Totalled, a.Unaccounted)
	if a.Unaccounted != 0 {
		return fmt.Errorf("%d that the kernel counted are not in %s", a.Unaccounted, output)
	}
	return nil
}

// prepare takes what recording needs, attaching nothing. The file is made last.
func (r *recorder) prepare(c *config.Config, output string) error {
	if err := r.check(c.Cgroup); err != nil {
		return err
	}
	if err := r.load(r.options(c, nil), c); err != nil {
		return err
	}
	header, err := recordingHeader(r.cgroup.Dir)
	if err != nil {
		return err
	}
	// Addresses and process names are nobody else's business.
	if r.file, err = os.OpenFile(output, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return fmt.Errorf("make recording: %w; choose another with --output", err)
	}
	writer, err := event.NewWriter(r.file, header)
	if err != nil {
		return err
	}
	r.recorder = recording.NewRecorder(recording.Options{
		Writer: writer, Start: header.Clock(), Clock: event.MeasureClock, Monotonic: bpf.Monotonic,
		Identify: r.enricher.Identify, Losses: r.datapath.Losses, Sweep: r.datapath.Sweep, SweepInterval: c.ReportInterval,
		Failed: func(err error) { r.failed <- err },
	})
	r.reader.Tap = r.recorder.Record
	return nil
}

func recordingHeader(cgroup string) (event.Header, error) {
	bootID, err := readBootID()
	if err != nil {
		return event.Header{}, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return event.Header{}, fmt.Errorf("read the kernel's name: %w", err)
	}
	host, _ := os.Hostname() // without a name the attribute is left out
	return event.Header{
		Version: version(), Kernel: unix.ByteSliceToString(name.Release[:]), Machine: unix.ByteSliceToString(name.Machine[:]),
		Host: host, BootID: bootID, Cgroup: cgroup, ClockOffsetNS: event.MeasureClock().OffsetNS, MeasuredNS: bpf.Monotonic(),
	}, nil
}

// run records until the context ends or the file takes no more, and detaches before it writes the end.
func (r *recorder) run(ctx context.Context) (account.Account, error) {
	readCtx, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := r.reader.Run(readCtx, r.recorder); err != nil {
			r.failed <- err
		}
	}()
	var err error
	select {
	case <-ctx.Done():
	case err = <-r.failed:
	}
	err = errors.Join(err, r.datapath.Detach())
	var a account.Account
	if err == nil {
		a, err = r.settle()
	}
	stopReading()
	<-ended
	select {
	case late := <-r.failed:
		err = errors.Join(err, late)
	default:
	}
	if err != nil {
		return a, err
	}
	if err := r.recorder.Finish(a.Kernel); err != nil {
		return a, err
	}
	if err := r.file.Sync(); err != nil {
		return a, fmt.Errorf("write recording: %w", err)
	}
	return a, nil
}

// settleTime is how long the last runs of the programs are waited for, which may have begun before they were taken off.
const settleTime = 2 * time.Second

// settle returns the account when it does not change any more and everything in it was read, or as it is when the time is over.
func (r *recorder) settle() (account.Account, error) {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	var before account.Account
	for {
		a, err := r.audit(ctx, 0)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && before.Kernel.Submitted != nil:
			return before, nil
		case err != nil:
			return a, fmt.Errorf("read the last events: %w", err)
		case a.Unaccounted == 0 && reflect.DeepEqual(a.Kernel, before.Kernel):
			return a, nil
		}
		before = a
	}
}
