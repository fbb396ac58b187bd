package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/agent/recording"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/promview"
)

func replayCommand() *cobra.Command {
	var file, metrics string
	flags := config.Default()
	flags.AccessLog = "stdout"
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "Run a recording through everything that comes after the kernel",
		Long: `Run a file of "sidelight record" through decoder, tracker, edges, access log and, if asked for, the embedded collector, in the
recording's time and as fast as they take it. It needs no privilege and looks at nothing of this machine; the same file gives the
same access log and the same metrics each time. Of a file of --config the keys peer_groups, max_edges, max_connections, report_interval, log_level and
those of prometheus and otlp count, but no endpoint: data goes where a flag sends it.

A file that is damaged or breaks off is played as far as it is whole; then the exit code is 1. It is 1 too when the recording lacks
anything that the kernel had counted, or when anything of it was not handed on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := resolve(file, withoutTargets, &flags, cmd.Flags(), func(name string) (string, bool) {
				if strings.HasSuffix(name, "_ENDPOINT") {
					return "", false
				}
				return os.LookupEnv(name)
			})
			if err != nil {
				return inputError{err}
			}
			c.AccessLog = flags.AccessLog
			return replay(cmd.Context(), c, args[0], metrics)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.AccessLog, "access-log", flags.AccessLog, "where one JSON line for each connection goes: stdout, stderr, off or a `FILE`")
	f.StringVar(&metrics, "metrics", "", "`FILE` for the metrics of the edges at the end, as of /metrics; - is stdout")
	f.StringVar(&flags.OTLP.Endpoint, "otlp-endpoint", "", "`URL` to send metrics, logs and traces to by OTLP, such as http://127.0.0.1:4317")
	f.StringVar(&flags.OTelConfig, "otel-config", "", "collector configuration `FILE` (YAML)")
	f.StringVar(&file, "config", "", "configuration `FILE` (YAML), as of run")
	f.StringVar(&flags.LogLevel, "log-level", flags.LogLevel, "`LEVEL` of the agent's own log: debug, info, warn, error")
	return cmd
}

// withoutTargets keeps a replay with an agent's own configuration from sending again what that has sent.
func withoutTargets(c *config.Config) {
	c.OTelConfig = ""
	for _, endpoint := range []*string{&c.OTLP.Endpoint, &c.OTLP.Metrics.Endpoint, &c.OTLP.Logs.Endpoint, &c.OTLP.Traces.Endpoint} {
		*endpoint = ""
	}
}

// replayer is a "sidelight replay" under way.
type replayer struct {
	outputs
	in      *os.File
	player  *event.Player
	replay  *recording.Replay
	metrics io.WriteCloser // nil if nobody wants them
	names   config.Prometheus
	state   string // directory of the collector's queue
	logger  *slog.Logger
}

func replay(ctx context.Context, c config.Config, file, metrics string) (err error) {
	level, err := c.Level()
	if err != nil {
		return inputError{err}
	}
	r := &replayer{logger: newLogger(level)}
	slog.SetDefault(r.logger)
	defer func() { err = errors.Join(err, r.release()) }()
	if err := r.prepare(ctx, &c, file, metrics); err != nil {
		return inputError{err}
	}
	return r.run(ctx)
}

// prepare opens the recording and everything that it is to go to.
func (r *replayer) prepare(ctx context.Context, c *config.Config, file, metrics string) (err error) {
	if r.in, err = os.Open(file); err != nil {
		return fmt.Errorf("open recording: %w", err)
	}
	if r.player, err = event.NewPlayer(r.in); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	header := r.player.Header()
	boot := attribute.NewBoot(header.BootID)
	if err := r.open(c, boot); err != nil {
		return err
	}
	r.names = c.Prometheus
	switch metrics {
	case "":
	case "-":
		r.metrics = os.Stdout
	default:
		if r.metrics, err = os.OpenFile(metrics, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640); err != nil {
			return fmt.Errorf("open metrics: %w; choose another with --metrics", err)
		}
	}
	if c.OTLP.Enabled() {
		// The queue on disk is the running agent's, and root's.
		if r.state, err = os.MkdirTemp("", "sidelight-replay-"); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		c.StateDirectory = r.state
	}
	if err := r.prepareCollector(ctx, c, collectorOptions{transient: true}, r.logger, meshreceiver.Settings{
		Clock: func() connection.Clock { return r.replay.Clock() }, Now: func() time.Time { return r.replay.Now() },
		Boot: boot, HostName: header.Host,
	}, r.edges.Snapshot); err != nil {
		return err
	}
	if r.log != nil {
		r.log.Wait()
	}
	if r.collector != nil {
		r.records.wait()
	}
	r.replay = recording.NewReplay(r.player, enrich.NewFacts(enrich.NewPeers(peerGroups(c.PeerGroups))), pipeline.Options{
		Limit: c.MaxConnections, Sinks: []pipeline.Sink{r.edges}, Finished: r.finished(c.Budget.Slow), LossSinks: []pipeline.LossSink{r.edges},
	})
	r.edges.Clock(func() time.Duration { return time.Duration(r.replay.Now().UnixNano()) })
	return nil
}

// replayPatience is how long a backend that takes nothing is waited for at the end.
const replayPatience = 10 * time.Second

func (r *replayer) run(ctx context.Context) error {
	if r.collector != nil {
		if err := r.collector.Start(ctx); err != nil {
			return inputError{err}
		}
		go func() { // so that nobody waits for room that nobody will make
			select {
			case <-r.collector.Done():
			case <-ctx.Done():
			}
			r.records.close()
		}()
	}
	var writing sync.WaitGroup
	if r.log != nil {
		writing.Go(r.log.Run)
		context.AfterFunc(ctx, r.log.Close)
	}
	err := r.replay.Run(ctx)
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted after %d frames: what was written is not complete", r.player.Frames())
	}
	if r.log != nil {
		r.log.Close()
		if ctx.Err() == nil {
			writing.Wait()
		}
		err = errors.Join(err, waitWithin(&writing, writeTime))
	}
	queued, refused, stopErr := r.stopCollector(ctx, ctx, replayPatience)
	return errors.Join(err, stopErr, r.writeMetrics(), r.complete(err, queued, refused))
}

// writeMetrics writes the edges as /metrics would show them.
func (r *replayer) writeMetrics() error {
	if r.metrics == nil {
		return nil
	}
	registry := prometheus.NewRegistry()
	edges := promview.New(r.edges.Snapshot, r.replay.Clock)
	if r.names.IstioAliases {
		edges.IstioAliases(r.names.IstioCluster, nil) // a recording has no mesh
	}
	if err := registry.Register(edges); err != nil {
		return err
	}
	families, err := registry.Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	out := bufio.NewWriter(r.metrics)
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(out, family); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}

// complete says what was played, and what of it is missing somewhere. What is missing of a recording that is not whole was said.
func (r *replayer) complete(played error, queued, refused int64) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	stats := r.replay.Stats()
	ended := stats.Decoded[connection.Close].Load()
	said := "the kernel's account is not in it"
	if kernel := r.replay.Account(); kernel != nil {
		a := account.New(*kernel, *kernel, userAccount(stats, r.replay.Connections()))
		said = fmt.Sprintf("%d closes without room are in it as sums, %d events or connections unaccounted", kernel.Aggregated+kernel.Totalled, a.Unaccounted)
		if a.Unaccounted != 0 {
			fault("%d that the kernel counted are not in the recording", a.Unaccounted)
		}
	} else if played == nil {
		fault("the recording has no account of the kernel's")
	}
	fmt.Fprintf(os.Stderr, "sidelight: replayed %d events and %d sweeps, %d connections ended, %d are open; %s\n",
		stats.Received.Load(), r.replay.Sweeps(), ended, r.replay.Connections(), said)
	if r.log != nil && r.log.Dropped() > 0 {
		fault("%d lines of the access log were not written", r.log.Dropped())
	}
	if r.collector == nil {
		return errors.Join(faults...)
	}
	if refused > 0 {
		fault("the OTLP backend refused %d log records, spans or data points", refused)
	}
	// Of metrics only the last report counts, which the receiver does not give up on.
	if n := r.records.logs.Dropped() + r.records.traces.Dropped() + meshreceiver.Dropped.Logs.Load() + meshreceiver.Dropped.Spans.Load(); n > 0 {
		fault("%d records were not taken by the collector", n)
	}
	if queued > 0 {
		fault("the OTLP backend did not take %d log records, spans or data points", queued)
	}
	return errors.Join(faults...)
}

// release closes and removes what prepare made.
func (r *replayer) release() error {
	var errs []error
	r.outputs.release()
	if r.metrics != nil {
		errs = append(errs, r.metrics.Close())
	}
	if r.state != "" {
		errs = append(errs, os.RemoveAll(r.state))
	}
	if r.in != nil {
		errs = append(errs, r.in.Close())
	}
	return errors.Join(errs...)
}
