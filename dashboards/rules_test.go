package dashboards

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/storage"
	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// ruleInterval is that of the groups.
const ruleInterval = 30 * time.Second

// evaluator runs all groups as Prometheus does: what is recorded first, because alerts are about it.
type evaluator struct{ groups []*rules.Group }

func newEvaluator(t *testing.T, engine *promql.Engine, db storage.Storage) *evaluator {
	t.Helper()
	manager := rules.NewManager(&rules.ManagerOptions{
		QueryFunc: rules.EngineQueryFunc(engine, db), NotifyFunc: func(context.Context, string, ...*rules.Alert) {}, Context: context.Background(),
		Appendable: db, Queryable: db, Logger: slog.New(slog.DiscardHandler), Parser: promQL,
	})
	e := &evaluator{}
	for _, file := range []string{"rules/recording.yaml", "rules/alerts.yaml"} {
		groups, errs := manager.LoadGroups(time.Minute, labels.EmptyLabels(), "http://prometheus.example", nil, false, file)
		for _, err := range errs {
			t.Fatal(err)
		}
		for _, key := range slices.Sorted(maps.Keys(groups)) {
			if groups[key].Interval() != ruleInterval {
				t.Errorf("%s is evaluated each %v; the tests do it each %v", key, groups[key].Interval(), ruleInterval)
			}
			e.groups = append(e.groups, groups[key])
		}
	}
	return e
}

func (e *evaluator) run(t *testing.T, from, to time.Time) {
	t.Helper()
	for at := from; !at.After(to); at = at.Add(ruleInterval) {
		for _, g := range e.groups {
			g.Eval(t.Context(), at)
			for _, r := range g.Rules() {
				if err := r.LastError(); err != nil {
					t.Fatalf("%s at %v: %v", r.Name(), at, err)
				}
			}
		}
	}
}

// firing returns the alerts of a name that fire, or of all names.
func (e *evaluator) firing(name string) []*rules.Alert {
	var all []*rules.Alert
	for _, g := range e.groups {
		for _, r := range g.AlertingRules() {
			if name != "" && r.Name() != name {
				continue
			}
			for _, a := range r.ActiveAlerts() {
				if a.State == rules.StateFiring {
					all = append(all, a)
				}
			}
		}
	}
	return all
}

type alertCase struct {
	Alert    string            `yaml:"alert"`
	Load     string            `yaml:"load"`
	Quiet    time.Duration     `yaml:"quiet"`
	Fires    time.Duration     `yaml:"fires"`
	Labels   map[string]string `yaml:"labels"`
	Resolved time.Duration     `yaml:"resolved"`
	// Blips are what it is not about, by what they are: over none of them it fires, at no time of the two hours from the beginning.
	Blips map[string]string `yaml:"blips"`
}

const blipTime = 2 * time.Hour

