package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// many is how many connections a case makes where it makes sense.
const many = 50

// ownName is the executable that a caller is.
var ownName = filepath.Base(os.Args[0])

// Where servers of a case listen.
var (
	loopback4 = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6 = netip.MustParseAddrPort("[::1]:0")
)

// edgeCase is one way in which connections begin or end.
type edgeCase struct {
	name string
	run  func(e *scene)
}

// runEdges runs cases side by side under one agent: most of them wait for the kernel's timers. Each has a cgroup of its own, by which
// its lines and series are told apart.
func runEdges(t *testing.T, cases ...edgeCase) {
	t.Helper()
	needRoot(t)
	root := newCgroup(t)
	a := startAgent(t, root)
	checked := make(map[string]int) // lines by case
	var mu, scrape sync.Mutex
	var running sync.WaitGroup
	slots := make(chan struct{}, 6)
	for i, c := range cases {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			t.Run(c.name, func(t *testing.T) {
				e := &scene{t: t, a: a, scrape: &scrape, cgroup: filepath.Join(root, fmt.Sprintf("case%d", i))}
				e.newCgroup("")
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					checked["0::"+e.label()] = e.checked
				}()
				c.run(e)
			})
		})
	}
	running.Wait()
	if t.Failed() {
		return
	}
	a.waitClosed()
	report := a.audit()
	if k := report.Kernel; report.Unaccounted != 0 || k.StorageFailed["client"]+k.StorageFailed["server"] != 0 || k.UntrackedClosed != 0 {
		t.Errorf("%d unaccounted, %v without storage, %d untracked", report.Unaccounted, k.StorageFailed, k.UntrackedClosed)
	}
	a.stop()
	// Each line came once, and none came late.
	for _, l := range readLog[edgeLine](t, a.Access) {
		checked[filepath.Dir(l.Cgroup)]--
	}
	for name, n := range checked {
		if n != 0 {
			t.Errorf("%s has %d lines less at the end than when it was checked", name, n)
		}
	}
}

// scene is what a case works with.
type scene struct {
	t       *testing.T
	a       *agent
	cgroup  string
	spaces  []netns.NsHandle // whose counters are the case's
	scrape  *sync.Mutex
	checked int // lines
	// strayed says that the kernel also sends again what belongs to no connection of a line, such as a SYN's answer.
	strayed bool
}

func (e *scene) newCgroup(name string) string {
	e.t.Helper()
	dir := filepath.Join(e.cgroup, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		e.t.Fatal(err)
	} else if err == nil {
		e.t.Cleanup(func() {
			if err := lab.RemoveCgroup(dir); err != nil {
				e.t.Error(err)
			}
		})
	}
	return dir
}

// space makes a network namespace, with sysctls below net: "ipv4/tcp_fastopen=7".
func (e *scene) space(sysctls ...string) netns.NsHandle {
	e.t.Helper()
	ns := newNamespace(e.t)
	e.spaces = append(e.spaces, ns)
	e.sysctl(ns, sysctls...)
	return ns
}

// newBareNamespace makes a network namespace that the case may let go of.
func newBareNamespace() (netns.NsHandle, error) {
	ns, err := lab.NewNamespace()
	if err != nil {
		return ns, err
	}
	return ns, lab.In(ns, loopbackUp)
}

