package meshreceiver

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is what the agent has: a queue for each signal, and a table.
type source struct {
	logs, traces *queue.Queue
	table        *edge.Table
}

func newSource() source { return source{queue.New(1 << 16), queue.New(1 << 16), edge.NewTable(100)} }

func (s source) Logs() Records { return s.logs }

func (s source) Traces() Records { return s.traces }

// Close says that there will be no more.
func (s source) Close() {
	s.logs.Close()
	s.traces.Close()
}

func (s source) Edges() edge.Snapshot { return s.table.Snapshot() }

// give hands over n finished connections in a batch of their own, numbered from first.
func (s source) give(first, n int) {
	batch := make([]enrich.Record, n)
	for i := range batch {
		batch[i] = finishedConnection(uint32(first + i))
	}
	s.logs.Consume(batch)
	s.traces.Consume(batch)
	s.table.Consume(batch)
}

func finishedConnection(number uint32) enrich.Record {
	return enrich.Record{
		Event: connection.Event{
			Kind: connection.Close, Role: connection.Client, Key: connection.Key{Cookie: uint64(number), StartNS: 1e9},
			ConnectNS: 1e9, EstablishedNS: 2e9, EventNS: 3e9, ClientISN: number,
		},
		Change:   connection.Change{Attempts: 1, Established: 1, Closed: 1},
		Identity: enrich.Identity{Local: &enrich.Workload{Name: "w"}, Peer: &enrich.Workload{Name: "p"}},
		Clock:    fixture.Clock,
	}
}

// consumers are the three pipelines behind a receiver. A nil one is not there.
type consumers struct {
	metrics       consumer.Metrics
	logs          consumer.Logs
	traces        consumer.Traces
	batchInterval time.Duration
}

// create makes the receivers of each signal, as the collector does.
func create(t *testing.T, factory receiver.Factory, id component.ID, to consumers) []component.Component {
	t.Helper()
	settings := receivertest.NewNopSettings(Type)
	settings.ID = id
	config := factory.CreateDefaultConfig()
	config.(*Config).BatchInterval = to.batchInterval
	var created []component.Component
	add := func(c component.Component, err error) {
		if err != nil {
			t.Fatal(err)
		}
		created = append(created, c)
	}
	if to.metrics != nil {
		add(factory.CreateMetrics(t.Context(), settings, config, to.metrics))
	}
	if to.logs != nil {
		add(factory.CreateLogs(t.Context(), settings, config, to.logs))
	}
	if to.traces != nil {
		add(factory.CreateTraces(t.Context(), settings, config, to.traces))
	}
	return created
}

func start(t *testing.T, components []component.Component) {
	t.Helper()
	for _, c := range components {
		if err := c.Start(t.Context(), componenttest.NewNopHost()); err != nil {
			t.Fatal(err)
		}
	}
}

