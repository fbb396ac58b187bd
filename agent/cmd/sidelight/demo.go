package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/collector/exporter"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/demo"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
)

func demoCommand() *cobra.Command {
	var duration time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it at work on a little world of its own, and leave nothing behind",
		Long: `Make cgroups and network namespaces, start a client and a few services in them (a good one, a slow one, one that resets, one
over IPv6, one that refuses, one whose host is gone), observe them as "sidelight run" would, and show what arrives over OTLP.
Nothing of the machine's own is touched or observed. The exit code is 1 when the account does not close.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if duration <= 0 {
				return inputError{fmt.Errorf("--duration %v: use a positive time, such as 30s", duration)}
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), duration, asJSON)
		},
	}
	cmd.Flags().DurationVar(&duration, "duration", 30*time.Second, "how long to run")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object at the end, and nothing else")
	return cmd
}

// demoCommands are what the demo starts itself as.
func demoCommands() []*cobra.Command {
	return []*cobra.Command{
		{
			Use: demo.ServiceCommand + " KIND ADDRESS", Hidden: true, Args: cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				return demo.RunService(cmd.Context(), args[0], args[1], cmd.OutOrStdout())
			},
		},
		{
			Use: demo.ClientCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return demo.RunClient(cmd.Context(), cmd.OutOrStdout()) },
		},
	}
}

// The demo's pipeline, as anybody would write it: one collector sends by OTLP, another receives.
const (
	demoSender = `yaml:
receivers: {mesh: {report_interval: 1s}}
exporters: {otlp_grpc: {endpoint: "unix://%s", tls: {insecure: true}}}
service:
  pipelines:
    metrics: {receivers: [mesh], exporters: [otlp_grpc]}
    logs: {receivers: [mesh], exporters: [otlp_grpc]}
    traces: {receivers: [mesh], exporters: [otlp_grpc]}
  telemetry: {logs: {level: warn}}
`
	demoReceiver = `yaml:
receivers: {otlp: {protocols: {grpc: {endpoint: "%s", transport: unix}}}}
exporters: {terminal: {}}
service:
  pipelines:
    metrics: {receivers: [otlp], exporters: [terminal]}
    logs: {receivers: [otlp], exporters: [terminal]}
    traces: {receivers: [otlp], exporters: [terminal]}
  telemetry: {logs: {level: warn}}
`
)

// demoRun is a demo under way.
type demoRun struct {
	world    *demo.World
	sink     *demo.Sink
	receiver *embedded.Collector
	node     *node
}

func runDemo(ctx context.Context, out io.Writer, duration time.Duration, asJSON bool) (err error) {
	logger := newLogger(slog.LevelWarn)
	if err := datapath.CheckPrivileges(); err != nil {
		return inputError{err}
	}
	root, err := datapath.OpenCgroup("")
	if err != nil {
		return inputError{err}
	}
	dir, err := os.MkdirTemp("", "sidelight-demo-")
	if err != nil {
		return inputError{fmt.Errorf("make directory: %w", err)}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d := demoRun{sink: demo.NewSink()}
	if d.world, err = demo.New(root.Dir); err != nil {
		return inputError{err}
	}
	defer func() { err = errors.Join(err, d.world.Close()) }()

	socket := filepath.Join(dir, "otlp.sock")
	d.receiver = embedded.New(embedded.Options{
		URI: fmt.Sprintf(demoReceiver, socket), DiscardMetrics: true, Version: version(), Logger: logger,
		Exporters: []exporter.Factory{d.sink.Factory()},
	})
	if err := d.receiver.Start(ctx); err != nil {
		return inputError{err}
	}
	defer func() { err = errors.Join(err, d.receiver.Shutdown()) }()
	if d.node, err = newNode(ctx, demoConfig(d.world, dir), collectorOptions{collectorURI: fmt.Sprintf(demoSender, socket)}, logger); err != nil {
		return err
	}
	return d.observe(ctx, out, duration, asJSON)
}

func demoConfig(world *demo.World, dir string) config.Config {
	c := config.Default()
	c.Cgroup = world.Cgroup
	c.AccessLog = filepath.Join(dir, "access.log")
	c.MetricsAddress = "127.0.0.1:0"
	c.Budget.CPU, c.Budget.Memory = 0, 0 // it shows every connection, whatever that costs
	// Without a mesh a peer has the name that its address range is given.
	for _, s := range demo.Services() {
		prefix := netip.PrefixFrom(s.Address.Addr(), s.Address.Addr().BitLen())
		c.PeerGroups = append(c.PeerGroups, config.PeerGroup{Name: s.Name, CIDRs: []netip.Prefix{prefix}})
	}
	c.PeerGroups = append(c.PeerGroups, config.PeerGroup{Name: demo.ClientName, CIDRs: demo.ClientAddresses()})
	return c
}

// observe runs the node, drives the world, and reports.
func (d *demoRun) observe(ctx context.Context, out io.Writer, duration time.Duration, asJSON bool) error {
	nodeCtx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	attached, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.node.run(nodeCtx, func() { close(attached) }) }()
	select {
	case err := <-ended:
		return err
	case <-attached:
	}
	stop := func(err error) error {
		stopNode()
		return errors.Join(err, <-ended)
	}
	self, err := os.Executable()
	if err != nil {
		return stop(err)
	}
	if err := d.world.Start(ctx, self); err != nil && ctx.Err() == nil {
		return stop(err)
	}
	if err := d.watch(ctx, out, duration, asJSON); err != nil {
		return stop(err)
	}
	if err := d.world.Stop(); err != nil {
		return stop(err)
	}
	final, err := d.settle()
	if err := stop(err); err != nil {
		return err
	}
	// The node's last words are still on their way through the receiving collector.
	if err := d.receiver.Shutdown(); err != nil {
		return err
	}
	return d.report(out, final, asJSON)
}

// watch shows the page once a second until the time is over.
func (d *demoRun) watch(ctx context.Context, out io.Writer, duration time.Duration, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	live := err == nil && !asJSON
	deadline, _ := ctx.Deadline()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if !live {
			continue
		}
		a, err := d.node.audit(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		const home, clear = "\x1b[H", "\x1b[J"
		fmt.Fprint(out, home+clear)
		view := d.view(a)
		view.Left = time.Until(deadline)
		view.Write(out)
	}
}

func (d *demoRun) view(a account.Account) demo.View {
	return demo.View{Received: d.sink.Received(), Account: a, Lines: d.node.log.Lines(), Metrics: d.node.server.Address()}
}

// settle waits until the kernel has seen the last connection end, and every one of them is in the access log.
func (d *demoRun) settle() (account.Account, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		a, err := d.node.audit(ctx)
		if err != nil {
			return a, fmt.Errorf("wait for the last connection: %w", err)
		}
		if a.Kernel.Live() == 0 && d.node.log.Lines() >= a.User.Decoded["close"] {
			return a, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// demoReport is the object of --json.
type demoReport struct {
	Edges          []demo.Edge     `json:"edges"`
	Account        account.Account `json:"account"`
	AccessLogLines uint64          `json:"access_log_lines"`
	Received       demo.Received   `json:"received"`
	// Closes says that every connection that the kernel saw end is in the access log, the log records and the spans, once.
	Closes bool `json:"closes"`
}

func (d *demoRun) report(out io.Writer, a account.Account, asJSON bool) error {
	received := d.sink.Received()
	ended := demo.Ended(&a)
	r := demoReport{
		Edges: demo.Edges(received.Metrics), Account: a, AccessLogLines: d.node.log.Lines(), Received: received,
		Closes: a.Unaccounted == 0 && a.Kernel.Attempts == a.Kernel.Established["client"]+a.Kernel.Failed && ended == d.node.log.Lines() &&
			ended == uint64(received.Logs) && ended == uint64(received.UniqueLogs) && ended == uint64(received.Spans),
	}
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
	} else {
		view := d.view(a)
		view.Write(out)
		if r.Closes {
			fmt.Fprintln(out, "\nThe account closes: every connection is accounted for.")
		}
	}
	if !r.Closes {
		return errors.New("the account does not close")
	}
	return nil
}
