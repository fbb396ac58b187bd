package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// TestLoss stops the agent while connections are made through a ring of one page: most events are lost, and every sum is exact
// all the same. Only lines are missing, and it is known how many.
func TestLoss(t *testing.T) {
	needRoot(t)
	const count = 1000
	for _, c := range []struct {
		name           string
		script         script
		client, server string // reasons
	}{
		{"ok", script{Ending: clientCloses, Request: 100, Response: 1000}, "ok", "ok"},
		{"reset", script{Ending: serverResets, Request: 10}, "reset_by_peer", "reset_by_local"},
		{"refused", script{Ending: connectOnly}, "refused", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			a := startAgent(t, cgroup, "--config", writeConfig(t, "ring_bytes: 4096"))
			_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
			if c.server == "" {
				port = 1
			}
			c.script.Addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
			c.script.Count, c.script.Parallel = count, 20
			if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			runScript(t, ns, filepath.Join(cgroup, "client"), c.script)
			if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			a.waitClosed()
			metrics := a.metrics()
			// The next sweep forgets the connections whose close was lost.
			eventually(t, "the agent to forget what is gone", func() error {
				if followed := a.audit().User.Followed; followed != 0 {
					return fmt.Errorf("%d connections are remembered", followed)
				}
				return nil
			})
			a.stop()

			wantMetrics(t, metrics, c.client, c.server, count)
			ends, sent := count, uint64(0)
			if c.server != "" {
				ends, sent = 2*count, uint64(count*(headerBytes+c.script.Request))
			}
			received := uint64(count * c.script.Response)
			for name, want := range map[string]uint64{
				`sidelight_tcp_sent_bytes_total{role="client"}`:      sent,
				`sidelight_tcp_received_bytes_total{role="client"}`:  received,
				`sidelight_tcp_connection_open{role="client"}`:       0,
				`sidelight_tcp_connection_connecting{role="client"}`: 0,
				`sidelight_self_aggregated_closes_total{by="total"}`: 0,
				`sidelight_dropped_total{kind="close",stage="ring"}`: value(t, metrics, `sidelight_self_aggregated_closes_total{by="edge"}`),
			} {
				if got := value(t, metrics, name); got != want {
					t.Errorf("%s is %d, want %d", name, got, want)
				}
			}
			lost := value(t, metrics, `sidelight_dropped_total{kind="close",stage="ring"}`)
			if lost == 0 {
				t.Error("nothing was lost: the test proves nothing")
			}
			if lines := len(a.lines()); lines+int(lost) != ends {
				t.Errorf("%d lines and %d lost, want %d together", lines, lost, ends)
			}
		})
	}
}

// TestLossWithoutRoom loses closes of more edges than the kernel can keep apart: those without room go to the overflow edge, and
// the totals are still exact.
func TestLossWithoutRoom(t *testing.T) {
	needRoot(t)
	const count = 10_000 // the map has room for 8192
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	// A machine with little memory has a limit of 8192: beyond it a client's socket goes at once, and the server's FIN gets a reset.
	if err := lab.In(ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte(strconv.Itoa(2*count)), 0)
	}); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, cgroup, "--config", writeConfig(t, "ring_bytes: 4096"))
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.1.0.1"), port), Spread: true, Ending: clientCloses, Count: count, Parallel: 20,
		Request: 10, Response: 20,
	})
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	a.waitClosed()
	metrics := a.metrics()
	a.stop()
	for name, want := range map[string]uint64{
		`sidelight_tcp_connection_attempts_total{role="client"}`:           count,
		`sidelight_tcp_connection_established_total{role="client"}`:        count,
		`sidelight_tcp_connection_established_total{role="server"}`:        count,
		`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: count,
		`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: count,
		`sidelight_tcp_sent_bytes_total{role="client"}`:                    count * (headerBytes + 10),
		`sidelight_tcp_received_bytes_total{role="client"}`:                count * 20,
		`sidelight_tcp_sent_bytes_total{role="server"}`:                    count * 20,
		`sidelight_tcp_received_bytes_total{role="server"}`:                count * (headerBytes + 10),
	} {
		if got := value(t, metrics, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if !strings.Contains(metrics, "\nsidelight_accounting_unaccounted 0\n") {
		t.Error("something is unaccounted")
	}
	total := value(t, metrics, `sidelight_self_aggregated_closes_total{by="total"}`)
	edges := value(t, metrics, `sidelight_self_aggregated_closes_total{by="edge"}`)
	if total == 0 || total+edges != value(t, metrics, `sidelight_dropped_total{kind="close",stage="ring"}`) {
		t.Errorf("%d closes by edge and %d by total only", edges, total)
	}
	if over := value(t, metrics, `sidelight_tcp_connection_closed_total{local_workload="overflow"}`); over != total {
		t.Errorf("the overflow edge has %d closed connections, want %d", over, total)
	}
}

// value sums up the samples of a metric that have the given labels, all others aside. There has to be one.
func value(t *testing.T, metrics, name string) uint64 {
	t.Helper()
	sum, found := find(metrics, name)
	if !found {
		t.Errorf("/metrics has no %s", name)
	}
	return sum
}

func find(metrics, name string) (sum uint64, found bool) {
	var keep []string
	_, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
	for label := range strings.SplitSeq(labels, ",") {
		key, _, _ := strings.Cut(label, "=")
		keep = append(keep, key)
	}
	for line := range strings.SplitSeq(metrics, "\n") {
		rest, ok := strings.CutPrefix(keepLabels(line, keep...), name+" ")
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(rest, 64)
		if err != nil {
			return 0, false
		}
		sum, found = sum+uint64(f), true
	}
	return sum, found
}
