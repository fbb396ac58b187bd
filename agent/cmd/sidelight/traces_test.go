package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/bpf"
	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// joined is how the spans of the two ends of connections belong together.
type joined int

const (
	byOption    joined = iota // one trace, and the server's span is the client's child
	byAddresses               // one trace, as both see the same; the server does not know of the client's span
	notJoined                 // two traces
)

// tracesCase is one way from the client's host to the server's.
type tracesCase struct {
	name     string
	sysctls  []string // of both hosts
	box      middlebox
	to       netip.AddrPort // without its port
	fastOpen bool           // of the client, without a cookie, so that its SYN asks for one
	lose     bool           // the first SYNs
	again    bool           // SYNs are sent again
	later    bool           // the server begins to listen when its agent is there
	plain    bool           // it listens by TCP, not by MPTCP
	config   string         // more of it, of both agents
	want     joined
	// What the agents count: of the client's side, and of the server's.
	sent, noRoom, received, missing bool
}

const tracesPeers = `traces: {propagate: tcp_option, peers: [192.0.2.0/24, "2001:db8::/64"]}`

// TestTracesJoin has a client and a server on two hosts, each with an agent of its own, that send spans to one backend: N connections are N traces of two spans, whatever
// stands between the hosts, and where that takes the option out of SYNs it is counted. Whoever looks at the wire sees the trace's id.
func TestTracesJoin(t *testing.T) {
	needRoot(t)
	right := func(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, 0) }
	linkLocal := right(rightLocal)
	for _, c := range []*tracesCase{
		{name: "IPv4", to: right4, want: byOption, sent: true, received: true},
		{name: "IPv6", to: right6, want: byOption, sent: true, received: true},
		{name: "server later", to: right4, later: true, plain: true, want: byOption, sent: true, received: true},
		{name: "SYN sent again", to: right4, lose: true, again: true, want: byOption, sent: true, received: true},
		{name: "NAT", box: middlebox{addresses: true}, to: right(rightOutside4), want: byOption, sent: true, received: true},
		{name: "NAT of IPv6", box: middlebox{addresses: true}, to: right(rightOutside6), want: byOption, sent: true, received: true},
		{name: "other sequence numbers", box: middlebox{sequence: 0xfedcba98}, to: right4, plain: true, later: true, want: byOption, sent: true, received: true},
		{name: "option taken out", box: middlebox{options: true}, to: right4, want: byAddresses, sent: true, missing: true},
		{name: "option taken out behind NAT", box: middlebox{options: true, addresses: true}, to: right(rightOutside4), want: notJoined, sent: true, missing: true},
		{name: "no room in SYN", sysctls: []string{"ipv4/tcp_fastopen=1"}, to: right4, fastOpen: true, want: byAddresses, noRoom: true, missing: true},
		{name: "SYN cookies", sysctls: []string{"ipv4/tcp_syncookies=2"}, to: right4, want: byAddresses, sent: true, missing: true},
		{name: "SYNs with options dropped", box: middlebox{drops: true}, to: right4, want: byAddresses, again: true, sent: true, missing: true},
		{name: "without the times of first bytes", config: "first_byte_times: false", to: right4, want: byOption, sent: true, received: true},
		{name: "peers that are not asked", to: linkLocal, want: byAddresses},
	} {
		t.Run(c.name, c.run)
	}
}

