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
	"strings"
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
	var options demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it at work on a little world of its own, and leave nothing behind",
		Long: `Make cgroups and network namespaces, start a client and a few services in them (a good one, a slow one, one that resets, one
over IPv6, one that refuses, one whose host is gone), observe them as "sidelight run" would, and show what arrives over OTLP.
Nothing of the machine's own is touched or observed. The exit code is 1 when the account does not close.

With --mesh they are services, policies and limits of a mesh instead (agent/cmd/sidelight/demo/mesh.yaml in the repository): a service whose near
endpoints go away after a third of the time, a client that is denied, a circuit breaker, an endpoint that is ejected. The exit code is also 1 when
one of these was not seen.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.duration <= 0 {
				return inputError{fmt.Errorf("--duration %v: use a positive time, such as 30s", options.duration)}
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), options)
		},
	}
	cmd.Flags().DurationVar(&options.duration, "duration", 30*time.Second, "how long to run")
	cmd.Flags().BoolVar(&options.json, "json", false, "print one JSON object at the end, and nothing else")
	cmd.Flags().BoolVar(&options.mesh, "mesh", false, "show a mesh: failover, a policy, a circuit breaker, outlier detection")
	return cmd
}

type demoOptions struct {
	duration   time.Duration
	json, mesh bool
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
		{
			Use: demo.MeshServiceCommand + " NAME ADDRESS...", Hidden: true, Args: cobra.MinimumNArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				return demo.RunMeshService(cmd.Context(), args[0], args[1:], cmd.OutOrStdout())
			},
		},
		{
			Use: demo.MeshClientCommand + " ORDERS", Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return demo.RunMeshClient(cmd.Context(), args[0], cmd.OutOrStdout())
			},
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
	options  demoOptions
	world    *demo.World
	mesh     *meshDemo // nil without
	sink     *demo.Sink
	receiver *embedded.Collector
	node     *node
}

func runDemo(ctx context.Context, out io.Writer, options demoOptions) (err error) {
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
	d := demoRun{options: options, sink: demo.NewSink()}
	if err := d.makeWorld(root, dir); err != nil {
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
	c, nodeLogger := demoConfig(d.world, dir), logger
	if d.mesh != nil {
		d.mesh.configure(&c, dir)
		nodeLogger = d.mesh.logger(logger)
	}
	if d.node, err = newNode(ctx, c, nodeOptions{collectorOptions: collectorOptions{collectorURI: fmt.Sprintf(demoSender, socket)}}, nodeLogger); err != nil {
		return err
	}
	return d.observe(ctx, out)
}

func (d *demoRun) makeWorld(root datapath.Cgroup, dir string) (err error) {
	if !d.options.mesh {
		d.world, err = demo.New(root.Dir)
		return err
	}
	world, err := demo.NewMesh(root.Dir, root.Mount, dir)
	if err != nil {
		return err
	}
	d.world, d.mesh = world.World, newMeshDemo(world)
	return nil
}

func demoConfig(world *demo.World, dir string) config.Config {
	c := config.Default()
	c.Cgroup = world.Cgroup
	c.AccessLog = filepath.Join(dir, "access.log")
	c.MetricsAddress = "127.0.0.1:0"
	c.PinDirectory = config.Off // it leaves nothing behind
	c.StateDirectory = filepath.Join(dir, "state")
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
func (d *demoRun) observe(ctx context.Context, out io.Writer) error {
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
	if err := d.watch(ctx, out); err != nil {
		return stop(err)
	}
	interrupted := ctx.Err() != nil
	if err := d.world.Stop(); err != nil {
		return stop(err)
	}
	final, err := d.settle()
	if err == nil && d.mesh != nil {
		err = d.mesh.finish(d.node.mesh)
	}
	if err := stop(err); err != nil {
		return err
	}
	// The node's last words are still on their way through the receiving collector.
	if err := d.receiver.Shutdown(); err != nil {
		return err
	}
	return d.report(out, final, interrupted)
}

// watch shows the page once a second until the time is over.
func (d *demoRun) watch(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, d.options.duration)
	defer cancel()
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	live := err == nil && !d.options.json
	deadline, _ := ctx.Deadline()
	var looks <-chan time.Time
	if d.mesh != nil {
		look := time.NewTicker(meshLook)
		defer look.Stop()
		looks = look.C
		if err := d.mesh.begin(d.node.mesh, d.options.duration); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-looks:
			if ctx.Err() != nil { // both were ready
				return nil
			}
			if err := d.mesh.look(d.node.mesh); err != nil {
				return err
			}
			continue
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
		d.write(out, &view)
	}
}

func (d *demoRun) write(out io.Writer, view *demo.View) {
	if d.mesh == nil {
		view.Write(out)
		return
	}
	page := demo.MeshView{View: *view, Report: d.mesh.report(view.Received.Decided)}
	page.Write(out)
}

func (d *demoRun) view(a account.Account) demo.View {
	return demo.View{Received: d.sink.Received(), Account: a, Lines: d.node.log.Lines(), Metrics: d.node.server.Address(), State: d.node.config.StateDirectory}
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
	// Mesh is there with --mesh only.
	Mesh *demo.MeshReport `json:"mesh,omitempty"`
	// Closes says that every connection that the kernel saw end is in the access log, the log records and the spans, once.
	Closes bool `json:"closes"`
}

func (d *demoRun) report(out io.Writer, a account.Account, interrupted bool) error {
	received := d.sink.Received()
	ended := demo.Ended(&a)
	r := demoReport{
		Edges: demo.Edges(received.Metrics), Account: a, AccessLogLines: d.node.log.Lines(), Received: received,
		Closes: a.Unaccounted == 0 && a.Kernel.Attempts == a.Kernel.Established["client"]+a.Kernel.Failed && ended == d.node.log.Lines() &&
			ended == uint64(received.UniqueLogs) && ended == uint64(received.UniqueSpans),
	}
	var missing []string
	if d.mesh != nil {
		m := d.mesh.report(received.Decided)
		r.Mesh = &m
		if missing = m.Missing(); interrupted { // there was no time for them
			missing = nil
		}
	}
	if d.options.json {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
	} else {
		view := d.view(a)
		d.write(out, &view)
		if r.Closes {
			fmt.Fprintln(out, "\nThe account closes: every connection is accounted for.")
		}
	}
	if !r.Closes {
		return errors.New("the account does not close")
	}
	if len(missing) > 0 {
		return fmt.Errorf("not seen as it should be: %s; see the end of the page, and give it more time with --duration", strings.Join(missing, ", "))
	}
	return nil
}
