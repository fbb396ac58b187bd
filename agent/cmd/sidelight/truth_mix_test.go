package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// A mix is a driver: connections of every kind between several workloads, and the account of them, which is written before the
// first is made.
type mix struct {
	t      *testing.T
	ns     netns.NsHandle
	cgroup string
	ports  []uint16
	until  string // the held ones end when this file is there
	peers  peerNames
	// What is to be made, by client, and what comes of it.
	items [mixClients][]script
	truth
	running []*process
	// What may be true of this run only.
	lossy, folded bool
}

// truth is what a driver knows of its connections.
type truth struct {
	edges  ledger         // at the end
	lines  map[line]int   // of the access log
	errnos map[string]int // of connect, all clients together
	kernel map[string]uint64
	ends   int // lines in all
	held   ledger
	bare   int // ends whose socket has no room for state
}

const (
	mixClients = 4
	mixServers = 2
	// mixNobody is a port that nobody listens at, nor is given by the kernel; those below mixServers are numbers of servers.
	mixNobody = 7
)

// The connections that a mix is made of, and how often each is.
var mixEndings = []struct {
	ending         string
	weight         int
	client, server string // reasons; no server if empty
	errno          string
	// Where the kernel counts it: MIB counters by how much each connection adds, beside what all have (see settle).
	kernel map[string]uint64
}{
	{ending: clientCloses, weight: 38, client: "ok", server: "ok"},
	{ending: serverCloses, weight: 15, client: "ok", server: "ok"},
	{ending: clientHolds, weight: 4, client: "ok", server: "ok"},
	// __tcp_close() with SO_LINGER 0: tcp_disconnect() sends the RST, and TCPABORTONDATA is counted.
	{ending: clientResets, weight: 8, client: "reset_by_local", server: "reset_by_peer", kernel: map[string]uint64{"TcpExtTCPAbortOnData": 1}},
	{ending: serverResets, weight: 8, client: "reset_by_peer", server: "reset_by_local", kernel: map[string]uint64{"TcpExtTCPAbortOnData": 1}},
	// __tcp_close() looks for unread data first: TCPABORTONCLOSE, and tcp_send_active_reset().
	{ending: clientUnread, weight: 7, client: "reset_by_local", server: "reset_by_peer", kernel: map[string]uint64{"TcpExtTCPAbortOnClose": 1}},
	{ending: serverUnread, weight: 7, client: "reset_by_peer", server: "reset_by_local", kernel: map[string]uint64{"TcpExtTCPAbortOnClose": 1}},
	// tcp_v4_send_reset() for the port that nobody listens on; the client's tcp_reset() ends in tcp_done() from SYN_SENT.
	{ending: "refused", weight: 7, client: "refused", errno: "ECONNREFUSED", kernel: map[string]uint64{"TcpAttemptFails": 1}},
	// tcp_write_err(): TCPABORTONTIMEOUT, and tcp_done() from SYN_SENT. One SYN is sent again before: see newMix.
	{ending: "timeout", weight: 3, client: "timeout", errno: "ETIMEDOUT", kernel: map[string]uint64{
		"TcpExtTCPAbortOnTimeout": 1, "TcpAttemptFails": 1,
	}},
	// ICMPv6 says that there is nobody, which ends a connect when its process does not hold the socket: after the second SYN, mostly.
	{ending: "unreachable", weight: 2, client: "unreachable", errno: "ENETUNREACH", kernel: map[string]uint64{
		"TcpAttemptFails": 1,
	}},
	// tcp_close_state() leads from SYN_SENT to CLOSE without tcp_done(): no counter of the kernel has it but ActiveOpens.
	{ending: clientAbandons, weight: 3, client: "aborted", errno: "EINPROGRESS"},
}

// From the first of these no answer comes; of the second ICMPv6 says that it is unreachable.
var holes = [2]string{"192.0.2.0/24", "2001:db8:dead::/64"}

// filler is a client beside the mix.
const filler = "filler.service"

func clientName(i int) string { return fmt.Sprintf("client-%d.service", i) }
func serverName(i int) string { return fmt.Sprintf("server-%d.service", i) }

// newMix makes the world of a mix, and writes its account.
func newMix(t *testing.T, seed uint64, count int) *mix {
	t.Helper()
	children := []string{filler}
	for i := range mixClients {
		children = append(children, clientName(i))
	}
	for i := range mixServers {
		children = append(children, serverName(i))
	}
	m := &mix{t: t, cgroup: newCgroup(t, children...), ns: newNamespace(t), until: filepath.Join(t.TempDir(), "until")}
	var addrs []string
	for i := range mixClients {
		m.peers.add("to-"+clientName(i), fmt.Sprintf("127.1.%d.0/24", i), fmt.Sprintf("fd00:1:%d::/64", i))
		addrs = append(addrs, fmt.Sprintf("fd00:1:%d::1/128", i))
	}
	for i := range mixServers {
		m.peers.add("to-"+serverName(i), fmt.Sprintf("127.2.%d.0/24", i), fmt.Sprintf("fd00:2:%d::/64", i))
		addrs = append(addrs, fmt.Sprintf("fd00:2:%d::1/128", i))
	}
	m.peers.add("hole", holes[:]...)
	if err := lab.In(m.ns, func() error { return prepareMix(addrs) }); err != nil {
		t.Fatal(err)
	}
	m.draw(rand.New(rand.NewPCG(seed, 2)), count)
	return m
}

