package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/agent/status"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/tail"
)

// node is one agent: everything from the cgroup to the exporters.
type node struct {
	kernelSide
	outputs
	config  config.Config
	logger  *slog.Logger
	started time.Time
	budget  *budgetSide
	tracing *meshreceiver.Tracing
	mesh    *meshSide
	control *status.Control // nil: an agent that needs none has lost it to another

	succession *succession
	handover   chan struct{} // closed when another agent asks for it
	asked      sync.Once

	boot     attribute.Boot
	bootID   string
	pipeline *pipeline.Pipeline
	server   *status.Server
}

// inputError is a fault of what the user gave or of the machine, found before anything was attached. The exit code is 2.
type inputError struct{ error }

func (e inputError) Unwrap() error { return e.error }

// newNode checks everything that can be checked and takes what it needs, attaching nothing. Every error is an inputError.
func newNode(ctx context.Context, c config.Config, options nodeOptions, logger *slog.Logger) (*node, error) {
	n := &node{
		config: c, logger: logger, started: time.Now(), budget: newBudgetSide(&c), tracing: new(meshreceiver.Tracing),
		handover: make(chan struct{}),
	}
	if err := n.prepare(ctx, options); err != nil {
		n.release()
		return nil, inputError{err}
	}
	return n, nil
}

func (n *node) prepare(ctx context.Context, options nodeOptions) error {
	if err := n.check(n.config.Cgroup); err != nil {
		return err
	}
	var err error
	if n.bootID, err = readBootID(); err != nil {
		return err
	}
	if n.mesh, err = newMeshSide(&n.config.Mesh, n.config.StateDirectory, n.bootID, n.logger); err != nil {
		return err
	}
	if n.mesh != nil && n.config.Prometheus.IstioAliases {
		n.mesh.catalog = enrich.NewCatalog()
	}
	n.boot = attribute.NewBoot(n.bootID)
	n.tail = tail.New(n.boot)
	host, _ := os.Hostname() // without a name the attribute is left out
	if err := n.prepareCollector(ctx, &n.config, options.collectorOptions, n.logger, meshreceiver.Settings{
		Clock: event.MeasureClock, Boot: n.boot, HostName: host, Self: n.readSelf, Steps: n.budget.steps, Tracing: n.tracing,
	}, n.snapshot); err != nil {
		return err
	}
	n.mounted = options.mounted
	kernel := n.options(&n.config, n.mesh.mapSizes(&n.config.Mesh))
	if err := n.takeOver(ctx, kernel, options.takeover); err != nil {
		return err
	}
	if n.server == nil {
		if n.server, err = status.Listen(n.config.MetricsAddress); err != nil && n.datapath == nil && !datapath.Pinned(kernel.Pin) {
			return err
		}
	}
	if err != nil {
		// There are programs that need an agent, with or without its metrics.
		n.logger.Error("nobody can read metrics yet", "error", err)
		n.server = status.Later(n.config.MetricsAddress)
	}
	if err := n.listenControl(); err != nil {
		return err
	}
	if err := n.load(kernel, &n.config); err != nil {
		return err
	}
	if err := n.succeed(); err != nil {
		return err
	}
	if err := n.mesh.fill(n.datapath, n.cgroup, &n.config.Mesh, n.enricher); err != nil {
		return err
	}
	sinks := []pipeline.Sink{n.edges}
	if n.mesh != nil {
		sinks = append(sinks, n.mesh)
	}
	n.pipeline = pipeline.New(pipeline.Options{
		Limit: n.config.MaxConnections, Clock: event.MeasureClock, Identify: n.enricher.Identify,
		Sinks: sinks, Finished: n.finished(n.config.Budget.Slow), Wanted: n.wanted(),
		Losses: n.losses, LossSinks: []pipeline.LossSink{n.edges},
		Sweep: n.tracedSweep, SweepInterval: n.config.ReportInterval, Inherit: n.inherit(), Again: n.succession.takeAgain,
	})
	return nil
}

// settle makes sure that nobody writes to a ring or to other maps before these any more, before they are read to their end. Whatever goes wrong, what is
// attached stays: it is somebody's policies.
func (n *node) settle() error {
	if !n.datapath.Mixed() {
		return nil
	}
	n.succession.carried = n.datapath.Carries()
	n.succession.uncarried = n.datapath.CarryFailed()
	err := n.datapath.Commit()
	if guardErr := n.mesh.guard(); guardErr != nil {
		if left := n.datapath.Unguarded(); left != nil {
			err = errors.Join(err, guardErr, left)
		} else { // it is about others, and said again when it is looked around
			n.logger.Warn("not all inbound connections are judged", "error", guardErr)
		}
	}
	if err == nil {
		err = n.datapath.Unmix()
	}
	if err != nil {
		n.datapath.Keep()
		return fmt.Errorf("change to other maps: %w; start this version again, with the same configuration", err)
	}
	n.reader.Settle()
	if n.succession.carried {
		n.mesh.settled()
	}
	return nil
}

// snapshot returns the edges with everything in them that the kernel had told by the time of the call. If the ring cannot be drained
// in time, what is not read yet is missing until the next.
func (n *node) snapshot() edge.Snapshot { return n.snapshotFor(context.Background()) }

// snapshotFor does the same for who waits for it no longer than a context.
func (n *node) snapshotFor(ctx context.Context) edge.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, auditTime)
	defer cancel()
	if err := n.drain(ctx); err != nil {
		n.logger.Debug("the ring was not drained for a report", "error", err)
	}
	return n.edges.Snapshot()
}

