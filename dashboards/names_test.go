package dashboards

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

// promQL is the language of Prometheus as it is without any flag: dashboards must not need more.
var promQL = parser.NewParser(parser.Options{})

// targetLabels are put on by whoever scrapes.
var targetLabels = []string{"job", "instance", "cluster"}

// known are the labels of each metric.
type known map[string][]string

// knownNames is the table of names, what the agent's process tells beside it, and what Prometheus itself adds.
func knownNames(t *testing.T) known {
	t.Helper()
	table, err := metadata.Read("../collector/meshreceiver/metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	label := make(map[string]string)
	for _, a := range table.MetricAttributes {
		label[a.Name] = a.Label
	}
	names := known{"up": nil}
	add := func(m *metadata.Metric, labelOf func(string) string) {
		var all []string
		for _, a := range m.Attributes {
			if l := labelOf(a); l != "" {
				all = append(all, l)
			}
		}
		if m.Kind != metadata.Histogram {
			names[m.Prometheus] = all
			return
		}
		names[m.Prometheus+"_sum"], names[m.Prometheus+"_count"] = all, all
		names[m.Prometheus+"_bucket"] = append(slices.Clone(all), "le")
	}
	for i := range table.Metrics {
		add(&table.Metrics[i], func(a string) string { return label[a] })
	}
	for i := range table.SelfMetrics {
		add(&table.SelfMetrics[i], labelOf)
	}
	registry := prometheus.NewPedanticRegistry()
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		names[f.GetName()] = nil
		for _, l := range f.GetMetric()[0].GetLabel() {
			names[f.GetName()] = append(names[f.GetName()], l.GetName())
		}
	}
	return names
}

// labelOf is the label of an attribute of the agent's own metrics.
func labelOf(attribute string) string { return strings.ReplaceAll(attribute, ".", "_") }

// enums returns what the labels can be whose values are fixed.
func enums(t *testing.T) map[string][]string {
	t.Helper()
	table, err := metadata.Read("../collector/meshreceiver/metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for _, a := range table.MetricAttributes {
		if a.Enum != nil {
			all[a.Label] = a.Enum
		}
	}
	return all
}

// faultsOf returns what is wrong with the names in an expression: metrics that do not exist, and labels that they do not have.
func (k known) faultsOf(expr parser.Expr) []string {
	var faults []string
	var inScope []string // labels that any of the metrics has
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		s, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		has, exists := k[s.Name]
		if !exists {
			faults = append(faults, "no metric "+s.Name)
			return nil
		}
		has = append(slices.Clone(has), targetLabels...)
		inScope = append(inScope, has...)
		for _, m := range s.LabelMatchers {
			if m.Name != model.MetricNameLabel && !slices.Contains(has, m.Name) {
				faults = append(faults, fmt.Sprintf("%s has no label %s", s.Name, m.Name))
			}
		}
		return nil
	})
	made := madeLabels(expr)
	check := func(names []string) {
		for _, name := range names {
			if !slices.Contains(inScope, name) && !slices.Contains(made, name) {
				faults = append(faults, "no metric here has the label "+name)
			}
		}
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.AggregateExpr:
			check(n.Grouping)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				check(n.VectorMatching.MatchingLabels)
				check(n.VectorMatching.Include)
			}
		case *parser.Call:
			switch n.Func.Name {
			case "label_replace":
				if from := n.Args[3].(*parser.StringLiteral).Val; from != "" { // else the label is made of nothing
					check([]string{from})
				}
			case "label_join":
				for _, a := range n.Args[3:] {
					check([]string{a.(*parser.StringLiteral).Val})
				}
			}
		}
		return nil
	})
	return faults
}

// madeLabels are those that an expression makes.
func madeLabels(expr parser.Expr) []string {
	var made []string
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if c, ok := node.(*parser.Call); ok && (c.Func.Name == "label_replace" || c.Func.Name == "label_join") {
			made = append(made, c.Args[1].(*parser.StringLiteral).Val)
		}
		return nil
	})
	return made
}

// enumFaults returns values that a label with fixed values cannot have.
func enumFaults(expr parser.Expr, fixed map[string][]string) []string {
	var faults []string
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		s, ok := node.(*parser.VectorSelector)
		if !ok || !strings.HasPrefix(s.Name, "sidelight_tcp_") {
			return nil
		}
		for _, m := range s.LabelMatchers {
			for _, value := range strings.Split(strings.Trim(m.Value, "()"), "|") {
				if fixed[m.Name] != nil && !slices.Contains(fixed[m.Name], value) {
					faults = append(faults, fmt.Sprintf("%s is never %q", m.Name, value))
				}
			}
		}
		return nil
	})
	return faults
}

// testSet sets all variables of a dashboard to All, or where that has to be known to some value.
func (d *grafanaDashboard) testSet() values {
	set := make(values)
	for _, v := range d.Templating.List {
		if v.Type == "query" && v.AllValue == "" {
			set[v.Name] = []string{"some"}
		}
	}
	return set
}

var anyTiming = timing{step: 15e9, scrape: 15e9, window: 3600e9}

