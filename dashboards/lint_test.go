package dashboards

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

// The rules of Grafana's dashboard-linter, which cannot be obtained as a module, and some of our own.

func TestDashboardsAreLinted(t *testing.T) {
	uids, titles := make(map[string]string), make(map[string]string)
	for _, d := range load(t) {
		for _, fault := range lint(&d) {
			t.Errorf("%s: %s", d.file, fault)
		}
		if other := uids[d.UID]; other != "" {
			t.Errorf("%s and %s have the same uid", d.file, other)
		}
		if other := titles[d.Title]; other != "" {
			t.Errorf("%s and %s have the same title", d.file, other)
		}
		uids[d.UID], titles[d.Title] = d.file, d.file
	}
	// Whoever bookmarked a dashboard, or links to it, goes by these.
	for _, uid := range []string{"sidelight-overview", "sidelight-service", "sidelight-workload", "sidelight-connections", "sidelight-decisions", "sidelight-self"} {
		if uids[uid] == "" {
			t.Errorf("no dashboard has the uid %s", uid)
		}
	}
}

func lint(d *grafanaDashboard) []string {
	l := &linter{d: d}
	l.dashboard()
	l.variables()
	l.layout()
	titles := make(map[string]bool)
	for _, p := range d.panels() {
		l.panel(&p)
		if titles[p.Title] {
			l.fault("two panels are called %s: a test of the one would be taken for one of the other", p.Title)
		}
		titles[p.Title] = true
	}
	return l.faults
}

type linter struct {
	d      *grafanaDashboard
	faults []string
}

func (l *linter) fault(format string, args ...any) {
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}

func (l *linter) dashboard() {
	d := l.d
	if d.Editable {
		l.fault("it is editable: edits would be lost with the next version")
	}
	if d.Title == "" || d.Description == "" || !slices.Contains(d.Tags, "sidelight") {
		l.fault("title, description and the tag sidelight must be there")
	}
	if d.SchemaVersion != 42 {
		l.fault("schema version %d; that of the SDK was 42", d.SchemaVersion)
	}
	if len(d.UID) < 8 || len(d.UID) > 40 {
		l.fault("uid %q has not 8 to 40 characters", d.UID)
	}
}

func (l *linter) variables() {
	d := l.d
	var used []string
	for _, p := range d.panels() {
		used = append(used, variables(p.Datasource.UID)...)
		for _, target := range p.Targets {
			used = append(used, variables(target.Expr+target.Query)...)
		}
	}
	for i, v := range d.Templating.List {
		if v.Label == "" {
			l.fault("variable %s has no label", v.Name)
		}
		if v.Type == "query" {
			used = append(used, variables(v.Definition)...)
			if v.Datasource.UID != "${datasource}" {
				l.fault("variable %s has the data source %s", v.Name, v.Datasource.UID)
			}
		}
		for _, name := range variables(v.Definition) {
			if !slices.ContainsFunc(d.Templating.List[:i], func(before grafanaVariable) bool { return before.Name == name }) {
				l.fault("variable %s uses %s, which does not come before it", v.Name, name)
			}
		}
	}
	if v := d.variable("datasource"); v == nil || v.Type != "datasource" || v.Query != prometheusType {
		l.fault("there is no variable datasource for the metrics")
	}
	if d.variable("cluster") == nil {
		l.fault("there is no variable cluster")
	}
	for _, v := range d.Templating.List {
		if !slices.Contains(used, v.Name) {
			l.fault("variable %s is not used", v.Name)
		}
	}
}

