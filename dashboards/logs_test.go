package dashboards

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// signalTargets returns the queries of a dashboard for logs or traces.
func (d *grafanaDashboard) signalTargets(kind string) map[string]grafanaTarget {
	all := make(map[string]grafanaTarget)
	for _, p := range d.panels() {
		for _, target := range p.Targets {
			if target.Datasource.Type == kind {
				all[d.file+"/"+p.Title] = target
			}
		}
	}
	return all
}

var (
	attributeName = regexp.MustCompile(`\b(?:sidelight|network|service|client|server|process|container|k8s)(?:\.\w+)+`)
	lokiName      = regexp.MustCompile(`\b(?:sidelight|network|service|client|server|process|container|k8s)(?:_\w+)+`)
)

// TestLogAndTraceQueriesNameWhatExists holds the attributes in queries for logs and traces against the table. That the queries parse is checked by
// gen/src/queries.mts, and of VictoriaLogs below.
func TestLogAndTraceQueriesNameWhatExists(t *testing.T) {
	table, err := metadata.Read("../collector/meshreceiver/metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	has := func(name, signal string) bool {
		same := func(a metadata.Attribute) bool { return a.Name == name && slices.Contains(a.Signals, signal) }
		return slices.ContainsFunc(table.LogAttributes, same) || slices.ContainsFunc(table.ResourceAttributes, same)
	}
	// Loki makes underscores of dots: so a name is looked for among those with underscores.
	underscored := make(map[string]string)
	for _, a := range append(slices.Clone(table.LogAttributes), table.ResourceAttributes...) {
		underscored[strings.ReplaceAll(a.Name, ".", "_")] = a.Name
	}
	for _, d := range load(t) {
		found := 0
		for where, target := range d.signalTargets(victoriaLogsType) {
			for _, name := range attributeName.FindAllString(target.Expr, -1) {
				if found++; !has(name, "logs") {
					t.Errorf("%s: no log record has %s", where, name)
				}
			}
		}
		for where, target := range d.signalTargets(tempoType) {
			for _, name := range attributeName.FindAllString(strings.NewReplacer("resource.", "", "span.", "").Replace(target.Query), -1) {
				if found++; !has(name, "traces") {
					t.Errorf("%s: no span has %s", where, name)
				}
			}
		}
		for where, target := range d.signalTargets(lokiType) {
			for _, name := range lokiName.FindAllString(reference.ReplaceAllString(target.Expr, ""), -1) {
				if found++; !has(underscored[name], "logs") {
					t.Errorf("%s: no log record has %s", where, name)
				}
			}
		}
		// Those with the variables for logs have the panels.
		if wants := d.variable("loki") != nil; wants && found < 10 || !wants && found != 0 {
			t.Errorf("%s: %d names of attributes", d.file, found)
		}
	}
}

// victoriaLogs is a running VictoriaLogs.
type victoriaLogs struct{ address string }

// startVictoriaLogs starts what "make victoria-logs" builds.
func startVictoriaLogs(t *testing.T) victoriaLogs {
	t.Helper()
	program := builtBackend(t, "victorialogs", "victoria-logs", "VICTORIALOGS", "github.com/VictoriaMetrics/VictoriaLogs")
	v := victoriaLogs{address: otlptest.FreeAddress(t)}
	// A recording is of some day: it must not be too old.
	startBackend(t, "http://"+v.address+"/health", program, "-httpListenAddr="+v.address, "-storageDataPath="+t.TempDir(), "-retentionPeriod=100y")
	return v
}

// query returns the records that a query finds.
func (v victoriaLogs) query(t *testing.T, expr string) []map[string]string {
	t.Helper()
	response, err := http.PostForm("http://"+v.address+"/select/logsql/query", url.Values{"query": {expr}})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var all []map[string]string
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", expr, response.StatusCode, lines.Text())
		}
		record := make(map[string]string)
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			t.Fatalf("%s: %v in %s", expr, err, lines.Text())
		}
		all = append(all, record)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// await waits until it shows so many records.
func (v victoriaLogs) await(t *testing.T, records int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		shown := len(v.query(t, "*"))
		if shown == records {
			return
		}
		if shown > records || time.Now().After(deadline) {
			t.Fatalf("%d records came, want %d", shown, records)
		}
	}
}

const toVictoriaLogs = `
receivers: {mesh: {}}
exporters: {otlp_http: {logs_endpoint: "http://%s/insert/opentelemetry/v1/logs", compression: none}}
service: {pipelines: {logs: {receivers: [mesh], exporters: [otlp_http]}}}
`

// TestLogPanelsInVictoriaLogs has "sidelight replay" send the access log of a recording to a real VictoriaLogs, and asks it what the log panels ask.
func TestLogPanelsInVictoriaLogs(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a VictoriaLogs")
	}
	v := startVictoriaLogs(t)
	send(t, "mix", fmt.Sprintf(toVictoriaLogs, v.address))
	v.await(t, 27)
	asked := 0
	for _, d := range load(t) {
		for where, target := range d.signalTargets(victoriaLogsType) {
			for _, c := range []struct {
				role []string
				want int
			}{{nil, 27}, {[]string{"client"}, 15}, {[]string{"server"}, 12}} {
				asked++
				set := values{"role": c.role, "service_namespace": {"shop"}, "service": {"cart"}}
				if d.variable("role") == nil {
					c.want = 0 // it is about a service, and the recording has no mesh
				}
				expr, err := d.interpolate(target.Expr, set, anyTiming)
				if err != nil {
					t.Fatalf("%s: %v", where, err)
				}
				records := v.query(t, expr)
				if len(records) != c.want {
					t.Errorf("%s with role %v: %d lines, want %d: %s", where, c.role, len(records), c.want, expr)
				}
				for _, r := range records {
					// What the panel shows, and by what one comes to the trace.
					want := fmt.Sprintf("%s %s %s:%s %s sent=%s received=%s", r["sidelight.role"], r["service.name"], r["network.peer.address"],
						r["network.peer.port"], r["sidelight.reason"], r["sidelight.sent_bytes"], r["sidelight.received_bytes"])
					if strings.TrimSpace(r["_msg"]) != want || len(r["trace_id"]) != 32 {
						t.Errorf("%s: a line %q of the trace %q, want %q", where, r["_msg"], r["trace_id"], want)
					}
				}
			}
		}
	}
	if asked != 9 {
		t.Errorf("%d queries, want 3 panels with 3 roles", asked)
	}
}
