package dashboards

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql"
)

// choices are what a dashboard's variables can be set to: All, or with explicit all values that Grafana finds for them, one by one. Where only one
// can be chosen, there is a choice for each.
func (d *grafanaDashboard) choices(t *testing.T, w *world, explicit bool) []values {
	t.Helper()
	all := []values{{}}
	for _, v := range d.Templating.List {
		var next []values
		for _, set := range all {
			for _, chosen := range d.options(t, w, &v, set, explicit) {
				more := maps.Clone(set)
				more[v.Name] = chosen
				next = append(next, more)
			}
		}
		all = next
	}
	return all
}

// options are those of one variable, with others before it set.
func (d *grafanaDashboard) options(t *testing.T, w *world, v *grafanaVariable, set values, explicit bool) [][]string {
	t.Helper()
	switch {
	case v.Type == "custom" && explicit:
		return [][]string{{"client", "server"}}
	case v.Type != "query", !explicit && v.AllValue != "":
		return [][]string{nil}
	}
	m := labelValues.FindStringSubmatch(v.Definition)
	selector, err := d.interpolate(m[1], set, w.timing)
	if err != nil {
		t.Fatalf("%s: variable %s: %v", d.file, v.Name, err)
	}
	found := w.labelValues(t, selector, m[2], w.start, w.end)
	if len(found) == 0 {
		t.Fatalf("%s: variable %s has no values: %s", d.file, v.Name, selector)
	}
	if v.Multi {
		return [][]string{found}
	}
	var each [][]string
	for _, value := range found {
		each = append(each, []string{value})
	}
	return each
}

// TestEveryPanelHasData asks every query of every panel, as Grafana would: with All, and with all values chosen one by one. Of a dashboard of one
// service each query has to say something of one service at least.
func TestEveryPanelHasData(t *testing.T) {
	mesh, _, _ := worldsOf(t)
	asked := 0
	for _, d := range load(t) {
		for _, explicit := range []bool{false, true} {
			sets := d.choices(t, mesh, explicit)
			for where, target := range d.metricTargets() {
				asked++
				points := 0
				for _, set := range sets {
					points += d.ask(t, mesh, where, &target, set)
				}
				if points == 0 {
					t.Errorf("%s: no data: %s", where, target.Expr)
				}
			}
		}
	}
	t.Logf("%d queries answered", asked)
}

// ask returns how many points a query of a panel has.
func (d *grafanaDashboard) ask(t *testing.T, w *world, where string, target *grafanaTarget, set values) int {
	t.Helper()
	expr, err := d.interpolate(target.Expr, set, w.timing)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	points := 0
	if target.Instant {
		var vector promql.Vector
		vector, err = w.instant(t, expr, w.end)
		points = len(vector)
	} else {
		points, err = w.over(t, expr, w.start, w.end, w.step)
	}
	if err != nil {
		t.Errorf("%s: %v: %s", where, err, expr)
	}
	return points
}

// TestExemplarsAreShown wants a query that shows exemplars to have some, which name a trace.
func TestExemplarsAreShown(t *testing.T) {
	mesh, _, _ := worldsOf(t)
	shown := 0
	for _, d := range load(t) {
		set := d.choices(t, mesh, false)[0]
		for where, target := range d.metricTargets() {
			if !target.Exemplar {
				continue
			}
			expr, err := d.interpolate(target.Expr, set, mesh.timing)
			if err != nil {
				t.Fatal(err)
			}
			results := mesh.exemplars(t, expr, mesh.start, mesh.end)
			if len(results) == 0 {
				t.Errorf("%s has no exemplars: %s", where, expr)
			}
			for _, r := range results {
				for _, e := range r.Exemplars {
					shown++
					if len(e.Labels.Get("trace_id")) != 32 || len(e.Labels.Get("span_id")) != 16 {
						t.Errorf("%s: an exemplar without a trace: %v", where, e.Labels)
					}
				}
			}
		}
	}
	if shown == 0 {
		t.Error("no exemplars")
	}
}

// exact is a resolution at which $__rate_interval covers forty scrapes: ten minutes, which is a multiple of the period of each flow.
func (w *world) exact() timing {
	return timing{step: 40 * w.timing.scrape, scrape: w.timing.scrape, window: w.window}
}

// said is what a query has to say at the end of a world.
type said struct {
	file, panel, ref string
	set              values
	want             map[string]float64 // by labels, as in {a="b"}; those that are not here are not looked at
	only             bool               // there is nothing else
}

func (s *said) where() string { return fmt.Sprintf("%s/%s/%s", s.file, s.panel, s.ref) }

