package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// truthCount is how many connections each mix makes; fewer on a machine that is emulated.
var truthCount = func() int {
	if emulatedMachine() {
		return 1000
	}
	return 5000
}()

// TestTruth makes connections of a known mix, and wants the same numbers, exactly, from everything that tells any: per edge from
// /metrics, OTLP metrics, OTLP logs, OTLP traces and the access log, and in sum from the kernel's own counters.
func TestTruth(t *testing.T) {
	needRoot(t)
	for i, v := range []struct {
		name   string
		config []string
		env    []string
		count  int // if not truthCount
		alone  bool
		lossy  bool
		folded bool // not every edge can be told from others
		// around is called when the agent is attached, with what makes the connections.
		around func(m *mix, a *agent, connect func())
	}{
		{
			name: "no time", count: truthCount / 10, alone: true, // first, so that it has nobody but its own pressure
			around: func(_ *mix, a *agent, connect func()) { a.starve(); connect() },
		},
		{name: "plain"},
		{name: "one thread", env: []string{"GOMAXPROCS=1"}},
		// Events, losses and sweeps come in any order.
		{name: "small ring", config: []string{"ring_bytes: 4096"}, lossy: true},
		// All but the first few events are lost.
		{
			name: "stopped", config: []string{"ring_bytes: 4096"}, lossy: true,
			around: func(_ *mix, a *agent, connect func()) { a.stopFor(5*time.Second, connect) },
		},
		// The kernel has no room to keep the sums of lost events apart by edge: the map holds 8192.
		{
			name: "full map", config: []string{"ring_bytes: 4096"}, lossy: true, folded: true,
			around: func(m *mix, a *agent, connect func()) {
				a.stopFor(0, func() {
					m.fill(8192 + 100) // some get through the ring before it is full
					connect()
				})
			},
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			// Agents beside each other would take a slow machine from those who connect: what they are to do within a second takes longer.
			if !v.alone && !emulatedMachine() {
				t.Parallel()
			}
			m := newMix(t, uint64(i), cmp.Or(v.count, truthCount))
			k := startKeeper(t)
			config := m.config(append(v.config, "otlp: {protocol: grpc}")...)
			a := startAgentIn(t, m.cgroup, v.env, "--config", config, "--otlp-endpoint", k.endpoint)
			m.startServers()
			connect := func() {
				m.startClients()
				m.wait(saysThird)
				m.wait(saysRest)
			}
			if v.around == nil {
				connect()
			} else {
				v.around(m, a, connect)
			}
			m.folded, m.lossy = v.folded, v.lossy
			m.verifyHeld(a)
			m.release()
			m.verify(a, k)
		})
	}
}

// starve has twice as many processes as there are CPUs run all the time, and leaves the agent a twentieth of each.
func (a *agent) starve() {
	a.t.Helper()
	ns, cgroup := newNamespace(a.t), newCgroup(a.t)
	for range 2 * runtime.NumCPU() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), peerRole+"=burn", "GOMAXPROCS=1")
		start(a.t, ns, cgroup, cmd)
	}
	// By weight (kernel/sched/core.c, sched_prio_to_weight) 110 against 2048 on each CPU: a cgroup's cpu.max would do the same, where
	// there is the controller. Threads inherit it from the one that makes them; a second look finds those that were made during the first.
	for range 2 {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", a.cmd.Process.Pid))
		if err != nil {
			a.t.Fatal(err)
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				a.t.Fatal(err)
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, tid, 10); err != nil && !errors.Is(err, unix.ESRCH) {
				a.t.Fatal(err)
			}
		}
	}
}

// verifyHeld wants what is known while some connections are held open. CurrEstab is how many sockets of the namespace are in
// ESTABLISHED or CLOSE_WAIT.
func (m *mix) verifyHeld(a *agent) {
	m.t.Helper()
	eventually(m.t, "the sums while connections are held", func() error {
		metrics, err := a.scrape()
		if err != nil {
			return err
		}
		if err := m.fold(scraped(m.t, metrics)).without("retransmits").differ(m.fold(m.held)); err != nil {
			return err
		}
		if kernel := int64(mibs(m.t, m.ns)["TcpCurrEstab"]); kernel != m.held.sum("open") || kernel == 0 {
			return fmt.Errorf("the kernel has %d established ends, want %d", kernel, m.held.sum("open"))
		}
		return nil
	})
}

// fold makes one edge of those that cannot be told apart.
func (m *mix) fold(l ledger) ledger {
	if m.folded {
		return l.byRole()
	}
	return l
}

