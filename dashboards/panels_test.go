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

func (s *said) check(t *testing.T, w *world) {
	t.Helper()
	where := fmt.Sprintf("%s/%s/%s", s.file, s.panel, s.ref)
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

// TestPanelsSayWhatTheStreamImplies holds values against the periods of the flows.
func TestPanelsSayWhatTheStreamImplies(t *testing.T) {
	mesh, _, _ := worldsOf(t)
	// Connects a second: cart 1, database 0.2, narrow 0.1 and refused 0.1, denied 0.1, empty 1/30, external 0.2, black hole 1/60,
	// flaky 0.1 and 0.5.
	const connects = 1 + 0.2 + 0.1 + 0.1 + 0.1 + 1./30 + 0.2 + 1./60 + 0.1 + 0.5
	const failures = 0.2 + 0.1 + 0.1 + 1./30 + 1./60 + 0.1
	for _, s := range []said{
		{file: "overview.json", panel: "Connects", ref: "A", want: one(connects), only: true},
		{file: "overview.json", panel: "Failed", ref: "A", want: one(failures / connects), only: true},
		{file: "overview.json", panel: "Failed connects by reason", ref: "A", only: true, want: map[string]float64{
			`{reason="refused"}`: 0.3, `{reason="denied"}`: 0.1, `{reason="circuit_open"}`: 0.1, `{reason="no_endpoint"}`: 1. / 30, `{reason="timeout"}`: 1. / 60,
		}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "A", want: map[string]float64{
			`{local_namespace="shop", local_workload="web", peer_namespace="shop", peer_workload="cart-1", service="cart", service_namespace="shop"}`: 0.75,
			`{local_namespace="shop", local_workload="web", peer_namespace="shop", peer_workload="cart-2", service="cart", service_namespace="shop"}`: 0.25,
			`{local_namespace="shop", local_workload="web", peer_namespace="data", peer_workload="database"}`:                                         0.2,
		}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "B", want: map[string]float64{
			`{local_namespace="shop", local_workload="web", peer_namespace="shop", peer_workload="cart-1", service="cart", service_namespace="shop"}`: 0,
			`{local_namespace="shop", local_workload="web", peer_namespace="data", peer_workload="database"}`:                                         1,
		}},
		{file: "overview.json", panel: "Service map", ref: "edges", want: map[string]float64{
			`{id="shop/web > shop/cart-1", source="shop/web", target="shop/cart-1"}`:                                             0.75,
			`{id="external > shop/web", source="external", target="shop/web"}`:                                                   0.5,
			`{id="shop/web > blackhole", source="shop/web", target="blackhole"}`:                                                 1. / 60,
			`{id="/system.slice/intruder.service > shop/cart-1", source="/system.slice/intruder.service", target="shop/cart-1"}`: 0.1,
		}},
		{file: "overview.json", panel: "Service map", ref: "nodes", want: map[string]float64{
			`{id="shop/cart-2"}`: 0.25, `{id="data/database"}`: 0.2, `{id="/system.slice/intruder.service"}`: 0.1,
			`{id="shop/web"}`: 1 + 0.2 + 1./30 + 0.2 + 1./60 + 0.1 + 0.5 + 0.5,
		}},
		{file: "overview.json", panel: "Longest connect under way", ref: "A", want: one(119.5), only: true}, // began at 28:00.5, and is there at the sweep at 30:00

		{file: "service.json", panel: "Connects", ref: "A", set: cart, want: one(1.1), only: true},
		{file: "service.json", panel: "Failed", ref: "A", set: cart, want: one(0.1 / 1.1), only: true},
		{file: "service.json", panel: "Failed connects by reason", ref: "A", set: cart, only: true, want: map[string]float64{`{reason="denied"}`: 0.1}},
		{file: "service.json", panel: "Share of connections by endpoint", ref: "A", set: cart, only: true, want: map[string]float64{
			`{endpoint="shop/cart-1"}`: 0.75, `{endpoint="shop/cart-2"}`: 0.25,
		}},
		{file: "service.json", panel: "Payload", ref: "A", set: cart, want: one(500), only: true},
		{file: "service.json", panel: "Payload", ref: "B", set: cart, want: one(2000), only: true},
		{file: "service.json", panel: "Refused by a limit", ref: "A", set: values{"service_namespace": {"shop"}, "service": {"narrow"}}, only: true, want: map[string]float64{
			`{cause="open"}`: 0.1, `{cause="connecting"}`: 0, `{cause="rate"}`: 0,
		}},
		{file: "service.json", panel: "Endpoints out of service", ref: "A", set: cart, want: one(0), only: true},
		{file: "service.json", panel: "Endpoints out of service", ref: "A", set: values{"service_namespace": {"shop"}, "service": {"flaky"}}, want: one(1), only: true},

		{file: "workload.json", panel: "Accepts by peer", ref: "A", set: values{"workload": {"cart-1"}}, only: true, want: map[string]float64{
			`{peer_namespace="shop", peer_workload="web"}`: 0.75, `{peer_workload="external"}`: 0,
		}},
		{file: "workload.json", panel: "Denied at its side", ref: "A", set: values{"workload": {"cart-1"}}, only: true, want: map[string]float64{
			`{peer_workload="external"}`: 0.1,
		}},
		{file: "workload.json", panel: "Connects", ref: "A", set: values{"workload": {"/system.slice/intruder.service", "greedy"}}, want: one(0.3), only: true},

		{file: "connections.json", panel: "Connections that did not end well", ref: "A", set: values{"role": {"server"}}, only: true, want: map[string]float64{
			`{reason="reset_by_local", role="server"}`: 0.05,
		}},
		{file: "connections.json", panel: "Retransmits", ref: "A", set: values{"role": {"client"}}, want: one(0.2 + 6./60), only: true},
		{file: "connections.json", panel: "Retransmits", ref: "B", set: values{"role": {"client"}}, want: one(0.2), only: true},
		{file: "connections.json", panel: "Connects under way", ref: "A", want: map[string]float64{`{local_workload="web"}`: 2}},

		{file: "decisions.json", panel: "Connections by endpoint", ref: "A", want: map[string]float64{
			`{endpoint="shop/cart-1", service="cart", service_namespace="shop"}`:   0.75,
			`{endpoint="shop/flaky-2", service="flaky", service_namespace="shop"}`: 0.5,
		}},
		{file: "decisions.json", panel: "Failed handshakes by endpoint", ref: "A", want: map[string]float64{
			`{endpoint="shop/flaky-1", service="flaky", service_namespace="shop"}`: 1,
			`{endpoint="shop/cart-1", service="cart", service_namespace="shop"}`:   0,
		}},
		{file: "decisions.json", panel: "Rules that decide", ref: "A", only: true, want: map[string]float64{
			`{dry_run="false", policy="shop/cart", rule="0", verdict="allow"}`:        2, // each end is asked
			`{dry_run="false", policy="shop/no-intruders", rule="0", verdict="deny"}`: 0.1,
			`{dry_run="false", policy="shop/inside-only", rule="1", verdict="deny"}`:  0.1,
			`{dry_run="true", policy="shop/soon", rule="0", verdict="deny"}`:          0.5,
		}},
		{file: "decisions.json", panel: "Refused, by the kernel", ref: "A", only: true, want: map[string]float64{
			`{role="client"}`: 0.1 + 0.1 + 1./30, `{role="server"}`: 0.1,
		}},
		{file: "decisions.json", panel: "Nodes that refuse the newest input", ref: "A", want: one(0), only: true},

		{file: "sidelight.json", panel: "Unaccounted", ref: "A", want: one(0), only: true},
		{file: "sidelight.json", panel: "Lowest rung", ref: "A", want: one(2), only: true},
		{file: "sidelight.json", panel: "CPU of the agent that takes most", ref: "A", want: one(0.006), only: true},
		{file: "sidelight.json", panel: "Time in a kernel program", ref: "A", want: map[string]float64{`{program="mesh_sockops"}`: 500e-9}, only: true},
		{file: "sidelight.json", panel: "Clients: attempted less established less failed", ref: "A", want: map[string]float64{`{instance="node1:9464"}`: 2}},
	} {
		s.check(t, mesh)
	}
}

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
		{file: "overview.json", panel: "Open connections", ref: "A", set: values{"role": {"client"}}, want: one(1), only: true},
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
