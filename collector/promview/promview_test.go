package promview

import (
	"bytes"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func clock() connection.Clock { return fixture.Clock }

// gather scrapes a view through a registry that checks all that it gets against its description.
func gather(t *testing.T, view *View) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(view); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// gatherCase scrapes what a case's records make.
func gatherCase(t *testing.T, name string) []*dto.MetricFamily {
	t.Helper()
	input := fixture.Load(t, filepath.Join("testdata", name, "records.yaml"))
	table := edge.NewTable(input.MaxEdges)
	table.Consume(input.Records)
	return gather(t, New(table.Snapshot, clock))
}

// text encodes families as a scraper that asks for the format gets them.
func text(t *testing.T, families []*dto.MetricFamily, format expfmt.Format, options ...expfmt.EncoderOption) []byte {
	t.Helper()
	var out bytes.Buffer
	encoder := expfmt.NewEncoder(&out, format, options...)
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	if closer, ok := encoder.(expfmt.Closer); ok {
		if err := closer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestGolden(t *testing.T) {
	fixture.Cases(t, "records.yaml", func(t *testing.T, dir string) {
		families := gatherCase(t, filepath.Base(dir))
		fixture.Golden(t, filepath.Join(dir, "expected.prom"), text(t, families, expfmt.NewFormat(expfmt.TypeTextPlain)))
		fixture.Golden(t, filepath.Join(dir, "expected.openmetrics"),
			text(t, families, expfmt.NewFormat(expfmt.TypeOpenMetrics), expfmt.WithCreatedLines()))
	})
}

func TestLintIsClean(t *testing.T) {
	for _, name := range []string{"edges", "overflow", "mesh"} {
		problems, err := promlint.NewWithMetricFamilies(gatherCase(t, name)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s: %s", name, p.Metric, p.Text)
		}
	}
}

func TestFamiliesAreThoseOfTheTable(t *testing.T) {
	table, err := metadata.Read("../meshreceiver/metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type family struct {
		kind   dto.MetricType
		help   string
		labels []string
	}
	kinds := map[string]dto.MetricType{
		metadata.Sum: dto.MetricType_COUNTER, metadata.UpDown: dto.MetricType_GAUGE, metadata.Gauge: dto.MetricType_GAUGE,
		metadata.Histogram: dto.MetricType_HISTOGRAM,
	}
	want := make(map[string]family)
	for _, m := range table.Metrics {
		want[m.Prometheus] = family{kinds[m.Kind], m.Description, table.Labels(&m)}
	}
	for _, m := range table.SelfMetrics {
		var labels []string
		for _, a := range m.Attributes {
			labels = append(labels, strings.ReplaceAll(a, ".", "_"))
		}
		want[m.Prometheus] = family{kinds[m.Kind], m.Description, labels}
	}
	registry := prometheus.NewPedanticRegistry()
	input := fixture.Load(t, "testdata/edges/records.yaml")
	edges := edge.NewTable(input.MaxEdges)
	edges.Consume(input.Records)
	edges.Consume(fixture.Load(t, "testdata/mesh/records.yaml").Records)
	registry.MustRegister(New(edges.Snapshot, clock))
	registry.MustRegister(NewSelf(one))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range families {
		name := got.GetName()
		expected, ok := want[name]
		if !ok {
			t.Errorf("%s is not in the table", name)
			continue
		}
		delete(want, name)
		if got.GetType() != expected.kind || got.GetHelp() != expected.help {
			t.Errorf("%s is a %v, %q; want a %v, %q", name, got.GetType(), got.GetHelp(), expected.kind, expected.help)
		}
		slices.Sort(expected.labels)
		for _, m := range got.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
			}
			if !slices.Equal(labels, expected.labels) {
				t.Errorf("%s has the labels %v, want %v", name, labels, expected.labels)
			}
		}
	}
	for name := range want {
		t.Errorf("%s is in the table and nowhere else", name)
	}
	if edgeLabels := table.Labels(&table.Metrics[0]); !slices.Equal(Labels, edgeLabels) {
		t.Errorf("labels of edges are %v, want %v", Labels, edgeLabels)
	}
}

func TestServersHaveNoMetricsOfClients(t *testing.T) {
	clientsOnly := []string{
		"sidelight_tcp_connection_attempts_total", "sidelight_tcp_connection_connecting", "sidelight_tcp_connect_duration_seconds",
	}
	for _, f := range gatherCase(t, "edges") {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "role" && l.GetValue() == "server" && slices.Contains(clientsOnly, f.GetName()) {
					t.Errorf("%s of a server", f.GetName())
				}
			}
		}
	}
}