func shutdown(t *testing.T, components []component.Component) {
	t.Helper()
	for _, c := range components {
		if err := c.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// withSource is a factory over a source.
func withSource(s Source) receiver.Factory {
	settings := testSettings()
	settings.Source = s
	return NewFactory(With(settings))
}

// elapse lets time go by on the clock of a synctest bubble, which costs none, and everything happen that is due.
func elapse(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// What came, in its order.
func collectedLogs(all []plog.Logs) []string {
	var ids []string
	for _, logs := range all {
		for _, r := range logs.ResourceLogs().All() {
			for _, log := range r.ScopeLogs().At(0).LogRecords().All() {
				uid, _ := log.Attributes().Get("log.record.uid")
				ids = append(ids, uid.Str())
			}
		}
	}
	return ids
}

func collectedSpans(all []ptrace.Traces) []string {
	var ids []string
	for _, traces := range all {
		for _, r := range traces.ResourceSpans().All() {
			for _, span := range r.ScopeSpans().At(0).Spans().All() {
				ids = append(ids, span.SpanID().String())
			}
		}
	}
	return ids
}

// uids are those of the connections that give made, spanIDs too.
func uids(n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fixture.Boot.UID(connection.Key{Cookie: uint64(i), StartNS: 1e9}))
	}
	return ids
}

func spanIDs(n int) []string {
	var batch []enrich.Record
	for i := range n {
		batch = append(batch, finishedConnection(uint32(i)))
	}
	settings := testSettings()
	return collectedSpans([]ptrace.Traces{newTraces(&settings, [][]enrich.Record{batch})})
}

func TestStartNeedsASource(t *testing.T) {
	components := create(t, NewFactory(), component.NewID(Type), consumers{logs: consumertest.NewNop()})
	if err := components[0].Start(t.Context(), componenttest.NewNopHost()); !errors.Is(err, errNoSource) {
		t.Errorf("error %v, want %v", err, errNoSource)
	}
	shutdown(t, components)
}

func TestShutdownWithoutStartAndTwice(t *testing.T) {
	never := create(t, withSource(newSource()), component.NewID(Type), consumers{metrics: consumertest.NewNop(), logs: consumertest.NewNop(), traces: consumertest.NewNop()})
	shutdown(t, never)
	shutdown(t, never)
	once := create(t, withSource(newSource()), component.NewID(Type), consumers{metrics: consumertest.NewNop(), logs: consumertest.NewNop(), traces: consumertest.NewNop()})
	start(t, once)
	shutdown(t, once)
	shutdown(t, once)
}

func TestOneInstanceServesThreeSignals(t *testing.T) {
	factory := withSource(newSource())
	nop := consumers{metrics: consumertest.NewNop(), logs: consumertest.NewNop(), traces: consumertest.NewNop()}
	first := create(t, factory, component.NewID(Type), nop)
	if first[0] != first[1] || first[1] != first[2] {
		t.Error("a signal has an instance of its own: a source can be read once only")
	}
	if other := create(t, factory, component.NewIDWithName(Type, "other"), nop); other[0] == first[0] {
		t.Error("two components of the configuration share an instance")
	}
	shutdown(t, first)
	// The collector makes a new service of a new configuration.
	if again := create(t, factory, component.NewID(Type), nop); again[0] == first[0] {
		t.Error("an instance that was shut down is used again")
	}
}

func TestAllThatWasQueuedIsDeliveredBeforeShutdownReturns(t *testing.T) {
	const batches, size = 20, 5
	for _, when := range []string{"before start", "after start"} {
		for _, closed := range []bool{true, false} {
			s := newSource()
			var metrics consumertest.MetricsSink
			var logs consumertest.LogsSink
			var traces consumertest.TracesSink
			components := create(t, withSource(s), component.NewID(Type), consumers{metrics: &metrics, logs: &logs, traces: &traces})
			if when == "after start" {
				start(t, components)
			}
			for i := range batches {
				s.give(i*size, size)
			}
			if when == "before start" {
				start(t, components)
			}
			if closed {
				s.Close()
			}
			shutdown(t, components)
			if got := collectedLogs(logs.AllLogs()); !slices.Equal(got, uids(batches*size)) {
				t.Errorf("%s, closed %v: %d log records, want %d, each once and in order", when, closed, len(got), batches*size)
			}
			if got := collectedSpans(traces.AllTraces()); !slices.Equal(got, spanIDs(batches*size)) {
				t.Errorf("%s, closed %v: %d spans, want %d, each once and in order", when, closed, len(got), batches*size)
			}
			all := metrics.AllMetrics()
			if len(all) != 1 {
				t.Errorf("%s, closed %v: %d reports, want the one at shutdown", when, closed, len(all))
			} else if got := attempts(all[0]); got != batches*size {
				t.Errorf("%s, closed %v: the last report has %d attempts, want %d", when, closed, got, batches*size)
			}
		}
	}
}

// attempts reads one sum of a report over one edge.
func attempts(metrics pmetric.Metrics) int64 {
	first := metrics.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics().At(0)
	if first.Name() != "sidelight.tcp.connection.attempts" {
		return -1
	}
	return first.Sum().DataPoints().At(0).IntValue()
}

func TestOnEndComesAfterEverythingWasHandedOn(t *testing.T) {
	for name, without := range map[string]bool{"all signals": false, "logs only": true} {
		s := newSource()
		var metrics consumertest.MetricsSink
		var logs consumertest.LogsSink
		to := consumers{metrics: &metrics, logs: &logs}
		if without {
			to.metrics = nil
		}
		ended := make(chan struct{})
		settings := testSettings()
		settings.Source = s
		settings.OnEnd = func() { close(ended) } // a second call would panic
		components := create(t, NewFactory(With(settings)), component.NewID(Type), to)
		start(t, components)
		s.give(0, 7)
		select {
		case <-ended:
			t.Errorf("%s: OnEnd before the source ended", name)
		default:
		}
		s.Close()
		<-ended
		if got := collectedLogs(logs.AllLogs()); !slices.Equal(got, uids(7)) {
			t.Errorf("%s: %d log records at OnEnd, want 7", name, len(got))
		}
		if all := metrics.AllMetrics(); !without && (len(all) != 1 || attempts(all[0]) != 7) {
			t.Errorf("%s: %d reports at OnEnd, want the last one, with 7 attempts", name, len(all))
		}
		shutdown(t, components)
		if reports := len(metrics.AllMetrics()); !without && reports != 1 {
			t.Errorf("%s: %d reports after Shutdown, want none beside the last one", name, reports)
		}
	}
}

func TestOnEndDoesNotComeWhenTheReceiverIsStopped(t *testing.T) {
	s := newSource()
	settings := testSettings()
	settings.Source = s
	settings.OnEnd = func() { t.Error("OnEnd, and the source has not ended") }
	components := create(t, NewFactory(With(settings)), component.NewID(Type), consumers{logs: consumertest.NewNop()})
	start(t, components)
	s.give(0, 7)
	shutdown(t, components)
	s.Close()
}

func TestMetricsAreReportedAtTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		began := time.Now()
		var reports []time.Duration
		var sums []int64
		next, err := consumer.NewMetrics(func(_ context.Context, m pmetric.Metrics) error {
			reports = append(reports, time.Since(began))
			sums = append(sums, attempts(m))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		components := create(t, withSource(s), component.NewID(Type), consumers{metrics: next})
		start(t, components)
		elapse(15 * time.Second) // nothing to report at 10
		s.give(0, 3)
		elapse(10 * time.Second)
		s.give(3, 1)
		elapse(10*time.Second + time.Millisecond)
		s.give(4, 1)
		shutdown(t, components)
		want := []time.Duration{20 * time.Second, 30 * time.Second, 35*time.Second + time.Millisecond}
		if !slices.Equal(reports, want) || !slices.Equal(sums, []int64{3, 4, 5}) {
			t.Errorf("reports at %v with %v attempts; want %v with 3, 4 and 5", reports, sums, want)
		}
	})
}

func TestRefusedMetricsAreCountedAndRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.give(0, 2)
		refuse := true
		var got []int64
		var points int
		next, err := consumer.NewMetrics(func(_ context.Context, m pmetric.Metrics) error {
			if refuse {
				points += m.DataPointCount()
				return errors.New("full")
			}
			got = append(got, attempts(m))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		before := Dropped.DataPoints.Load()
		components := create(t, withSource(s), component.NewID(Type), consumers{metrics: next})
		start(t, components)
		elapse(11 * time.Second)
		refuse = false
		shutdown(t, components)
		if dropped := Dropped.DataPoints.Load() - before; dropped != uint64(points) || points == 0 {
			t.Errorf("%d data points counted as dropped, %d were refused", dropped, points)
		}
		if !slices.Equal(got, []int64{2}) {
			t.Errorf("attempts of what was taken: %v, want all of them in one report", got)
		}
	})
}
