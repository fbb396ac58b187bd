package otelconfig_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// TestManifestHasOneSet wants the parts of one release, which is that of the agent's own collector and of the builder.
func TestManifestHasOneSet(t *testing.T) {
	b := readManifest(t)
	set := "v" + b.Dist.Version
	goMod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := func(module string) string {
		m := regexp.MustCompile(`(?m)^\t` + regexp.QuoteMeta(module) + ` (\S+)`).FindSubmatch(goMod)
		if m == nil {
			return ""
		}
		return string(m[1])
	}
	if own := version("go.opentelemetry.io/collector/otelcol"); own != set {
		t.Errorf("the manifest has %s, the agent's collector is %s", set, own)
	}
	for _, m := range slices.Concat(b.Receivers, b.Processors, b.Exporters, b.Extensions, b.Connectors, b.Providers) {
		name, v, _ := strings.Cut(m.GoMod, " ")
		switch own := version(name); {
		case m.Path != "":
			if name != "github.com/sidelight-mesh/sidelight" {
				t.Errorf("%s is not from the module proxy", name)
			}
		case own != "" && own != v:
			t.Errorf("%s is %s in the manifest and %s in go.mod", name, v, own)
		case own == "" && v != set:
			t.Errorf("%s is %s, the set is %s", name, v, set)
		}
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(makefile), "\nOTELCOL := "+set+"\n") {
		t.Errorf("the Makefile does not build with the builder of %s", set)
	}
}

// parts are names of components without what follows the slash.
type parts struct{ receivers, processors, exporters, extensions map[string]bool }

func newParts() parts {
	return parts{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}}
}

func (p parts) use(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Receivers, Processors, Exporters, Extensions map[string]any
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []struct {
		from map[string]any
		to   map[string]bool
	}{{c.Receivers, p.receivers}, {c.Processors, p.processors}, {c.Exporters, p.exporters}, {c.Extensions, p.extensions}} {
		for id := range kind.from {
			name, _, _ := strings.Cut(id, "/")
			kind.to[name] = true
		}
	}
}

// TestManifestHasWhatExamplesName wants no part that no example names, and none missing, by what the collector itself lists.
func TestManifestHasWhatExamplesName(t *testing.T) {
	out, err := exec.Command(collectorProgram(t), "components").Output()
	if err != nil {
		t.Fatal(err)
	}
	type named []struct {
		Name string `yaml:"name"`
	}
	var listed struct{ Receivers, Processors, Exporters, Extensions named }
	if err := yaml.Unmarshal(out, &listed); err != nil {
		t.Fatal(err)
	}
	used := newParts()
	agent, gateway := examples(t)
	for _, file := range slices.Concat(agent, gateway) {
		used.use(t, file)
	}
	for _, kind := range []struct {
		name string
		has  named
		used map[string]bool
	}{
		{"receiver", listed.Receivers, used.receivers},
		{"processor", listed.Processors, used.processors},
		{"exporter", listed.Exporters, used.exporters},
		{"extension", listed.Extensions, used.extensions},
	} {
		if len(kind.has) == 0 {
			t.Errorf("the collector has no %s", kind.name)
		}
		for _, c := range kind.has {
			if !kind.used[c.Name] {
				t.Errorf("no example names the %s %s, which is in the manifest", kind.name, c.Name)
			}
			delete(kind.used, c.Name)
		}
		for name := range kind.used {
			t.Errorf("examples name the %s %s, which is not in the manifest", kind.name, name)
		}
	}
}

