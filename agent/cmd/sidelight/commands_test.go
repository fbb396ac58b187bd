package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/agent/status"
	"github.com/sidelight-mesh/sidelight/collector/tail"
)

// lookedAt is an agent without a mesh, without pins and with a backend that is not there, and its state directory.
func lookedAt(t *testing.T, cgroup string, more ...string) (a *agent, state string) {
	t.Helper()
	config := writeConfig(t, append(more, "pin_directory: off", "otlp: {endpoint: \"http://127.0.0.1:9\"}")...)
	a = startAgent(t, cgroup, "--config", config, "--pin-directory", "off")
	return a, filepath.Join(filepath.Dir(config), "state")
}

func askStatus(t *testing.T, state string) *look.Status {
	t.Helper()
	s := new(look.Status)
	if err := json.Unmarshal([]byte(runIn(t, ".", program, "status", "--json", "--state-directory", state)), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// startCommand starts one that asks an agent, outside the cgroup that the agent sees.
func startCommand(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program, args...), t: t}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out, p.Stderr = bufio.NewReader(out), os.Stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	})
	return p
}

// waitReaders waits until so many follow the log.
func waitReaders(t *testing.T, state string, want int) {
	t.Helper()
	eventually(t, "readers of the log", func() error {
		if s := askStatus(t, state); s.Readers != want {
			return fmt.Errorf("%d, want %d", s.Readers, want)
		}
		return nil
	})
}

// TestCommands wants top, tail and status to tell exact numbers, of an agent that has nothing but its control socket.
func TestCommands(t *testing.T) {
	needRoot(t)
	const good, refused, sent, received = 40, 25, 700, 3000
	const nobody = 1 // a port that no connect is given for its own
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	a, state := lookedAt(t, cgroup)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	loopback := netip.MustParseAddr("127.0.0.1")

	all := startCommand(t, "tail", "--state-directory", state, "--count", fmt.Sprint(2*good+refused))
	some := startCommand(t, "tail", "--state-directory", state, "--json", "--count", fmt.Sprint(refused),
		fmt.Sprintf(`reason != ok && local.workload =~ "/client$" && peer.workload == localhost && sent < 1KiB && port == %d`, nobody))
	waitReaders(t, state, 2)
	top := startCommand(t, "top", "--json", "--interval", "200ms", "--sort", "bytes", "--state-directory", state, "local =~ /client")
	first := topLine(t, top)
	if len(first.Edges) != 0 {
		t.Errorf("before anything happened: %+v", first)
	}

	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(loopback, port), Ending: clientCloses, Count: good, Parallel: 4, Request: sent - headerBytes, Response: received,
	})
	runScript(t, ns, filepath.Join(cgroup, "client"), script{Addr: netip.AddrPortFrom(loopback, nobody), Ending: connectOnly, Count: refused})
	a.waitClosed()

	// What the intervals have is together what there is.
	var sum look.Counts
	reasons := make(map[string]uint64)
	for seen := (look.Counts{}); seen.Begun < good+refused || seen.Closed < good || seen.Failed < refused; {
		r := topLine(t, top)
		if len(r.Edges) == 0 {
			continue
		}
		if len(r.Edges) > 1 {
			t.Fatalf("the filter lets through %+v", r.Edges)
		}
		seen = r.Edges[0].Total
		of := r.Edges[0].Interval
		sum.Begun, sum.Established, sum.Failed, sum.Closed = sum.Begun+of.Begun, sum.Established+of.Established, sum.Failed+of.Failed, sum.Closed+of.Closed
		sum.NotOK, sum.SentBytes, sum.ReceivedBytes = sum.NotOK+of.NotOK, sum.SentBytes+of.SentBytes, sum.ReceivedBytes+of.ReceivedBytes
		for reason, n := range r.Edges[0].Reasons {
			reasons[reason] += n
		}
		if rate := float64(of.Begun) / r.IntervalSeconds; rate != r.Edges[0].PerSecond.Begun {
			t.Errorf("%d in %f s are %f a second", of.Begun, r.IntervalSeconds, r.Edges[0].PerSecond.Begun)
		}
	}
	want := look.Counts{Begun: good + refused, Established: good, Failed: refused, Closed: good, NotOK: refused, SentBytes: good * sent, ReceivedBytes: good * received}
	if sum != want || !maps.Equal(reasons, map[string]uint64{"refused": refused}) {
		t.Errorf("all intervals: %+v, %v, want %+v", sum, reasons, want)
	}
	var once look.Report
	if err := json.Unmarshal([]byte(runIn(t, ".", program, "top", "--once", "--json", "--interval", "100ms", "--sort", "name", "--state-directory", state)), &once); err != nil {
		t.Fatal(err)
	}
	server := look.Counts{Begun: good, Established: good, Closed: good, SentBytes: good * received, ReceivedBytes: good * sent}
	if len(once.Edges) != 2 || once.Edges[0].Role != "client" || once.Edges[0].Total != want || once.Edges[1].Total != server || once.Edges[0].Interval != (look.Counts{}) {
		t.Errorf("top --once: %+v", once)
	}
	if text := runIn(t, ".", program, "top", "--once", "--interval", "100ms", "--state-directory", state); strings.Count(text, "\n") != 4 {
		t.Errorf("as text: %s", text)
	}

	// The lines are the log's.
	a.waitLines(2*good + refused)
	logged := strings.SplitAfter(strings.TrimSuffix(readFile(t, a.Access), "\n"), "\n")
	logged[len(logged)-1] += "\n"
	got := rest(t, all)
	if slices.Sort(logged); !slices.Equal(slices.Sorted(slices.Values(got)), logged) {
		t.Errorf("%d lines, and the log has %d, or others", len(got), len(logged))
	}
	failed := rest(t, some)
	if len(failed) != refused {
		t.Errorf("%d lines of a filter, want %d", len(failed), refused)
	}
	for _, line := range failed {
		if !strings.Contains(line, `"sidelight.reason":"refused"`) || !slices.Contains(logged, line) {
			t.Errorf("got %s", line)
		}
	}
	waitReaders(t, state, 0)
	checkStatus(t, a, askStatus(t, state), good, refused)
	if text := runIn(t, ".", program, "status", "--state-directory", state); !strings.Contains(text, "65 attempts = 40 established + 25 failed + 0 connecting") || !strings.Contains(text, "0 unaccounted") {
		t.Errorf("got %s", text)
	}

	// Who follows hears of the end.
	follower := startCommand(t, "tail", "--state-directory", state)
	follower.Stderr = nil
	waitReaders(t, state, 1)
	a.stop()
	var exit *exec.ExitError
	if err := follower.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Errorf("tail, when the agent ends: %v", err)
	}
	if err := top.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = top.Wait() // it may have found out first that the agent is gone
	for _, args := range [][]string{{"status"}, {"tail"}, {"top", "--once"}} {
		expectExit(t, exitInput, append(args, "--state-directory", state)...)
	}
}

