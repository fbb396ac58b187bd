package otelconfig_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
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

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
	"go.yaml.in/yaml/v3"
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

// freeAddress returns an address of this host that nobody listens on, and that no client gets before a server does.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
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
	g := &gateway{address: freeAddress(t)}
	health := freeAddress(t)
	host, port, err := net.SplitHostPort(freeAddress(t))
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

// backend takes OTLP as any backend does, with the collector's own receiver.
type backend struct {
	address string
	metrics consumertest.MetricsSink
	logs    consumertest.LogsSink
	traces  consumertest.TracesSink
}

func startBackend(t *testing.T, protocol string) *backend {
	t.Helper()
	return startBackendAt(t, protocol, freeAddress(t))
}

func startBackendAt(t *testing.T, protocol, address string) *backend {
	t.Helper()
	b := &backend{address: address}
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	if err := confmap.NewFromStringMap(map[string]any{
		"protocols": map[string]any{protocol: map[string]any{"endpoint": b.address}},
	}).Unmarshal(config); err != nil {
		t.Fatal(err)
	}
	settings := receivertest.NewNopSettings(factory.Type())
	metrics, err := factory.CreateMetrics(t.Context(), settings, config, &b.metrics)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := factory.CreateLogs(t.Context(), settings, config, &b.logs)
	if err != nil {
		t.Fatal(err)
	}
	traces, err := factory.CreateTraces(t.Context(), settings, config, &b.traces)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []component.Component{metrics, logs, traces} {
		if err := c.Start(t.Context(), componenttest.NewNopHost()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	return b
}
