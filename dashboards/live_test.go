package dashboards

import (
	"os"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/outlier"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// notThere are values of labels that did not come up while testdata/agent.prom was made. Their names are the code's.
var notThere = map[string][]string{
	"verdict": {connection.VerdictAllow.String(), connection.VerdictDeny.String(), connection.VerdictUnattended.String()},
	"cause":   {outlier.Outlier.String(), outlier.HealthCheck.String()},
	"dry_run": {"true"},
}

// free are labels that can have any value.
var free = []string{"version", "go_version", "service", "service_namespace", "endpoint", "limit", "policy", "rule", "program"}

// liveValues are what labels of the agent's own metrics are in a scrape of real agents, by metric and label.
func liveValues(t *testing.T) map[string]map[string][]string {
	t.Helper()
	text, err := os.ReadFile("testdata/agent.prom")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]map[string][]string)
	for _, lset := range seriesOf(t, text) {
		name := lset.Get("__name__")
		if all[name] == nil {
			all[name] = make(map[string][]string)
		}
		lset.Range(func(l labels.Label) { all[name][l.Name] = append(all[name][l.Name], l.Value) })
	}
	return all
}

// TestReadingsAreThoseOfAgents holds what the half hour of events has the agent tell of itself against what real ones told: all metrics, and no
// value of a label that they do not have. So a panel that has data there has data here for the same reason.
func TestReadingsAreThoseOfAgents(t *testing.T) {
	live := liveValues(t)
	a := newAgent()
	for _, e := range stream(meshLength) {
		a.now = meshLength
		a.feed(&e)
	}
	told := make(map[*self.Metric]bool)
	for _, v := range a.reading().Values {
		told[v.Metric] = true
		name := v.Metric.Prometheus
		if live[name] == nil && name != self.Runs.Prometheus && name != self.RunTime.Prometheus && name != self.MeshSuppressed.Prometheus {
			t.Errorf("no real agent told %s", name)
			continue
		}
		for i, attribute := range v.Metric.Attributes {
			label, value := labelOf(attribute), v.Attributes[i]
			if !slices.Contains(free, label) && !slices.Contains(live[name][label], value) && !slices.Contains(notThere[label], value) {
				t.Errorf("%s: %s is never %q with real agents: %v", name, label, value, live[name][label])
			}
		}
	}
	for _, m := range self.Metrics() {
		if !told[m] {
			t.Errorf("the test's agent does not tell %s, so no panel of it would be looked at", m.Prometheus)
		}
	}
}