func topLine(t *testing.T, top *process) *look.Report {
	t.Helper()
	r := new(look.Report)
	if line := top.line(); json.Unmarshal([]byte(line), r) != nil {
		t.Fatalf("no report: %s", line)
	}
	return r
}

// rest are the lines that a command prints until it ends well.
func rest(t *testing.T, p *process) []string {
	t.Helper()
	text, err := io.ReadAll(p.out)
	if err := errors.Join(err, p.Wait()); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	return lines[:len(lines)-1]
}

func checkStatus(t *testing.T, a *agent, s *look.Status, good, refused uint64) {
	t.Helper()
	if s.PID != a.cmd.Process.Pid || s.Mesh != nil || s.Budget != nil || s.Datapath.Pins != "off" || s.Kernel == "" || s.Metrics != a.Address {
		t.Errorf("got %+v", s)
	}
	if k := &s.Account; k.Attempts != good+refused || k.Failed != refused || k.Closed["client"] != good || k.Closed["server"] != good || k.Live != 0 || k.Unaccounted != 0 {
		t.Errorf("account %+v", k)
	}
	if s.Edges.Edges != 2 {
		t.Errorf("%d edges", s.Edges.Edges)
	}
	programs := make(map[uint32]string)
	for _, p := range s.Programs {
		if p.ID == 0 || len(p.Tag) != 16 {
			t.Errorf("program %+v", p)
		}
		programs[p.ID] = p.Name
	}
	links := make(map[string]string)
	for _, l := range s.Links {
		links[l.Name] = programs[l.Program]
		if l.Type == "cgroup" && l.Cgroup == 0 {
			t.Errorf("link %+v", l)
		}
	}
	for link, program := range map[string]string{"connect4": "mesh_connect4", "connect6": "mesh_connect6", "sockops": "mesh_sockops"} {
		if links[link] != program {
			t.Errorf("link %s leads to %q", link, links[link])
		}
	}
	for _, m := range s.Maps {
		switch m.Name {
		case "connections":
			if m.Entries == nil || *m.Entries != 0 {
				t.Errorf("map %+v", m)
			}
		case "events":
			if m.Entries == nil || m.MaxEntries != 4<<20 {
				t.Errorf("map %+v", m)
			}
		case "backends", "listeners":
			t.Errorf("without a mesh there is %s", m.Name)
		}
	}
	queues := make(map[string]look.Queue)
	for _, q := range s.Queues {
		if q.Lost != 0 {
			t.Errorf("queue %+v", q)
		}
		queues[q.Name] = q
	}
	for _, name := range []string{"event ring", "access log", "tail", "receiver logs", "receiver traces", "exporter logs", "exporter traces"} {
		if _, there := queues[name]; !there {
			t.Errorf("there is no queue %s", name)
		}
	}
	// The backend is not there: what ended waits.
	if waiting := queues["exporter logs"].Waiting + queues["receiver logs"].Waiting; waiting != 2*good+refused {
		t.Errorf("%d log records wait for a backend that is not there, want %d", waiting, 2*good+refused)
	}
}

