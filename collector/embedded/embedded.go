// Package embedded runs the OpenTelemetry Collector inside this process: the real service with its own configuration, over a fixed
// list of components.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/envprovider"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/confmap/provider/yamlprovider"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
)

// Options of a collector.
type Options struct {
	// URI is the configuration, as the collector takes it: file:PATH or yaml:TEXT.
	URI string
	// Mesh is what the mesh receiver gets.
	Mesh meshreceiver.Settings
	// Version is ours, and what exporters call themselves by.
	Version string
	// DiscardMetrics leaves the collector's internal metrics out, whatever the configuration says of them. Stats does not need them.
	DiscardMetrics bool
	// Persistent says that every exporter's queue is on disk, so that an export that a shutdown interrupts is not lost.
	Persistent bool
	// Exporters are further ones that a configuration can name.
	Exporters []exporter.Factory
	Logger    *slog.Logger
}

// Collector is a collector in this process. Its methods are to be called from one goroutine, but for Stats.
type Collector struct {
	options Options
	account account

	collector *otelcol.Collector
	done      chan struct{}
	err       error
}

// New returns a collector that is not started.
func New(options Options) *Collector {
	return &Collector{options: options}
}

func (c *Collector) build() (*otelcol.Collector, error) {
	return otelcol.NewCollector(c.settings())
}

func (c *Collector) settings() otelcol.CollectorSettings {
	return otelcol.CollectorSettings{
		Factories: c.factories,
		BuildInfo: component.BuildInfo{Command: "sidelight", Description: "Sidelight", Version: c.options.Version},
		// Signals belong to the program that embeds us.
		DisableGracefulShutdown: true,
		SkipSettingGRPCLogger:   true,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			URIs:              []string{c.options.URI},
			ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory(), envprovider.NewFactory(), yamlprovider.NewFactory()},
			DefaultScheme:     "env",
		}},
		LoggingOptions: []zap.Option{zap.WrapCore(func(core zapcore.Core) zapcore.Core {
			return &slogCore{level: core, handler: c.options.Logger.Handler(), persistent: c.options.Persistent}
		})},
	}
}

// Validate reads the configuration and builds its pipelines without starting them.
func (c *Collector) Validate(ctx context.Context) error {
	collector, err := c.build()
	if err != nil {
		return err
	}
	if err := collector.DryRun(ctx); err != nil {
		return err
	}
	return c.warnOfDuplicates(ctx)
}

// warnOfDuplicates looks for pipelines of several exporters of which one can refuse: the collector's fan-out gives one error for all of
// them, so trying again gives the data again to those that had taken it. An exporter with a queue refuses when that is full; it is
// the best there is.
func (c *Collector) warnOfDuplicates(ctx context.Context) error {
	provider, err := otelcol.NewConfigProvider(c.settings().ConfigProviderSettings)
	if err != nil {
		return err
	}
	factories, err := c.factories()
	if err != nil {
		return err
	}
	config, err := provider.Get(ctx, factories)
	if err != nil {
		return err
	}
	for id, pipeline := range config.Service.Pipelines {
		if len(pipeline.Exporters) < 2 {
			continue
		}
		for _, exporter := range pipeline.Exporters {
			// A connector is no exporter; debug takes everything.
			settings, ok := config.Exporters[exporter]
			if ok && exporter.Type().String() != "debug" && !queueOf(settings).there {
				c.options.Logger.Warn("an exporter without a queue shares a pipeline: when it refuses data, the others get that again; give it a sending_queue or a pipeline of its own",
					"pipeline", id.String(), "exporter", exporter.String())
			}
		}
	}
	return provider.Shutdown(ctx)
}

// Start runs the collector and returns once it runs, or with the reason why it does not.
func (c *Collector) Start(ctx context.Context) error {
	collector, err := c.build()
	if err != nil {
		return err
	}
	c.collector, c.done = collector, make(chan struct{})
	go func() {
		defer close(c.done)
		// Not ctx: it ends with a signal, and the collector is to end after its source.
		c.err = collector.Run(context.WithoutCancel(ctx))
	}()
	// The library has no event for "running", and does not take Shutdown before: the context is looked at last.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for collector.GetState() != otelcol.StateRunning {
		select {
		case <-tick.C:
		case <-c.done:
			if c.err == nil {
				return errors.New("start collector: it stopped at once")
			}
			return fmt.Errorf("start collector: %w", c.err)
		}
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), c.Shutdown())
	}
	return nil
}

// Done is closed when the collector ended, by Shutdown or by an error of its own.
func (c *Collector) Done() <-chan struct{} { return c.done }

// Shutdown stops the receivers, sends or stores what is under way, and returns when all of it is done. Safe twice, and without
// Start.
func (c *Collector) Shutdown() error {
	if c.collector == nil {
		return nil
	}
	c.collector.Shutdown()
	<-c.done
	return c.err
}
