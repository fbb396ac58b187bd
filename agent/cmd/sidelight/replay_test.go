package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/demo"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/bpf"
)

func mixRecording() string { return filepath.Join("testdata", "recordings", "mix.rec") }

// runReplay runs a replay that may fail.
func runReplay(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, append([]string{"replay"}, args...)...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Run(); e != nil && cmd.ProcessState == nil {
		t.Fatal(e)
	}
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// TestReplayStdout wants the access log on stdout when nothing is said, and the metrics after it with "-".
func TestReplayStdout(t *testing.T) {
	log, metrics := readFile(t, strings.TrimSuffix(mixRecording(), ".rec")+".log"), readFile(t, strings.TrimSuffix(mixRecording(), ".rec")+".prom")
	if out, stderr, code := runReplay(t, mixRecording(), "--metrics", "-"); out != log+metrics || code != 0 {
		t.Errorf("exit code %d, %s, stdout:\n%s", code, stderr, out)
	}
	if out, stderr, code := runReplay(t, mixRecording(), "--access-log", "off"); out != "" || code != 0 {
		t.Errorf("exit code %d, %s, stdout:\n%s", code, stderr, out)
	}
}

// TestReplayDamaged plays what is whole, says where it is not, and fails.
func TestReplayDamaged(t *testing.T) {
	file := []byte(readFile(t, mixRecording()))
	lines := strings.SplitAfter(readFile(t, strings.TrimSuffix(mixRecording(), ".rec")+".log"), "\n")
	lines = lines[:len(lines)-1]
	half := len(file) / 2
	flipped := bytes.Clone(file)
	flipped[half] ^= 1
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		file   []byte
		code   int
		stderr string
		most   int // lines
	}{
		{"half", file[:half], exitFailed, "recording breaks off at byte ", len(lines) - 1},
		{"one bit", flipped, exitFailed, "recording is damaged at byte ", len(lines) - 1},
		{"without its last byte", file[:len(file)-1], exitFailed, "recording breaks off at byte ", len(lines)},
		{"more after the end", append(bytes.Clone(file), 0), exitFailed, "something comes after its end", len(lines)},
		{"empty", nil, exitInput, "name a file that sidelight record has made", 0},
		{
			"another ABI", regexp.MustCompile(`"abi_version":\d+`).ReplaceAll(file, []byte(`"abi_version":1`)), exitInput,
			fmt.Sprintf("its events have the layout 1, this program reads %d to %d; replay it with sidelight", bpf.OldestABIVersion, bpf.ABIVersion), 0,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, "test.rec")
			if err := os.WriteFile(path, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			out, stderr, code := runReplay(t, path)
			if code != c.code || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit code %d, want %d; %s", code, c.code, stderr)
			}
			got := strings.SplitAfter(out, "\n")
			got = got[:len(got)-1]
			if len(got) > c.most || c.most == len(lines) && len(got) != c.most || !reflect.DeepEqual(got, lines[:len(got)]) && len(got) > 0 {
				t.Errorf("%d lines, want those up to the damage, %d at most", len(got), c.most)
			}
			if c.most == len(lines)-1 && len(got) == 0 {
				t.Error("not one line of the whole half")
			}
		})
	}
}

// TestReplayIncomplete leaves one event out of a recording that is whole otherwise: the kernel's account tells.
func TestReplayIncomplete(t *testing.T) {
	for _, c := range []struct {
		name string
		omit event.FrameKind
		want string
	}{
		{"an event", event.FrameEvent, "1 that the kernel counted are not in the recording"},
		{"the account", event.FrameAccount, "the recording has no account of the kernel's"},
	} {
		player, err := event.NewPlayer(strings.NewReader(readFile(t, mixRecording())))
		if err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		writer, err := event.NewWriter(&file, *player.Header())
		if err != nil {
			t.Fatal(err)
		}
		for omitted := false; ; {
			frame, err := player.Next()
			if err != nil || frame.Kind == event.FrameEnd {
				break
			}
			if frame.Kind == c.omit && !omitted {
				omitted = true
				continue
			}
			if err := writer.Write(&frame); err != nil {
				t.Fatal(err)
			}
		}
		if err := writer.End(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "test.rec")
		writeFile(t, path, file.String())
		if _, stderr, code := runReplay(t, path); code != exitFailed || !strings.Contains(stderr, c.want) {
			t.Errorf("without %s: exit code %d; %s", c.name, code, stderr)
		}
	}
}

// TestReplayUnprivileged replays as nobody, who can read nothing but the recording and the program.
func TestReplayUnprivileged(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("", "sidelight-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{program: "sidelight", mixRecording(): "mix.rec"} {
		in, err := os.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.OpenFile(filepath.Join(dir, to), os.O_WRONLY|os.O_CREATE, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, in); err != nil {
			t.Fatal(err)
		}
		in.Close()
		out.Close()
	}
	cmd := exec.CommandContext(t.Context(), "./sidelight", "replay", "mix.rec")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err != nil || string(out) != readFile(t, strings.TrimSuffix(mixRecording(), ".rec")+".log") {
		var exit *exec.ExitError
		errors.As(err, &exit)
		t.Errorf("%v %s:\n%s", err, exit.Stderr, out)
	}
}

