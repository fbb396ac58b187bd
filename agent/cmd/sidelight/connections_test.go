package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// TestConnections makes a thousand connections of each kind and wants exactly a thousand lines of each end, each with the bytes that
// the peers exchanged, the reason that the ending implies, and the process that owned the socket.
func TestConnections(t *testing.T) {
	needRoot(t)
	const count = 1000
	for _, kind := range []struct {
		name           string
		addr           string // without the port
		ending         string
		request        int
		response       int
		networkType    string
		client, server string // reasons; no server line if empty
		errno          string // of connect
		port           uint16 // instead of the server's
	}{
		{name: "v4", addr: "127.0.0.1", ending: clientCloses, request: 100, response: 5000, networkType: "ipv4", client: "ok", server: "ok"},
		{name: "v6", addr: "::1", ending: clientCloses, request: 1, response: 1, networkType: "ipv6", client: "ok", server: "ok"},
		{name: "v4-mapped", addr: "::ffff:127.0.0.1", ending: clientCloses, request: 0, response: 70000, networkType: "ipv4", client: "ok", server: "ok"},
		{name: "server closes", addr: "127.0.0.1", ending: serverCloses, request: 70000, response: 10, networkType: "ipv4", client: "ok", server: "ok"},
		{name: "server closes, v6", addr: "::1", ending: serverCloses, request: 10, response: 0, networkType: "ipv6", client: "ok", server: "ok"},
		{name: "refused", addr: "127.0.0.1", ending: connectOnly, networkType: "ipv4", client: "refused", errno: "ECONNREFUSED", port: 1},
		{name: "refused, v6", addr: "::1", ending: connectOnly, networkType: "ipv6", client: "refused", errno: "ECONNREFUSED", port: 1},
		{name: "refused, v4-mapped", addr: "::ffff:127.0.0.1", ending: connectOnly, networkType: "ipv4", client: "refused", errno: "ECONNREFUSED", port: 1},
		{name: "client resets", addr: "127.0.0.1", ending: clientResets, request: 10, response: 20, networkType: "ipv4", client: "reset_by_local", server: "reset_by_peer"},
		{name: "server resets", addr: "::1", ending: serverResets, request: 10, networkType: "ipv6", client: "reset_by_peer", server: "reset_by_local"},
		{name: "client leaves data unread", addr: "127.0.0.1", ending: clientUnread, request: 10, response: 20, networkType: "ipv4", client: "reset_by_local", server: "reset_by_peer"},
		{name: "nobody answers", addr: "192.0.2.1", ending: connectOnly, networkType: "ipv4", client: "timeout", errno: "ETIMEDOUT", port: 1},
		{name: "client abandons", addr: "192.0.2.1", ending: clientAbandons, networkType: "ipv4", client: "aborted", errno: "EINPROGRESS", port: 1},
	} {
		t.Run(kind.name, func(t *testing.T) {
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			swallow(t, ns)
			a := startAgent(t, cgroup)
			server, port := startServer(t, ns, filepath.Join(cgroup, "server"))
			if kind.port != 0 {
				port = kind.port
			}
			s := script{
				Addr: netip.AddrPortFrom(netip.MustParseAddr(kind.addr), port), Ending: kind.ending, Count: count, Parallel: 50,
				Request: kind.request, Response: kind.response,
			}
			if kind.client == "timeout" {
				s.Parallel = count
			}
			pid, result := runScript(t, ns, filepath.Join(cgroup, "client"), s)
			if result.Errno[kind.errno] != count {
				t.Errorf("connect said %v, want %d times %q", result.Errno, count, kind.errno)
			}
			a.waitClosed()
			metrics := a.metrics()
			a.stop()

			self := filepath.Base(os.Args[0])
			below := "0::/" + filepath.Base(cgroup) + "/"
			sent := uint64(0)
			if kind.server != "" {
				sent = uint64(headerBytes + kind.request)
			}
			want := map[logLine]int{{
				NetworkType: kind.networkType, ServerPort: int(port), Role: "client", Reason: kind.client, ErrorType: errorType(kind.client),
				Sent: sent, Received: uint64(kind.response), PID: pid, Executable: self, Cgroup: below + "client",
			}: count}
			if kind.server != "" {
				want[logLine{
					NetworkType: kind.networkType, ServerPort: int(port), Role: "server", Reason: kind.server, ErrorType: errorType(kind.server),
					Sent: uint64(kind.response), Received: sent, PID: server.Process.Pid, Executable: self, Cgroup: below + "server",
				}] = count
			}
			got := make(map[logLine]int)
			ends := make(map[string]map[string]int)
			for _, l := range a.lines() {
				if ends[l.TraceID] == nil {
					ends[l.TraceID] = make(map[string]int)
				}
				ends[l.TraceID][l.Role]++
				l.UID, l.TraceID = "", ""
				got[l]++
			}
			for l, n := range want {
				if got[l] != n {
					t.Errorf("want %d of %+v, got %d", n, l, got[l])
				}
				delete(got, l)
			}
			for l, n := range got {
				t.Errorf("%d lines that nobody expected: %+v", n, l)
			}
			if len(ends) != count {
				t.Errorf("%d trace ids for %d connections", len(ends), count)
			}
			for id, roles := range ends {
				if roles["client"] != 1 || kind.server != "" && roles["server"] != 1 {
					t.Fatalf("trace %s has ends %v", id, roles)
				}
			}
			wantMetrics(t, metrics, kind.client, kind.server, count)
		})
	}
}

func errorType(reason string) string {
	if reason == "ok" {
		return ""
	}
	return reason
}

// wantMetrics holds /metrics against what was done.
func wantMetrics(t *testing.T, metrics, client, server string, count int) {
	t.Helper()
	want := []string{fmt.Sprintf(`sidelight_tcp_connection_attempts_total{role="client"} %d`, count), "sidelight_accounting_unaccounted 0"}
	if server == "" {
		want = append(want, fmt.Sprintf(`sidelight_tcp_connection_failures_total{reason=%q,role="client"} %d`, client, count))
	} else {
		want = append(want,
			fmt.Sprintf(`sidelight_tcp_connection_established_total{role="client"} %d`, count),
			fmt.Sprintf(`sidelight_tcp_connection_established_total{role="server"} %d`, count),
			fmt.Sprintf(`sidelight_tcp_connection_closed_total{reason=%q,role="client"} %d`, client, count),
			fmt.Sprintf(`sidelight_tcp_connection_closed_total{reason=%q,role="server"} %d`, server, count))
	}
	got := make(map[string]bool)
	for line := range strings.SplitSeq(metrics, "\n") {
		got[keepLabels(line, "reason", "role")] = true
	}
	for _, w := range want {
		if !got[w] {
			t.Errorf("/metrics lacks %s", w)
		}
	}
}

// keepLabels drops all labels of a line of /metrics but those named.
func keepLabels(line string, keep ...string) string {
	name, rest, ok := strings.Cut(line, "{")
	labels, value, closed := strings.Cut(rest, "}")
	if !ok || !closed {
		return line
	}
	var kept []string
	for label := range strings.SplitSeq(labels, ",") {
		for _, k := range keep {
			if strings.HasPrefix(label, k+"=") {
				kept = append(kept, label)
			}
		}
	}
	return name + "{" + strings.Join(kept, ",") + "}" + value
}

// swallow gives the namespace an address range from which no answer ever comes, and lets a connect give up after one more SYN.
func swallow(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	if err := lab.In(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: prefix("192.0.2.0/24")}
		if err := netlink.RouteAdd(route); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/tcp_syn_retries", []byte("1"), 0)
	}); err != nil {
		t.Fatal(err)
	}
}
