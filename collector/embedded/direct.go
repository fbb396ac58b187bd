package embedded

import (
	"context"
	"reflect"
	"sync"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/config/configoptional"
	"go.opentelemetry.io/collector/config/configretry"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A queue on disk encodes what it is given, writes it, reads it and decodes it again before it is sent: more than half of what exporting costs. While
// the backend takes what it is sent, nothing has to wait. So an exporter with such a queue has a twin without one, which is tried first;
// what the twin cannot send goes into the queue, and everything else with it until the queue is empty.

const (
	// directTimeout bounds how long the receiver, whose own queue fills up meanwhile, is held up when the backend stops answering.
	directTimeout = 5 * time.Second
	// After an error the twin is left alone for this long, and longer the more often it fails.
	firstRest = time.Second
	mostRest  = time.Minute
)

// withoutQueue returns a configuration of the same exporter that neither queues nor tries again, if the one given is of an exporter with a queue
// on disk.
func withoutQueue(config component.Config) (component.Config, bool) {
	if !queueOf(config).persistent {
		return nil, false
	}
	copied := reflect.New(reflect.TypeOf(config).Elem())
	copied.Elem().Set(reflect.ValueOf(config).Elem())
	retries := false
	for field, value := range copied.Elem().Fields() {
		if !field.IsExported() {
			continue
		}
		switch value := value.Addr().Interface().(type) {
		case *configoptional.Optional[exporterhelper.QueueBatchConfig]:
			*value = configoptional.None[exporterhelper.QueueBatchConfig]()
		case *configretry.BackOffConfig:
			value.Enabled, retries = false, true
		}
	}
	return copied.Interface(), retries
}

// direct decides which way data goes. Safe for concurrent use.
type direct struct {
	ledger *ledger
	logger *zap.Logger

	mu    sync.Mutex
	until time.Time     // at rest; zero: not
	rest  time.Duration // the last one, while it has failed; 0: it has not
}

// send hands data to the twin, or to the queue.
func (d *direct) send(ctx context.Context, items int, now, queue func(context.Context) error) error {
	if d.open() {
		limited, cancel := context.WithTimeout(ctx, directTimeout)
		err := now(limited)
		cancel()
		d.done(err)
		if err == nil {
			return nil
		}
	}
	err := queue(ctx)
	if err == nil {
		d.ledger.spooled.Add(int64(items))
	}
	return err
}

func (d *direct) open() bool {
	d.mu.Lock()
	resting := time.Now().Before(d.until)
	d.mu.Unlock()
	if resting {
		return false
	}
	queued, _ := d.ledger.queued()
	return queued == 0
}

func (d *direct) done(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		if d.rest > 0 {
			d.logger.Info("The backend takes data again, nothing waits on disk")
		}
		d.rest = 0
		return
	}
	if d.rest == 0 {
		d.logger.Warn("The backend does not take data, it waits on disk", zap.Error(err))
	}
	d.rest = min(max(firstRest, 2*d.rest), mostRest)
	d.until = time.Now().Add(d.rest)
}

// twin returns the settings of one: it counts what it sent, but not what it failed to, which is in the queue then.
func twin(set exporter.Settings) exporter.Settings {
	provider := set.MeterProvider.(meterProvider) // ours: see open
	provider.twin = true
	set.MeterProvider = provider
	set.Logger = set.Logger.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core { return partialSuccesses{core} }))
	return set
}

// partialSuccesses lets nothing through but what a backend rejected of what it took: that something failed is not yet worth a word.
type partialSuccesses struct{ zapcore.Core }

func (c partialSuccesses) With(fields []zapcore.Field) zapcore.Core {
	return partialSuccesses{c.Core.With(fields)}
}

func (c partialSuccesses) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Message != partialSuccess {
		return checked
	}
	return c.Core.Check(e, checked)
}