func validate(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(collectorProgram(t), append([]string{"validate"}, args...)...)
	cmd.Env = environment(nil)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestCollectorTakesEveryFile has all examples validated by the collector that the builder made, with nothing set: defaults are complete. Those of
// agents too, since the receiver is compiled in.
func TestCollectorTakesEveryFile(t *testing.T) {
	agent, gateway := examples(t)
	for _, file := range slices.Concat(agent, gateway) {
		t.Run(file, func(t *testing.T) {
			if out, err := validate(t, "--config", "file:"+file); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// TestCollectorNamesFaults shows that the above would fail: each part reads its own configuration.
func TestCollectorNamesFaults(t *testing.T) {
	for file, faults := range map[string]map[string]string{
		"agent-to-gateway.yaml": {
			"receivers::mesh::report_interval: 1ms": "report_interval: must be at least 100ms", // said by our own receiver
		},
		"gateway/grafana.yaml": {
			"exporters::prometheus_remote_write::max_batch_size_bytes: -1": "prometheus_remote_write",
			"exporters::otlp_http/loki::logs_endpoit: http://x":            "logs_endpoit",
			"extensions::file_storage::direktory: /x":                      "direktory",
		},
		"gateway/clickhouse.yaml":     {"exporters::clickhouse::endpoint: not-an-address://": "clickhouse"},
		"gateway/kafka.yaml":          {"exporters::kafka::producer::compression: squeeze": "squeeze"},
		"gateway/kubernetes.yaml":     {"processors::k8s_attributes::auth_type: guess": "guess"},
		"gateway/fleet-balancer.yaml": {"exporters::load_balancing/traces::resolver::dnss: {}": "dnss"},
		"gateway/fleet-sampler.yaml":  {"processors::tail_sampling::decision_weight: 1s": "decision_weight"},
	} {
		for fault, want := range faults {
			t.Run(file+" "+fault, func(t *testing.T) {
				if out, err := validate(t, "--config", "file:"+file, "--config", "yaml:"+fault); err == nil || !strings.Contains(out, want) {
					t.Errorf("%v, want an error with %q: %s", err, want, out)
				}
			})
		}
	}
}

// TestReceiverOutsideTheAgent says what the receiver does where nobody gave it a source: it is configured, and refuses to start, so that
// nobody takes silence for a network without connections.
func TestReceiverOutsideTheAgent(t *testing.T) {
	address := otlptest.FreeAddress(t)
	cmd := exec.Command(collectorProgram(t), "--config", "file:agent-to-gateway.yaml", "--set", "service::telemetry::metrics::level=none")
	cmd.Env = environment(map[string]string{"STATE_DIRECTORY": t.TempDir(), "SIDELIGHT_GATEWAY": "http://" + address, "SIDELIGHT_GATEWAY_INSECURE": "true"})
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no source of connections in this process; run it inside sidelight") {
		t.Errorf("%v, want the receiver to refuse: %s", err, out)
	}
}

// offered matches a line that is commented out.
var offered = regexp.MustCompile(`(?m)^( *)# ( *[a-z_]+:(?: .*)?)$`)

// TestCollectorTakesWhatCommentsOffer validates examples with what stands in their comments.
func TestCollectorTakesWhatCommentsOffer(t *testing.T) {
	program := collectorProgram(t)
	_, gateway := examples(t)
	found := 0
	for _, file := range append(gateway, "agent-to-gateway.yaml") {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found += len(offered.FindAll(text, -1))
			whole := filepath.Join(t.TempDir(), "whole.yaml")
			if err := os.WriteFile(whole, offered.ReplaceAll(text, []byte("$1$2")), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "validate", "--config", "file:"+whole)
			cmd.Env = environment(map[string]string{"KAFKA_PASSWORD": "secret"})
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	if found < 10 {
		t.Errorf("comments offer %d lines, want more", found)
	}
}

// TestReadmeNamesVariables wants each variable that an example reads in the table of README.md.
func TestReadmeNamesVariables(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	agent, gateway := examples(t)
	for _, file := range slices.Concat(agent, gateway) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(readme), "("+file+")") {
			t.Errorf("README.md does not name %s", file)
		}
		for _, m := range regexp.MustCompile(`\$\{env:(\w+)`).FindAllSubmatch(text, -1) {
			if !strings.Contains(string(readme), "`"+string(m[1])+"`") {
				t.Errorf("README.md does not name %s of %s", m[1], file)
			}
		}
	}
}
