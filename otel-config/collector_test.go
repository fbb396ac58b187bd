package otelconfig_test

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// build is what the builder's manifest says.
type build struct {
	Dist struct {
		Name       string `yaml:"name"`
		Version    string `yaml:"version"`
		OutputPath string `yaml:"output_path"`
	} `yaml:"dist"`
	Receivers, Processors, Exporters, Extensions, Connectors, Providers []module
}

type module struct {
	GoMod  string `yaml:"gomod"`
	Import string `yaml:"import"`
	Path   string `yaml:"path"`
}

func readManifest(t *testing.T) build {
	t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var b build
	if err := yaml.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	return b
}

// tool finds what "make otel-collector" builds, from this work tree.
func tool(t *testing.T, path ...string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(append([]string{"..", "bin"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		lacks(t, fmt.Sprintf("no %s: make otel-collector builds it", filepath.Base(file)))
	}
	return file
}

// lacks leaves a test out for want of something, but in CI.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("SIDELIGHT_REQUIRE_TOOLS") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func collectorProgram(t *testing.T) string {
	t.Helper()
	dist := readManifest(t).Dist
	return tool(t, filepath.Base(dist.OutputPath), dist.Name)
}

func backendsProgram(t *testing.T) string { return tool(t, "otel-backends") }

// environment is that of a user who has set nothing of what the examples ask for, but this.
func environment(set map[string]string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return !slices.Contains([]string{"PATH", "HOME", "TMPDIR", "LANG"}, name)
	})
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	return env
}

// process is a program that runs until the test ends, or stop.
type process struct {
	cmd    *exec.Cmd
	mu     sync.Mutex
	out    bytes.Buffer
	stderr bytes.Buffer
	once   sync.Once
	err    error
}

type lockedWriter struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

func startProcess(t *testing.T, env map[string]string, program string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(program, args...)}
	p.cmd.Env = environment(env)
	p.cmd.Stdout, p.cmd.Stderr = lockedWriter{&p.mu, &p.out}, lockedWriter{&p.mu, &p.stderr}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("%s %q: %v\n%s", filepath.Base(program), args, err, p.said())
		} else if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(program), p.said())
		}
	})
	return p
}

// stop ends it as a user would, with all that it holds handed on.
func (p *process) stop() error {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
		defer timer.Stop()
		p.err = p.cmd.Wait()
	})
	return p.err
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

func (p *process) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := strings.SplitAfter(p.out.String(), "\n")
	return all[:len(all)-1] // the last is empty, or not whole
}

func listens(address string) bool {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// eventually waits for something that takes its time.
func eventually(t *testing.T, what string, limit time.Duration, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: no %s", limit, what)
		}
	}
}

// gateway is a collector that runs one of the examples.
type gateway struct {
	*process
	address string // that takes OTLP over gRPC
}

// startGateway runs an example of the directory gateway as it is, with addresses of this host. Arguments come after it, as in "--set".
func startGateway(t *testing.T, example string, env map[string]string, args ...string) *gateway {
	t.Helper()
	if testing.Short() {
		t.Skip("runs collectors")
	}
	g := &gateway{address: otlptest.FreeAddress(t)}
	health := otlptest.FreeAddress(t)
	host, port, err := net.SplitHostPort(otlptest.FreeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{
		"GATEWAY_LISTEN": g.address, "HEALTH_LISTEN": health, "GATEWAY_METRICS_HOST": host, "GATEWAY_METRICS_PORT": port, "STATE_DIRECTORY": t.TempDir(),
	}
	maps.Copy(all, env)
	g.process = startProcess(t, all, collectorProgram(t), append([]string{"--config", "file:" + filepath.Join("gateway", example)}, args...)...)
	eventually(t, example+" that is ready", 30*time.Second, func() bool {
		response, err := http.Get("http://" + health)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return g
}