// layout wants no panel over another, and none beyond the 24 columns.
func (l *linter) layout() {
	ids := make(map[int]bool)
	type place struct{ x, y int }
	taken := make(map[place]string)
	var look func(panels []grafanaPanel)
	look = func(panels []grafanaPanel) {
		for _, p := range panels {
			if ids[p.ID] || p.ID == 0 {
				l.fault("%s: id %d is not its own", p.Title, p.ID)
			}
			ids[p.ID] = true
			g := p.GridPos
			if g.W <= 0 || g.H <= 0 || g.X < 0 || g.X+g.W > 24 {
				l.fault("%s: it does not fit: %+v", p.Title, g)
			}
			for x := g.X; x < g.X+g.W; x++ {
				for y := g.Y; y < g.Y+g.H; y++ {
					if other, there := taken[place{x, y}]; there {
						l.fault("%s lies over %s", p.Title, other)
						return
					}
					taken[place{x, y}] = p.Title
				}
			}
			look(p.Panels)
		}
	}
	look(l.d.Panels)
}

func (l *linter) panel(p *grafanaPanel) {
	if p.Title == "" || p.Description == "" {
		l.fault("panel %d (%s): title and description must be there", p.ID, p.Title)
	}
	if p.FieldConfig.Defaults.Unit == "" || p.Type == "heatmap" && p.Options.YAxis.Unit == "" {
		l.fault("%s: no unit", p.Title)
	}
	if !strings.HasPrefix(p.Datasource.UID, "${") {
		l.fault("%s: its data source is %q, no variable", p.Title, p.Datasource.UID)
	}
	if len(p.Targets) == 0 {
		l.fault("%s: no queries", p.Title)
	}
	refs := make(map[string]bool)
	for _, target := range p.Targets {
		if refs[target.RefID] {
			l.fault("%s: two queries are %s", p.Title, target.RefID)
		}
		refs[target.RefID] = true
		if target.Datasource != p.Datasource {
			l.fault("%s: query %s has another data source than the panel", p.Title, target.RefID)
		}
		if target.Datasource.Type == prometheusType {
			l.query(p, &target)
		}
	}
	l.columns(p)
}

// columns wants what a table renames to be there.
func (l *linter) columns(p *grafanaPanel) {
	if p.Type != "table" || p.Datasource.Type != prometheusType {
		return
	}
	for _, tr := range p.Transformations {
		for from := range tr.Options.RenameByName {
			if ref, isValue := strings.CutPrefix(from, "Value #"); isValue && !slices.ContainsFunc(p.Targets, func(target grafanaTarget) bool { return target.RefID == ref }) {
				l.fault("%s: renames %s, which no query makes", p.Title, from)
			}
		}
	}
	for _, o := range p.FieldConfig.Overrides {
		for _, property := range o.Properties {
			l.link(p, fmt.Sprint(property.Value))
		}
		name, _ := o.Matcher.Options.(string)
		if !slices.ContainsFunc(p.Transformations, func(tr struct {
			ID      string `json:"id"`
			Options struct {
				RenameByName map[string]string `json:"renameByName"`
			} `json:"options"`
		},
		) bool {
			for _, to := range tr.Options.RenameByName {
				if to == name {
					return true
				}
			}
			return false
		}) {
			l.fault("%s: an override is of %q, which is no column", p.Title, name)
		}
	}
}

var column = regexp.MustCompile(`__data\.fields\["([^"]+)"\]`)

// link wants a link's columns to be there, and a service to come with its namespace: the name alone may be another's.
func (l *linter) link(p *grafanaPanel, text string) {
	if strings.Contains(text, "var-service=") && !strings.Contains(text, "var-service_namespace=") {
		l.fault("%s: a link names a service without its namespace: %s", p.Title, text)
	}
	var columns []string
	for _, tr := range p.Transformations {
		columns = slices.AppendSeq(columns, maps.Values(tr.Options.RenameByName))
	}
	for _, m := range column.FindAllStringSubmatch(text, -1) {
		if !slices.Contains(columns, m[1]) {
			l.fault("%s: a link goes by %q, which is no column", p.Title, m[1])
		}
	}
}

// nodes are the beginnings of names of what the mesh tells of a node, and not of services.
var nodes = regexp.MustCompile(`^sidelight_mesh_(limit|guarded|decision)_`)

