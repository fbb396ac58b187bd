package dashboards

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// grafanaDashboard is what the tests look at of a dashboard.
type grafanaDashboard struct {
	UID           string         `json:"uid"`
	Title         string         `json:"title"`
	Description   string         `json:"description"`
	Editable      bool           `json:"editable"`
	SchemaVersion int            `json:"schemaVersion"`
	Tags          []string       `json:"tags"`
	Panels        []grafanaPanel `json:"panels"`
	Templating    struct {
		List []grafanaVariable `json:"list"`
	} `json:"templating"`

	file string
}

type grafanaPanel struct {
	ID          int             `json:"id"`
	Type        string          `json:"type"`
	Title       string          `json:"title"`
	Description string          `json:"description"`
	Datasource  grafanaSource   `json:"datasource"`
	Panels      []grafanaPanel  `json:"panels"` // of a collapsed row
	Targets     []grafanaTarget `json:"targets"`
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
		Overrides []struct {
			Matcher    struct{ Options any } `json:"matcher"`
			Properties []struct {
				ID    string `json:"id"`
				Value any    `json:"value"`
			} `json:"properties"`
		} `json:"overrides"`
	} `json:"fieldConfig"`
	Options struct {
		ReduceOptions struct {
			Calcs []string `json:"calcs"`
		} `json:"reduceOptions"`
		YAxis struct {
			Unit string `json:"unit"`
		} `json:"yAxis"`
	} `json:"options"`
	Transformations []struct {
		ID      string `json:"id"`
		Options struct {
			RenameByName map[string]string `json:"renameByName"`
		} `json:"options"`
	} `json:"transformations"`
}

type grafanaSource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

type grafanaTarget struct {
	RefID        string        `json:"refId"`
	Datasource   grafanaSource `json:"datasource"`
	Expr         string        `json:"expr"`  // PromQL, LogQL or LogsQL
	Query        string        `json:"query"` // TraceQL
	LegendFormat string        `json:"legendFormat"`
	Format       string        `json:"format"`
	Instant      bool          `json:"instant"`
	Exemplar     bool          `json:"exemplar"`
}

type grafanaVariable struct {
	Type       string `json:"type"`
	Name       string `json:"name"`
	Label      string `json:"label"`
	Query      any    `json:"query"`
	Definition string `json:"definition"`
	Multi      bool   `json:"multi"`
	IncludeAll bool   `json:"includeAll"`
	AllValue   string `json:"allValue"`
	Options    []struct {
		Value string `json:"value"`
	} `json:"options"`
	Datasource grafanaSource `json:"datasource"`
}