// TestReplayWaits replays more connections than queues have room for, faster than lines are written: none is dropped.
func TestReplayWaits(t *testing.T) {
	const count = 2 * recordQueue
	path := filepath.Join(t.TempDir(), "test.rec")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	writer, err := event.NewWriter(file, event.Header{})
	if err != nil {
		t.Fatal(err)
	}
	closed := bpf.CloseEvent{Event: bpf.Event{Kind: bpf.Close, Role: bpf.Client, StartNs: 1, ConnectNs: 2, EstablishedNs: 3, EventNs: 4}}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&closed)), unsafe.Sizeof(closed))
	write := func(f *event.Frame) {
		if err := writer.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	for i := range count {
		closed.Event.Cookie = uint64(i)
		write(&event.Frame{Kind: event.FrameEvent, Raw: raw})
		if i%100 == 0 {
			write(&event.Frame{Kind: event.FrameDrained, AtNS: 5})
		}
	}
	write(&event.Frame{Kind: event.FrameAccount, Account: new(account.Kernel)})
	if err := writer.End(); err != nil {
		t.Fatal(err)
	}
	collector := filepath.Join(t.TempDir(), "collector.yaml")
	writeFile(t, collector, `
receivers: {mesh: {report_interval: 1h}}
exporters: {debug: {}}
service:
  pipelines:
    logs: {receivers: [mesh], exporters: [debug]}
    traces: {receivers: [mesh], exporters: [debug]}
    metrics: {receivers: [mesh], exporters: [debug]}
  telemetry: {logs: {level: info, sampling: {enabled: false}}}
`)
	out, stderr, code := runReplay(t, path, "--otel-config", collector)
	if n := strings.Count(out, "\n"); n != count || code != 0 {
		t.Errorf("exit code %d, %d lines, want %d; %s", code, n, count, stderr)
	}
	for _, item := range []string{`"log records"`, "spans"} {
		sum := 0
		for _, m := range regexp.MustCompile(" "+item+`=(\d+)`).FindAllStringSubmatch(stderr, -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		if sum != count {
			t.Errorf("%d %s, want %d; %s", sum, item, count, stderr)
		}
	}
}

// TestReplayExport sends a recording to an OTLP backend: each connection once, and the same sums.
func TestReplayExport(t *testing.T) {
	grpc, http := freePort(t), freePort(t)
	b := startBackend(t, grpc, http)
	r := replayFile(t, mixRecording(), "--otlp-endpoint", "http://"+http)
	got := b.Received()
	if n := len(r.lines); got.Logs != n || got.UniqueLogs != n || got.Spans != n || n == 0 {
		t.Errorf("got %d logs (%d different) and %d spans of %d lines", got.Logs, got.UniqueLogs, got.Spans, n)
	}
	var attempts, sent, open uint64
	for _, e := range demo.Edges(got.Metrics) {
		attempts, sent, open = attempts+uint64(e.Attempts), sent+uint64(e.SentBytes), open+uint64(e.Open)
	}
	for name, n := range map[string]uint64{
		"sidelight_tcp_connection_attempts_total": attempts, "sidelight_tcp_sent_bytes_total": sent, "sidelight_tcp_connection_open": open,
	} {
		want := uint64(0)
		for _, role := range []string{"client", "server"} {
			if sum, found := find(r.metrics, name+`{role="`+role+`"}`); found {
				want += sum
			}
		}
		if n != want || want == 0 {
			t.Errorf("%s is %d over OTLP, %d in the file", name, n, want)
		}
	}
	resource := got.Metrics.ResourceMetrics().At(0)
	if host, _ := resource.Resource().Attributes().Get("host.name"); host.Str() != "node1" {
		t.Errorf("host.name is %q, want that of the recording", host.Str())
	}
	point := resource.ScopeMetrics().At(0).Metrics().At(0).Sum().DataPoints().At(0)
	if first, last := point.StartTimestamp(), point.Timestamp(); last <= first || last-first > 3600e9 {
		t.Errorf("metrics are of %v to %v, want the recording's time", first.AsTime(), last.AsTime())
	}
}

// TestReplayTargets wants an agent's own configuration and environment to send nothing, and a backend that is down to be an error.
func TestReplayTargets(t *testing.T) {
	grpc, http := freePort(t), freePort(t)
	b := startBackend(t, grpc, http)
	log := filepath.Join(t.TempDir(), "access.log")
	config := writeConfig(t, "access_log: "+log, "otlp: {endpoint: \"http://"+http+"\"}", "peer_groups: [{name: here, cidrs: [127.0.0.0/8]}]")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+http)
	r := replayFile(t, mixRecording(), "--config", config)
	if _, err := os.Stat(log); err == nil || b.Received().Logs != 0 {
		t.Errorf("the replay wrote the agent's log (%v), or sent %d records", err, b.Received().Logs)
	}
	if !strings.Contains(r.metrics, `peer_workload="here"`) || !strings.Contains(r.metrics, `peer_workload="external"`) {
		t.Error("peer_groups do not count")
	}
	_, stderr, code := runReplay(t, mixRecording(), "--otlp-endpoint", "http://"+freePort(t))
	if code != exitFailed || !strings.Contains(stderr, "the OTLP backend did not take ") {
		t.Errorf("exit code %d; %s", code, stderr)
	}
}