func (c *tracesCase) run(t *testing.T) {
	const count = 40
	e := &scene{t: t}
	w := e.newWire(c.sysctls...)
	c.box.stand(w)
	near, far := newCgroup(t), newCgroup(t)
	b := otlptest.Start(t, "http")
	begin := func(cgroup string) *agent {
		return startAgent(t, cgroup, "--config", writeConfig(t, tracesPeers, c.config), "--otlp-endpoint", "http://"+b.Address)
	}
	client := begin(near)
	var server *agent
	if c.later {
		server = begin(far)
	}
	var env []string
	if c.plain {
		env = []string{peerMPTCP + "=off"}
	}
	_, port := startServer(t, w.right, far, env...)
	if !c.later {
		server = begin(far)
	}
	to := netip.AddrPortFrom(c.to.Addr(), port)
	if to.Addr().IsLinkLocalUnicast() {
		to = netip.AddrPortFrom(to.Addr().WithZone(fmt.Sprint(w.zone[0])), port)
	}
	if c.lose {
		w.set(lose)
	}
	do := script{Addr: to, Ending: clientCloses, Count: count, Parallel: 8, Request: 10, Response: 3000}
	if c.fastOpen {
		do.FastOpen = true
	}
	clients := startScript(t, w.left, near, do)
	if c.lose {
		// Until each of those that may connect at a time has a SYN under way.
		eventually(t, "SYNs that are lost", func() error {
			c.box.mu.Lock()
			defer c.box.mu.Unlock()
			if len(c.box.option) < do.Parallel {
				return fmt.Errorf("%d of %d", len(c.box.option), do.Parallel)
			}
			return nil
		})
		w.set(pass)
	}
	var result clientResult
	if err := json.Unmarshal([]byte(clients.line()), &result); err != nil {
		t.Fatal(err)
	}
	clients.end()
	if c.noRoom && emulatedMachine() && mibs(t, w.left)["TcpExtTCPSynRetrans"] > 0 {
		t.Skip("a SYN that is sent again asks for no cookie, and has room")
	}
	client.waitClosed()
	server.waitClosed()
	eventually(t, "spans", func() error {
		if n := b.Traces.SpanCount(); n != 2*count {
			return fmt.Errorf("got %d, want %d", n, 2*count)
		}
		return nil
	})
	c.checkSpans(t, count, b.Traces.AllTraces())
	wantCounts := func(which bool, name string, of map[string]uint64) {
		if want := map[bool]uint64{true: count}[which]; of[name] != want {
			t.Errorf("%d trace ids %s, want %d", of[name], name, want)
		}
	}
	for _, side := range []struct {
		agent         *agent
		first, second string
		want          [2]bool
		others        [2]string
	}{
		{client, "sent", "no_room", [2]bool{c.sent, c.noRoom}, [2]string{"received", "missing"}},
		{server, "received", "missing", [2]bool{c.received, c.missing}, [2]string{"sent", "no_room"}},
	} {
		report := side.agent.audit()
		if report.Unaccounted != 0 {
			t.Errorf("%d unaccounted", report.Unaccounted)
		}
		counts := report.Kernel.TraceIDs
		wantCounts(side.want[0], side.first, counts)
		wantCounts(side.want[1], side.second, counts)
		wantCounts(false, side.others[0], counts)
		wantCounts(false, side.others[1], counts)
		metrics := side.agent.metrics()
		for name, n := range counts {
			if line := fmt.Sprintf("sidelight_self_trace_ids_total{outcome=%q} %d\n", name, n); !strings.Contains(metrics, line) {
				t.Errorf("/metrics has no %s", line)
			}
		}
		for _, l := range side.agent.lines() {
			if l.Reason != "ok" {
				t.Errorf("a connection ended with %s", l.Reason)
			}
		}
	}
	c.checkWire(t, b.Traces.AllTraces())
}

// TestTracePeersFit wants as many peers as a configuration may name to fit into the kernel's map, with the entry that keeps IPv4 apart.
func TestTracePeersFit(t *testing.T) {
	spec, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	if room := spec.Maps["trace_blocks"].MaxEntries; room != config.MostTracePeers+1 {
		t.Errorf("the map has room for %d, and there may be %d peers", room, config.MostTracePeers)
	}
}

// TestTraceOptionOfThatConnection has a socket connect to a peer that trace ids are exchanged with, in vain, and then to another: its second SYN carries none, though the
// socket has asked for the callbacks that write it.
func TestTraceOptionOfThatConnection(t *testing.T) {
	needRoot(t)
	e := &scene{t: t}
	w := e.newWire()
	var box middlebox
	box.stand(w)
	cgroup := newCgroup(t, "client", "server")
	a := startAgent(t, cgroup, "--config", writeConfig(t, tracesPeers))
	c, s := startCaller(t, w.left, filepath.Join(cgroup, "client")), startCaller(t, w.right, filepath.Join(cgroup, "server"))
	const inVain = 3
	_, outside := s.listen(netip.AddrPortFrom(rightLocal.WithZone(fmt.Sprint(w.zone[1])), 0), 10)
	outside = netip.AddrPortFrom(rightLocal.WithZone(fmt.Sprint(w.zone[0])), outside.Port())
	fd := c.tcp(right6)
	for range inVain {
		c.fails("ECONNREFUSED", "connect", fd, netip.AddrPortFrom(right6.Addr(), 9))
	}
	c.call("connect", fd, outside)
	c.close(fd)
	eventually(t, "the connection's end", func() error {
		if k := a.audit().Kernel; k.Closed["client"] != 1 || k.Failed != inVain {
			return fmt.Errorf("%d closed, %d failed", k.Closed["client"], k.Failed)
		}
		return nil
	})
	box.saw(t, inVain)
	if got := a.audit().Kernel.TraceIDs; got["sent"] != inVain || got["no_room"]+got["received"]+got["missing"] != 0 {
		t.Errorf("trace ids: %v, want %d sent", got, inVain)
	}
}

