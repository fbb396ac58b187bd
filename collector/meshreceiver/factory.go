package meshreceiver

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/receiver"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// Type is the receiver's name in a collector's YAML.
var Type = component.MustNewType("mesh")

// Source is where the receiver gets its data from: the agent in the same process. Each signal reads the records at its own pace.
type Source interface {
	Logs() Records
	Traces() Records
	// Edges returns the sums as they stand.
	Edges() edge.Snapshot
}

// Records are what one signal is made of: those of connections that ended.
type Records interface {
	// Next waits for batches of records. It returns false when there will be no more, or when the context ends.
	Next(ctx context.Context) ([][]enrich.Record, bool)
	// Done says that so many records of what Next gave were handed on or given up.
	Done(records int)
}

// Settings are set by the program that embeds the receiver.
type Settings struct {
	Source   Source
	Clock    func() connection.Clock // dates exemplars
	Now      func() time.Time        // dates metrics; nil is time.Now
	Boot     attribute.Boot
	HostName string
	// Self reads what the agent tells of itself, for each report of metrics; nil for nothing.
	Self func() self.Reading
	// Steps are those of the overhead budget, each of which becomes a log record; nil for none.
	Steps <-chan self.BudgetStep
	// Tracing is given the collector's tracer provider; nil for no spans of the agent itself.
	Tracing *Tracing
	// OnStart is called, if set, when the collector starts the receiver: not every configuration has it in a pipeline.
	OnStart func()
	// OnEnd is called, if set, when the source has ended and everything of it was handed on, the last metrics too. It is not
	// called when the collector stops the receiver before that.
	OnEnd func()
}

// Option sets something of a factory.
type Option func(*Settings)

// With sets everything.
func With(settings Settings) Option { return func(s *Settings) { *s = settings } }

// NewFactory returns the receiver's factory. Without a source the receiver can be configured, not started: a collector made by the
// builder calls it that way.
func NewFactory(options ...Option) receiver.Factory {
	f := &factory{instances: make(map[component.ID]*meshReceiver)}
	for _, option := range options {
		option(&f.settings)
	}
	if f.settings.Now == nil {
		f.settings.Now = time.Now
	}
	return receiver.NewFactory(Type, createDefaultConfig,
		receiver.WithMetrics(f.metrics, component.StabilityLevelDevelopment),
		receiver.WithLogs(f.logs, component.StabilityLevelDevelopment),
		receiver.WithTraces(f.traces, component.StabilityLevelDevelopment),
	)
}

// factory keeps one instance per component id, because the collector asks for each signal apart and the source can be read
// once only.
type factory struct {
	settings Settings

	mu        sync.Mutex
	instances map[component.ID]*meshReceiver
}

var errNoSource = errors.New("start mesh receiver: no source of connections in this process; run it inside sidelight")

func (f *factory) instance(set receiver.Settings, cfg component.Config) *meshReceiver {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.instances[set.ID]
	if r == nil || r.stopped() {
		r = newReceiver(cfg.(*Config), f.settings, set)
		f.instances[set.ID] = r
	}
	return r
}

func (f *factory) metrics(_ context.Context, set receiver.Settings, cfg component.Config, next consumer.Metrics) (receiver.Metrics, error) {
	r := f.instance(set, cfg)
	r.nextMetrics = next
	return r, nil
}

func (f *factory) logs(_ context.Context, set receiver.Settings, cfg component.Config, next consumer.Logs) (receiver.Logs, error) {
	r := f.instance(set, cfg)
	r.nextLogs = next
	return r, nil
}

func (f *factory) traces(_ context.Context, set receiver.Settings, cfg component.Config, next consumer.Traces) (receiver.Traces, error) {
	r := f.instance(set, cfg)
	r.nextTraces = next
	return r, nil
}
