package dashboards

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

// store is Prometheus' own database and engine.
type store struct {
	db     *tsdb.DB
	engine *promql.Engine
}

func newStore(t *testing.T) *store {
	t.Helper()
	options := tsdb.DefaultOptions()
	options.MinBlockDuration = (24 * time.Hour).Milliseconds() // all of it stays in memory
	options.MaxBlockDuration = options.MinBlockDuration
	options.EnableExemplarStorage, options.MaxExemplars = true, 100_000
	db, err := tsdb.Open(t.TempDir(), nil, nil, options, nil)
	if err != nil {
		t.Fatal(err)
	}
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples: 50_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, EnableAtModifier: true, EnableNegativeOffset: true, Parser: promQL,
	})
	t.Cleanup(func() {
		if err := errors.Join(engine.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return &store{db: db, engine: engine}
}

// target is scraped.
type target struct {
	labels  labels.Labels // job, instance, cluster
	handler http.Handler
}

func newTarget(gatherer prometheus.Gatherer, instance, cluster string) *target {
	return &target{
		labels: labels.FromStrings("cluster", cluster, "instance", instance, "job", "sidelight"),
		// As agent/cmd/sidelight has it.
		handler: promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true, EnableOpenMetricsTextCreatedSamples: true}),
	}
}

// scrape puts what the target tells into the database as of a moment, as Prometheus would: classic buckets, exemplars, up. Start timestamps
// are zeros before the first sample, which Prometheus does with the feature created-timestamp-zero-ingestion; else a rate would not see what a
// counter begins with.
func (s *store) scrape(t *testing.T, target *target, at time.Time) {
	t.Helper()
	request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	request.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	response := httptest.NewRecorder()
	target.handler.ServeHTTP(response, request)
	if response.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", response.Code, response.Body)
	}
	p, err := textparse.New(response.Body.Bytes(), response.Header().Get("Content-Type"), nil, textparse.ParserOptions{OpenMetricsSkipSTSeries: true})
	if err != nil {
		t.Fatal(err)
	}
	app, now := s.db.Appender(context.Background()), timestamp.FromTime(at)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if entry == textparse.EntrySeries {
			if err := appendSeries(app, p, target.labels, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	up := labels.NewBuilder(target.labels).Set(model.MetricNameLabel, "up").Labels()
	if _, err := app.Append(0, up, now, 1); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
}

func appendSeries(app storage.Appender, p textparse.Parser, more labels.Labels, now int64) error {
	var lset labels.Labels
	p.Labels(&lset)
	b := labels.NewBuilder(lset)
	more.Range(func(l labels.Label) { b.Set(l.Name, l.Value) })
	lset = b.Labels() // without those that are empty
	_, _, value := p.Series()
	var ref storage.SeriesRef
	if since := p.StartTimestamp(); since != 0 && since < now {
		// What is there already is later than the start.
		zero, err := app.AppendSTZeroSample(0, lset, now, since)
		if err != nil && !errors.Is(err, storage.ErrOutOfOrderST) && !errors.Is(err, storage.ErrDuplicateSampleForTimestamp) && !errors.Is(err, storage.ErrOutOfOrderSample) {
			return err
		}
		ref = zero
	}
	ref, err := app.Append(ref, lset, now, value)
	if err != nil {
		return err
	}
	var e exemplar.Exemplar
	for p.Exemplar(&e) {
		if !e.HasTs {
			e.Ts = now
		}
		if _, err := app.AppendExemplar(ref, lset, e); err != nil && !errors.Is(err, storage.ErrDuplicateExemplar) && !errors.Is(err, storage.ErrOutOfOrderExemplar) {
			return err
		}
		e = exemplar.Exemplar{}
	}
	return nil
}

// seriesOf returns the series of a text in Prometheus' format.
func seriesOf(t *testing.T, text []byte) []labels.Labels {
	t.Helper()
	p, err := textparse.New(text, "text/plain", nil, textparse.ParserOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []labels.Labels
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if entry == textparse.EntrySeries {
			var lset labels.Labels
			p.Labels(&lset)
			all = append(all, lset)
		}
	}
}

// instant answers a query at one moment. Numbers that are none are left out.
func (s *store) instant(t *testing.T, expr string, at time.Time) (promql.Vector, error) {
	t.Helper()
	q, err := s.engine.NewInstantQuery(context.Background(), s.db, nil, expr, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	result := q.Exec(context.Background())
	if result.Err != nil {
		return nil, result.Err
	}
	var vector promql.Vector
	switch v := result.Value.(type) {
	case promql.Vector:
		vector = slices.Clone(v)
	case promql.Scalar:
		vector = promql.Vector{{F: v.V}}
	}
	return slices.DeleteFunc(vector, func(sample promql.Sample) bool { return math.IsNaN(sample.F) || math.IsInf(sample.F, 0) }), nil
}

// over answers a query over a time: how many points of it are numbers.
func (s *store) over(t *testing.T, expr string, start, end time.Time, step time.Duration) (points int, err error) {
	t.Helper()
	q, err := s.engine.NewRangeQuery(context.Background(), s.db, nil, expr, start, end, step)
	if err != nil {
		return 0, err
	}
	defer q.Close()
	matrix, err := q.Exec(context.Background()).Matrix()
	if err != nil {
		return 0, err
	}
	for _, series := range matrix {
		for _, point := range series.Floats {
			if !math.IsNaN(point.F) && !math.IsInf(point.F, 0) {
				points++
			}
		}
	}
	return points, nil
}

// exemplars are those that Grafana would show beside a query: of each of its selectors.
func (s *store) exemplars(t *testing.T, expr string, start, end time.Time) []exemplar.QueryResult {
	t.Helper()
	parsed, err := promQL.ParseExpr(expr)
	if err != nil {
		t.Fatal(err)
	}
	querier, err := s.db.ExemplarQuerier(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	results, err := querier.Select(timestamp.FromTime(start), timestamp.FromTime(end), parser.ExtractSelectors(parsed)...)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// values answers a variable's query.
func (s *store) labelValues(t *testing.T, selector, label string, start, end time.Time) []string {
	t.Helper()
	matchers, err := promQL.ParseMetricSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	querier, err := s.db.Querier(timestamp.FromTime(start), timestamp.FromTime(end))
	if err != nil {
		t.Fatal(err)
	}
	defer querier.Close()
	all, _, err := querier.LabelValues(context.Background(), label, nil, matchers...)
	if err != nil {
		t.Fatal(err)
	}
	all = slices.Clone(all)
	for i := range all {
		all[i] = string(append([]byte(nil), all[i]...)) // they are the database's
	}
	return all
}