// load reads all dashboards.
func load(t *testing.T) []grafanaDashboard {
	t.Helper()
	files, err := fs.Glob(Dashboards, "*.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []grafanaDashboard
	for _, file := range files {
		text, err := fs.ReadFile(Dashboards, file)
		if err != nil {
			t.Fatal(err)
		}
		d := grafanaDashboard{file: file}
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
	if len(all) != 6 {
		t.Fatalf("%d dashboards, want 6", len(all))
	}
	return all
}

// panels returns those that show something, of rows that are collapsed too.
func (d *grafanaDashboard) panels() []grafanaPanel {
	var all []grafanaPanel
	for _, p := range d.Panels {
		if p.Type != "row" {
			all = append(all, p)
		}
		all = append(all, p.Panels...)
	}
	return all
}

func (d *grafanaDashboard) variable(name string) *grafanaVariable {
	for i := range d.Templating.List {
		if v := &d.Templating.List[i]; v.Name == name {
			return v
		}
	}
	return nil
}

// metricTargets returns the queries for the metrics, and what to call them in a test's message.
func (d *grafanaDashboard) metricTargets() map[string]grafanaTarget {
	all := make(map[string]grafanaTarget)
	for _, p := range d.panels() {
		for _, target := range p.Targets {
			if target.Datasource.Type == prometheusType {
				all[fmt.Sprintf("%s/%s/%s", d.file, p.Title, target.RefID)] = target
			}
		}
	}
	return all
}

const (
	prometheusType   = "prometheus"
	lokiType         = "loki"
	victoriaLogsType = "victoriametrics-logs-datasource"
	tempoType        = "tempo"
)

// values are what variables are set to: a nil slice is All.
type values map[string][]string

// Grafana's own: what stands for a special character of a regular expression within a string of PromQL.
var special = regexp.MustCompile(`[$^*{}\[\]'+?.()|]`)

func escapeRegexp(value string) string {
	return special.ReplaceAllString(strings.ReplaceAll(value, `\`, `\\\\`), `\\$0`)
}

func escapeLiteral(value string) string {
	return strings.ReplaceAll(strings.ReplaceAll(value, `\`, `\\`), `"`, `\"`)
}

// one interpolates a variable as Grafana's Prometheus data source does.
func (v *grafanaVariable) one(chosen []string) (string, error) {
	if chosen == nil && v.AllValue != "" {
		return v.AllValue, nil // as it is
	}
	if len(chosen) == 0 {
		return "", fmt.Errorf("variable %s has no value", v.Name)
	}
	if !v.Multi && !v.IncludeAll {
		return escapeLiteral(chosen[0]), nil
	}
	escaped := make([]string, len(chosen))
	for i, value := range chosen {
		escaped[i] = escapeRegexp(value)
	}
	if len(escaped) == 1 {
		return escaped[0], nil
	}
	return "(" + strings.Join(escaped, "|") + ")", nil
}

// timing is what the variables of time stand for.
type timing struct {
	step, scrape, window time.Duration
}

// rateInterval is Grafana's: four scrapes at least, and no gap between two points.
func (g timing) rateInterval() time.Duration { return max(g.step+g.scrape, 4*g.scrape) }

var reference = regexp.MustCompile(`\$(?:\{(\w+)\}|(\w+))`)

// interpolate puts values in the place of variables.
func (d *grafanaDashboard) interpolate(expr string, set values, at timing) (string, error) {
	var fault error
	out := reference.ReplaceAllStringFunc(expr, func(match string) string {
		name := strings.Trim(match, "${}")
		switch name {
		case "__rate_interval":
			return promDuration(at.rateInterval())
		case "__interval":
			return promDuration(at.step)
		case "__range":
			return promDuration(at.window)
		case "1": // of label_replace
			return match
		}
		v := d.variable(name)
		if v == nil {
			fault = fmt.Errorf("no variable %s", name)
			return match
		}
		text, err := v.one(set[name])
		if err != nil {
			fault = err
		}
		return text
	})
	return out, fault
}

func promDuration(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// variables returns the names of the variables that a text uses, but for Grafana's own.
func variables(text string) []string {
	var all []string
	for _, m := range reference.FindAllStringSubmatch(text, -1) {
		name := m[1] + m[2]
		if !strings.HasPrefix(name, "__") && name != "1" && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

func TestInterpolation(t *testing.T) {
	d := grafanaDashboard{}
	d.Templating.List = []grafanaVariable{
		{Name: "many", Multi: true, IncludeAll: true, AllValue: ".*"}, {Name: "each", Multi: true, IncludeAll: true}, {Name: "one"},
	}
	at := timing{step: 15 * time.Second, scrape: 10 * time.Second, window: time.Hour}
	for _, c := range []struct {
		expr string
		set  values
		want string
	}{
		{`x{a=~"$many"}`, values{}, `x{a=~".*"}`},
		{`x{a=~"${many}"}`, values{"many": {"/system.slice/a b.service"}}, `x{a=~"/system\\.slice/a b\\.service"}`},
		{`x{a=~"$each"}`, values{"each": {"a", "b|c"}}, `x{a=~"(a|b\\|c)"}`},
		{`x{a="$one"}`, values{"one": {`q"\`}}, `x{a="q\"\\"}`},
		{`rate(x[$__rate_interval])`, nil, `rate(x[40000ms])`},
		{`label_replace(x, "a", "$1", "b", "(.*)")`, nil, `label_replace(x, "a", "$1", "b", "(.*)")`},
	} {
		if got, err := d.interpolate(c.expr, c.set, at); err != nil || got != c.want {
			t.Errorf("%s with %v: %s, %v; want %s", c.expr, c.set, got, err, c.want)
		}
	}
	if _, err := d.interpolate(`x{a="$nobody"}`, nil, at); err == nil {
		t.Error("a variable that does not exist is none")
	}
}
