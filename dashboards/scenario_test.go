package dashboards

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// A recording has no names of a mesh, so what the mesh decided is told here by a stream of events of our own: half an hour on one node, in
// which each flow connects again and again. What panels have to say follows from the periods.

var (
	web       = &enrich.Workload{Name: "web", Namespace: "shop"}
	cart1     = &enrich.Workload{Name: "cart-1", Namespace: "shop"}
	cart2     = &enrich.Workload{Name: "cart-2", Namespace: "shop"}
	narrow1   = &enrich.Workload{Name: "narrow-1", Namespace: "shop"}
	flaky1    = &enrich.Workload{Name: "flaky-1", Namespace: "shop"}
	flaky2    = &enrich.Workload{Name: "flaky-2", Namespace: "shop"}
	database  = &enrich.Workload{Name: "database", Namespace: "data"}
	blackhole = &enrich.Workload{Name: "blackhole"}
	greedy    = &enrich.Workload{Name: "greedy", Namespace: "shop"}
	intruder  = &enrich.Workload{Name: "/system.slice/intruder.service"} // without a mesh: a path, and no namespace
	external  = &enrich.Workload{Name: enrich.External}
	office    = &enrich.Workload{Name: "office"} // a group of peers
)

// decides is how long the mesh takes to refuse a connection, which then has ended.
const decides = 20 * time.Microsecond

func shop(name string) *enrich.Service { return &enrich.Service{Name: name, Namespace: "shop"} }

// flow is a connection that is made again and again.
type flow struct {
	every, first time.Duration
	client       *enrich.Workload
	servers      []*enrich.Workload // one after the other
	service      *enrich.Service    // whose endpoints the servers are, by the same names
	// Which of the two ends are on the node.
	clientHere, serverHere bool

	handshake, firstByte, life time.Duration
	sent, received             uint64 // by the client
	rtt                        time.Duration
	retransmits                uint32 // of the client, in each fifth connection
	synRetransmits             uint32
	reason                     connection.Reason // of a connect that fails
	resetEach                  int               // each so many-th connection is reset by the server
	refused                    bool              // by the mesh

	rule, dryRule *enrich.Rule
	verdict, dry  connection.Verdict
	limit         string
	decide        uint32 // ns that it took the mesh, at the client
}

var flows = []flow{
	{
		every: time.Second, client: web, servers: []*enrich.Workload{cart1, cart1, cart1, cart2}, service: shop("cart"), clientHere: true, serverHere: true,
		handshake: 2 * time.Millisecond, firstByte: 8 * time.Millisecond, life: 1500 * time.Millisecond, sent: 500, received: 2000,
		rtt: 1500 * time.Microsecond, retransmits: 1, resetEach: 20, rule: &enrich.Rule{Policy: "shop/cart"}, verdict: connection.VerdictAllow, decide: 800,
	},
	{every: 5 * time.Second, client: web, servers: []*enrich.Workload{database}, clientHere: true, reason: connection.Refused, handshake: time.Millisecond},
	{
		every: 10 * time.Second, client: greedy, servers: []*enrich.Workload{narrow1}, service: shop("narrow"), clientHere: true, serverHere: true,
		handshake: time.Millisecond, firstByte: 2 * time.Millisecond, life: 4 * time.Second, sent: 100, received: 100, rtt: time.Millisecond, decide: 400,
	},
	{
		every: 10 * time.Second, first: 2 * time.Second, client: greedy, servers: []*enrich.Workload{external}, service: shop("narrow"), clientHere: true,
		reason: connection.CircuitOpen, handshake: decides, refused: true, limit: "service shop/narrow", decide: 300,
	},
	{
		every: 10 * time.Second, first: 3 * time.Second, client: intruder, servers: []*enrich.Workload{cart1}, service: shop("cart"), clientHere: true,
		reason: connection.Denied, handshake: decides, refused: true, rule: &enrich.Rule{Policy: "shop/no-intruders"}, verdict: connection.VerdictDeny, decide: 3000,
	},
	{
		every: 10 * time.Second, first: 4 * time.Second, client: external, servers: []*enrich.Workload{cart1}, serverHere: true,
		reason: connection.Denied, handshake: decides, refused: true, rule: &enrich.Rule{Policy: "shop/inside-only", Index: 1}, verdict: connection.VerdictDeny,
	},
	{
		every: 30 * time.Second, client: web, servers: []*enrich.Workload{external}, service: shop("empty"), clientHere: true,
		reason: connection.NoEndpoint, handshake: decides, refused: true, decide: 200,
	},
	{
		every: 2 * time.Second, client: external, servers: []*enrich.Workload{web}, serverHere: true, handshake: 20 * time.Millisecond,
		firstByte: 25 * time.Millisecond, life: 300 * time.Millisecond, sent: 300, received: 9000, rtt: 20 * time.Millisecond,
		verdict: connection.VerdictAllow, dry: connection.VerdictDeny, dryRule: &enrich.Rule{Policy: "shop/soon"},
	},
	{
		every: 5 * time.Second, client: web, servers: []*enrich.Workload{external}, clientHere: true, handshake: 1030 * time.Millisecond,
		firstByte: 40 * time.Millisecond, life: 2 * time.Second, sent: 1000, received: 1000, rtt: 30 * time.Millisecond, synRetransmits: 1,
	},
	{
		every: 4 * time.Second, client: office, servers: []*enrich.Workload{web}, serverHere: true, handshake: 5 * time.Millisecond,
		firstByte: 5 * time.Millisecond, life: 600 * time.Millisecond, sent: 200, received: 400, rtt: 5 * time.Millisecond,
	},
	{
		every: time.Minute, client: web, servers: []*enrich.Workload{blackhole}, clientHere: true, handshake: 127 * time.Second,
		reason: connection.Timeout, synRetransmits: 6,
	},
	{
		every: 10 * time.Second, first: time.Second, client: web, servers: []*enrich.Workload{flaky1}, service: shop("flaky"), clientHere: true,
		handshake: time.Millisecond, reason: connection.Refused, decide: 700,
	},
	{
		every: 2 * time.Second, first: time.Second, client: web, servers: []*enrich.Workload{flaky2}, service: shop("flaky"), clientHere: true, serverHere: true,
		handshake: time.Millisecond, firstByte: time.Millisecond, life: time.Second, sent: 50, received: 50, rtt: time.Millisecond, decide: 700,
	},
}

