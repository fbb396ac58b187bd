package meshreceiver

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

func TestMetricsAreThoseOfTheTable(t *testing.T) {
	table := readTable(t)
	settings := testSettings()
	attributes := make(map[string]map[string]int) // of each metric, how often each attribute came
	points := make(map[string]int)
	var order []string
	for name, c := range allCases(t) {
		for _, r := range newMetrics(&settings, snapshotOf(c), fixture.Now).ResourceMetrics().All() {
			for _, got := range r.ScopeMetrics().At(0).Metrics().All() {
				i := slices.IndexFunc(table.Metrics, func(m metadata.Metric) bool { return m.Name == got.Name() })
				if i < 0 {
					t.Errorf("%s: %s is not in the table", name, got.Name())
					continue
				}
				want := &table.Metrics[i]
				if attributes[want.Name] == nil {
					attributes[want.Name] = make(map[string]int)
					order = append(order, want.Name)
				}
				for _, p := range checkMetric(t, name, want, got) {
					points[want.Name]++
					for a, v := range p.All() {
						attributes[want.Name][a]++
						if known := table.MetricAttribute(a); known != nil && slices.Contains(want.Attributes, a) {
							checkValue(t, name+": "+want.Name, known.Type, known.Enum, a, v)
						} else {
							t.Errorf("%s: %s has the attribute %s, which is not in the table", name, want.Name, a)
						}
					}
				}
			}
		}
	}
	for _, want := range table.Metrics {
		if !slices.Contains(order, want.Name) {
			t.Errorf("%s is in the table and nowhere else", want.Name)
		}
		for _, a := range want.Attributes {
			known, n, all := table.MetricAttribute(a), attributes[want.Name][a], points[want.Name]
			switch known.Requirement {
			case metadata.Always:
				if n != all {
					t.Errorf("%s: %s is always there in the table, and was %d times of %d", want.Name, a, n, all)
				}
			default:
				if n == 0 || n == all {
					t.Errorf("%s: %s is %q in the table, and was there %d times of %d", want.Name, a, known.Requirement, n, all)
				}
			}
		}
	}
}

// checkMetric checks everything but attributes, and returns those of each point.
func checkMetric(t *testing.T, where string, want *metadata.Metric, got pmetric.Metric) []pcommon.Map {
	t.Helper()
	var points []pcommon.Map
	kind, valueType, temporality := metadata.Sum, "int", pmetric.AggregationTemporalityUnspecified
	switch got.Type() {
	case pmetric.MetricTypeSum:
		temporality = got.Sum().AggregationTemporality()
		if !got.Sum().IsMonotonic() {
			kind = metadata.UpDown
		}
		if got.Sum().IsMonotonic() != want.Monotonic {
			t.Errorf("%s: %s monotonic: %v, want %v", where, want.Name, got.Sum().IsMonotonic(), want.Monotonic)
		}
		for _, p := range got.Sum().DataPoints().All() {
			points = append(points, p.Attributes())
			if p.ValueType() == pmetric.NumberDataPointValueTypeDouble {
				valueType = "double"
			}
		}
	case pmetric.MetricTypeGauge:
		// A gauge has no temporality.
		kind, valueType, temporality = metadata.Gauge, "double", pmetric.AggregationTemporalityCumulative
		for _, p := range got.Gauge().DataPoints().All() {
			points = append(points, p.Attributes())
			if p.ValueType() != pmetric.NumberDataPointValueTypeDouble {
				t.Errorf("%s: %s has a value of type %v", where, want.Name, p.ValueType())
			}
		}
	case pmetric.MetricTypeHistogram:
		kind, valueType, temporality = metadata.Histogram, "double", got.Histogram().AggregationTemporality()
		for _, p := range got.Histogram().DataPoints().All() {
			points = append(points, p.Attributes())
			if !slices.Equal(p.ExplicitBounds().AsRaw(), want.Bounds) {
				t.Errorf("%s: %s has the bounds %v, want %v", where, want.Name, p.ExplicitBounds().AsRaw(), want.Bounds)
			}
		}
	default:
		t.Errorf("%s: %s is a %v", where, want.Name, got.Type())
	}
	if got.Description() != want.Description {
		t.Errorf("%s: %s says %q of itself, want %q", where, want.Name, got.Description(), want.Description)
	}
	if kind != want.Kind || valueType != want.ValueType || got.Unit() != want.Unit || temporality != pmetric.AggregationTemporalityCumulative {
		t.Errorf("%s: %s is a %v %s of %s in %q, want a cumulative %s of %s in %q", where, want.Name, temporality, kind, valueType, got.Unit(),
			want.Kind, want.ValueType, want.Unit)
	}
	if len(points) == 0 {
		t.Errorf("%s: %s has no points", where, want.Name)
	}
	return points
}

