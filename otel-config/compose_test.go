package otelconfig_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

const composeDirectory = "compose"

// composeFile has what may be in compose.yaml. What is not here was not thought about.
type composeFile struct {
	Name     string                    `yaml:"name"`
	Services map[string]composeService `yaml:"services"`
	Volumes  map[string]struct{}       `yaml:"volumes"`
}

type composeService struct {
	Image string `yaml:"image"`
	Build *struct {
		Context    string `yaml:"context"`
		Dockerfile string `yaml:"dockerfile"`
	} `yaml:"build"`
	Command         []string          `yaml:"command"`
	Environment     map[string]string `yaml:"environment"`
	Restart         string            `yaml:"restart"`
	PID             string            `yaml:"pid"`
	Cgroup          string            `yaml:"cgroup"`
	NetworkMode     string            `yaml:"network_mode"`
	User            string            `yaml:"user"`
	ReadOnly        bool              `yaml:"read_only"`
	CapDrop         []string          `yaml:"cap_drop"`
	CapAdd          []string          `yaml:"cap_add"`
	SecurityOpt     []string          `yaml:"security_opt"`
	StopGracePeriod string            `yaml:"stop_grace_period"`
	Ports           []string          `yaml:"ports"`
	DependsOn       []string          `yaml:"depends_on"`
	Volumes         []composeVolume   `yaml:"volumes"`
}

type composeVolume struct {
	Type     string `yaml:"type"`
	Source   string `yaml:"source"`
	Target   string `yaml:"target"`
	ReadOnly bool   `yaml:"read_only"`
	Bind     *struct {
		Propagation    string `yaml:"propagation"`
		CreateHostPath *bool  `yaml:"create_host_path"`
	} `yaml:"bind"`
}

// strictly reads YAML in which every key is known.
func strictly(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		t.Fatalf("%s: more than one document", file)
	}
}

func compose(t *testing.T) composeFile {
	t.Helper()
	var c composeFile
	strictly(t, filepath.Join(composeDirectory, "compose.yaml"), &c)
	return c
}

// mounted is the file here that a container has at a path.
func (s composeService) mounted(t *testing.T, target string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if rest, ok := strings.CutPrefix(target, v.Target); ok && v.Type == "bind" && (rest == "" || rest[0] == '/') {
			return filepath.Join(composeDirectory, v.Source, rest)
		}
	}
	t.Fatalf("nothing is mounted at %s", target)
	return ""
}

// argument is the value of a flag in one word, as in -config.file=X.
func (s composeService) argument(t *testing.T, flag string) string {
	t.Helper()
	for _, word := range s.Command {
		if value, ok := strings.CutPrefix(word, flag+"="); ok {
			return value
		}
	}
	t.Fatalf("%q has no %s", s.Command, flag)
	return ""
}