// verify waits for the end of everything, stops the agent, and compares. If much is to be lost, something has to be.
func (m *mix) verify(a *agent, k *keeper) {
	t := m.t
	t.Helper()
	a.waitClosed()
	var metrics string
	var audit *auditReport
	eventually(t, "the last numbers", func() (err error) {
		if metrics, err = a.scrape(); err == nil {
			audit, err = fetchAudit(t.Context(), a.Address)
		}
		return err
	})
	kernel := mibs(t, m.ns)
	told := scraped(t, metrics)
	lost := int(value(t, metrics, `sidelight_dropped_total{kind="close",stage="ring"}`))
	// What a slow backend has not taken by the end of the agent would wait on disk.
	eventually(t, "the backend", func() error {
		if logs, spans := k.counts(); logs+lost < m.ends || spans+lost < m.ends {
			return fmt.Errorf("it has %d logs and %d spans", logs, spans)
		}
		return k.ledger().differ(told)
	})
	a.stop()

	if err := m.fold(told).without("retransmits").differ(m.fold(m.edges)); err != nil {
		t.Errorf("/metrics: %v", err)
	}
	if err := k.ledger().differ(told); err != nil {
		t.Errorf("OTLP metrics, against /metrics: %v", err)
	}
	m.verifyKernel(kernel, told)
	if audit.Unaccounted != 0 {
		t.Errorf("%d are unaccounted: %+v", audit.Unaccounted, audit.Account)
	}

	if m.lossy && lost == 0 || m.folded && audit.Kernel.Totalled == 0 {
		t.Error("nothing was lost: the test proves nothing")
	}
	if !m.folded && audit.Kernel.Totalled != 0 {
		t.Errorf("%d closes had no place of their own", audit.Kernel.Totalled)
	}
	if bare := value(t, metrics, `sidelight_dropped_total{kind="connection",stage="storage"}`); int(bare) != m.bare {
		t.Errorf("%d sockets had no room for state, want %d", bare, m.bare)
	}
	if reported := int(audit.Kernel.Aggregated + audit.Kernel.Totalled); reported != lost {
		t.Errorf("%d closes were lost, %d are in the sums of lost events", lost, reported)
	}
	for name, n := range dropped(metrics) {
		if n != 0 {
			t.Errorf("%s is %d", name, n)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, lines := range map[string][]map[string]any{"access log": a.attributes(), "OTLP logs": k.logs, "OTLP traces": k.spans} {
		if len(lines)+lost != m.ends {
			t.Errorf("%s: %d lines and %d lost, want %d together", name, len(lines), lost, m.ends)
		}
		got, sums := make(map[line]int), make(ledger)
		for _, attributes := range lines {
			l := m.peers.lineOf(t, attributes)
			got[l]++
			sums.addLine(l)
			sums[entry{l.edge, "retransmits", ""}] += attributeNumber(t, attributes, "sidelight.retransmits")
			sums[entry{l.edge, "syn_retransmits", ""}] += attributeNumber(t, attributes, "sidelight.syn_retransmits")
		}
		if err := differ(got, m.lines, lost > 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if lost == 0 {
			if err := sums.differ(told); err != nil {
				t.Errorf("%s, against /metrics: %v", name, err)
			}
		}
	}
}

// TestTruthAttach starts the agent in the middle: what it has seen the beginning of is accounted for, and there is no more of
// anything than there was. A third has begun before, a third at any time, and a third after.
func TestTruthAttach(t *testing.T) {
	needRoot(t)
	m := newMix(t, 10, truthCount)
	k := startKeeper(t)
	attached := filepath.Join(t.TempDir(), "attached")
	for _, items := range m.items {
		for i := len(items) * 2 / 3; i < len(items); i++ {
			items[i].After = attached
		}
	}
	m.startServers()
	m.startClients()
	m.wait(saysThird)
	a := startAgent(t, m.cgroup, "--config", m.config("otlp: {protocol: grpc}"), "--otlp-endpoint", k.endpoint)
	if err := os.WriteFile(attached, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.wait(saysRest)
	m.release()
	a.waitClosed()
	metrics := a.metrics()
	audit := a.audit()
	a.stop()
	told := scraped(t, metrics)
	if audit.Unaccounted != 0 {
		t.Errorf("%d are unaccounted: %+v", audit.Unaccounted, audit.Account)
	}
	if err := k.ledger().differ(told); err != nil {
		t.Errorf("OTLP metrics, against /metrics: %v", err)
	}
	got := make(map[line]int)
	lines := a.attributes()
	for _, attributes := range lines {
		got[m.peers.lineOf(t, attributes)]++
	}
	if err := differ(got, m.lines, true); err != nil {
		t.Errorf("access log: %v", err)
	}
	if ends := told.sum("closed") + told.sum("failures"); ends != int64(len(lines)) || ends == 0 || len(lines) >= m.ends {
		t.Errorf("%d ends are counted, %d lines are there, want the same number, more than 0 and less than %d", ends, len(lines), m.ends)
	}
	for e, n := range told.without("retransmits") {
		if n < 0 || n > m.edges[e] {
			t.Errorf("%v is %d, want at most %d", e, n, m.edges[e])
		}
	}
}

// verifyKernel compares with the namespace's own counters. The kernel's sources say when each of them counts.
func (m *mix) verifyKernel(kernel map[string]uint64, told ledger) {
	t := m.t
	t.Helper()
	// A reset of each local end that reset, and the stack's for each SYN to a port without a listener. More of them are not ours: on two
	// CPUs an ACK can overtake the reset, or be overtaken by it, and what arrives at a socket that is gone is answered by another one.
	if outRsts, ours := int64(kernel["TcpOutRsts"]), told.sumOf("closed", "reset_by_local")+told.sumOf("failures", "refused"); outRsts < ours {
		t.Errorf("the kernel's TcpOutRsts is %d, the agent has %d", outRsts, ours)
	}
	for name, want := range m.kernel {
		if kernel[name] != want && !twiceOfServers(name, kernel, want) {
			t.Errorf("the kernel's %s is %d, want %d", name, kernel[name], want)
		}
	}
	for name, ours := range map[string]int64{
		// tcp_connect() counts it once the SYN was handed down, where BPF_SOCK_OPS_TCP_CONNECT_CB comes right before.
		"TcpActiveOpens": told.sum("attempts"),
		// tcp_create_openreq_child() counts it, for the socket that has BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB next.
		"TcpPassiveOpens": told.role("server").sum("established"),
		// __tcp_retransmit_skb() raises it together with tp->total_retrans, and tcp_rtx_synack() together with what the accepted
		// socket's begins with. It has no other place, so it is ours unless a handshake was given up by the server's side.
		"TcpRetransSegs": told.sum("retransmits"),
		// The two places raise it too, the first for a segment with a SYN.
		"TcpExtTCPSynRetrans": told.sum("syn_retransmits"),
		// tcp_done() from SYN_SENT; who closes a connecting socket does without.
		"TcpAttemptFails": told.sum("failures") - told.sumOf("failures", "aborted"),
		// tcp_set_state() to CLOSE from ESTABLISHED or CLOSE_WAIT, at each end.
		"TcpEstabResets": told.sumOf("closed", "reset_by_local") + told.sumOf("closed", "reset_by_peer"),
		// tcp_write_err().
		"TcpExtTCPAbortOnTimeout": told.sumOf("failures", "timeout"),
		// tcp_set_state(): up at ESTABLISHED, down when it is left for anything but CLOSE_WAIT.
		"TcpCurrEstab": 0,
	} {
		if int64(kernel[name]) != ours && !twiceOfServers(name, kernel, uint64(ours)) {
			t.Errorf("the kernel's %s is %d, the agent has %d", name, kernel[name], ours)
		}
	}
}

// twiceOfServers says that what a counter has above what was made can be of servers: a machine so slow that an answer takes longer than the timer of the
// SYN sees it twice. What a server begins for the second SYN fails when it meets the reset of a client that has finished (tcp_check_req). And of a second ACK,
// on another CPU at the same time, a second socket is made and counted, and then undone, because it comes too late for the request
// (inet_csk_complete_hashdance). So there are no more of either than SYNs and SYN-ACKs that were sent again. What it sends again of a handshake that it
// gives up then is no connection's; and which of the segments that were sent again were SYNs, a connection without state cannot tell when it has opened.
func twiceOfServers(counter string, kernel map[string]uint64, made uint64) bool {
	if !emulatedMachine() || kernel[counter] <= made {
		return false
	}
	switch counter {
	case "TcpAttemptFails", "TcpPassiveOpens", "TcpRetransSegs", "TcpExtSyncookiesSent":
		return kernel[counter]-made <= kernel["TcpExtTCPSynRetrans"]
	}
	return counter == "TcpExtTCPSynRetrans"
}