func alertCases(t *testing.T) []alertCase {
	t.Helper()
	text, err := os.ReadFile("testdata/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	var cases []alertCase
	if err := decoder.Decode(&cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// TestAlertsFireAndResolve has each alert come and go: not before its time, for what it is about only, and with annotations that expand.
func TestAlertsFireAndResolve(t *testing.T) {
	names, tested := knownNames(t), make(map[string]bool)
	for _, c := range alertCases(t) {
		tested[c.Alert] = true
		t.Run(c.Alert, func(t *testing.T) {
			for _, load := range append(slices.Collect(maps.Values(c.Blips)), c.Load) {
				for _, name := range loadedMetrics(load) {
					if _, there := names[name]; !there {
						t.Errorf("no metric %s", name)
					}
				}
			}
			for blip, load := range c.Blips {
				t.Run(blip, func(t *testing.T) { neverFires(t, c.Alert, load) })
			}
			db := promqltest.LoadedStorage(t, c.Load)
			defer db.Close()
			e := newEvaluator(t, promqltest.NewTestEngine(t, false, 0, 1_000_000), db)
			start := time.Unix(0, 0).UTC()
			e.run(t, start, start.Add(c.Quiet))
			if alerts := e.firing(c.Alert); len(alerts) != 0 {
				t.Errorf("after %v it fires: %v", c.Quiet, alerts[0].Labels)
			}
			e.run(t, start.Add(c.Quiet+ruleInterval), start.Add(c.Fires))
			alerts := e.firing(c.Alert)
			if len(alerts) != 1 {
				t.Fatalf("after %v there are %d alerts, want 1", c.Fires, len(alerts))
			}
			want := maps.Clone(c.Labels)
			want["alertname"] = c.Alert
			if got := alerts[0].Labels.Map(); !maps.Equal(got, want) {
				t.Errorf("labels %v, want %v", got, want)
			}
			alerts[0].Annotations.Range(func(l labels.Label) {
				if strings.Contains(l.Value, "<error") || strings.Contains(l.Value, "<no value>") || strings.Contains(l.Value, "{{") {
					t.Errorf("annotation %s: %s", l.Name, l.Value)
				}
			})
			e.run(t, start.Add(c.Fires+ruleInterval), start.Add(c.Resolved))
			if alerts := e.firing(c.Alert); len(alerts) != 0 {
				t.Errorf("after %v it still fires: %v", c.Resolved, alerts[0].Labels)
			}
		})
	}
	for _, groups := range ruleFiles(t) {
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				if r.Alert != "" && !tested[r.Alert] {
					t.Errorf("no case for the alert %s", r.Alert)
				}
			}
		}
	}
}

func neverFires(t *testing.T, alert, load string) {
	t.Helper()
	db := promqltest.LoadedStorage(t, load)
	defer db.Close()
	e := newEvaluator(t, promqltest.NewTestEngine(t, false, 0, 1_000_000), db)
	start := time.Unix(0, 0).UTC()
	for at := start; !at.After(start.Add(blipTime)); at = at.Add(ruleInterval) {
		e.run(t, at, at)
		if alerts := e.firing(alert); len(alerts) != 0 {
			t.Fatalf("after %v it fires: %v = %v", at.Sub(start), alerts[0].Labels, alerts[0].Value)
		}
	}
}

var loaded = regexp.MustCompile(`(?m)^\s+(\w+)\{`)

func loadedMetrics(load string) []string {
	var all []string
	for _, m := range loaded.FindAllStringSubmatch(load, -1) {
		all = append(all, m[1])
	}
	return all
}

// TestRulesOverTheStream evaluates all rules over the half hour of events: each that records has something to record, and those alerts fire
// that are about what happens in it, and no others.
func TestRulesOverTheStream(t *testing.T) {
	s := newStore(t)
	mesh := runMesh(t, s)
	e := newEvaluator(t, s.engine, s.db)
	e.run(t, mesh.start.Add(ruleInterval), mesh.end)
	got := make(map[string]bool)
	for _, a := range e.firing("") {
		got[a.Labels.Get("alertname")] = true
	}
	want := []string{
		"SidelightConnectHangs", "SidelightMostConnectsFail", "SidelightConnectsFail", // the black hole, the database, the flaky endpoint
		"SidelightConnectsSlow",           // a second to what is outside
		"SidelightLimitRejecting",         // narrow
		"SidelightServiceWithoutEndpoint", // empty
		"SidelightEjectionSuppressed",     // flaky
		"SidelightConfigRejected",         // the newest mesh
		"SidelightDropped",                // when the ring was full
	}
	for _, name := range want {
		if !got[name] {
			t.Errorf("%s does not fire", name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s fires", name)
	}
	for _, g := range ruleFiles(t)["rules/recording.yaml"].Groups {
		for _, r := range g.Rules {
			if vector, err := mesh.instant(t, r.Record, mesh.end); err != nil || len(vector) == 0 {
				t.Errorf("%s: nothing was recorded: %v", r.Record, err)
			}
		}
	}
}

// TestRestartRaisesNoAlert has agents follow each other on a data path that has seen a lot: what its counters say is of all its life, and no alert takes that
// for what happened since the start.
func TestRestartRaisesNoAlert(t *testing.T) {
	s := newStore(t)
	a := newAgent()
	a.trouble, a.since = noTrouble, meshStart.Add(-6*time.Hour)
	a.agents, a.alone, a.lost, a.spared = 8, time.Hour, 40, 12
	a.verdicts[verdictKey{"", "", connection.VerdictUnattended.String(), "false"}] = 25
	a.kernel.Attempts, a.kernel.Failed, a.kernel.Submitted["pre_connect"], a.kernel.Submitted["close"] = 1e6, 1e6, 1e6, 1e6
	const stop, kill = meshLength - 8*time.Minute, meshLength - 4*time.Minute
	mesh := runAgents(t, s, a, map[time.Duration]func(*agent) *agent{
		stop: func(a *agent) *agent { return a.next(false) },
		kill: func(a *agent) *agent { return a.next(true) },
	})
	e := newEvaluator(t, s.engine, s.db)
	e.run(t, mesh.start.Add(ruleInterval), mesh.start.Add(stop-ruleInterval))
	before := make(map[string]bool)
	for _, alert := range e.firing("") {
		before[alert.Labels.String()] = true
	}
	if len(before) == 0 {
		t.Error("there are no alerts before the first restart, though some connects fail")
	}
	for at := mesh.start.Add(stop); !at.After(mesh.end); at = at.Add(ruleInterval) {
		e.run(t, at, at)
		for _, alert := range e.firing("") {
			if !before[alert.Labels.String()] {
				t.Errorf("%v after the start: %s = %v", at.Sub(mesh.start), alert.Labels, alert.Value)
				before[alert.Labels.String()] = true
			}
		}
	}
}

// TestRunbook wants a section for each alert, which its annotation names, and no sections for nobody.
func TestRunbook(t *testing.T) {
	const base = "https://github.com/sidelight-mesh/sidelight/blob/main/dashboards/RUNBOOK.md#"
	sections := make(map[string]string)
	for _, part := range strings.Split(Runbook, "\n## ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		sections[strings.TrimSpace(name)] = text
	}
	for file, groups := range ruleFiles(t) {
		for _, g := range groups.Groups {
			for _, r := range g.Rules {
				if r.Alert == "" {
					continue
				}
				text, there := sections[r.Alert]
				delete(sections, r.Alert)
				if !there {
					t.Errorf("%s: %s has no section in the runbook", file, r.Alert)
					continue
				}
				for _, part := range []string{"**Means.**", "**Threshold.**", "**Do.**"} {
					if !strings.Contains(text, part) {
						t.Errorf("the runbook's section of %s has no %s", r.Alert, part)
					}
				}
				if want := base + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
					t.Errorf("%s: the runbook is at %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
				}
				if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
					t.Errorf("%s has no summary or no description", r.Alert)
				}
				if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
					t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
				}
			}
		}
	}
	for name := range sections {
		t.Errorf("the runbook has a section %s, of no alert", name)
	}
}