// TestComposeBySpecification has the file read, and checked against the schema, by the library that Docker's command line has.
func TestComposeBySpecification(t *testing.T) {
	program, file := backendsProgram(t), filepath.Join(composeDirectory, "compose.yaml")
	out, err := exec.Command(program, "compose", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var project struct{ Services map[string]any }
	if err := json.Unmarshal(out, &project); err != nil || len(project.Services) != len(compose(t).Services) {
		t.Errorf("%v: %d services, want %d", err, len(project.Services), len(compose(t).Services))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string][2]string{
		"unknown key":    {"    cgroup: host\n", "    cgrope: host\n"},
		"unknown volume": {"{type: volume, source: loki,", "{type: volume, source: lokki,"},
		"no such port":   {"127.0.0.1:3100:3100", "127.0.0.1:3100:999999"},
	} {
		faulty := filepath.Join(t.TempDir(), "compose.yaml")
		if !bytes.Contains(text, []byte(fault[0])) {
			t.Fatalf("compose.yaml has no %q", fault[0])
		}
		if err := os.WriteFile(faulty, bytes.ReplaceAll(text, []byte(fault[0]), []byte(fault[1])), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(program, "compose", faulty).CombinedOutput(); err == nil {
			t.Errorf("%s was not found: %s", name, out)
		}
	}
}

// TestComposeNamesWhatExists wants files to be there, volumes to be declared and used, images to have a version, and nothing to listen to the world.
func TestComposeNamesWhatExists(t *testing.T) {
	c := compose(t)
	want := []string{"grafana", "loki", "prometheus", "sidelight", "tempo"}
	used := make(map[string]bool)
	pinned := regexp.MustCompile(`^[a-z]+/[a-z]+:v?\d+\.\d+\.\d+$`)
	for name, s := range c.Services {
		if !slices.Contains(want, name) {
			t.Errorf("%s is not among %q", name, want)
		}
		mounts := slices.ContainsFunc(s.Volumes, func(v composeVolume) bool { return v.Type == "bind" })
		if mounts && !slices.Contains(s.SecurityOpt, "label=disable") {
			t.Errorf("%s: SELinux, where it is in force, would not let it read what is mounted", name)
		}
		if s.Build == nil && !pinned.MatchString(s.Image) {
			t.Errorf("%s: the image %s has no version of three numbers", name, s.Image)
		}
		if s.Build != nil {
			if _, err := os.Stat(filepath.Join(composeDirectory, s.Build.Context, s.Build.Dockerfile)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, other := range s.DependsOn {
			if _, ok := c.Services[other]; !ok {
				t.Errorf("%s depends on %s, which is not there", name, other)
			}
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: the port %s is open to others", name, port)
			}
		}
		targets := make(map[string]bool)
		for _, v := range s.Volumes {
			if targets[v.Target] || !path.IsAbs(v.Target) {
				t.Errorf("%s: %s is mounted twice, or not absolute", name, v.Target)
			}
			targets[v.Target] = true
			switch {
			case v.Type == "volume":
				used[v.Source] = true
				if _, ok := c.Volumes[v.Source]; !ok {
					t.Errorf("%s: no volume %s", name, v.Source)
				}
			case v.Type != "bind":
				t.Errorf("%s: %s is a %s", name, v.Target, v.Type)
			case v.Bind == nil || v.Bind.CreateHostPath == nil || *v.Bind.CreateHostPath:
				t.Errorf("%s: where %s is missing, Docker would make a directory", name, v.Source)
			case strings.HasPrefix(v.Source, "/sys/fs/"): // of the host
			case !v.ReadOnly:
				t.Errorf("%s: %s can be written to", name, v.Source)
			default:
				if _, err := os.Stat(filepath.Join(composeDirectory, v.Source)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	if len(c.Services) != len(want) {
		t.Errorf("%d services, want %q", len(c.Services), want)
	}
	for volume := range c.Volumes {
		if !used[volume] {
			t.Errorf("nobody uses the volume %s", volume)
		}
	}
	for _, host := range []string{
		c.Services["prometheus"].argument(t, "--web.listen-address"), c.Services["grafana"].Environment["GF_SERVER_HTTP_ADDR"], composeAgent(t).MetricsAddress,
	} {
		if !strings.HasPrefix(host, "127.0.0.1") {
			t.Errorf("%s listens to others", host)
		}
	}
}

// composeAgent is what the agent makes of its configuration.
func composeAgent(t *testing.T) config.Config {
	t.Helper()
	s := compose(t).Services["sidelight"]
	i := slices.Index(s.Command, "--config")
	if i < 0 || s.Command[0] != "run" {
		t.Fatalf("the agent runs %q", s.Command)
	}
	c := config.Default()
	if err := config.Load(s.mounted(t, s.Command[i+1]), &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// published says whether a port of this host is one of a service's.
func (c composeFile) published(service, port string) bool {
	return slices.ContainsFunc(c.Services[service].Ports, func(p string) bool { return strings.HasPrefix(p, "127.0.0.1:"+port+":") })
}

func TestComposeAgent(t *testing.T) {
	file, agent := compose(t), composeAgent(t)
	s := file.Services["sidelight"]
	all, err := datapath.Capabilities()
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, c := range all {
		documented = append(documented, strings.TrimPrefix(c.Name, "CAP_"))
	}
	slices.Sort(documented)
	got := slices.Sorted(slices.Values(s.CapAdd))
	if !slices.Equal(got, documented) || !slices.Equal(s.CapDrop, []string{"ALL"}) {
		t.Errorf("capabilities are %q less %q, want %q and no others", got, s.CapDrop, documented)
	}
	if s.PID != "host" || s.Cgroup != "host" || s.NetworkMode != "host" {
		t.Errorf("pid %q, cgroup %q, network %q; want the host's", s.PID, s.Cgroup, s.NetworkMode)
	}
	targets := make(map[string]composeVolume)
	for _, v := range s.Volumes {
		targets[v.Target] = v
	}
	if v := targets[agent.Cgroup]; v.Source != "/sys/fs/cgroup" || !v.ReadOnly {
		t.Errorf("cgroup %s is %s of the host", agent.Cgroup, v.Source)
	}
	if v := targets[path.Dir(agent.PinDirectory)]; v.Source != "/sys/fs/bpf" || v.ReadOnly {
		t.Errorf("pin_directory %s is in %s of the host", agent.PinDirectory, v.Source)
	}
	if v := targets[agent.StateDirectory]; v.Type != "volume" {
		t.Errorf("state_directory %s does not outlive the container", agent.StateDirectory)
	}
	to := make(map[string]string)
	for _, e := range agent.OTLP.Exporters() {
		u, err := url.Parse(e.Endpoint)
		if err != nil {
			t.Fatal(err)
		}
		to[e.Signal] = u.Port()
	}
	if len(to) != 2 || !file.published("loki", to["logs"]) || !file.published("tempo", to["traces"]) {
		t.Errorf("the agent sends to ports %v, want logs to Loki, traces to Tempo, and no metrics: they are scraped", to)
	}
}

// TestComposePrometheus has Prometheus' own reader check its configuration, and the rules where they are mounted.
func TestComposePrometheus(t *testing.T) {
	s := compose(t).Services["prometheus"]
	file := s.argument(t, "--config.file")
	var c struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName string `yaml:"job_name"`
			Static  []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	text, err := os.ReadFile(s.mounted(t, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if len(c.ScrapeConfigs) != 1 || c.ScrapeConfigs[0].JobName != "sidelight" || len(c.ScrapeConfigs[0].Static) != 1 ||
		!slices.Equal(c.ScrapeConfigs[0].Static[0].Targets, []string{composeAgent(t).MetricsAddress}) {
		t.Errorf("scraped is %+v, want the job sidelight, of the agent at %s", c.ScrapeConfigs, composeAgent(t).MetricsAddress)
	}
	if len(c.RuleFiles) == 0 {
		t.Error("there are no rules")
	}
	// As in the container.
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, path.Base(file)), text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range c.RuleFiles {
		dir := path.Dir(pattern)
		rules := s.mounted(t, path.Join(path.Dir(file), dir))
		if _, err := os.Stat(filepath.Join(rules, "alerts.yaml")); err != nil {
			t.Error(err)
		}
		if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(rules)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(backendsProgram(t), "prometheus-config", filepath.Join(root, path.Base(file))).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestComposeGrafana wants all dashboards provisioned, and a data source of each type that they ask for, where the service is.
func TestComposeGrafana(t *testing.T) {
	file := compose(t)
	s := file.Services["grafana"]
	var dashboards struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name           string `yaml:"name"`
			Folder         string `yaml:"folder"`
			Type           string `yaml:"type"`
			AllowUIUpdates bool   `yaml:"allowUiUpdates"`
			Options        struct {
				Path string `yaml:"path"`
			} `yaml:"options"`
		} `yaml:"providers"`
	}
	strictly(t, s.mounted(t, "/etc/grafana/provisioning/dashboards/sidelight.yaml"), &dashboards)
	if len(dashboards.Providers) != 1 || dashboards.Providers[0].Type != "file" || dashboards.APIVersion != 1 {
		t.Fatalf("providers are %+v", dashboards)
	}
	all, err := filepath.Glob("../dashboards/*.json")
	if err != nil || len(all) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	types := make(map[string]bool)
	for _, dashboard := range all {
		target := path.Join(dashboards.Providers[0].Options.Path, filepath.Base(dashboard))
		if got := s.mounted(t, target); filepath.Clean(got) != filepath.Clean(dashboard) {
			t.Errorf("%s is %s, want %s", target, got, dashboard)
		}
		text, err := os.ReadFile(dashboard)
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			Templating struct {
				List []struct {
					Type  string `json:"type"`
					Query any    `json:"query"`
				} `json:"list"`
			} `json:"templating"`
		}
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		for _, v := range d.Templating.List {
			if v.Type == "datasource" {
				types[v.Query.(string)] = true
			}
		}
	}
	s.mounted(t, s.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name      string         `yaml:"name"`
			UID       string         `yaml:"uid"`
			Type      string         `yaml:"type"`
			Access    string         `yaml:"access"`
			URL       string         `yaml:"url"`
			IsDefault bool           `yaml:"isDefault"`
			JSONData  map[string]any `yaml:"jsonData"`
		} `yaml:"datasources"`
	}
	name := s.mounted(t, "/etc/grafana/provisioning/datasources/sidelight.yaml")
	strictly(t, name, &sources)
	uids := make(map[string]bool)
	for _, d := range sources.Datasources {
		uids[d.UID] = true
		if !types[d.Type] {
			t.Errorf("no dashboard asks for a %s", d.Type)
		}
		delete(types, d.Type)
		u, err := url.Parse(d.URL)
		if err != nil {
			t.Fatal(err)
		}
		there := file.published(d.UID, u.Port())
		if d.Type == "prometheus" {
			there = u.Host == file.Services["prometheus"].argument(t, "--web.listen-address")
		}
		if !there {
			t.Errorf("%s is not at %s", d.Name, d.URL)
		}
	}
	// The one that is in its place is Loki.
	delete(types, "victoriametrics-logs-datasource")
	for missing := range types {
		t.Errorf("dashboards ask for a %s, which is not there", missing)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	references := regexp.MustCompile(`datasourceUid: (\w+)`).FindAllSubmatch(text, -1)
	if len(references) == 0 {
		t.Error("nothing leads from one data source to another")
	}
	for _, m := range references {
		if !uids[string(m[1])] {
			t.Errorf("no data source has the uid %s", m[1])
		}
	}
}

// TestComposeStores wants Loki and Tempo to listen where they are published, and to write to their volumes. Neither can be had here to read its own
// configuration.
func TestComposeStores(t *testing.T) {
	file := compose(t)
	for name, receiver := range map[string]string{"loki": "", "tempo": "4317"} {
		s := file.Services[name]
		var c struct {
			Server struct {
				Port string `yaml:"http_listen_port"`
			} `yaml:"server"`
		}
		text, err := os.ReadFile(s.mounted(t, s.argument(t, "-config.file")))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		if !file.published(name, c.Server.Port) {
			t.Errorf("%s listens on %s, published is %q", name, c.Server.Port, s.Ports)
		}
		if receiver != "" && (!file.published(name, receiver) || !strings.Contains(string(text), "endpoint: 0.0.0.0:"+receiver+"\n")) {
			t.Errorf("%s does not take OTLP on %s", name, receiver)
		}
		for _, p := range regexp.MustCompile(`(?m)(?:path|path_prefix|_directory): (/\S+)$`).FindAllSubmatch(text, -1) {
			if !slices.ContainsFunc(s.Volumes, func(v composeVolume) bool {
				return v.Type == "volume" && (string(p[1]) == v.Target || strings.HasPrefix(string(p[1]), v.Target+"/"))
			}) {
				t.Errorf("%s writes to %s, which is on no volume", name, p[1])
			}
		}
	}
}