func (s *said) check(t *testing.T, w *world) {
	t.Helper()
	where := s.where()
	for _, d := range load(t) {
		target, there := d.metricTargets()[where]
		if !there {
			continue
		}
		set := d.choices(t, w, false)[0]
		maps.Copy(set, s.set)
		set["cluster"] = []string{w.cluster}
		expr, err := d.interpolate(target.Expr, set, w.exact())
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		vector, err := w.instant(t, expr, w.end)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		got := make(map[string]float64)
		for _, sample := range vector {
			got[sample.Metric.String()] = sample.F
		}
		for labels, want := range s.want {
			if have, there := got[labels]; !there || math.Abs(have-want) > 0.01*math.Abs(want)+1e-9 {
				t.Errorf("%s: %s is %v (there: %v), want %v; all: %v", where, labels, have, there, want, got)
			}
		}
		if s.only && len(got) != len(s.want) {
			t.Errorf("%s: %d series, want %d: %v", where, len(got), len(s.want), got)
		}
		return
	}
	t.Errorf("no query %s", where)
}

func one(v float64) map[string]float64 { return map[string]float64{"{}": v} }

var cart = values{"service_namespace": {"shop"}, "service": {"cart"}}

// TestPanelsSayWhatTheRecordingImplies holds values against what was done when the golden recordings were made: agent/cmd/sidelight
// (recordings_test.go) has the scripts.
func TestPanelsSayWhatTheRecordingImplies(t *testing.T) {
	_, mix, loss := worldsOf(t)
	mixed := map[string]map[string]float64{
		`sum(increase(sidelight_tcp_connection_attempts_total{cluster="mix"}[2s]))`:                      one(16),
		`sum by (role) (increase(sidelight_tcp_connection_established_total{cluster="mix"}[2s]))`:        {`{role="client"}`: 13, `{role="server"}`: 13},
		`sum by (reason) (increase(sidelight_tcp_connection_failures_total{cluster="mix"}[2s]))`:         {`{reason="refused"}`: 3},
		`sum by (role) (sidelight_tcp_connection_open{cluster="mix"})`:                                   {`{role="client"}`: 1, `{role="server"}`: 1},
		`sum by (role) (sidelight_tcp_sent_bytes_total{cluster="mix"})`:                                  {`{role="client"}`: 13 * 132, `{role="server"}`: 11 * 1000},
		`sum(sidelight_tcp_connect_duration_seconds_count{cluster="mix"})`:                               one(13),
		`sum(sidelight_tcp_first_byte_duration_seconds_bucket{cluster="mix",le="+Inf"})`:                 one(10),
		`sum by (reason) (sidelight_tcp_connection_closed_total{cluster="mix",role="server"})`:           {`{reason="ok"}`: 10, `{reason="reset_by_local"}`: 2},
		`count(count by (local_workload, peer_workload) (sidelight_tcp_connection_open{cluster="mix"}))`: one(2),
	}
	for expr, want := range mixed {
		checkAnswer(t, mix, expr, want)
	}
	// Lines were lost here, and no sum was.
	checkAnswer(t, loss, `sum by (role) (sidelight_tcp_connection_established_total{cluster="loss"})`, map[string]float64{`{role="client"}`: 200, `{role="server"}`: 200})
	checkAnswer(t, loss, `sum by (reason) (sidelight_tcp_connection_closed_total{cluster="loss",role="client"})`, map[string]float64{`{reason="ok"}`: 200})

	for _, s := range []said{
		{file: "overview.json", panel: "Open connections", ref: "A", set: values{"role": {"client"}}, want: map[string]float64{`{role="client"}`: 1}, only: true},
		{file: "overview.json", panel: "Golden signals by edge", ref: "E", want: map[string]float64{
			`{local_workload="` + mixClient(t, mix) + `", peer_workload="localhost"}`: 1,
		}, only: true},
		{file: "connections.json", panel: "Connects under way", ref: "A", want: map[string]float64{`{local_workload="` + mixClient(t, mix) + `"}`: 0}, only: true},
	} {
		s.check(t, mix)
	}
}

// mixClient is the client's workload of the recording: a cgroup that was made for it.
func mixClient(t *testing.T, w *world) string {
	t.Helper()
	all := w.labelValues(t, `sidelight_tcp_connection_open{cluster="mix"}`, "local_workload", w.start, w.end)
	at := slices.IndexFunc(all, func(name string) bool { return strings.HasSuffix(name, "/client") })
	if at < 0 {
		t.Fatalf("no client among %v", all)
	}
	return all[at]
}

func checkAnswer(t *testing.T, w *world, expr string, want map[string]float64) {
	t.Helper()
	vector, err := w.instant(t, expr, w.end)
	if err != nil {
		t.Errorf("%s: %v", expr, err)
		return
	}
	got := make(map[string]float64)
	for _, sample := range vector {
		got[sample.Metric.String()] = math.Round(sample.F)
	}
	for labels, n := range want {
		if got[labels] != n {
			t.Errorf("%s: %s is %v, want %v", expr, labels, got[labels], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%s: %v, want %v", expr, got, want)
	}
}