func (e *scene) sysctl(ns netns.NsHandle, sysctls ...string) {
	e.t.Helper()
	if err := lab.In(ns, func() error {
		for _, s := range sysctls {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		e.t.Fatal(err)
	}
}

// caller starts a process in a cgroup of the case.
func (e *scene) caller(ns netns.NsHandle, cgroup string) *caller {
	e.t.Helper()
	return startCaller(e.t, ns, e.newCgroup(cgroup))
}

// pair starts a client and a server in one namespace.
func (e *scene) pair(sysctls ...string) (client, server *caller) {
	e.t.Helper()
	ns := e.space(sysctls...)
	return e.caller(ns, "client"), e.caller(ns, "server")
}

// end is what a line must say of one end of a connection. Cgroup is the last part of it.
type end struct {
	Role, Reason   string
	Sent, Received uint64
	PID            int
	Executable     string
	Cgroup         string
}

func clientEnd(c *caller, reason string, sent, received int) end {
	return end{"client", reason, uint64(sent), uint64(received), c.pid, ownName, "client"}
}

func serverEnd(c *caller, reason string, sent, received int) end {
	return end{"server", reason, uint64(sent), uint64(received), c.pid, ownName, "server"}
}

// edgeLine is what these tests read of a line.
type edgeLine struct {
	logLine
	ConnectNS   uint64 `json:"sidelight.connect_ns"`
	Retransmits uint64 `json:"sidelight.retransmits"`
	MinRTTUS    uint64 `json:"sidelight.min_rtt_us"`
	LocalAddr   string `json:"network.local.address"`
	PeerAddr    string `json:"network.peer.address"`
	LocalPort   int    `json:"network.local.port"`
}

// lines are the case's so far.
func (e *scene) lines() []edgeLine {
	e.t.Helper()
	var own []edgeLine
	for _, l := range readLog[edgeLine](e.t, e.a.Access) {
		if strings.Contains(l.Cgroup, e.label()+"/") {
			own = append(own, l)
		}
	}
	return own
}

// label is the case's cgroup below the mount.
func (e *scene) label() string {
	return "/" + filepath.Base(filepath.Dir(e.cgroup)) + "/" + filepath.Base(e.cgroup)
}

// waitLines waits for that many lines of the case, and no more.
func (e *scene) waitLines(n int) []edgeLine {
	e.t.Helper()
	var lines []edgeLine
	eventually(e.t, "the lines", func() error {
		if lines = e.lines(); len(lines) < n {
			return fmt.Errorf("%d of %d are there: %v", len(lines), n, endsOf(lines))
		}
		return nil
	})
	if len(lines) > n {
		e.t.Fatalf("%d lines, want %d: %v", len(lines), n, endsOf(lines))
	}
	return lines
}

func endsOf(lines []edgeLine) map[end]int {
	got := make(map[end]int)
	for _, l := range lines {
		got[end{l.Role, l.Reason, l.Sent, l.Received, l.PID, l.Executable, filepath.Base(l.Cgroup)}]++
	}
	return got
}

// check waits for the lines of all connections of the case, which must be the given ones, and holds series and the kernel's own
// counters against them. traces is how many connections the ends add up to.
func (e *scene) check(traces int, want map[end]int) []edgeLine {
	e.t.Helper()
	total := 0
	for _, n := range want {
		total += n
	}
	lines := e.waitLines(total)
	got := endsOf(lines)
	for w, n := range want {
		if got[w] != n {
			e.t.Errorf("want %d of %+v, got %d", n, w, got[w])
		}
		delete(got, w)
	}
	for g, n := range got {
		e.t.Errorf("%d lines that nobody expected: %+v", n, g)
	}
	ids := make(map[string]map[string]int)
	for _, l := range lines {
		if ids[l.TraceID] == nil {
			ids[l.TraceID] = make(map[string]int)
		}
		if ids[l.TraceID][l.Role]++; ids[l.TraceID][l.Role] > 1 {
			e.t.Errorf("trace %s has two ends: %+v", l.TraceID, l)
		}
	}
	if len(ids) != traces {
		e.t.Errorf("%d traces, want %d", len(ids), traces)
	}
	e.checked = total
	e.checkSeries(lines)
	e.checkKernel(lines)
	return lines
}

// metrics reads /metrics, one case at a time: it does not serve many at once.
func (e *scene) metrics() string {
	e.t.Helper()
	e.scrape.Lock()
	defer e.scrape.Unlock()
	return e.a.metrics()
}

// checkSeries holds the case's series against its lines, when nothing is open any more.
func (e *scene) checkSeries(lines []edgeLine) {
	e.t.Helper()
	want := make(map[string]uint64)
	for _, l := range lines {
		labels := fmt.Sprintf("local_workload=%q,role=%q", strings.TrimPrefix(l.Cgroup, "0::"), l.Role)
		name := func(metric string) string { return "sidelight_tcp_" + metric + "{" + labels + "}" }
		withReason := func(metric string) string {
			return fmt.Sprintf("sidelight_tcp_%s{local_workload=%q,reason=%q,role=%q}", metric, strings.TrimPrefix(l.Cgroup, "0::"), l.Reason, l.Role)
		}
		want[name("connection_open")] += 0
		if l.Role == "client" {
			want[name("connection_connecting")] += 0
			want[name("connection_attempts_total")]++
		}
		if l.Role == "client" && l.ConnectNS == 0 {
			want[withReason("connection_failures_total")]++
		} else {
			want[name("connection_established_total")]++
			want[withReason("connection_closed_total")]++
		}
		want[name("sent_bytes_total")] += l.Sent
		want[name("received_bytes_total")] += l.Received
		want[name("retransmits_total")] += l.Retransmits
	}
	metrics := e.metrics()
	for name, n := range want {
		if got, found := find(metrics, name); got != n || !found {
			e.t.Errorf("%s is %d, want %d", name, got, n)
		}
	}
}

// checkKernel holds the lines against what the case's namespaces counted.
func (e *scene) checkKernel(lines []edgeLine) {
	e.t.Helper()
	if len(e.spaces) == 0 {
		return // the namespace is gone, and its counters with it
	}
	var clients, servers, retransmits uint64
	for _, l := range lines {
		retransmits += l.Retransmits
		if l.Role == "client" {
			clients++
		} else {
			servers++
		}
	}
	want := map[string]uint64{"TcpActiveOpens": clients, "TcpPassiveOpens": servers, "TcpCurrEstab": 0}
	if !e.strayed {
		want["TcpRetransSegs"] = retransmits
	}
	e.counted(want)
}

// counted compares counters of the case's namespaces: see mibs. It waits for them: tcp_set_state() calls sockops first and counts then.
func (e *scene) counted(want map[string]uint64) {
	e.t.Helper()
	eventuallyWithin(e.t, 10*time.Second, "the kernel's counters", func() error {
		kernel := e.counters()
		for name, n := range want {
			got, found := kernel[name]
			switch {
			case !found:
				return fmt.Errorf("there is no %s", name)
			case name == "TcpOutRsts" && n > 0 && got >= n: // others may add to them
			case got != n && !twiceOfServers(name, kernel, n):
				return fmt.Errorf("%s is %d, want %d", name, got, n)
			}
		}
		return nil
	})
}

func (e *scene) counters() map[string]uint64 {
	e.t.Helper()
	sums := make(map[string]uint64)
	for _, ns := range e.spaces {
		for name, n := range mibs(e.t, ns) {
			sums[name] += n
		}
	}
	return sums
}

func (e *scene) counter(name string) uint64 {
	e.t.Helper()
	n, found := e.counters()[name]
	if !found {
		e.t.Fatalf("the kernel has no counter %s", name)
	}
	return n
}

// waitCounter waits until the case's namespaces have counted so much of something.
func (e *scene) waitCounter(name string, n uint64) {
	e.t.Helper()
	eventually(e.t, name, func() error {
		if got := e.counter(name); got < n {
			return fmt.Errorf("%d, want %d", got, n)
		}
		return nil
	})
}
