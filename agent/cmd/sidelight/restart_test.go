package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unattended is for how long there was no agent, as this one tells it.
func (l *lasting) unattended() time.Duration {
	l.t.Helper()
	text, err := l.scrape()
	if err != nil {
		l.t.Fatal(err)
	}
	_, value, _ := strings.Cut(text, "\nsidelight_datapath_unattended_seconds_total ")
	value, _, _ = strings.Cut(value, "\n")
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil {
		l.t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}

// checkLast wants everything that ever happened in the account, and a line for each end of each connection.
func (l *lasting) checkLast(count int) {
	l.t.Helper()
	l.waitClosed()
	r := l.audit()
	if r.Unaccounted != 0 || r.Kernel.Attempts != uint64(count) || r.Kernel.Closed["client"] != uint64(count) || r.Kernel.Closed["server"] != uint64(count) {
		l.t.Errorf("of %d connections: %+v", count, r)
	}
	l.linesOnce(2 * count)
}

// TestRestart stops agents and kills them while connections go on: what happens without an agent is counted and logged by the next, and all of it once.
func TestRestart(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup)
	l.restart()
	p.connect(20)
	stopping := time.Now()
	l.stop()
	stopped := time.Now()
	p.connect(30)
	starting := time.Now()
	l.restart()
	ready := time.Now()
	l.checkLast(50)
	eventually(t, "counters go on", l.wants(map[string]uint64{
		`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: 50,
		`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: 50,
		`sidelight_tcp_received_bytes_total{role="client"}`:                50 * 1000,
		`sidelight_tcp_connection_open{role="client"}`:                     0,
	}))
	eventually(t, "agents are counted", l.wants(map[string]uint64{`sidelight_datapath_agents_total`: 2}))
	if alone := l.unattended(); alone < starting.Sub(stopped) || alone > ready.Sub(stopping) {
		t.Errorf("without an agent for %v, want from %v to %v", alone, starting.Sub(stopped), ready.Sub(stopping))
	}
	p.connect(10)
	l.kill()
	p.connect(40)
	l.restart()
	l.checkLast(100)
	l.stop()
	l.startOf(program, "--on-exit", "remove")
	p.connect(5)
	l.checkLast(105)
	l.stop()
	if _, err := os.Stat(l.pins); !os.IsNotExist(err) {
		t.Errorf("pins are left: %v", err)
	}
}

// TestRestartAfterOverflow has the ring overflow while no agent is there, with the beginnings of connections in it whose ends are lost: what is open is in the gauges of the next
// agent, and nothing else.
func TestRestartAfterOverflow(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup, "--config", writeConfig(t, "ring_bytes: 4096"))
	const held, parallel, more = 7, 20, 300
	client := filepath.Join(cgroup, "client")
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.port)
	until := filepath.Join(t.TempDir(), "until")
	hold := func() *process {
		return startScript(t, p.ns, client, script{Addr: to, Ending: clientHolds, Count: held, Parallel: held, Request: 100, Response: 1000, Until: until})
	}
	open := func(each uint64) func() error {
		return l.wants(map[string]uint64{
			`sidelight_tcp_connection_open{role="client"}`: each, `sidelight_tcp_connection_open{role="server"}`: each,
			`sidelight_tcp_connection_connecting{role="client"}`: 0,
		})
	}
	l.restart()
	before := hold()
	eventually(t, "what is open", open(held))
	for _, ends := range []func(){func() { l.stop() }, func() { l.kill() }} {
		ends()
		runScript(t, p.ns, client, script{Addr: to, Ending: clientCloses, Count: more, Parallel: parallel, Request: 100, Response: 1000})
		l.restart()
		eventually(t, "what is open after an overflow", func() error {
			if r := l.audit(); r.Kernel.Aggregated == 0 || r.Kernel.Live() != 2*held {
				return fmt.Errorf("%d lost closes, %d live", r.Kernel.Aggregated, r.Kernel.Live())
			}
			return open(held)()
		})
	}
	during := hold()
	eventually(t, "what is open with more", open(2*held))
	writeFile(t, until, "")
	before.end()
	during.end()
	eventually(t, "nothing is open", open(0))
	if r := l.audit(); r.Unaccounted != 0 || r.Kernel.Closed["client"] != 2*held+2*more || r.Kernel.Closed["server"] != 2*held+2*more {
		t.Errorf("%+v", r)
	}
	l.stop()
}

// TestRestartWithoutBackend stops an agent whose pipeline has taken nothing and has no queue: what it read stays in the ring, and goes out with the next.
func TestRestartWithoutBackend(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	grpc := freePort(t)
	collector := filepath.Join(t.TempDir(), "collector.yaml")
	writeFile(t, collector, fmt.Sprintf(`receivers: {mesh: {}}
exporters: {otlp_grpc: {endpoint: %q, tls: {insecure: true}, sending_queue: {enabled: false}, retry_on_failure: {enabled: false}, timeout: 20s}}
service:
  pipelines:
    logs: {receivers: [mesh], exporters: [otlp_grpc]}
    traces: {receivers: [mesh], exporters: [otlp_grpc]}
`, grpc))
	l := newLasting(t, cgroup, "--otel-config", collector)
	l.restart()
	p.connect(20)
	l.checkLast(20)
	l.stop()
	b := startBackend(t, grpc, freePort(t))
	l.restart()
	p.connect(5)
	l.checkLast(25)
	eventually(t, "records of all connections", func() error {
		return receivedOnce(b.Received(), 50)
	})
	l.stop()
}