// TestTailUnread has somebody follow the log who does not read: the log is whole, the account closes, and what was lost is told when it reads.
func TestTailUnread(t *testing.T) {
	needRoot(t)
	const count = 3000
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	a, state := lookedAt(t, cgroup)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	stream, err := status.FollowControl(t.Context(), filepath.Join(state, controlSocket), tailPath+"?filter=role==client")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 8, Request: 10, Response: 10,
	})
	a.waitClosed()
	a.waitLines(2 * count)
	if report := a.audit(); report.Unaccounted != 0 || report.AccessLog.Dropped != 0 {
		t.Errorf("got %+v", report)
	}
	lines, lost := uint64(0), uint64(0)
	for reader := bufio.NewReader(stream); lines+lost < count; {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			t.Fatalf("after %d lines and %d lost: %v", lines, lost, err)
		}
		var l struct {
			Event string `json:"event.name"`
			Lost  uint64 `json:"sidelight.lost"`
			Role  string `json:"sidelight.role"`
		}
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch {
		case l.Event == tail.LostEvent:
			lost += l.Lost
		case l.Role == "client":
			lines++
		default:
			t.Fatalf("got %s", line)
		}
	}
	if lines+lost != count || lost == 0 {
		t.Errorf("%d lines and %d lost, of %d", lines, lost, count)
	}
	for _, q := range askStatus(t, state).Queues {
		if q.Name == "tail" && q.Lost != lost {
			t.Errorf("%d lost by the agent's count, and %d by the reader's", q.Lost, lost)
		}
	}
	a.stop()
}

// TestTailAlone follows the log of an agent that writes none, and sends none: nothing is made of connections while nobody does.
func TestTailAlone(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	config := writeConfig(t)
	state := filepath.Join(filepath.Dir(config), "state")
	a := startAgent(t, cgroup, "--config", config, "--access-log", "off")
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	connect := func(count int) {
		runScript(t, ns, filepath.Join(cgroup, "client"), script{
			Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Request: 10, Response: 10,
		})
		a.waitClosed()
	}
	connect(3)
	follower := startCommand(t, "tail", "--text", "--color", "never", "--state-directory", state, "--count", "5", "role==server")
	waitReaders(t, state, 1)
	connect(5)
	lines := rest(t, follower)
	if len(lines) != 5 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if !strings.Contains(line, "  server  ") || !strings.Contains(line, "  localhost  ") || !strings.Contains(line, "  ok  ") || strings.Contains(line, "\x1b") {
			t.Errorf("got %s", line)
		}
	}
	waitReaders(t, state, 0)
	connect(1)

	// An agent that nobody depends on goes without the socket that another has, and leaves it there.
	second := startAgent(t, newCgroup(t), "--config", config, "--pin-directory", "off")
	if text := readFile(t, second.log); !strings.Contains(text, "nobody can ask this agent") {
		t.Errorf("its log: %s", text)
	}
	second.stop()
	waitReaders(t, state, 0)
	a.stop()
}

// TestControlGroup has a member of a group look, who may not have the agent do anything; others may do neither.
func TestControlGroup(t *testing.T) {
	needRoot(t)
	const member, other = 65533, 65534
	dir, err := os.MkdirTemp("", "sidelight-control-") // others can get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config, state := filepath.Join(dir, "sidelight.yaml"), filepath.Join(dir, "state")
	writeFile(t, config, fmt.Sprintf("%s\nstate_directory: %s\ncontrol_group: \"%d\"\n", noBudget, state, member))
	a := startAgent(t, newCgroup(t), "--config", config)
	ask := func(group uint32, what string) string {
		cmd := exec.CommandContext(t.Context(), "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", filepath.Join(state, controlSocket), "http://agent"+what)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: group}}
		code, _ := cmd.Output() // 000 without an answer
		return string(code)
	}
	for _, c := range []struct {
		group uint32
		what  string
		want  string
	}{
		{member, statusPath, "200"},
		{member, edgesPath, "200"},
		{member, handoverPath, "403"},
		{member, whyPath + "?to=192.0.2.1:80", "400"},
		{member, whyPath + "?connection=x", "403"}, // without a mesh; a line of the log
		{other, statusPath, "000"},
		{other, handoverPath, "000"},
	} {
		if got := ask(c.group, c.what); got != c.want {
			t.Errorf("a member of %d asks for %s: %s, want %s", c.group, c.what, got, c.want)
		}
	}
	a.stop()
	expectExit(t, exitInput, "run", "--config", config, "--pin-directory", "relative") // before the group is looked for
	writeFile(t, config, "control_group: nobody-has-this-group\nstate_directory: "+state+"\n")
	expectExit(t, exitInput, "run", "--config", config, "--pin-directory", "off", "--cgroup", newCgroup(t), "--metrics-address", "127.0.0.1:0")
}