func TestQueriesParseAndNameWhatExists(t *testing.T) {
	names, fixed := knownNames(t), enums(t)
	count := 0
	for _, d := range load(t) {
		for where, target := range d.metricTargets() {
			count++
			expr, err := d.interpolate(target.Expr, d.testSet(), anyTiming)
			if err != nil {
				t.Errorf("%s: %v", where, err)
				continue
			}
			parsed, err := promQL.ParseExpr(expr)
			if err != nil {
				t.Errorf("%s: %v in %s", where, err, expr)
				continue
			}
			for _, fault := range append(names.faultsOf(parsed), enumFaults(parsed, fixed)...) {
				t.Errorf("%s: %s: %s", where, fault, expr)
			}
			checkLegend(t, where, &target, parsed)
		}
	}
	if count < 100 {
		t.Errorf("%d queries; were there not more?", count)
	}
}

var legendLabel = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// checkLegend wants the labels of a legend to be those that the query leaves.
func checkLegend(t *testing.T, where string, target *grafanaTarget, expr parser.Expr) {
	t.Helper()
	if target.Format == "heatmap" {
		return
	}
	var grouped []string
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			grouped = append(grouped, a.Grouping...)
		}
		return nil
	})
	for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
		if !slices.Contains(grouped, m[1]) {
			t.Errorf("%s: the legend has the label %s, by which nothing is grouped", where, m[1])
		}
	}
}

// labelValues is a variable's query.
var labelValues = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)

func TestVariablesNameWhatExists(t *testing.T) {
	names := knownNames(t)
	for _, d := range load(t) {
		for _, v := range d.Templating.List {
			if v.Type != "query" {
				continue
			}
			m := labelValues.FindStringSubmatch(v.Definition)
			if m == nil {
				t.Errorf("%s: variable %s asks %q, which the tests do not know", d.file, v.Name, v.Definition)
				continue
			}
			if q, ok := v.Query.(map[string]any); !ok || q["query"] != v.Definition {
				t.Errorf("%s: variable %s asks %v and says that it asks %s", d.file, v.Name, v.Query, v.Definition)
			}
			expr, err := d.interpolate("group by ("+m[2]+") ("+m[1]+")", d.testSet(), anyTiming)
			if err != nil {
				t.Errorf("%s: variable %s: %v", d.file, v.Name, err)
				continue
			}
			parsed, err := promQL.ParseExpr(expr)
			if err != nil {
				t.Errorf("%s: variable %s: %v", d.file, v.Name, err)
				continue
			}
			for _, fault := range names.faultsOf(parsed) {
				t.Errorf("%s: variable %s: %s", d.file, v.Name, fault)
			}
		}
	}
}

// ruleFiles reads the rules as Prometheus does.
func ruleFiles(t *testing.T) map[string]*rulefmt.RuleGroups {
	t.Helper()
	files, err := fs.Glob(Rules, "rules/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]*rulefmt.RuleGroups)
	for _, file := range files {
		text, err := fs.ReadFile(Rules, file)
		if err != nil {
			t.Fatal(err)
		}
		groups, errs := rulefmt.Parse(text, false, model.LegacyValidation, promQL)
		if len(errs) != 0 {
			t.Fatalf("%s: %v", file, errs)
		}
		all[file] = groups
	}
	if len(all) != 2 {
		t.Fatalf("%d files of rules, want 2", len(all))
	}
	return all
}

func TestRulesNameWhatExists(t *testing.T) {
	names, fixed := knownNames(t), enums(t)
	// What is recorded has the labels that it is summed by.
	for _, groups := range ruleFiles(t) {
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				if r.Record != "" {
					names[r.Record] = recordedLabels(t, r.Expr)
				}
			}
		}
	}
	for file, groups := range ruleFiles(t) {
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				parsed, err := promQL.ParseExpr(r.Expr)
				if err != nil {
					t.Errorf("%s: %s%s: %v", file, r.Alert, r.Record, err)
					continue
				}
				for _, fault := range append(names.faultsOf(parsed), enumFaults(parsed, fixed)...) {
					t.Errorf("%s: %s%s: %s", file, r.Alert, r.Record, fault)
				}
			}
		}
	}
}

func recordedLabels(t *testing.T, text string) []string {
	t.Helper()
	parsed, err := promQL.ParseExpr(text)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok && !a.Without {
			all = append(all, a.Grouping...)
		}
		return nil
	})
	if len(all) == 0 { // made of others that are recorded
		all = []string{"cluster", "local_namespace", "local_workload", "service_namespace", "service", "peer_namespace", "peer_workload"}
	}
	return all
}

func TestNamesAreChecked(t *testing.T) {
	names := knownNames(t)
	for _, expr := range []string{
		`sidelight_tcp_connection_opened_total`, `sidelight_tcp_connection_open{port="80"}`, `sum by (endpoint) (sidelight_tcp_connection_open)`,
		`sidelight_tcp_rtt_seconds`, `sidelight_tcp_connection_open / on (policy) sidelight_tcp_connection_connecting`,
	} {
		parsed, err := promQL.ParseExpr(expr)
		if err != nil {
			t.Fatal(err)
		}
		if len(names.faultsOf(parsed)) == 0 {
			t.Errorf("nothing was found wrong with %s", expr)
		}
	}
	parsed, err := promQL.ParseExpr(`sidelight_tcp_connection_failures_total{reason=~"refused|gone"}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(enumFaults(parsed, enums(t))) != 1 {
		t.Error("a reason that does not exist was not found")
	}
}
