package metadata

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadRefusesWhatAReaderWouldTripOver(t *testing.T) {
	const requirements = "requirements: {always: It is there.}\n"
	for name, test := range map[string]struct{ text, want string }{
		"unknown key":       {"metrix: []", "field metrix not found"},
		"requirement":       {requirements + "log_attributes: [{name: a, type: int, requirement: never, description: d}]", `log_attributes: a: unknown requirement "never"`},
		"type":              {requirements + "log_attributes: [{name: a, type: float, requirement: always, description: d}]", `log_attributes: a: unknown type "float"`},
		"signal":            {requirements + "log_attributes: [{name: a, type: int, requirement: always, description: d, signals: [smoke]}]", `log_attributes: a: unknown signal "smoke"`},
		"twice":             {"span_events: [{name: a, description: d}, {name: a, description: d}]", `span_events: "a" is there twice`},
		"description":       {"span_events: [{name: a}]", `span_events: "a": name and description must not be empty`},
		"span event":        {"spans: [{name: s, description: d, events: [e]}]", `spans: s: unknown event "e"`},
		"metric attribute":  {"metrics: [{name: m, prometheus: m, kind: sum, description: d, attributes: [a]}]", `metrics: m: unknown attribute "a"`},
		"kind":              {"metrics: [{name: m, prometheus: m, kind: summary, description: d}]", `metrics: m: kind "summary" with 0 bounds`},
		"histogram":         {"metrics: [{name: m, prometheus: m, kind: histogram, description: d}]", `metrics: m: kind "histogram" with 0 bounds`},
		"family":            {"metrics: [{name: m, prometheus: p, kind: sum, description: d}]\nself_metrics: [{prometheus: p, description: d}]", `prometheus names: "p" is there twice`},
		"missing file, too": {"", "no such file"},
	} {
		path := filepath.Join(t.TempDir(), "metadata.yaml")
		if test.text != "" {
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one that says %s", name, err, test.want)
		}
	}
}

func TestReadTakesTheTable(t *testing.T) {
	table, err := Read("../metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if table.Type != "mesh" || len(table.Metrics) == 0 {
		t.Errorf("type %q, %d metrics", table.Type, len(table.Metrics))
	}
}
