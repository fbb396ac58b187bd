package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestFirstBytes holds the times of the first bytes of both ends against each other and against what the client saw: a byte is sent
// before it is received, and the kernel has it before the process does. The connections stay open for a while, so that no FIN makes up
// for an acknowledgement that was late.
func TestFirstBytes(t *testing.T) {
	needRoot(t)
	const count, think = 100, 20 * time.Millisecond
	for name, addr := range map[string]string{"v4": "127.0.0.1", "v6": "::1"} {
		t.Run(name, func(t *testing.T) {
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			a := startAgent(t, cgroup)
			_, port := startServer(t, ns, filepath.Join(cgroup, "server"), peerMPTCP+"=off")
			until := filepath.Join(t.TempDir(), "end")
			client := startScript(t, ns, filepath.Join(cgroup, "client"), script{
				Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), port), Ending: clientHolds, Count: count, Parallel: count,
				Request: 10, Response: 10, Think: think, Until: until,
			})
			eventually(t, "the responses", a.wants(map[string]uint64{
				`sidelight_tcp_connection_open{role="client"}`: count,
				`sidelight_tcp_connection_open{role="server"}`: count,
			}))
			waitSockets(t, ns, established, 2*count)
			if err := os.WriteFile(until, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			var result clientResult
			if err := json.Unmarshal([]byte(client.line()), &result); err != nil {
				t.Fatal(err)
			}
			client.end()
			a.waitClosed()
			metrics := a.metrics()
			a.stop()
			if n := value(t, metrics, `sidelight_tcp_first_byte_duration_seconds_count{role="client"}`); n != count {
				t.Errorf("the histogram has %d observations, want %d", n, count)
			}
			ends := make(map[string]map[string]firstBytes)
			for _, l := range readLog[firstBytes](t, a.Access) {
				if ends[l.TraceID] == nil {
					ends[l.TraceID] = make(map[string]firstBytes)
				}
				ends[l.TraceID][l.Role] = l
			}
			if len(ends) != count {
				t.Fatalf("%d connections, want %d", len(ends), count)
			}
			var latest time.Duration // of an acknowledgement after the read
			for trace, both := range ends {
				c, s := both["client"], both["server"]
				clientSent, clientReceived := c.times(t)
				serverSent, serverReceived := s.times(t)
				read := result.Read[c.ClientPort]
				switch {
				case c.FirstSent < int64(think):
					t.Errorf("trace %s: the client's first byte left %v after the handshake, want %v at least", trace, time.Duration(c.FirstSent), think)
				case clientSent > serverReceived, serverReceived > serverSent, serverSent > clientReceived:
					t.Errorf("trace %s: out of order: sent %d, received %d, answered %d, received %d", trace, clientSent, serverReceived, serverSent, clientReceived)
				}
				latest = max(latest, time.Duration(clientReceived-read))
			}
			if latest > 0 {
				t.Errorf("a first byte was seen %v after the client had read it", latest)
			}
		})
	}
}

// firstBytes is what the test reads of a line.
type firstBytes struct {
	logLine
	ClientPort    int   `json:"client.port"`
	Connect       int64 `json:"sidelight.connect_ns"`
	Decision      int64 `json:"sidelight.decision_ns"`
	FirstSent     int64 `json:"sidelight.first_sent_ns"`
	FirstReceived int64 `json:"sidelight.first_received_ns"`
}

// times are CLOCK_MONOTONIC: the uid ends with that of the start.
func (l firstBytes) times(t *testing.T) (sent, received int64) {
	t.Helper()
	start, err := strconv.ParseInt(l.UID[strings.LastIndexByte(l.UID, '-')+1:], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if l.FirstSent == 0 || l.FirstReceived == 0 {
		t.Fatalf("a time is missing: %+v", l)
	}
	established := start + l.Decision + l.Connect
	return established + l.FirstSent, established + l.FirstReceived
}