func TestNothingIsCopiedWhileNobodyScrapes(t *testing.T) {
	snapshots := 0
	view := New(func() edge.Snapshot { snapshots++; return edge.Snapshot{} }, clock)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(view)
	if snapshots != 0 {
		t.Errorf("%d snapshots before the first scrape", snapshots)
	}
	for range 2 {
		if _, err := registry.Gather(); err != nil {
			t.Fatal(err)
		}
	}
	if snapshots != 2 {
		t.Errorf("%d snapshots for 2 scrapes", snapshots)
	}
}

func TestScrapesWhileTheTableGrows(t *testing.T) {
	input := fixture.Load(t, "testdata/edges/records.yaml")
	table := edge.NewTable(2)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(New(table.Snapshot, clock))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 100 {
				table.Consume(input.Records)
			}
		})
		wg.Go(func() {
			for range 20 {
				if _, err := registry.Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// one has a value of each metric.
func one() self.Reading {
	reading := self.Reading{Since: fixture.Now}
	for i, m := range self.Metrics() {
		reading.Values = append(reading.Values, m.Of(float64(i), m.Attributes...))
	}
	return reading
}

// TestSelfCreated wants counters that outlive the agent to begin when they did, or to say nothing of it.
func TestSelfCreated(t *testing.T) {
	reading := self.Reading{Since: fixture.Now, Values: []self.Value{
		self.Agents.Of(7), self.Dropped.Of(1, "decode", "event"), self.Dropped.Of(2, "access_log", "log"), self.Lines.Of(3), self.Followed.Of(4),
	}}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewSelf(func() self.Reading { return reading }))
	for _, since := range []time.Time{{}, fixture.Now.Add(-time.Hour)} {
		reading.LastingSince = since
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for _, f := range families {
			for _, m := range f.Metric {
				name := f.GetName()
				for _, l := range m.Label {
					name += " " + l.GetValue()
				}
				if created := m.GetCounter().GetCreatedTimestamp(); created != nil {
					got[name] = created.AsTime().String()
				}
			}
		}
		want := map[string]string{
			"sidelight_dropped_total log access_log": fixture.Now.UTC().String(), "sidelight_self_access_log_lines_total": fixture.Now.UTC().String(),
		}
		if !since.IsZero() {
			want["sidelight_datapath_agents_total"], want["sidelight_dropped_total event decode"] = since.UTC().String(), since.UTC().String()
		}
		if !maps.Equal(got, want) {
			t.Errorf("with %v: created %v, want %v", since, got, want)
		}
	}
}

func TestSelfShowsWhatIsRead(t *testing.T) {
	reading := one()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewSelf(func() self.Reading { return reading }))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := string(text(t, families, expfmt.NewFormat(expfmt.TypeTextPlain)))
	for i, m := range self.Metrics() {
		if !strings.Contains(got, "\n"+m.Prometheus) || !strings.Contains(got, " "+strconv.Itoa(i)+"\n") {
			t.Errorf("%s is not %d in:\n%s", m.Prometheus, i, got)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) != 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	reading.Err = errors.New("no account")
	if _, err := registry.Gather(); err == nil || !strings.Contains(err.Error(), "no account") {
		t.Errorf("error %v, want the reading's", err)
	}
}