// expectExit runs a command for its exit code, and returns what it says.
func expectExit(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil && code == 0:
	case !errors.As(err, &exit) || exit.ExitCode() != code:
		t.Errorf("%v: %v, want exit code %d\n%s", args, err, code, out)
	}
	return string(out)
}

// TestCommandLine is about what is given, for which no agent is needed.
func TestCommandLine(t *testing.T) {
	nowhere := []string{"--state-directory", t.TempDir()}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"tail", "reson==ok"}, exitInput, "sidelight: filter, character 1: there is no field reson; did you mean reason?\n"},
		{[]string{"tail", "a", "b"}, exitInput, "sidelight: accepts at most 1 arg(s), received 2; see sidelight tail --help\n"},
		{[]string{"tail", "--text", "--json"}, exitInput, "sidelight: --text and --json: choose one\n"},
		{[]string{"tail", "--color", "blue"}, exitInput, "sidelight: --color blue: use auto, always or never\n"},
		{[]string{"top"}, exitInput, "sidelight: there is no terminal to show it on; use --once or --json\n"},
		{[]string{"top", "--once", "--sort", "x"}, exitInput, "sidelight: --sort x: use one of rate, bytes, failures, latency, open, name\n"},
		{[]string{"top", "--once", "--interval", "1ms"}, exitInput, "sidelight: --interval 1ms: use 100ms to 1h0m0s\n"},
		{[]string{"top", "--once", "rate>1x"}, exitInput, "sidelight: filter, character 6: \"1x\" is no number; rate has no unit\n"},
		{append([]string{"status"}, nowhere...), exitInput, "sidelight: ask the agent: "},
		{[]string{"completion", "bash"}, 0, "# bash completion V2 for sidelight"},
		{[]string{"__complete", "top", "--sort", ""}, 0, "rate\nbytes\nfailures\nlatency\nopen\nname\n"},
		{[]string{"__complete", "tail", "--color", ""}, 0, "auto\nalways\nnever\n"},
	} {
		if got := expectExit(t, c.code, c.args...); !strings.HasPrefix(got, c.says) {
			t.Errorf("%v says %.300s\nwant %s", c.args, got, c.says)
		}
	}
}

// TestMan makes the man pages, which only a build of its own can.
func TestMan(t *testing.T) {
	if testing.Short() || os.Getenv(givenProgram) != "" {
		t.Skip("it builds the program")
	}
	dir := t.TempDir()
	runIn(t, ".", "go", "run", "-tags", "sidelight_man", ".", "man", dir)
	for page, want := range map[string]string{
		"sidelight.8": "Exit codes", "sidelight-tail.8": `reason != ok && peer.workload == "cart"`, "sidelight-top.8": "--interval", "sidelight-status.8": "unaccounted",
	} {
		if text := readFile(t, filepath.Join(dir, page)); !strings.Contains(strings.ReplaceAll(text, `\-`, "-"), want) {
			t.Errorf("%s lacks %q", page, want)
		}
	}
}

// TestCopyLines counts lines, but not those that tell what was lost.
func TestCopyLines(t *testing.T) {
	const in = "{\"a\":1}\n{\"event.name\":\"sidelight.tail.lost\",\"sidelight.lost\":3}\n{\"a\":2}\n{\"a\":3}\n"
	var out bytes.Buffer
	same := func(line []byte) []byte { return line }
	if err := copyLines(&out, strings.NewReader(in), same, 2); err != nil || out.String() != in[:strings.Index(in, "{\"a\":3}")] {
		t.Errorf("got %q, %v", out.String(), err)
	}
	out.Reset()
	if err := copyLines(&out, strings.NewReader(in), same, 0); err == nil || err.Error() != "the agent has ended" || out.String() != in {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
