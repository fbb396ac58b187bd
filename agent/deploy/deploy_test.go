// Package deploy has what installs the agent: a unit of systemd, manifests of Kubernetes, an image. Its tests hold them against the program.
package deploy

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// documented are the capabilities that "sidelight check" lists, sorted.
func documented(t *testing.T) []string {
	t.Helper()
	all, err := datapath.Capabilities()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return names
}

// loaded is what the program makes of a configuration file.
func loaded(t *testing.T, file string) config.Config {
	t.Helper()
	c := config.Default()
	if err := config.Load(file, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// within says whether a path is below a directory.
func within(path, dir string) bool { return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") }

// flag returns the value of one that a command line must have.
func flag(t *testing.T, args []string, name string) string {
	t.Helper()
	i := slices.Index(args, name)
	if i < 0 || i+1 == len(args) {
		t.Fatalf("%q has no %s", args, name)
	}
	return args[i+1]
}

// TestProgram wants command lines that the program takes.
func TestProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "sidelight")
	build := exec.Command("go", "build", "-o", program, "../cmd/sidelight")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Run("static, for an image without libraries", func(t *testing.T) {
		file, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for _, part := range file.Progs {
			if part.Type == elf.PT_INTERP {
				t.Error("it wants a dynamic linker")
			}
		}
	})
	lines := map[string][]string{"unit": commandLine(t)}
	for _, file := range []string{manifest, uninstall} {
		set := daemonSet(t, file)
		for _, c := range slices.Concat(set.InitContainers, set.Containers) {
			if strings.HasPrefix(c.Image, "sidelight:") {
				lines[file+" "+c.Name] = c.Args
			}
		}
	}
	if len(lines) != 3 {
		t.Fatalf("%d command lines, want those of the unit and of two containers", len(lines))
	}
	for name, args := range lines {
		t.Run(name, func(t *testing.T) {
			// A flag that it does not know is an error before it sees the last.
			if out, err := exec.Command(program, append(slices.Clone(args), "--help")...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v\n%s", args, err, out)
			}
		})
	}
	t.Run("systemd-analyze verify", func(t *testing.T) { verifyUnit(t, program) })
}

// offered matches a line of a configuration that is commented out.
var offered = regexp.MustCompile(`(?m)^# ( *[a-z_]+:(?: .*)?)$`)

// TestOffered wants what configurations offer in comments to load, too.
func TestOffered(t *testing.T) {
	for name, text := range map[string]string{
		configuration: read(t, configuration), manifest: one(t, manifest, "ConfigMap").Data["sidelight.yaml"],
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sidelight.yaml")
			if err := os.WriteFile(file, []byte(offered.ReplaceAllString(text, "$1")), 0o600); err != nil {
				t.Fatal(err)
			}
			if c := loaded(t, file); c.AccessLog == config.Off || c.OTLP.Endpoint == "" {
				t.Errorf("access_log is %s and the OTLP endpoint %q, want those of the comments", c.AccessLog, c.OTLP.Endpoint)
			}
		})
	}
}

func TestDockerfile(t *testing.T) {
	file := read(t, "Dockerfile")
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../../go.mod"))
	if version == nil {
		t.Fatal("go.mod names no version of Go")
	}
	for _, want := range []string{"FROM golang:" + version[1] + " AS build\n", "\nFROM scratch\n", "\nENTRYPOINT [\"/sidelight\"]\n"} {
		if !strings.Contains(file, want) {
			t.Errorf("Dockerfile has no %q", want)
		}
	}
}