func TestPrometheusSpellingIsThatOfTheTable(t *testing.T) {
	namer := otlptranslator.NewMetricNamer("", otlptranslator.UnderscoreEscapingWithSuffixes)
	types := map[string]otlptranslator.MetricType{
		metadata.Sum: otlptranslator.MetricTypeMonotonicCounter, metadata.UpDown: otlptranslator.MetricTypeNonMonotonicCounter,
		metadata.Gauge: otlptranslator.MetricTypeGauge, metadata.Histogram: otlptranslator.MetricTypeHistogram,
	}
	table := readTable(t)
	for _, m := range slices.Concat(table.Metrics, table.SelfMetrics) {
		got, err := namer.Build(otlptranslator.Metric{Name: m.Name, Unit: m.Unit, Type: types[m.Kind]})
		if err != nil || got != m.Prometheus {
			t.Errorf("%s becomes %q (%v) on its way through OTLP, /metrics has %q", m.Name, got, err, m.Prometheus)
		}
	}
	labels := otlptranslator.LabelNamer{}
	for _, a := range table.MetricAttributes {
		if got, err := labels.Build(a.Name); a.Label != "" && (err != nil || got != a.Label) {
			t.Errorf("%s becomes %q (%v) on its way through OTLP, /metrics has %q", a.Name, got, err, a.Label)
		}
	}
}

// TestSelfMetricsAreThoseOfTheTable holds the agent's own metrics against the table, from the definition to what is sent.
func TestSelfMetricsAreThoseOfTheTable(t *testing.T) {
	reading := self.Reading{Since: fixture.Now, LastingSince: fixture.Now.Add(-time.Hour)}
	for _, m := range self.Metrics() {
		reading.Values = append(reading.Values, m.Of(3, m.Attributes...), m.Of(4, m.Attributes...))
	}
	settings := testSettings()
	settings.Self = func() self.Reading { return reading }
	// Also without an edge.
	sent := newMetrics(&settings, edge.Snapshot{}, fixture.Now).ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
	table := readTable(t)
	if sent.Len() != len(table.SelfMetrics) || len(self.Metrics()) != len(table.SelfMetrics) {
		t.Fatalf("%d are defined, %d are sent; the table has %d", len(self.Metrics()), sent.Len(), len(table.SelfMetrics))
	}
	for i := range table.SelfMetrics {
		want, have := &table.SelfMetrics[i], sent.At(i)
		if have.Name() != want.Name || self.Metrics()[i].Prometheus != want.Prometheus {
			t.Errorf("%s (%s), want %s (%s)", have.Name(), self.Metrics()[i].Prometheus, want.Name, want.Prometheus)
		}
		points := checkMetric(t, "self", want, have)
		if start := have.Sum().DataPoints().At(0).StartTimestamp(); len(points) != 2 || start.AsTime() != reading.Began(&reading.Values[2*i]).UTC() {
			t.Errorf("%s has %d points, which began at %v", want.Name, len(points), start)
		}
		for _, p := range points {
			for _, a := range want.Attributes {
				if v, _ := p.Get(a); p.Len() != len(want.Attributes) || v.Str() != a {
					t.Errorf("%s has the attributes %v, want %v", want.Name, p.AsRaw(), want.Attributes)
				}
			}
		}
	}
}

// TestSelfWithoutStart has points of counters that outlive the agent say that their start is not known, where it is not.
func TestSelfWithoutStart(t *testing.T) {
	reading := self.Reading{Since: fixture.Now, Values: []self.Value{
		self.Agents.Of(7), self.Dropped.Of(1, "ring", "close"), self.Dropped.Of(2, "exporter", "log"), self.Lines.Of(3), self.Followed.Of(4),
	}}
	settings := testSettings()
	settings.Self = func() self.Reading { return reading }
	sent := newMetrics(&settings, edge.Snapshot{}, fixture.Now).ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
	got := make(map[string]pcommon.Timestamp)
	for _, m := range sent.All() {
		for _, p := range m.Sum().DataPoints().All() {
			stage, _ := p.Attributes().Get("stage")
			got[m.Name()+stage.Str()] = p.StartTimestamp()
		}
	}
	now := pcommon.NewTimestampFromTime(fixture.Now)
	if want := map[string]pcommon.Timestamp{
		self.Agents.Name: 0, self.Dropped.Name + "ring": 0, self.Dropped.Name + "exporter": now, self.Lines.Name: now, self.Followed.Name: now,
	}; !maps.Equal(got, want) {
		t.Errorf("starts are %v, want %v", got, want)
	}
}
