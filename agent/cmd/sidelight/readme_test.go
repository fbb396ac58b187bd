package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	"github.com/sidelight-mesh/sidelight/collector/tail"
)

const root = "../../.."

// fenced returns the blocks of README in one language.
func fenced(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("README has no %s block", language)
	}
	return blocks
}

// TestReadmeCommands runs every command of README, each as it stands but for what would take long, or would touch the machine's own
// cgroups, ports and state.
func TestReadmeCommands(t *testing.T) {
	needRoot(t)
	var commands []string
	for _, block := range fenced(t, "sh") {
		commands = append(commands, strings.Split(strings.TrimSpace(block), "\n")...)
	}
	address, recorded, recording, mesh := "", "", "", ""
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			switch {
			case command == "make test":
				runIn(t, root, "make", "--dry-run", "test") // it is what runs this
			case command == "make demo":
				out := runIn(t, root, "make", "demo", "DEMO_FLAGS=--duration 3s")
				if !strings.Contains(out, "The account closes: every connection is accounted for.") {
					t.Errorf("got: %s", out)
				}
			case command == "make demo DEMO_FLAGS=--mesh":
				out := runIn(t, root, "make", "demo", "DEMO_FLAGS=--mesh --duration 12s")
				if !strings.Contains(out, "The account closes: every connection is accounted for.") || strings.Contains(out, "\n  no ") {
					t.Errorf("got: %s", out)
				}
			case command == "./bin/sidelight check":
				out := runIn(t, root, program, "check")
				if strings.Contains(out, "\nNO ") || !strings.Contains(out, "programs pass this kernel's verifier") {
					t.Errorf("got: %s", out)
				}
			case strings.HasPrefix(command, "sudo ./bin/sidelight run"):
				args := strings.Fields(strings.TrimPrefix(command, "sudo ./bin/sidelight run"))
				for i, arg := range args {
					switch arg {
					case "--otel-config":
						args[i+1] = stateInside(t, filepath.Join(root, args[i+1]))
					case "--mesh":
						args[i+1] = filepath.Join(root, args[i+1])
						mesh = args[i+1]
					}
				}
				a := startAgent(t, newCgroup(t), append([]string{"--config", writeConfig(t)}, args...)...)
				address = a.Address
				a.stop()
			case strings.HasPrefix(command, "sudo ./bin/sidelight record "):
				recording = filepath.Join(t.TempDir(), "readme.rec")
				args := strings.Fields(strings.TrimPrefix(command, "sudo ./bin/sidelight "))
				for i, arg := range args {
					switch arg {
					case "--output":
						recorded, args[i+1] = args[i+1], recording
					case "--duration":
						args[i+1] = "1s"
					}
				}
				runIn(t, root, append([]string{program}, append(args, "--cgroup", newCgroup(t))...)...)
				recording = readFile(t, recording)
			case strings.HasPrefix(command, "./bin/sidelight replay "+recorded+" "):
				dir := t.TempDir()
				writeFile(t, filepath.Join(dir, recorded), recording)
				out := runIn(t, dir, append([]string{program}, strings.Fields(command)[1:]...)...)
				if !strings.Contains(out, "0 events or connections unaccounted") {
					t.Errorf("got: %s", out)
				}
				for _, file := range []string{"access.log", "metrics.prom"} {
					readFile(t, filepath.Join(dir, file))
				}
			case strings.HasPrefix(command, "./bin/sidelight mesh validate "):
				out := runIn(t, root, append([]string{program}, strings.Fields(command)[1:]...)...)
				if !strings.HasSuffix(out, ": valid\n") || strings.Contains(out, "warning") {
					t.Errorf("got: %s", out)
				}
			case command == "sudo ./bin/sidelight mesh dump":
				config := writeConfig(t)
				a := startAgent(t, newCgroup(t), "--config", config, "--mesh", mesh)
				out := runIn(t, root, program, "mesh", "dump", "--state-directory", filepath.Join(filepath.Dir(config), "state"))
				for _, want := range []string{"generation 1 in force, 0 inputs rejected\n", "shop/cart-1", "service shop/cart", "allow shop/cart rule 0"} {
					if !strings.Contains(out, want) {
						t.Errorf("it lacks %q: %s", want, out)
					}
				}
				a.stop()
			case strings.HasPrefix(command, "sudo ./bin/sidelight why "):
				config := writeConfig(t)
				a := startAgent(t, newCgroup(t), "--config", config, "--mesh", mesh)
				args := append(strings.Fields(command)[2:], "--state-directory", filepath.Join(filepath.Dir(config), "state"))
				out := runIn(t, root, append([]string{program}, args...)...)
				for _, want := range []string{"shop/web", "shop/cart-1", "allow by allow shop/cart rule 0", "outcome"} {
					if !strings.Contains(out, want) {
						t.Errorf("it lacks %q: %s", want, out)
					}
				}
				a.stop()
			case command == "sudo ./bin/sidelight uninstall":
				l := newLasting(t, newCgroup(t))
				l.restart()
				l.stop()
				if out := runIn(t, root, program, "uninstall", "--pin-directory", l.pins); out != "removed "+l.pins+"\n" {
					t.Errorf("got: %s", out)
				}
			case strings.HasPrefix(command, "sudo ./bin/sidelight top"), command == "sudo ./bin/sidelight status":
				config := writeConfig(t)
				a := startAgent(t, newCgroup(t), "--config", config)
				args := append(strings.Fields(command)[2:], "--state-directory", filepath.Join(filepath.Dir(config), "state"))
				if args[0] == "top" {
					args = append(args, "--once", "--interval", "100ms") // there is no terminal
				}
				if out := runIn(t, root, append([]string{program}, args...)...); !strings.Contains(out, "edges") {
					t.Errorf("got: %s", out)
				}
				a.stop()
			case strings.HasPrefix(command, "sudo ./bin/sidelight tail '"):
				config := writeConfig(t)
				state := filepath.Join(filepath.Dir(config), "state")
				a := startAgent(t, newCgroup(t), "--config", config)
				follower := startCommand(t, "tail", "--state-directory", state, strings.Split(command, "'")[1])
				waitReaders(t, state, 1)
				if err := follower.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				follower.end()
				a.stop()
			case command == "source <(./bin/sidelight completion bash)":
				runIn(t, root, program, "completion", "bash")
			case command == "make man":
				runIn(t, root, "make", "--dry-run", "man") // TestMan runs it
			case command == "./bin/sidelight audit":
				a := startAgent(t, newCgroup(t))
				if out := runIn(t, root, program, "audit", "--metrics-address", a.Address); !strings.Contains(out, "unaccounted   0\n") {
					t.Errorf("got: %s", out)
				}
				a.stop()
			case strings.HasPrefix(command, "curl -s http://"+config.Default().MetricsAddress):
				if address == "" {
					t.Fatal("README shows it before anything runs")
				}
				a := startAgent(t, newCgroup(t))
				out := runIn(t, root, "curl", "-s", "http://"+a.Address+strings.TrimPrefix(command, "curl -s http://"+config.Default().MetricsAddress))
				if !strings.Contains(out, "sidelight_accounting_unaccounted 0") {
					t.Errorf("got: %s", out)
				}
				a.stop()
			default:
				t.Error("no test for this command")
			}
		})
	}
}