// mustMatch are the variables that every query has to go by, by the beginning of a metric's name: what is chosen must not be ignored.
func (l *linter) mustMatch(metric string) []string {
	need := []string{"cluster"}
	for _, name := range []string{"namespace", "workload", "instance", "service"} {
		if l.d.variable(name) == nil {
			continue
		}
		edge := strings.HasPrefix(metric, "sidelight_tcp_")
		byService := edge || strings.HasPrefix(metric, "sidelight_mesh_") && !nodes.MatchString(metric)
		switch {
		case (name == "namespace" || name == "workload") && !edge, name == "service" && !byService:
		default:
			need = append(need, name)
		}
	}
	return need
}

var windowed = regexp.MustCompile(`\[([^\]]+)\]`)

func (l *linter) query(p *grafanaPanel, target *grafanaTarget) {
	expr, err := l.d.interpolate(target.Expr, l.d.testSet(), anyTiming)
	if err != nil {
		l.fault("%s: %v", p.Title, err)
		return
	}
	parsed, err := promQL.ParseExpr(expr)
	if err != nil {
		l.fault("%s: %v", p.Title, err)
		return
	}
	for _, selector := range selectors(target.Expr) {
		for _, name := range l.mustMatch(selector[:strings.Index(selector, "{")]) {
			if !slices.Contains(variables(selector), name) {
				l.fault("%s: %s does not go by $%s", p.Title, selector, name)
			}
		}
	}
	for _, m := range windowed.FindAllStringSubmatch(target.Expr, -1) {
		if m[1] != "$__rate_interval" && m[1] != "1h" {
			l.fault("%s: a window of %s; use $__rate_interval, or 1h for what is counted by the hour", p.Title, m[1])
		}
	}
	for _, fault := range counterFaults(parsed) {
		l.fault("%s: %s", p.Title, fault)
	}
	if (p.Type == "heatmap") != (target.Format == "heatmap") || (p.Type == "table" || p.Type == "nodeGraph") != (target.Format == "table" && target.Instant) {
		l.fault("%s: format %s, instant %v", p.Title, target.Format, target.Instant)
	}
	if overTime := p.Type == "timeseries" || p.Type == "heatmap"; overTime && strings.Contains(target.Expr, "_seconds_bucket") && !target.Exemplar {
		l.fault("%s: a histogram without exemplars", p.Title)
	}
	if p.Type == "stat" && (!target.Instant || !slices.Equal(p.Options.ReduceOptions.Calcs, []string{"last"})) {
		l.fault("%s: it may show what was last there instead of what is now", p.Title)
	}
	if p.Type == "timeseries" && target.LegendFormat == "" {
		l.fault("%s: no legend", p.Title)
	}
}

var selector = regexp.MustCompile(`[a-z_]+\{[^}]*\}`)

func selectors(expr string) []string { return selector.FindAllString(expr, -1) }

// cumulative are counters whose value itself says something: how many there have been since the data path was made, or what a sum of steps
// leaves.
var cumulative = []string{"sidelight_datapath_agents_total", "sidelight_self_kernel_connections_total"}

// counterFaults wants counters in rate() or increase(), and nothing else there.
func counterFaults(expr parser.Expr) []string {
	var faults []string
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		s, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		counts := strings.HasSuffix(s.Name, "_total") || strings.HasSuffix(s.Name, "_bucket") || strings.HasSuffix(s.Name, "_count") || strings.HasSuffix(s.Name, "_sum")
		rated := slices.ContainsFunc(path, func(n parser.Node) bool {
			c, ok := n.(*parser.Call)
			return ok && (c.Func.Name == "rate" || c.Func.Name == "increase")
		})
		switch {
		case counts && !rated && !slices.Contains(cumulative, s.Name):
			faults = append(faults, s.Name+" is a counter, and is not in rate() or increase()")
		case !counts && rated:
			faults = append(faults, s.Name+" is no counter, and is in rate() or increase()")
		}
		return nil
	})
	return faults
}

