package look

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

var update = flag.Bool("update", false, "write the expected output")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// golden holds text against a file.
func golden(t *testing.T, name string, lines []string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

var at = time.Date(2026, 11, 26, 10, 20, 30, 0, time.UTC)

// histogram observes values, in seconds.
func histogram(values ...float64) Histogram {
	h := edge.NewHistogram(edge.LatencyBounds)
	for _, v := range values {
		h.Observe(v, &connection.Event{EventNS: 1})
	}
	return histogramOf(&h)
}

func twoLooks() (before, after *Edges) {
	web := Labels{Role: "client", LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "cart", PeerNamespace: "shop", Service: "cart", ServiceNamespace: "shop", NetworkType: "ipv4"}
	external := Labels{Role: "client", LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "external", NetworkType: "ipv6"}
	server := Labels{Role: "server", LocalWorkload: "cart", LocalNamespace: "shop", PeerWorkload: "web", PeerNamespace: "shop", NetworkType: "ipv4"}
	hostile := Labels{Role: "client", LocalWorkload: "\x1b[2Jevil\u202e" + strings.Repeat("long", 20), PeerWorkload: "external", NetworkType: "ipv4"}
	before = &Edges{At: at.Add(-2 * time.Second), MonotonicNS: 1e9, Edges: []Edge{
		{Labels: web, SinceUnixNS: 1, Attempts: 100, Established: 90, Failures: map[string]uint64{"refused": 10}, Closed: map[string]uint64{"ok": 80}, SentBytes: 1000, ReceivedBytes: 1e6, Connect: histogram(0.001, 0.5), Open: 10},
		{Labels: server, SinceUnixNS: 1, Established: 7},
		// Folded since, and made anew.
		{Labels: external, SinceUnixNS: 1, Attempts: 1000, Established: 1000},
	}}
	after = &Edges{At: at, MonotonicNS: 3e9, Rung: "full", Edges: []Edge{
		{Labels: server, SinceUnixNS: 1, Established: 107, Adopted: 3, Failures: map[string]uint64{"denied": 4}, Closed: map[string]uint64{"ok": 100, "reset_by_peer": 2}, Open: 8, SentBytes: 4 << 20},
		{
			Labels: web, SinceUnixNS: 1, Attempts: 150, Established: 120, Failures: map[string]uint64{"refused": 20, "timeout": 10}, Closed: map[string]uint64{"ok": 100, "reset_by_peer": 5},
			SentBytes: 3048, ReceivedBytes: 1e6 + 3<<20, Open: 15, Connecting: 2, OldestConnectNS: 1e9, Connect: histogram(0.001, 0.5, 50e-6, 60e-6, 70e-6), FirstByte: histogram(0.002), RTT: histogram(0.0001),
		},
		{Labels: external, SinceUnixNS: 2, Attempts: 3, Established: 3, Closed: map[string]uint64{"ok": 3}},
		{Labels: hostile, SinceUnixNS: 2, Attempts: 1, Failures: map[string]uint64{"unreachable": 1}},
	}}
	return before, after
}

func compared() *Report { return Compare(twoLooks()) }

func TestCompare(t *testing.T) {
	r := compared()
	r.Order(ByName)
	if r.IntervalSeconds != 2 || len(r.Edges) != 4 {
		t.Fatalf("got %+v", r)
	}
	web, external, server := &r.Edges[2], &r.Edges[1], &r.Edges[3]
	if want := (Counts{Begun: 50, Established: 30, Failed: 20, Closed: 25, NotOK: 25, SentBytes: 2048, ReceivedBytes: 3 << 20}); web.Interval != want {
		t.Errorf("client: got %+v, want %+v", web.Interval, want)
	}
	if want := (Counts{Begun: 150, Established: 120, Failed: 30, Closed: 105, NotOK: 35, SentBytes: 3048, ReceivedBytes: 1e6 + 3<<20}); web.Total != want {
		t.Errorf("client in all: got %+v, want %+v", web.Total, want)
	}
	if want := (Rates{Begun: 25, NotOK: 12.5, SentBytes: 1024, ReceivedBytes: 3 << 19}); web.PerSecond != want {
		t.Errorf("client: got %+v, want %+v", web.PerSecond, want)
	}
	if got := web.Reasons; len(got) != 3 || got["refused"] != 10 || got["timeout"] != 10 || got["reset_by_peer"] != 5 {
		t.Errorf("reasons %v", got)
	}
	// Of the interval's three only: with those of before the 99th percentile were half a second.
	if p50, p99 := web.Latency.ConnectP50, web.Latency.ConnectP99; p50 == nil || math.Abs(*p50/60e-6-1) > 0.05 || p99 == nil || math.Abs(*p99/70e-6-1) > 0.05 {
		t.Errorf("latency %v", web.Latency)
	}
	if server.Interval.Begun != 104 || server.Interval.NotOK != 6 || server.Latency.ConnectP50 != nil {
		t.Errorf("server: got %+v", server)
	}
	if external.Interval.Begun != 3 || external.Total.Begun != 3 {
		t.Errorf("an edge that began anew: got %+v", external)
	}
	if same := Compare(&Edges{MonotonicNS: 1}, &Edges{MonotonicNS: 1, Edges: []Edge{{}}}); same.IntervalSeconds != 0 || same.Edges[0].PerSecond.Begun != 0 {
		t.Errorf("no time in between: %+v", same)
	}
	if _, err := json.Marshal(r); err != nil { // no NaN, no infinity
		t.Error(err)
	}
}

// TestEdgesOf takes the answer from a table, with JSON in between.
func TestEdgesOf(t *testing.T) {
	table := edge.NewTable(10)
	record := enrich.Record{
		Event:    connection.Event{Kind: connection.Close, Role: connection.Client, Reason: connection.Refused, Key: connection.Key{StartNS: 1}, EventNS: 2},
		Identity: enrich.Identity{Local: &enrich.Workload{Name: "w", Namespace: "n"}, Peer: &enrich.Workload{Name: "p"}},
		Change:   connection.Change{Attempts: 1, Failed: 1},
	}
	table.Consume([]enrich.Record{record, record})
	snapshot := table.Snapshot()
	text, err := json.Marshal(Edges{MonotonicNS: 5, Edges: EdgesOf(&snapshot)})
	if err != nil {
		t.Fatal(err)
	}
	var edges Edges
	if err := json.Unmarshal(text, &edges); err != nil {
		t.Fatal(err)
	}
	r := Compare(&Edges{}, &edges)
	if len(r.Edges) != 1 || r.Edges[0].Interval.Begun != 2 || r.Edges[0].Reasons["refused"] != 2 || r.Edges[0].LocalWorkload != "w" || r.Edges[0].LocalNamespace != "n" {
		t.Errorf("got %+v of %s", r, text)
	}
}

func TestOrder(t *testing.T) {
	for by, want := range map[Sort]string{
		ByRate:     "server",
		ByBytes:    "server",
		ByFailures: "client",
		ByLatency:  "client",
		ByOpen:     "client",
		ByName:     "client",
	} {
		r := compared()
		r.Order(by)
		if r.Edges[0].Role != want {
			t.Errorf("by %s the first is %+v", by, r.Edges[0].Labels)
		}
	}
	if _, err := ParseSort("size"); err == nil || err.Error() != "--sort size: use one of rate, bytes, failures, latency, open, name" {
		t.Errorf("got %v", err)
	}
}

// TestEdgeFields asks for each field.
func TestEdgeFields(t *testing.T) {
	for text, want := range map[string]int{
		`role == client`: 3,
		`local =~ cart`:  1,
		`local.namespace == shop && peer == cart`: 1,
		`peer.namespace`:                           2,
		`service == cart && service.namespace`:     1,
		`type == ipv6`:                             1,
		`rate >= 25`:                               2,
		`failures > 0`:                             3,
		`sent >= 1MiB || received >= 1MiB`:         2,
		`open > 8 && connecting == 2`:              1,
		`connect < 1ms && first_byte > 1ms`:        1,
		`!connect`:                                 3,
		`peer.workload in (web, cart) && rate>0.1`: 2,
	} {
		e, err := CompileEdges(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		r := compared()
		r.Keep(e)
		if len(r.Edges) != want {
			t.Errorf("%s: %d edges, want %d", text, len(r.Edges), want)
		}
	}
	for i := range edgeFields {
		new(Row).value(i)
	}
	if e, err := CompileEdges(" "); e != nil || err != nil {
		t.Errorf("no filter: %v, %v", e, err)
	}
}

func TestTopLines(t *testing.T) {
	r := compared()
	r.Order(ByRate)
	golden(t, "top.txt", append([]string{r.Summary()}, r.Lines(false, 0)...))
	golden(t, "top-colour.txt", r.Lines(true, 0))
	for _, width := range []int{120, 80, 20, 1} {
		for _, line := range r.Lines(false, width) {
			if n := utf8.RuneCountInString(line); n > width {
				t.Errorf("%d characters in a line of %d: %s", n, width, line)
			}
		}
	}
	golden(t, "top-120.txt", r.Lines(false, 120))
	golden(t, "top-80.txt", r.Lines(false, 80))
	empty := Compare(&Edges{}, &Edges{At: at})
	golden(t, "top-empty.txt", append([]string{empty.Summary()}, empty.Lines(false, 0)...))
}

// TestNothingThatATerminalObeys: names come from workloads.
func TestNothingThatATerminalObeys(t *testing.T) {
	r := compared()
	text := LogText{}
	lines := append(r.Lines(false, 0), text.Line([]byte(`{"event.name":"sidelight.connection","sidelight.reason":"\u001b[2J","local.workload":"a\u009b1mb\u202e","peer.workload":"x\ny"}`)),
		text.Line([]byte("\x1b[31mno line\n")))
	lines = append(lines, (&Status{Version: "\x1b[2J", Mesh: &MeshStatus{Path: "\x1b", LastError: "\x1b", Out: map[string]string{"\x1b": "outlier"}}}).Lines(false)...)
	for _, line := range lines {
		if strings.ContainsAny(line, "\x1b\u009b\u202e\n\x7f") {
			t.Errorf("%q", line)
		}
	}
}

func TestPaintFor(t *testing.T) {
	for _, c := range []struct {
		mode     string
		terminal bool
		env      map[string]string
		want     Paint
	}{
		{ColourAuto, true, nil, true},
		{ColourAuto, false, nil, false},
		{ColourAuto, true, map[string]string{"NO_COLOR": "1"}, false},
		{ColourAuto, true, map[string]string{"NO_COLOR": ""}, true},
		{ColourAuto, true, map[string]string{"TERM": "dumb"}, false},
		{ColourAlways, false, map[string]string{"NO_COLOR": "1"}, true},
		{ColourNever, true, nil, false},
	} {
		got, err := PaintFor(c.mode, c.terminal, func(name string) (string, bool) { v, ok := c.env[name]; return v, ok })
		if err != nil || got != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	if _, err := PaintFor("maybe", true, os.LookupEnv); err == nil {
		t.Error("maybe is taken")
	}
}

func TestLogText(t *testing.T) {
	var lines []string
	text := LogText{}
	for _, line := range []string{
		`{"timestamp":"2026-11-23T03:50:00.385206012Z","event.name":"sidelight.connection","network.peer.address":"127.0.0.1","network.peer.port":18080,"sidelight.role":"client","sidelight.reason":"ok","sidelight.duration_ns":326404,"sidelight.connect_ns":40144,"sidelight.first_received_ns":144940,"sidelight.sent_bytes":5,"sidelight.received_bytes":65536,"sidelight.retransmits":0,"process.pid":3686,"process.executable.name":"python3","local.workload":"web","local.namespace":"shop","peer.workload":"localhost"}`,
		`{"timestamp":"2026-11-23T03:50:01.385206012Z","event.name":"sidelight.connection","network.peer.address":"2001:db8::1","network.peer.port":80,"sidelight.role":"client","sidelight.reason":"denied","sidelight.duration_ns":1,"sidelight.sent_bytes":0,"sidelight.received_bytes":0,"sidelight.retransmits":2,"sidelight.sampling_probability":0.125,"sidelight.original_destination":"10.96.0.1:80","sidelight.service":"shop/cart","sidelight.backend":"shop/cart-1","sidelight.verdict":"deny","sidelight.policy":"shop/no","sidelight.policy.rule":0,"sidelight.limit":"service shop/cart","process.pid":1,"local.workload":"web","peer.workload":"cart-1","peer.namespace":"shop"}`,
		`{"event.name":"sidelight.tail.lost","sidelight.lost":17}`,
		`{"timestamp":"2026-11-23T03:50:02.385206012Z","event.name":"sidelight.connection","network.peer.address":"127.0.0.1","network.peer.port":1,"sidelight.role":"server","sidelight.reason":"ok","sidelight.adopted":true,"local.workload":"web","peer.workload":"x"}`,
		`something else`,
	} {
		lines = append(lines, text.Line([]byte(line+"\n")))
	}
	golden(t, "tail.txt", lines)
	text = LogText{Paint: true}
	golden(t, "tail-colour.txt", []string{text.Line([]byte(`{"event.name":"sidelight.tail.lost","sidelight.lost":17}`)), text.Line([]byte(`{"timestamp":"2026-11-23T03:50:02Z","event.name":"sidelight.connection","sidelight.role":"client","sidelight.reason":"refused"}`))})
}

func TestStatusLines(t *testing.T) {
	n := func(n uint64) *uint64 { return &n }
	s := &Status{
		Version: "v1.2", Go: "go1.26", Kernel: "6.12.0", PID: 77, At: at, Started: at.Add(-90 * time.Minute), Cgroup: "/sys/fs/cgroup", Metrics: "127.0.0.1:9464",
		StateDirectory: "/var/lib/sidelight", Datapath: DatapathStatus{Pins: "/sys/fs/bpf/sidelight", Agents: 3, UnattendedSeconds: 1.5},
		Mesh:    &MeshStatus{Path: "mesh.yaml", Generation: 4, Accepted: 4, Rejected: 1, LastError: "mesh.yaml:3: no", Guarded: 2, Out: map[string]string{"shop/b": "outlier", "shop/a": "health_check"}},
		Budget:  &BudgetStatus{Rung: 2, Name: "log_sampling", Probability: 0.125, CPU: 0.0123, CPULimit: 0.01, Memory: 50 << 20, MemoryLimit: 128 << 20, Measured: true, Down: 2},
		Account: AccountStatus{Attempts: 10, Failed: 2, Established: map[string]uint64{"client": 7, "server": 3}, Live: 5, MostLive: 1000000, Unaccounted: 1},
		Edges:   EdgesStatus{Edges: 10, Most: 10, Folded: 5},
		Queues:  []Queue{{Name: "event ring", Waiting: 1 << 20, Room: 4 << 20, Unit: "bytes, events"}, {Name: "access log", Waiting: 60000, Room: 65536, Lost: 3, Unit: "lines"}, {Name: "exporter logs", Waiting: 5, Unit: "items"}},
		Readers: 1,
		Inventory: datapath.Inventory{
			Programs: []datapath.Program{{Name: "mesh_connect4", Type: "CGroupSockAddr", ID: 5, Tag: "aa", Runs: 10, Seconds: 1e-5}, {Name: "mesh_sweep", Type: "Tracing", ID: 6, Tag: "bb"}},
			Links: []datapath.Link{
				{Name: "connect4", Type: "cgroup", ID: 8, Program: 5},
				{Name: "lookup-1", Type: "netns", ID: 9, Program: 100},
				{Name: "lookup-2", Type: "netns", ID: 10, Program: 101},
				{Name: "lookup-3", Type: "netns", ID: 11, Program: 102},
				{Name: "lookup-4", Type: "netns", ID: 12, Program: 103},
			},
			Maps: []datapath.Map{{Name: "account", Type: "PerCPUArray", ID: 1, MaxEntries: 1, Memory: 992}, {Name: "backends", Type: "Array", ID: 2, MaxEntries: 100, Memory: 4096, Entries: n(80)}, {Name: "connections", Type: "SkStorage", ID: 3, Entries: n(5)}},
		},
	}
	golden(t, "status.txt", s.Lines(false))
	bare := &Status{At: at, Started: at, Datapath: DatapathStatus{Pins: "off"}, Account: AccountStatus{Error: "the ring was not drained"}}
	golden(t, "status-bare.txt", bare.Lines(false))
}

// TestTopBegins: what was asked for before is not asked for again.
func TestTopBegins(t *testing.T) {
	before, after := twoLooks()
	asked := 0
	m, err := newTop(t.Context(), func(context.Context) (*Edges, error) {
		asked++
		return after, nil
	}, TopOptions{First: before, Interval: LeastInterval, Sort: ByRate})
	if err != nil {
		t.Fatal(err)
	}
	if message := m.Init()(); asked != 0 {
		t.Errorf("it asks at once")
	} else if _, look := m.Update(message); look == nil {
		t.Error("it does not ask")
	} else {
		m.Update(look())
	}
	if asked != 1 || m.before != before || m.report == nil {
		t.Errorf("it asked %d times, and has a report: %v", asked, m.report != nil)
	}
}

// press is a key as a terminal sends it.
func press(text string) tea.KeyPressMsg {
	special := map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "backspace": tea.KeyBackspace, "down": tea.KeyDown, "up": tea.KeyUp, "pgdown": tea.KeyPgDown, "end": tea.KeyEnd, "home": tea.KeyHome}
	if code, ok := special[text]; ok {
		return tea.KeyPressMsg{Code: code}
	}
	return tea.KeyPressMsg{Text: text, Code: []rune(text)[0]}
}

func TestTopProgram(t *testing.T) {
	before, after := twoLooks()
	answers := []answer{{edges: before}, {edges: after}, {err: errors.New("ask the agent: it is gone")}}
	asked := 0
	m, err := newTop(t.Context(), func(context.Context) (*Edges, error) {
		a := answers[min(asked, len(answers)-1)]
		asked++
		return a.edges, a.err
	}, TopOptions{Interval: 2 * time.Second, Sort: ByRate})
	if err != nil {
		t.Fatal(err)
	}
	do := func(messages ...tea.Msg) (last tea.Cmd) {
		for _, message := range messages {
			_, last = m.Update(message)
		}
		return last
	}
	keys := func(all ...string) (last tea.Cmd) {
		for _, key := range all {
			last = do(press(key))
		}
		return last
	}
	screen := func() string { return m.View().Content }
	do(tea.WindowSizeMsg{Width: 130, Height: 12})
	if !strings.Contains(screen(), "the first rates come after an interval") {
		t.Errorf("at first: %s", screen())
	}
	do(m.Init()(), m.look())
	golden(t, "program.txt", strings.Split(screen(), "\n"))
	if n := strings.Count(screen(), "\n") + 1; n != 12 {
		t.Errorf("%d lines on a screen of 12", n)
	}

	// A filter is written, and a wrong one said to be.
	keys("/", "p", "e", "e", "r", "=", "=", "c", "x", "enter")
	if m.text != "peer==cx" || len(m.report.Edges) != 0 {
		t.Errorf("filter %q, %d edges", m.text, len(m.report.Edges))
	}
	keys("/", "backspace", "a", "r", "t", "enter")
	if m.text != "peer==cart" || len(m.report.Edges) != 1 {
		t.Errorf("filter %q, %d edges", m.text, len(m.report.Edges))
	}
	do(answer{edges: after})
	if len(m.report.Edges) != 1 || !strings.Contains(screen(), "filter peer==cart") {
		t.Errorf("%d edges: %s", len(m.report.Edges), screen())
	}
	do(tea.PasteMsg{Content: "peer==db"}) // where nothing is written
	keys("/", "backspace", "backspace", "backspace", "backspace")
	do(tea.PasteMsg{Content: "cart\r\n|| peer==db\n"})
	if keys("enter"); m.text != "peer==cart || peer==db" {
		t.Errorf("filter %q", m.text)
	}
	do(tea.KeyPressMsg{Text: "/", Code: '/'}, tea.KeyPressMsg{Code: 'u', Mod: tea.ModCtrl}, tea.PasteMsg{Content: "peer==cart"}, press("enter"))
	keys("/", "=", "enter")
	if !m.editing || !strings.Contains(screen(), "is not expected") {
		t.Errorf("a wrong filter: %s", screen())
	}
	keys("esc")
	do(tea.KeyPressMsg{Text: "/", Code: '/'}, tea.KeyPressMsg{Code: 'u', Mod: tea.ModCtrl}, press("enter"))
	if m.text != "" || m.filter != nil {
		t.Errorf("the filter stays: %q", m.text)
	}

	for key, want := range map[string]Sort{"b": ByBytes, "f": ByFailures, "l": ByLatency, "o": ByOpen, "n": ByName, "r": ByRate} {
		if keys(key); m.sort != want {
			t.Errorf("%s sorts by %s", key, m.sort)
		}
	}
	if keys("r", "s"); m.sort != ByBytes {
		t.Errorf("the next order is %s", m.sort)
	}
	if keys("+"); m.interval != 4*time.Second {
		t.Errorf("interval %v", m.interval)
	}
	if keys("-", "-", "-", "-", "-", "-", "-", "-"); m.interval != LeastInterval {
		t.Errorf("interval %v", m.interval)
	}
	keys("?")
	golden(t, "program-help.txt", strings.Split(screen(), "\n"))
	keys("?")

	do(tea.WindowSizeMsg{Width: 40, Height: 6}, answer{edges: before}, answer{edges: after})
	if keys("end"); m.first != 2 {
		t.Errorf("the last of 4 edges on 2 lines: from %d", m.first)
	}
	if keys("up"); m.first != 1 {
		t.Errorf("one up: from %d", m.first)
	}
	keys("home", "down", "pgdown", "pgdown")
	for _, line := range strings.Split(screen(), "\n") {
		if n := utf8.RuneCountInString(line); n > 40 {
			t.Errorf("%d characters on a line of 40: %s", n, line)
		}
	}
	for _, size := range []tea.WindowSizeMsg{{}, {Width: 1, Height: 1}, {Width: 3, Height: 2}} {
		do(size)
		screen()
	}
	do(tea.WindowSizeMsg{Width: 130, Height: 12})

	keys("p")
	if do(answer{edges: before}); !m.paused || m.after != after || !strings.Contains(screen(), "stopped") {
		t.Errorf("it goes on while it is stopped: %s", screen())
	}
	keys("p")
	do(answer{err: errors.New("ask the agent: it is gone")})
	if !strings.Contains(screen(), "it is gone") || !strings.Contains(screen(), "cart") {
		t.Errorf("without an agent: %s", screen())
	}
	if quit := keys("q"); quit == nil {
		t.Error("it does not end")
	} else if _, ok := quit().(tea.QuitMsg); !ok {
		t.Error("it does not end")
	}
}
