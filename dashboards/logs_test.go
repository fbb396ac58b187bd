package dashboards

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
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

// victoriaLogsVersion is that which the module of its build names. The Makefile builds the same.
func victoriaLogsVersion(t *testing.T) string {
	t.Helper()
	read := func(file, pattern string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s does not name a version of VictoriaLogs", file)
		}
		return string(m[1])
	}
	version := read("backends/victorialogs/go.mod", `github\.com/VictoriaMetrics/VictoriaLogs (v\S+)`)
	if built := read("../Makefile", `(?m)^VICTORIALOGS := (\S+)$`); built != version {
		t.Fatalf("the Makefile builds VictoriaLogs %s, its module has %s", built, version)
	}
	return version
}

// lacks leaves a test out for want of something, but in CI.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("SIDELIGHT_REQUIRE_TOOLS") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// startVictoriaLogs starts what "make victoria-logs" builds.
func startVictoriaLogs(t *testing.T) victoriaLogs {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		lacks(t, err.Error())
	}
	program := filepath.Join(cache, "sidelight-tools", "victoria-logs-"+victoriaLogsVersion(t))
	if _, err := os.Stat(program); err != nil {
		lacks(t, "no VictoriaLogs: make victoria-logs builds it")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := victoriaLogs{address: l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	// A recording is of some day: it must not be too old.
	cmd := exec.CommandContext(t.Context(), program, "-httpListenAddr="+v.address, "-storageDataPath="+t.TempDir(), "-retentionPeriod=100y")
	cmd.Stderr = &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the context is done before
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if response, err := http.Get("http://" + v.address + "/health"); err == nil {
			_ = response.Body.Close()
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("VictoriaLogs does not start: %s", said.String())
		}
	}
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
	dir := t.TempDir()
	program, config := filepath.Join(dir, "sidelight"), filepath.Join(dir, "otel.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, toVictoriaLogs, v.address), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run("go", "build", "-o", program, "../agent/cmd/sidelight")
	run(program, "replay", "../agent/cmd/sidelight/testdata/recordings/mix.rec", "--access-log", "off", "--otel-config", config)
	for deadline := time.Now().Add(20 * time.Second); len(v.query(t, "*")) < 27; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d records came, want 27", len(v.query(t, "*")))
		}
	}
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