func TestLinterFinds(t *testing.T) {
	clean := func() *grafanaDashboard {
		d := grafanaDashboard{UID: "sidelight-test", Title: "T", Description: "D", SchemaVersion: 42, Tags: []string{"sidelight"}}
		source := grafanaSource{Type: prometheusType, UID: "${datasource}"}
		p := grafanaPanel{ID: 1, Type: "timeseries", Title: "P", Description: "D", Datasource: source}
		p.GridPos.W, p.GridPos.H = 24, 8
		p.FieldConfig.Defaults.Unit = "cps"
		p.Targets = []grafanaTarget{{
			RefID: "A", Datasource: source, LegendFormat: "x",
			Expr: `sum(rate(sidelight_tcp_sent_bytes_total{cluster=~"$cluster"}[$__rate_interval]))`,
		}}
		d.Panels = []grafanaPanel{p}
		d.Templating.List = []grafanaVariable{
			{Type: "datasource", Name: "datasource", Label: "D", Query: prometheusType},
			{Type: "query", Name: "cluster", Label: "C", AllValue: ".*", Definition: "label_values(up, cluster)", Datasource: grafanaSource{UID: "${datasource}"}},
		}
		return &d
	}
	if faults := lint(clean()); faults != nil {
		t.Fatalf("nothing is wrong, and it finds %v", faults)
	}
	for name, spoil := range map[string]func(d *grafanaDashboard, p *grafanaPanel){
		"editable":       func(d *grafanaDashboard, _ *grafanaPanel) { d.Editable = true },
		"no data source": func(d *grafanaDashboard, _ *grafanaPanel) { d.Templating.List = d.Templating.List[1:] },
		"a variable for nobody": func(d *grafanaDashboard, _ *grafanaPanel) {
			d.Templating.List = append(d.Templating.List, grafanaVariable{Name: "x", Label: "x"})
		},
		"no unit":        func(_ *grafanaDashboard, p *grafanaPanel) { p.FieldConfig.Defaults.Unit = "" },
		"no description": func(_ *grafanaDashboard, p *grafanaPanel) { p.Description = "" },
		"no legend":      func(_ *grafanaDashboard, p *grafanaPanel) { p.Targets[0].LegendFormat = "" },
		"too wide":       func(_ *grafanaDashboard, p *grafanaPanel) { p.GridPos.W = 25 },
		"over another":   func(d *grafanaDashboard, p *grafanaPanel) { q := *p; q.ID = 2; d.Panels = append(d.Panels, q) },
		"the cluster ignored": func(_ *grafanaDashboard, p *grafanaPanel) {
			p.Targets[0].Expr = strings.Replace(p.Targets[0].Expr, "$cluster", "x", 1)
		},
		"a fixed window": func(_ *grafanaDashboard, p *grafanaPanel) {
			p.Targets[0].Expr = strings.Replace(p.Targets[0].Expr, "$__rate_interval", "5m", 1)
		},
		"a counter as it is": func(_ *grafanaDashboard, p *grafanaPanel) {
			p.Targets[0].Expr = `sum(sidelight_tcp_sent_bytes_total{cluster=~"$cluster"})`
		},
		"the rate of a gauge": func(_ *grafanaDashboard, p *grafanaPanel) {
			p.Targets[0].Expr = `sum(rate(sidelight_tcp_connection_open{cluster=~"$cluster"}[$__rate_interval]))`
		},
		"no exemplars": func(_ *grafanaDashboard, p *grafanaPanel) {
			p.Targets[0].Expr = strings.Replace(p.Targets[0].Expr, "sent_bytes_total", "rtt_seconds_bucket", 1)
		},
		"the last of a range": func(_ *grafanaDashboard, p *grafanaPanel) { p.Type = "stat" },
		"a title twice": func(d *grafanaDashboard, p *grafanaPanel) {
			q := *p
			q.ID, q.GridPos.Y = 2, 8
			d.Panels = append(d.Panels, q)
		},
		"a fixed data source": func(_ *grafanaDashboard, p *grafanaPanel) { p.Datasource.UID = "abc" },
	} {
		d := clean()
		spoil(d, &d.Panels[0])
		if lint(d) == nil {
			t.Errorf("%s: it finds nothing", name)
		}
	}
}