// roomTaker is somebody else's program of sockops, which reserves 20 bytes for options of each segment of connections that begin, and writes none.
func roomTaker(t *testing.T, cgroup string) {
	t.Helper()
	const (
		op, callbacks  = 0, 84 // in struct bpf_sock_ops
		connect, room  = 3, 14 // BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB
		optionCallback = 1 << 6
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SockOps, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, op, asm.Word),
		asm.JEq.Imm(asm.R2, room, "room"),
		asm.JNE.Imm(asm.R2, connect, "end"),
		asm.LoadMem(asm.R2, asm.R6, callbacks, asm.Word),
		asm.Or.Imm(asm.R2, optionCallback),
		asm.FnSockOpsCbFlagsSet.Call(),
		asm.Ja.Label("end"),
		asm.Mov.Imm(asm.R2, 20).WithSymbol("room"),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnReserveHdrOpt.Call(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("end"),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSockOps, Program: program})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// TestTraceOptionBesideOthers has another program take the room of SYNs first: it keeps it, and that is counted once for a connection.
func TestTraceOptionBesideOthers(t *testing.T) {
	needRoot(t)
	const count = 5
	e := &scene{t: t}
	w := e.newWire()
	var box middlebox
	box.stand(w)
	cgroup := newCgroup(t, "client", "server")
	roomTaker(t, cgroup)
	a := startAgent(t, cgroup, "--config", writeConfig(t, tracesPeers))
	_, port := startServer(t, w.right, filepath.Join(cgroup, "server"))
	runScript(t, w.left, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(right4.Addr(), port), Ending: clientCloses, Count: count, Request: 10, Response: 10,
	})
	a.waitClosed()
	box.saw(t, 0)
	want := map[string]uint64{"sent": 0, "no_room": count, "received": 0, "missing": count}
	if got := a.audit().Kernel.TraceIDs; !maps.Equal(got, want) {
		t.Errorf("trace ids: %v, want %v", got, want)
	}
}

// TestTraceOptionOverRestarts changes peers from one agent to the next, to none and back, over the same pins: each time the option goes to those that the agent says, and when
// an agent does not work to those that the one before said.
func TestTraceOptionOverRestarts(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup)
	connect := func(to string) {
		at := netip.MustParseAddr(to)
		one := script{Addr: netip.AddrPortFrom(at, p.port), Ending: clientCloses, Count: 1, Request: 10, Response: 10}
		if at.Is4() {
			one.From = at // and so the server's peer is in the same block
		}
		runScript(t, p.ns, filepath.Join(cgroup, "client"), one)
	}
	sent := uint64(0)
	for i, c := range []struct {
		traces string
		to     string
		want   uint64 // more of sent
	}{
		{"{propagate: tcp_option, peers: [127.1.0.0/16]}", "127.1.0.1", 1},
		{"{propagate: tcp_option, peers: [127.1.0.0/16]}", "127.2.0.1", 0},
		{"{propagate: tcp_option, peers: [127.2.0.0/16]}", "127.1.0.1", 0},
		{"{propagate: tcp_option, peers: [127.2.0.0/16]}", "127.2.0.1", 1},
		{"{propagate: off, peers: [127.2.0.0/16]}", "127.2.0.1", 0},
		{`{propagate: tcp_option, peers: ["::/0"]}`, "127.2.0.1", 0}, // IPv4 is not in it
		{`{propagate: tcp_option, peers: ["::/0"]}`, "::1", 1},
		{`{propagate: tcp_option, peers: ["::/0", 127.0.0.0/8]}`, "127.2.0.1", 1},
		{"{propagate: tcp_option, peers: [127.1.0.0/16]}", "127.1.0.1", 1},
	} {
		l.startOf(program, "--config", writeConfig(t, "traces: "+c.traces))
		connect(c.to)
		l.waitClosed()
		k := l.audit().Kernel
		if sent += c.want; k.TraceIDs["sent"] != sent || k.TraceIDs["received"] != sent || k.TraceIDs["no_room"]+k.TraceIDs["missing"] != 0 {
			t.Errorf("%d: %s to %s: %v, want %d sent and received", i, c.traces, c.to, k.TraceIDs, sent)
		}
		l.stop()
	}
	// One that does not work leaves the peers of the one before, whose programs are put back.
	l.startOf(program, "--config", writeConfig(t, "traces: {propagate: tcp_option, peers: [127.1.0.0/16]}"))
	l.kill()
	unready := l.command(buildWith(t, "sidelight_unready"), "--config", writeConfig(t, "traces: {propagate: tcp_option, peers: [127.2.0.0/16]}", "upgrade_timeout: 1s"))
	if out, err := unready.CombinedOutput(); err == nil {
		t.Errorf("an agent that cannot be ready: %s", out)
	}
	for _, to := range []string{"127.1.0.1", "127.2.0.1"} {
		connect(to)
	}
	sent++
	l.startOf(program, "--config", writeConfig(t, "traces: {propagate: tcp_option, peers: [127.1.0.0/16]}"))
	l.waitClosed()
	if k := l.audit().Kernel; k.TraceIDs["sent"] != sent || k.TraceIDs["received"] != sent {
		t.Errorf("after a way back: %v, want %d sent and received", k.TraceIDs, sent)
	}
	l.stop()
}