// run attaches, works until the context ends, and lets go in the reverse order: no new events, what is in the ring, what waits for
// the log and the exporters.
func (n *node) run(ctx context.Context, attached func()) error {
	defer n.release()
	metrics, err := n.metrics()
	if err != nil {
		return err
	}
	if n.collector != nil {
		staged("collector", func() { err = n.collector.Start(ctx) })()
		if err != nil {
			return inputError{err}
		}
	}
	_, span := n.tracing.Start(ctx, spanAttach)
	err = n.attach(n.logger)
	if err == nil {
		err = n.settle()
	}
	meshreceiver.End(span, err)
	if err != nil {
		return errors.Join(err, n.stopCollector())
	}
	n.succession.say(n.logger)
	n.logger.Info("attached", "cgroup", n.cgroup.Dir, "metrics", n.server.Address())
	readCtx, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	var reading, writing sync.WaitGroup
	failed := make(chan error, 3)
	reading.Go(staged("read", func() {
		if err := n.reader.Run(readCtx, n.pipeline); err != nil {
			failed <- err
		}
	}))
	if n.log != nil {
		writing.Go(staged("access_log", n.log.Run))
	}
	writing.Go(staged("http", func() { n.serve(metrics, failed) }))
	if n.control != nil {
		writing.Go(staged("http", func() {
			if err := n.control.Serve(n.controlHandler()); err != nil {
				n.logger.Error("nobody can ask this agent any more", "error", err)
			}
		}))
	}
	budgetCtx, stopBudget := context.WithCancel(readCtx)
	defer stopBudget()
	n.keepBudget(budgetCtx)
	meshCtx, stopMesh := context.WithCancel(readCtx)
	defer stopMesh()
	n.mesh.start(meshCtx)
	aliveCtx, stopAlive := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAlive()
	n.succession.keepAlive(aliveCtx)
	supervisor := n.newSupervisor()
	if err := n.commit(ctx); err != nil {
		failed <- err
	} else {
		n.server.SetAlive(n.alive)
		n.server.SetReady(true)
		supervisor.ready()
	}
	if attached != nil {
		attached()
	}
	// A start takes some megabytes (object, types, configuration) that nobody needs again, and an idle agent would not collect for minutes.
	debug.FreeOSMemory()
	err = n.wait(ctx, failed)
	n.server.SetReady(false)
	supervisor.stopping(err)
	stopBudget()
	n.budget.tasks.Wait()
	stopMesh()
	n.mesh.wait()
	keep := n.letGo(err)
	err = errors.Join(err, n.datapath.Detach())
	n.waiting.Add(1) // what the kernel says last is to be in the sums
	stopReading()
	reading.Wait()
	n.tail.Close()
	if n.log != nil {
		n.log.Close()
	}
	err = errors.Join(err, n.stopCollector())
	stopAlive() // till here policies hold, however long it takes to hand on what was read
	n.succession.alive.Wait()
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = n.server.Shutdown(shutdownCtx) // a scrape that takes longer is cut
	if n.control != nil {
		_ = n.control.Shutdown(shutdownCtx)
	}
	if late := waitWithin(&writing, writeTime); late != nil {
		return errors.Join(err, late)
	}
	return errors.Join(err, n.succession.finish(keep))
}

func (n *node) serve(metrics http.Handler, failed chan<- error) {
	if err := n.server.Serve(metrics, http.HandlerFunc(n.serveAudit)); err != nil {
		failed <- err
	}
}

// wait returns when the context ends or when the node cannot go on. It can without the collector.
func (n *node) wait(ctx context.Context, failed <-chan error) error {
	var collectorDone <-chan struct{}
	if n.collector != nil {
		collectorDone = n.collector.Done()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.handover:
			n.logger.Info("another agent takes over")
			return nil
		case err := <-failed:
			return err
		case <-collectorDone:
			collectorDone = nil
			n.logger.Error("the embedded collector stopped: nothing is exported any more; metrics and access log go on")
		}
	}
}

// handOnTime is how long the mesh receiver may take for what is queued; a pipeline that refuses all of it would take for ever.
// flushTime is how long exporters may take for what they have: a queue on disk has all that an outage left, and keeps it. flushPatience is how long those
// that make no progress are waited for, more than what the built-in pipeline collects for (flush_timeout).
const (
	handOnTime    = 5 * time.Second
	flushTime     = 10 * time.Second
	flushPatience = 3 * time.Second
)

// stopCollector lets the receiver take what is queued, and the exporters send it or, while the backend is down, leave it in their
// queue on disk.
func (n *node) stopCollector() error {
	ctx, cancel := context.WithTimeout(context.Background(), handOnTime)
	defer cancel()
	flush, cancelFlush := context.WithTimeout(context.Background(), handOnTime+flushTime)
	defer cancelFlush()
	queued, _, err := n.outputs.stopCollector(ctx, flush, flushPatience)
	if queued > 0 {
		n.logger.Warn("the OTLP backend does not take what is queued, it waits on disk for the next start", "items", queued)
	}
	return err
}

// release frees what prepare took, in reverse. Safe twice.
func (n *node) release() {
	if n.tail != nil {
		n.tail.Close() // or its readers hold up the end of the control socket
	}
	n.mesh.release()
	// Before what is pinned is let go of: then the socket is the next agent's.
	if n.control != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = n.control.Shutdown(ctx)
		cancel()
	}
	n.kernelSide.release()
	if n.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = n.server.Shutdown(ctx)
		cancel()
	}
	n.outputs.release()
}