// prepareMix gives the namespace of this thread its addresses. A connect into the hole gives up after one more SYN.
func prepareMix(addrs []string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	for _, hole := range holes {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: prefix(hole)}); err != nil {
			return err
		}
	}
	for file, value := range map[string]string{
		"tcp_syn_retries": "1",
		// From 6.5 on this many come on top.
		"tcp_syn_linear_timeouts": "0",
		// Without room for TIME_WAIT a client's socket goes at once, and the server's FIN gets a reset.
		"tcp_max_tw_buckets": "100000",
	} {
		err := os.WriteFile("/proc/sys/net/ipv4/"+file, []byte(value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// draw chooses the connections, and writes the account. The servers' ports are not known yet.
func (m *mix) draw(random *rand.Rand, count int) {
	m.truth = truth{
		edges: make(ledger), held: make(ledger), lines: make(map[line]int), errnos: make(map[string]int), kernel: map[string]uint64{
			"TcpExtTCPAbortOnMemory": 0, "TcpExtTCPAbortOnLinger": 0, "TcpExtTCPAbortFailed": 0, "TcpExtListenDrops": 0, "TcpExtListenOverflows": 0,
		},
	}
	weights := 0
	for _, e := range mixEndings {
		weights += e.weight
	}
	for range count {
		drawn := random.IntN(weights)
		for i, e := range mixEndings {
			if drawn -= e.weight; drawn < 0 {
				m.drawOne(random, i)
				break
			}
		}
	}
}

func (m *mix) drawOne(random *rand.Rand, ending int) {
	e := &mixEndings[ending]
	client, server := random.IntN(mixClients), random.IntN(mixServers)
	s := script{Ending: e.ending, Request: size(random, 20_000), Response: size(random, 100_000), Until: m.until}
	s.Aside = e.ending == "timeout" || e.ending == "unreachable" || e.ending == clientHolds
	if e.server == "" {
		s.Request, s.Response = 0, 0
	}
	family := random.IntN(3)
	switch e.ending {
	case "timeout", clientAbandons: // ICMPv6 would come before either, or between a connect and its close, as the machine likes
		family = 1 + random.IntN(2)
	case "unreachable":
		family = 0
	}
	to, from := fmt.Sprintf("127.2.%d.1", server), fmt.Sprintf("127.1.%d.1", client)
	if inHole := s.Aside && e.server == "" || e.ending == clientAbandons; inHole {
		to = "192.0.2.1"
		if family == 0 {
			to = "2001:db8:dead::1"
		}
	} else if family == 0 {
		to = fmt.Sprintf("fd00:2:%d::1", server)
	}
	network := "ipv4"
	switch family {
	case 0:
		network, from = "ipv6", fmt.Sprintf("fd00:1:%d::1", client)
	case 1:
		to, from = "::ffff:"+to, "::ffff:"+from
	}
	port := uint16(server) // startServers knows better
	switch e.ending {
	case "refused", "timeout", "unreachable":
		s.Ending, port = connectOnly, mixNobody
	case clientAbandons:
		port = mixNobody
	case clientUnread:
		s.Response = 2 + random.IntN(1000) // one segment, so that all of it is there when one byte is
	case serverUnread:
		s.Request, s.Response = 1+random.IntN(1000), 0
	case serverResets:
		s.Response = 0
	}
	s.Addr, s.From = netip.AddrPortFrom(netip.MustParseAddr(to), port), netip.MustParseAddr(from)
	m.items[client] = append(m.items[client], s)

	m.errnos[e.errno]++
	for name, n := range e.kernel {
		m.kernel[name] += n
	}
	// tcp_connect(): every SYN that is built.
	m.kernel["TcpActiveOpens"]++
	sent, received := int64(headerBytes+s.Request), int64(s.Response)
	edge := edgeName{"client", clientName(client), m.peers.name(s.Addr.Addr()), network}
	held := e.ending == clientHolds
	if e.server == "" {
		m.settle(edge, line{edge: edge, reason: e.client}, false)
		return
	}
	// tcp_create_openreq_child().
	m.kernel["TcpPassiveOpens"]++
	if e.client != "ok" {
		// tcp_set_state() from ESTABLISHED, and from CLOSE_WAIT, at both ends.
		m.kernel["TcpEstabResets"] += 2
	}
	m.settle(edge, line{edge: edge, reason: e.client, established: true, sent: sent, received: received}, held)
	edge = edgeName{"server", serverName(server), m.peers.name(s.From), network}
	m.settle(edge, line{edge: edge, reason: e.server, established: true, sent: received, received: sent}, held)
}

// settle enters one end of a connection.
func (m *mix) settle(edge edgeName, l line, held bool) {
	m.lines[l]++
	m.ends++
	m.edges.addLine(l)
	// A held one is open until the driver lets go. All else has ended by then.
	m.held.addLine(l)
	if held {
		m.held[entry{edge, "closed", l.reason}]--
		m.held[entry{edge, "open", ""}]++
	}
}

// size is mostly small.
func size(random *rand.Rand, most int) int {
	if random.IntN(4) > 0 {
		most /= 100
	}
	return random.IntN(most + 1)
}

// config is what the agent has to know to give the edges names.
func (m *mix) config(more ...string) string {
	text, err := json.Marshal(m.peers) // JSON is YAML
	if err != nil {
		m.t.Fatal(err)
	}
	return writeConfig(m.t, append(more, "peer_groups: "+string(text))...)
}

// exhaust leaves every third client's socket, and all that the first server accepts, without room for state.
func (m *mix) exhaust() {
	for i := range m.items {
		for j := range m.items[i] {
			s := &m.items[i][j]
			if s.Exhausted = j%3 == 0; s.Exhausted {
				m.bare++
			}
			if s.Addr.Port() == 0 { // see drawOne
				m.bare++
			}
		}
	}
}

// fill makes as many connections that are refused, each from a peer of its own, which the account gains.
func (m *mix) fill(count int) {
	m.t.Helper()
	p := startScript(m.t, m.ns, filepath.Join(m.cgroup, filler), script{
		Addr: netip.MustParseAddrPort("127.64.0.1:1"), Spread: true, Ending: connectOnly, Count: count, Parallel: 20,
	})
	p.line()
	p.end()
	l := line{edge: edgeName{"client", filler, "external", "ipv4"}, reason: "refused"}
	for range count {
		m.settle(l.edge, l, false)
	}
	m.kernel["TcpActiveOpens"] += uint64(count)
	m.kernel["TcpAttemptFails"] += uint64(count)
}

// startServers starts them, and gives the clients their ports.
func (m *mix) startServers() {
	m.t.Helper()
	for i := range mixServers {
		env := []string{}
		if i == 0 {
			env = append(env, peerMPTCP+"=off")
			if m.bare > 0 {
				env = append(env, peerExhausted+"=yes")
			}
		}
		_, port := startServer(m.t, m.ns, filepath.Join(m.cgroup, serverName(i)), env...)
		m.ports = append(m.ports, port)
	}
	for _, items := range m.items {
		for i := range items {
			if port := int(items[i].Addr.Port()); port < mixServers {
				items[i].Addr = netip.AddrPortFrom(items[i].Addr.Addr(), m.ports[port])
			}
		}
	}
}

// startClients lets the connections begin: from 20 to 100 at a time in each client.
func (m *mix) startClients() {
	m.t.Helper()
	for i, items := range m.items {
		s := script{Items: items, Parallel: 20 + 80*i/(mixClients-1)}
		m.running = append(m.running, startScript(m.t, m.ns, filepath.Join(m.cgroup, clientName(i)), s))
	}
}

// wait waits until every client has said a word.
func (m *mix) wait(word string) {
	m.t.Helper()
	for _, p := range m.running {
		if said := p.line(); said != word {
			m.t.Fatalf("a client says %q, want %q", said, word)
		}
	}
}

// release ends the held ones, and wants the clients to have seen what was written down.
func (m *mix) release() {
	m.t.Helper()
	if err := os.WriteFile(m.until, nil, 0o600); err != nil {
		m.t.Fatal(err)
	}
	got := make(map[string]int)
	for _, p := range m.running {
		var result clientResult
		if err := json.Unmarshal([]byte(p.line()), &result); err != nil {
			m.t.Fatal(err)
		}
		for errno, n := range result.Errno {
			got[errno] += n
		}
		p.end()
	}
	if fmt.Sprint(got) != fmt.Sprint(m.errnos) {
		m.t.Errorf("connect said %v, want %v", got, m.errnos)
	}
}

// stopFor stops the agent, runs f, and lets it go on when f has returned and the time is over: both.
func (a *agent) stopFor(least time.Duration, f func()) {
	a.t.Helper()
	a.signal(stopSignal)
	over := time.After(least)
	f()
	<-over
	a.signal(continueSignal)
}