// spanEnds are the spans of a trace by kind.
type spanEnds map[ptrace.SpanKind]ptrace.Span

func tracesOf(t *testing.T, all []ptrace.Traces) map[[16]byte]spanEnds {
	t.Helper()
	traces := make(map[[16]byte]spanEnds)
	for _, batch := range all {
		for _, resource := range batch.ResourceSpans().All() {
			for _, scope := range resource.ScopeSpans().All() {
				for _, span := range scope.Spans().All() {
					ends := traces[span.TraceID()]
					if ends == nil {
						ends = make(spanEnds)
						traces[span.TraceID()] = ends
					}
					if _, twice := ends[span.Kind()]; twice {
						t.Errorf("trace %v has two spans of kind %v", span.TraceID(), span.Kind())
					}
					ends[span.Kind()] = span
				}
			}
		}
	}
	return traces
}

func (c *tracesCase) checkSpans(t *testing.T, count int, all []ptrace.Traces) {
	t.Helper()
	traces := tracesOf(t, all)
	want := count
	if c.want == notJoined {
		want = 2 * count
	}
	if len(traces) != want {
		t.Errorf("%d connections are %d traces, want %d", count, len(traces), want)
	}
	faults := make(map[string]int)
	for _, ends := range traces {
		client, hasClient := ends[ptrace.SpanKindClient]
		server, hasServer := ends[ptrace.SpanKindServer]
		switch {
		case c.want == notJoined:
			if len(ends) != 1 {
				faults["two ends in a trace"]++
			}
		case !hasClient || !hasServer:
			faults["an end is missing"]++
			continue
		}
		if hasClient && !client.ParentSpanID().IsEmpty() {
			faults["a client's span has a parent"]++
		}
		switch {
		case !hasServer:
		case c.want == byOption && server.ParentSpanID() != client.SpanID():
			faults["a server's span is not the client's child"]++
		case c.want != byOption && !server.ParentSpanID().IsEmpty():
			faults["a server's span has a parent"]++
		}
	}
	for what, n := range faults {
		t.Errorf("%s: %d times", what, n)
	}
}

// checkWire wants the ids of traces in SYNs and nowhere else.
func (c *tracesCase) checkWire(t *testing.T, all []ptrace.Traces) {
	t.Helper()
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	if c.box.strange != 0 {
		t.Errorf("%d segments have an option that they should not have", c.box.strange)
	}
	want := make(map[[16]byte]bool)
	if c.sent {
		for id, ends := range tracesOf(t, all) {
			if _, hasClient := ends[ptrace.SpanKindClient]; hasClient {
				want[id] = true
			}
		}
	}
	got := make(map[[16]byte]bool)
	again := 0
	for id, n := range c.box.option {
		got[id] = true
		again += n - 1
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d ids were on the wire, want those of %d traces", len(got), len(want))
	}
	// A machine that is slow enough sends again what was not lost.
	if c.again && again == 0 || !c.again && again != 0 && !emulatedMachine() {
		t.Errorf("%d SYNs were sent again", again)
	}
}
