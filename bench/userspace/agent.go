package userspace

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.uber.org/zap"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/collector/accesslog"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/queue"
)

// Outputs are what an Agent makes of its connections, beside the sums of edges.
type Outputs struct{ JSON, Logs, Spans bool }

// Agent is the user-space side from the ring's bytes on, put together as agent/cmd/sidelight does it.
type Agent struct {
	// Edges is where sums go.
	Edges *edge.Table

	stats    event.Stats
	decoded  connection.Event
	pipeline *pipeline.Pipeline
	log      *accesslog.Log
	records  struct{ logs, traces *queue.Queue }
	bytes    atomic.Uint64 // of OTLP
	running  sync.WaitGroup
	shutdown func() error
}

const boot = attribute.Boot("5e1dc0de5e1dc0de5e1dc0de5e1dc0de")

// drainedEvery is how many records the reader takes at most before it hands on a batch (agent/event).
const drainedEvery = 1024

// queueRecords is more than a Stream between two calls of Wait may have.
const queueRecords = 1 << 20

// NewAgent starts an agent for a load. Its outputs drop nothing: they are waited for.
func NewAgent(load Load, outputs Outputs) (*Agent, error) {
	a := &Agent{Edges: edge.NewTable(1 << 20), shutdown: func() error { return nil }}
	options := pipeline.Options{
		Limit: 1 << 24, Clock: event.MeasureClock, Identify: NewFacts(load).Identify, Sinks: []pipeline.Sink{a.Edges},
	}
	if outputs.JSON {
		a.log = accesslog.NewWriter(io.Discard, boot)
		a.log.Wait()
		a.running.Go(a.log.Run)
		options.Finished = append(options.Finished, a.log)
	}
	if outputs.Logs || outputs.Spans {
		a.records.logs, a.records.traces = queue.NewFair(queueRecords), queue.NewFair(queueRecords)
		if err := a.export(outputs); err != nil {
			return nil, err
		}
	}
	if outputs.Logs {
		options.Finished = append(options.Finished, a.records.logs)
	}
	if outputs.Spans {
		options.Finished = append(options.Finished, a.records.traces)
	}
	a.pipeline = pipeline.New(options)
	return a, nil
}

// source is the mesh receiver's view of an Agent.
type source struct{ *Agent }

func (s source) Logs() meshreceiver.Records   { return s.records.logs }
func (s source) Traces() meshreceiver.Records { return s.records.traces }
func (s source) Edges() edge.Snapshot         { return s.Agent.Edges.Snapshot() }

// export starts the mesh receiver with consumers that do what an OTLP exporter does up to the connection: make bytes.
func (a *Agent) export(outputs Outputs) error {
	ctx := context.Background()
	factory := meshreceiver.NewFactory(meshreceiver.With(meshreceiver.Settings{
		Source: source{a}, Clock: event.MeasureClock, Boot: boot, HostName: "node-1.example",
	}))
	settings := receiver.Settings{
		ID: component.NewID(meshreceiver.Type), TelemetrySettings: component.TelemetrySettings{Logger: zap.NewNop()},
	}
	config := factory.CreateDefaultConfig().(*meshreceiver.Config)
	config.ReportInterval = time.Hour
	var components []component.Component
	if outputs.Logs {
		next, err := consumer.NewLogs(func(_ context.Context, logs plog.Logs) error {
			return a.marshalled(new(plog.ProtoMarshaler).MarshalLogs(logs))
		})
		if err != nil {
			return fmt.Errorf("consume logs: %w", err)
		}
		made, err := factory.CreateLogs(ctx, settings, config, next)
		if err != nil {
			return fmt.Errorf("create receiver: %w", err)
		}
		components = append(components, made)
	}
	if outputs.Spans {
		next, err := consumer.NewTraces(func(_ context.Context, traces ptrace.Traces) error {
			return a.marshalled(new(ptrace.ProtoMarshaler).MarshalTraces(traces))
		})
		if err != nil {
			return fmt.Errorf("consume traces: %w", err)
		}
		made, err := factory.CreateTraces(ctx, settings, config, next)
		if err != nil {
			return fmt.Errorf("create receiver: %w", err)
		}
		components = append(components, made)
	}
	for _, c := range components {
		if err := c.Start(ctx, nil); err != nil {
			return fmt.Errorf("start receiver: %w", err)
		}
	}
	a.shutdown = func() error { return components[0].Shutdown(ctx) } // one instance is behind them all
	return nil
}

func (a *Agent) marshalled(b []byte, err error) error {
	a.bytes.Add(uint64(len(b)))
	return err
}

// Play hands records to the pipeline, as the ring's reader does.
func (a *Agent) Play(records [][]byte) error {
	pending := 0
	for _, raw := range records {
		a.stats.Received.Add(1)
		if err := event.Decode(raw, &a.decoded); err != nil {
			return err
		}
		a.stats.Decoded[a.decoded.Kind].Add(1)
		a.pipeline.HandleEvent(&a.decoded)
		if pending++; pending == drainedEvery {
			pending = 0
			a.pipeline.HandleDrained(false)
		}
	}
	a.pipeline.HandleDrained(true)
	return nil
}

// Wait returns when all outputs are done with what was played.
func (a *Agent) Wait() {
	for a.waiting() {
		// The outputs are busy on the other threads: to poll from here would count as their time.
		time.Sleep(200 * time.Microsecond)
	}
}

func (a *Agent) waiting() bool {
	return a.log != nil && a.log.Waiting() > 0 || a.records.logs != nil && a.records.logs.Waiting()+a.records.traces.Waiting() > 0
}

// Dropped is how many records found no room in an output. None should.
func (a *Agent) Dropped() (n uint64) {
	if a.log != nil {
		n += a.log.Dropped()
	}
	if a.records.logs != nil {
		n += a.records.logs.Dropped() + a.records.traces.Dropped()
	}
	return n
}

// Connections is how many ends are followed.
func (a *Agent) Connections() int64 { return a.pipeline.Connections() }

// Close ends the outputs.
func (a *Agent) Close() error {
	if a.log != nil {
		a.log.Close()
	}
	if a.records.logs != nil {
		a.records.logs.Close()
		a.records.traces.Close()
	}
	a.running.Wait()
	return a.shutdown()
}
