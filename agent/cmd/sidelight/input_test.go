package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadInput wants one clear error and exit code 2 for each fault, and nothing attached.
func TestBadInput(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		name string
		args []string
		drop []string // command in front
		want []string
	}{
		{name: "unknown flag", args: []string{"run", "--acess-log", "x"}, want: []string{"unknown flag: --acess-log", "sidelight run --help"}},
		{name: "argument", args: []string{"run", "x"}, want: []string{`"x"`, "sidelight run --help"}},
		{name: "unknown command", args: []string{"rnu"}, want: []string{`unknown command "rnu"`}},
		{name: "unknown key", args: []string{"run", "--config", file("a.yaml", "log_level: info\nacess_log: off\n")}, want: []string{"a.yaml:2:", `unknown key "acess_log"`, "access_log"}},
		{name: "mistyped key", args: []string{"run", "--config", file("b.yaml", "max_edges: many\n")}, want: []string{"b.yaml:1:", "many"}},
		{name: "no configuration", args: []string{"run", "--config", "/does/not/exist"}, want: []string{"/does/not/exist"}},
		{name: "bad value", args: []string{"run", "--config", file("c.yaml", "ring_bytes: 1000\n")}, want: []string{"c.yaml", "ring_bytes", "power of two"}},
		{name: "not cgroup2", args: []string{"run", "--cgroup", dir}, want: []string{dir, "not in a cgroup2 file system", "below /"}},
		{name: "no such cgroup", args: []string{"run", "--cgroup", "/does/not/exist"}, want: []string{"/does/not/exist", "cgroup2"}},
		{name: "log level", args: []string{"run", "--log-level", "loud"}, want: []string{`"loud"`, "debug, info, warn or error"}},
		{name: "address in use", args: []string{"run", "--metrics-address", taken.Addr().String()}, want: []string{"address already in use", "--metrics-address"}},
		{name: "bad address", args: []string{"run", "--metrics-address", "9464"}, want: []string{"HOST:PORT"}},
		{name: "unwritable log", args: []string{"run", "--access-log", "/does/not/exist"}, want: []string{"/does/not/exist", "--access-log"}},
		{name: "no collector file", args: []string{"run", "--otel-config", "/does/not/exist"}, want: []string{"/does/not/exist"}},
		{name: "collector component", args: []string{"run", "--otel-config", file("d.yaml", "receivers: {kafka: {}}\n")}, want: []string{`"kafka"`}},
		{name: "collector key", args: []string{"run", "--otel-config", file("e.yaml", "receivers: {mesh: {raport_interval: 1s}}\nexporters: {debug: {}}\nservice: {pipelines: {logs: {receivers: [mesh], exporters: [debug]}}}\n")}, want: []string{"raport_interval"}},
		{name: "collector syntax", args: []string{"run", "--otel-config", file("f.yaml", "receivers: [\n")}, want: []string{"yaml"}},
		{name: "collector start", args: []string{"run", "--otel-config", file("g.yaml", "receivers: {mesh: {}, otlp: {protocols: {grpc: {endpoint: \""+taken.Addr().String()+"\"}}}}\nexporters: {debug: {}}\nservice: {telemetry: {metrics: {level: none}}, pipelines: {logs: {receivers: [mesh, otlp], exporters: [debug]}}}\n")}, want: []string{"address already in use"}},
		{name: "bad URL", args: []string{"run", "--otlp-endpoint", "localhost:4317"}, want: []string{"otlp.endpoint", "http://HOST:PORT"}},
		{name: "two destinations", args: []string{"run", "--otlp-endpoint", "http://127.0.0.1:1", "--otel-config", file("h.yaml", "")}, want: []string{"remove one"}},
		{name: "no privileges", args: []string{"run"}, drop: []string{"setpriv", "--bounding-set=-net_admin,-bpf,-perfmon,-sys_admin"}, want: []string{"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}},
		{name: "one privilege missing", args: []string{"run"}, drop: []string{"setpriv", "--bounding-set=-net_admin"}, want: []string{"missing CAP_NET_ADMIN:"}},
		{name: "no output", args: []string{"record"}, want: []string{"no --output", "does not exist yet"}},
		{name: "recording is there", args: []string{"record", "--output", file("there.rec", "")}, want: []string{"there.rec", "file exists", "--output"}},
		{name: "recording nowhere", args: []string{"record", "--output", "/does/not/exist"}, want: []string{"/does/not/exist", "--output"}},
		{name: "negative time", args: []string{"record", "--output", filepath.Join(dir, "x.rec"), "--duration", "-1s"}, want: []string{"--duration"}},
		{name: "record without privileges", args: []string{"record", "--output", filepath.Join(dir, "y.rec")}, drop: []string{"setpriv", "--bounding-set=-net_admin"}, want: []string{"missing CAP_NET_ADMIN:"}},
		{name: "no recording", args: []string{"replay"}, want: []string{"sidelight replay --help"}},
		{name: "recording not there", args: []string{"replay", "/does/not/exist"}, want: []string{"/does/not/exist"}},
		{name: "not a recording", args: []string{"replay", file("i.yaml", "hello\n")}, want: []string{"i.yaml", "sidelight record"}},
		{name: "metrics nowhere", args: []string{"replay", mixRecording(), "--metrics", "/does/not/exist/x"}, want: []string{"/does/not/exist/x", "--metrics"}},
		{name: "no time", args: []string{"demo", "--duration", "0s"}, want: []string{"--duration"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(append(c.drop, program), c.args...)
			if (c.args[0] == "run" || c.args[0] == "record") && !strings.Contains(strings.Join(c.args, " "), "--cgroup") {
				// Should a fault be missed, nothing but this cgroup is attached to.
				args = append(args, "--cgroup", newCgroup(t))
			}
			if c.args[0] == "run" && !strings.Contains(strings.Join(c.args, " "), "--metrics-address") {
				args = append(args, "--metrics-address", "127.0.0.1:0")
			}
			cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != exitInput {
				t.Errorf("exit code %d (%v), want %d", code, err, exitInput)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("want %q in: %s", want, stderr.String())
				}
			}
			if strings.Contains(stderr.String(), "msg=attached") || strings.Contains(stderr.String(), "msg=recording") {
				t.Errorf("it attached: %s", stderr.String())
			}
		})
	}
}