// told is an event, with what the agent would find out about its connection.
type told struct {
	connection.Event
	identity enrich.Identity
}

// stream is what the kernel tells of all flows for a time, in order.
func stream(length time.Duration) []told {
	var all []told
	cookie := uint64(0)
	for i := range flows {
		f := &flows[i]
		n := 0
		for at := f.first + time.Second/2; at < length; at += f.every {
			cookie += 2
			all = append(all, f.connection(cookie, n, at)...)
			n++
		}
	}
	slices.SortStableFunc(all, func(a, b told) int { return cmp.Compare(a.EventNS, b.EventNS) })
	kernel := make(map[connection.Key]connection.Told)
	for i := range all {
		e := &all[i].Event
		e.Told = kernel[e.Key]
		kernel[e.Key] |= connection.ToldAttempt
		if e.EstablishedNS != 0 {
			kernel[e.Key] |= connection.ToldEstablished
		}
	}
	return slices.DeleteFunc(all, func(e told) bool { return e.EventNS >= uint64(length) })
}

// connection returns the events of the n-th connection of a flow.
func (f *flow) connection(cookie uint64, n int, at time.Duration) []told {
	server := f.servers[n%len(f.servers)]
	decision := f.decision(server)
	isn := uint32(cookie)
	clientAddr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(20000+cookie%40000))
	serverAddr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(n % len(f.servers))}), 8080)
	start := uint64(at)
	established := start + uint64(f.handshake)
	end := established + uint64(f.life)
	retransmits := f.synRetransmits
	if n%5 == 0 {
		retransmits += f.retransmits
	}
	clientReason, serverReason := f.reason, f.reason
	if f.resetEach != 0 && n%f.resetEach == 0 {
		clientReason, serverReason = connection.ResetByPeer, connection.ResetByLocal
	}
	fails := f.reason != connection.OK
	if fails {
		established, end = 0, start+uint64(f.handshake)
	}
	totals := connection.Totals{RTTUS: uint32(f.rtt.Microseconds()), Retransmits: retransmits, SYNRetransmits: f.synRetransmits}
	if !fails {
		totals.FirstReceivedNS = established + uint64(f.firstByte)
	}
	event := func(role connection.Role, kind connection.Kind, atNS uint64) connection.Event {
		e := connection.Event{
			Kind: kind, Role: role, Key: connection.Key{Cookie: cookie + uint64(role) - 1, StartNS: start}, EventNS: atNS, ClientISN: isn,
			Local: clientAddr, Peer: serverAddr,
		}
		if role == connection.Server {
			e.Local, e.Peer = serverAddr, clientAddr
		} else {
			e.ConnectNS = start
		}
		if kind != connection.PreConnect {
			e.EstablishedNS = established
		}
		if decision != nil || f.verdict != connection.VerdictNone {
			e.Flags |= connection.Decided
			e.Decision = connection.Decision{Original: serverAddr, Verdict: f.verdict, DryVerdict: f.dry, DecisionNS: uint32(decides)}
		}
		if role == connection.Client {
			e.Decision.DecisionNS = f.decide
		}
		if f.refused {
			e.Flags |= connection.RefusedHere
		}
		return e
	}
	var all []told
	here := func(e connection.Event, local, peer *enrich.Workload) {
		d := decision
		if d != nil && e.Role == connection.Server { // which service was dialled is known where it was
			d = &enrich.Decision{Rule: d.Rule, DryRule: d.DryRule}
		}
		all = append(all, told{e, enrich.Identity{Local: local, Peer: peer, Decision: d}})
	}
	if f.clientHere {
		if !f.refused {
			here(event(connection.Client, connection.PreConnect, start), f.client, server)
		}
		if !fails {
			here(event(connection.Client, connection.Established, established), f.client, server)
		}
		e := event(connection.Client, connection.Close, end)
		e.Reason, e.Totals = clientReason, totals
		e.Totals.SentBytes, e.Totals.ReceivedBytes = f.sent, f.received
		here(e, f.client, server)
	}
	if f.serverHere {
		if !fails {
			here(event(connection.Server, connection.Established, established), server, f.client)
		}
		e := event(connection.Server, connection.Close, end)
		e.Reason, e.Totals.RTTUS = serverReason, totals.RTTUS
		e.Totals.SentBytes, e.Totals.ReceivedBytes = f.received, f.sent
		here(e, server, f.client)
	}
	return all
}

// decision names what the mesh decided at the client; nil for a flow that it has no say in.
func (f *flow) decision(server *enrich.Workload) *enrich.Decision {
	if f.service == nil && f.rule == nil && f.dryRule == nil {
		return nil
	}
	d := &enrich.Decision{Service: f.service, Rule: f.rule, DryRule: f.dryRule, Limit: f.limit}
	if f.service != nil && !f.refused {
		d.Endpoint = server.Namespace + "/" + server.Name
	}
	return d
}
