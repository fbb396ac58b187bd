package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// TestEvict has more workloads than edges. Sums over all edges are exact at every look, and once the first workloads are idle, a
// new one gets an edge of its own: the table is not full until a restart.
func TestEvict(t *testing.T) {
	needRoot(t)
	const workloads, each, limit = 200, 3, 20
	children := []string{"server", "late"}
	for i := range workloads {
		children = append(children, "w"+strconv.Itoa(i))
	}
	cgroup := newCgroup(t, children...)
	ns := newNamespace(t)
	a := startAgent(t, cgroup, "--config", writeConfig(t, fmt.Sprintf("max_edges: %d", limit)))
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	var clients sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, child := range children[2:] {
		slots <- struct{}{}
		p := startScript(t, ns, filepath.Join(cgroup, child), script{Addr: addr, Ending: clientCloses, Count: each, Request: 10, Response: 20})
		clients.Go(func() {
			defer func() { <-slots }()
			p.end()
		})
	}
	clients.Wait()
	a.waitClosed()
	total := uint64(workloads * each)
	check := func() string {
		t.Helper()
		metrics := a.metrics()
		for name, want := range map[string]uint64{
			`sidelight_tcp_connection_attempts_total{role="client"}`:           total,
			`sidelight_tcp_connection_established_total{role="server"}`:        total,
			`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: total,
			`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: total,
			`sidelight_tcp_sent_bytes_total{role="client"}`:                    total * (headerBytes + 10),
			`sidelight_tcp_received_bytes_total{role="client"}`:                total * 20,
			`sidelight_tcp_connection_duration_seconds_count{role="client"}`:   total,
			`sidelight_tcp_connection_open{role="client"}`:                     0,
			`sidelight_tcp_connection_connecting{role="client"}`:               0,
			`sidelight_accounting_unaccounted`:                                 0,
			`sidelight_self_edges`:                                             limit,
		} {
			if got := value(t, metrics, name); got != want {
				t.Errorf("%s is %d, want %d", name, got, want)
			}
		}
		return metrics
	}
	metrics := check()
	if folded := value(t, metrics, "sidelight_self_edges_folded_total"); folded == 0 {
		t.Error("no record went to the overflow edge: the test proves nothing")
	}
	eventually(t, "an edge of its own for a late workload", func() error {
		runScript(t, ns, filepath.Join(cgroup, "late"), script{Addr: addr, Ending: clientCloses, Count: 1, Request: 10, Response: 20})
		total++
		a.waitClosed()
		if metrics = check(); !strings.Contains(metrics, `/late",network_type="ipv4"`) {
			return fmt.Errorf("%d edges were evicted", value(t, metrics, "sidelight_self_edges_evicted_total"))
		}
		return nil
	})
	if value(t, metrics, "sidelight_self_edges_evicted_total") == 0 {
		t.Error("no edge was evicted")
	}
	a.stop()
	if lines := len(a.lines()); lines != int(2*total) {
		t.Errorf("%d lines, want %d", lines, 2*total)
	}
}