// stateInside copies a collector configuration with its queue in a directory of the test's.
func stateInside(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	inside := bytes.ReplaceAll(text, []byte("/var/lib/sidelight/queue"), []byte(filepath.Join(dir, "queue")))
	path := filepath.Join(dir, "collector.yaml")
	if err := os.WriteFile(path, inside, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func runIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestReadmeFlags wants each table of flags to have every flag of its command, with its default, and nothing else.
func TestReadmeFlags(t *testing.T) {
	text := readFile(t, filepath.Join(root, "README.md"))
	for _, command := range []*cobra.Command{runCommand(), recordCommand(), replayCommand()} {
		_, section, found := strings.Cut(text, "\n### Flags of `sidelight "+command.Name()+"`\n")
		if !found {
			t.Errorf("README has no flags of %s", command.Name())
		}
		section, _, _ = strings.Cut(section, "\n#")
		var documented, have []string
		for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)[ `]").FindAllStringSubmatch(section, -1) {
			documented = append(documented, m[1])
		}
		command.Flags().VisitAll(func(f *pflag.Flag) {
			have = append(have, f.Name)
			if f.DefValue != "" && !regexp.MustCompile("(?m)^\\| `--"+f.Name+"[ `][^|]*\\| `"+regexp.QuoteMeta(f.DefValue)+"` \\|").MatchString(section) {
				t.Errorf("README does not say that --%s of %s is %s by default", f.Name, command.Name(), f.DefValue)
			}
		})
		slices.Sort(documented)
		slices.Sort(have)
		if !slices.Equal(documented, have) {
			t.Errorf("README has the flags %v of %s, the program %v", documented, command.Name(), have)
		}
	}
}

// TestReadmeFilter wants README to have the short names of fields, with what they stand for.
func TestReadmeFilter(t *testing.T) {
	_, section, _ := strings.Cut(readFile(t, filepath.Join(root, "README.md")), "\n### Watch it live\n")
	section, _, _ = strings.Cut(section, "\n#")
	for _, f := range tail.Fields() {
		for _, short := range f.Short {
			if !strings.Contains(section, "| `"+short+"` | `"+f.Name+"` |") {
				t.Errorf("README does not say that %s is %s", short, f.Name)
			}
		}
	}
	for _, f := range look.EdgeFields() {
		if !strings.Contains(section, "`"+append(f.Short, f.Name)[0]+"`") {
			t.Errorf("README does not have %s of top", f.Name)
		}
	}
}

// TestReadmeConfiguration loads README's configuration file, which has to say every default as it is.
func TestReadmeConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "readme.yaml")
	if err := os.WriteFile(file, []byte(fenced(t, "yaml")[2]), 0o600); err != nil {
		t.Fatal(err)
	}
	got := config.Config{}
	if err := config.Load(file, &got); err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	asJSON := func(v any) string { b, _ := json.Marshal(v); return string(b) }
	if asJSON(got) != asJSON(want) {
		t.Errorf("got  %s\nwant %s", asJSON(got), asJSON(want))
	}
}

// TestReadmePropagation loads what README says of trace ids.
func TestReadmePropagation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "readme.yaml")
	writeFile(t, file, fenced(t, "yaml")[1])
	c := config.Default()
	if err := errors.Join(config.Load(file, &c), c.Validate()); err != nil {
		t.Fatal(err)
	}
	if len(c.Traces.With()) != 2 {
		t.Errorf("trace ids are exchanged with %v", c.Traces.With())
	}
}

// TestReadmeMesh wants README's mesh to be the example, and its table of fields to be those that the reader knows.
func TestReadmeMesh(t *testing.T) {
	if have, want := fenced(t, "yaml")[3], readFile(t, filepath.Join(root, "examples/mesh.yaml")); have != want {
		t.Errorf("README has\n%s\nand examples/mesh.yaml\n%s", have, want)
	}
	_, section, _ := strings.Cut(readFile(t, filepath.Join(root, "README.md")), "\n### What can be written\n")
	section, _, _ = strings.Cut(section, "\n#")
	known := regexp.MustCompile(`known here: ([a-zA-Z, ]+)`)
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	for _, kind := range []string{"Workload", "Service", "Endpoint", "AuthorizationPolicy", "Bypass"} {
		writeFile(t, file, "apiVersion: sidelight.io/v1alpha1\nkind: "+kind+"\nmetadata: {name: a}\nspec: {unknown: 1}\n")
		_, err := controlplane.Parse(file)
		if err == nil {
			t.Fatalf("%s: an unknown key is taken", kind)
		}
		match := known.FindStringSubmatch(err.Error())
		if match == nil {
			t.Fatalf("%s: %v", kind, err)
		}
		_, rows, found := strings.Cut(section, "\n| `"+kind+"` |")
		if !found {
			t.Errorf("README has no row of %s", kind)
		}
		rows, _, _ = strings.Cut(rows, "\n| `")
		for _, key := range strings.Split(match[1], ", ") {
			if key != "waypoint" && !strings.Contains(rows, "`"+key+"`") && !strings.Contains(rows, "`"+key+".") {
				t.Errorf("README does not have %s of %s", key, kind)
			}
		}
	}
}

// TestReadmeLine wants README's access log line to have the fields that the program writes.
func TestReadmeLine(t *testing.T) {
	var line map[string]any
	if err := json.Unmarshal([]byte(fenced(t, "json")[0]), &line); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"timestamp", "log.record.uid", "trace_id", "sidelight.reason", "sidelight.connect_ns", "process.pid"} {
		if _, ok := line[field]; !ok {
			t.Errorf("it lacks %s", field)
		}
	}
}

// TestRotation renames the access log and asks for a new one.
func TestRotation(t *testing.T) {
	needRoot(t)
	a := startAgent(t, newCgroup(t))
	if err := os.Rename(a.Access, a.Access+".1"); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 10*time.Second, "the new file", func() error {
		_, err := os.Stat(a.Access)
		return err
	})
	a.stop()
}

// TestEndpoints asks what an orchestrator and a developer ask.
func TestEndpoints(t *testing.T) {
	needRoot(t)
	a := startAgent(t, newCgroup(t))
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/debug/pprof/", "/debug/pprof/heap"} {
		eventually(t, path, func() error { return a.answers(path) }) // not being well for a moment is an answer, too
	}
	a.stop()
}
