package dashboards

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// within is the q-quantile of so many, of which some are below a bucket's bounds and some in it, as Prometheus reads it from classic buckets.
func within(q, total, low, high, below, in float64) float64 {
	return low + (high-low)*(q*total-below)/in
}

// edgeOf are the labels of an edge in a table.
func edgeOf(local, service, peer string, more ...string) string {
	m := make(map[string]string)
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	for end, name := range map[string]string{"local": local, "service": service, "peer": peer} {
		namespace, name, ok := strings.Cut(name, " ")
		if !ok {
			namespace, name = "", namespace
		}
		workload := end + "_workload"
		if end == "service" {
			workload = end
		}
		m[workload], m[end+"_namespace"] = name, namespace
	}
	var all []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if m[key] != "" {
			all = append(all, fmt.Sprintf("%s=%q", key, m[key]))
		}
	}
	return "{" + strings.Join(all, ", ") + "}"
}

// all multiplies what is wanted of each series.
func all(want map[string]float64, by float64) map[string]float64 {
	more := maps.Clone(want)
	for labels := range more {
		more[labels] *= by
	}
	return more
}

// notSaid are queries whose answer the stream does not imply, and why.
var notSaid = map[string]string{
	"sidelight.json/CPU of the agent process/A":             "it is of the process that runs the test",
	"sidelight.json/Resident memory of the agent process/A": "it is of the process that runs the test",
	"sidelight.json/Goroutines/A":                           "they are of the process that runs the test",
}

// TestPanelsSayWhatTheStreamImplies holds values of all queries against the periods of the flows.
func TestPanelsSayWhatTheStreamImplies(t *testing.T) {
	mesh, _, _ := worldsOf(t)
	// Connects a second: cart 1, database 0.2, narrow 0.1 and refused 0.1, denied 0.1, empty 1/30, external 0.2, black hole 1/60,
	// flaky 0.1 and 0.5.
	const connects = 1 + 0.2 + 0.1 + 0.1 + 0.1 + 1./30 + 0.2 + 1./60 + 0.1 + 0.5
	const failures = 0.2 + 0.1 + 0.1 + 1./30 + 1./60 + 0.1
	// Of these cart, narrow, external and flaky-2 get through; accepted are cart, narrow, flaky-2, 0.5 from outside and 0.25 from the office.
	const established, accepted = connects - failures, 1 + 0.1 + 0.5 + 0.5 + 0.25
	// A heat map has an increase over the whole window, of a rate that is exact.
	window := mesh.exact().rateInterval().Seconds()
	// Handshakes: narrow and flaky-2 take 1 ms, cart 2 ms, external 1.03 s.
	handshake := func(q float64) float64 {
		if q == 0.5 {
			return within(q, established, 0.001, 0.0025, 0.6, 1)
		}
		return within(q, established, 1, 2.5, 1.6, 0.2)
	}
	handshakes := all(map[string]float64{`{le="0.0005"}`: 0, `{le="0.001"}`: 0.6, `{le="0.0025"}`: 1.6, `{le="1.0"}`: 1.6, `{le="2.5"}`: 1.8, `{le="+Inf"}`: 1.8}, window)
	// First bytes: flaky-2 after 1 ms, narrow 2 ms, cart 8 ms, external 40 ms.
	firstBytes := all(map[string]float64{`{le="0.001"}`: 0.5, `{le="0.0025"}`: 0.6, `{le="0.005"}`: 0.6, `{le="0.01"}`: 1.6, `{le="0.025"}`: 1.6, `{le="0.05"}`: 1.8, `{le="+Inf"}`: 1.8}, window)
	// Payload that each end sends; it is what the other receives, where both are here.
	const clientSent, clientReceived = 500 + 0.1*100 + 0.2*1000 + 0.5*50, 2000 + 0.1*100 + 0.2*1000 + 0.5*50
	const serverSent, serverReceived = 2000 + 0.1*100 + 0.5*50 + 0.5*9000 + 0.25*400, 500 + 0.1*100 + 0.5*50 + 0.5*300 + 0.25*200
	// At the end of a second there are two of cart, one of flaky-2, and two connects to the black hole.
	open := map[string]float64{`{role="client"}`: 3, `{role="server"}`: 3}
	reasons := map[string]float64{
		`{reason="refused"}`: 0.3, `{reason="denied"}`: 0.1, `{reason="circuit_open"}`: 0.1, `{reason="no_endpoint"}`: 1. / 30, `{reason="timeout"}`: 1. / 60,
	}
	var (
		toCart1     = edgeOf("shop web", "shop cart", "shop cart-1")
		toCart2     = edgeOf("shop web", "shop cart", "shop cart-2")
		toDatabase  = edgeOf("shop web", "", "data database")
		toNarrow    = edgeOf("shop greedy", "shop narrow", "shop narrow-1")
		toNobody    = edgeOf("shop greedy", "shop narrow", "external")
		toEmpty     = edgeOf("shop web", "shop empty", "external")
		toOutside   = edgeOf("shop web", "", "external")
		toBlackhole = edgeOf("shop web", "", "blackhole")
		toFlaky1    = edgeOf("shop web", "shop flaky", "shop flaky-1")
		toFlaky2    = edgeOf("shop web", "shop flaky", "shop flaky-2")
		intrusion   = edgeOf("/system.slice/intruder.service", "shop cart", "shop cart-1")
	)
	attempts := map[string]float64{
		toCart1: 0.75, toCart2: 0.25, toDatabase: 0.2, toNarrow: 0.1, toNobody: 0.1, toEmpty: 1. / 30, toOutside: 0.2, toBlackhole: 1. / 60, toFlaky1: 0.1,
		toFlaky2: 0.5, intrusion: 0.1,
	}
	narrow, flaky := values{"service_namespace": {"shop"}, "service": {"narrow"}}, values{"service_namespace": {"shop"}, "service": {"flaky"}}
	node := func(v float64) map[string]float64 { return map[string]float64{`{instance="node1:9464"}`: v} }
	// Round-trip times of each peer's connections are all alike, so a quantile is that share of the bucket.
	alike := func(q float64) map[string]float64 {
		in := func(low, high float64) float64 { return within(q, 1, low, high, 0, 1) }
		return map[string]float64{
			`{peer_namespace="shop", peer_workload="cart-1", role="client"}`: in(0.001, 0.0025), `{peer_namespace="shop", peer_workload="cart-2", role="client"}`: in(0.001, 0.0025),
			`{peer_namespace="shop", peer_workload="narrow-1", role="client"}`: in(0.0005, 0.001), `{peer_namespace="shop", peer_workload="flaky-2", role="client"}`: in(0.0005, 0.001),
			`{peer_workload="external", role="client"}`: in(0.025, 0.05), `{peer_workload="external", role="server"}`: in(0.01, 0.025), `{peer_workload="office", role="server"}`: in(0.0025, 0.005),
			`{peer_namespace="shop", peer_workload="greedy", role="server"}`: in(0.0005, 0.001),
			`{peer_namespace="shop", peer_workload="web", role="server"}`:    within(q, 1.5, 0.001, 0.0025, 0.5, 1), // cart, and 0.5 of flaky-2
		}
	}
	peers := func(cart1, cart2, narrow, flaky2, outsideClient, web, greedy, outsideServer, office float64) map[string]float64 {
		return map[string]float64{
			`{peer_namespace="shop", peer_workload="cart-1", role="client"}`: cart1, `{peer_namespace="shop", peer_workload="cart-2", role="client"}`: cart2,
			`{peer_namespace="shop", peer_workload="narrow-1", role="client"}`: narrow, `{peer_namespace="shop", peer_workload="flaky-2", role="client"}`: flaky2,
			`{peer_workload="external", role="client"}`: outsideClient, `{peer_namespace="shop", peer_workload="web", role="server"}`: web,
			`{peer_namespace="shop", peer_workload="greedy", role="server"}`: greedy, `{peer_workload="external", role="server"}`: outsideServer,
			`{peer_workload="office", role="server"}`: office, `{peer_workload="blackhole", role="client"}`: 0,
			`{peer_namespace="data", peer_workload="database", role="client"}`: 0, `{peer_namespace="shop", peer_workload="flaky-1", role="client"}`: 0,
		}
	}
	roles := func(client, server float64) map[string]float64 {
		return map[string]float64{`{role="client"}`: client, `{role="server"}`: server}
	}
	// Lives from connect() or accept: cart 1.5 s, narrow 4 s, flaky-2 1 s and external 3 s, from outside 0.3 s, from the office 0.6 s. Buckets are from 1 to 5 s.
	life := func(q float64) (client, server float64) {
		return within(q, established, 1, 5, 0, established), within(q, accepted, 1, 5, 0.75, 1.6)
	}
	// Round-trip times: narrow and flaky-2 1 ms, cart 1.5 ms, external 30 ms; from outside 20 ms, from the office 5 ms.
	roundTrip := func(q float64) (client, server float64) {
		if q == 0.5 {
			return within(q, established, 0.001, 0.0025, 0.6, 1), within(q, accepted, 0.001, 0.0025, 0.6, 1)
		}
		return within(q, established, 0.025, 0.05, 1.6, 0.2), within(q, accepted, 0.01, 0.025, 1.85, 0.5)
	}
	picked := func(cart1, cart2, narrow1, flaky1, flaky2 float64) map[string]float64 {
		of := func(service, endpoint string) string {
			return fmt.Sprintf(`{endpoint="shop/%s", service="%s", service_namespace="shop"}`, endpoint, service)
		}
		return map[string]float64{
			of("cart", "cart-1"): cart1, of("cart", "cart-2"): cart2, of("narrow", "narrow-1"): narrow1, of("flaky", "flaky-1"): flaky1, of("flaky", "flaky-2"): flaky2,
		}
	}
	// What ends: what was established or failed at a client, and what was accepted or refused at a server.
	const closes = connects + accepted + 0.1
	// Of clients that get to send a SYN there is one event more, of what is established another.
	const events = closes + (connects - 0.1 - 0.1 - 1./30) + established + accepted
	// As in the table above, and at servers: cart-1, cart-2, flaky-2 and web from web, narrow-1 from greedy, from outside to web and cart-1, from the office.
	const edges = 11 + 7
	// Decisions: empty takes 200 ns, narrow 300 and 400, flaky 700, cart 800, and to deny the intruder 3 us.
	const decided = 1./30 + 0.2 + 0.6 + 1 + 0.1
	ofServices := func(cart, narrow, flaky, empty float64) map[string]float64 {
		return map[string]float64{
			`{service="cart", service_namespace="shop"}`: cart, `{service="narrow", service_namespace="shop"}`: narrow,
			`{service="flaky", service_namespace="shop"}`: flaky, `{service="empty", service_namespace="shop"}`: empty,
		}
	}
	limited := func(v float64) map[string]float64 { return map[string]float64{`{limit="service shop/narrow"}`: v} }
	said := []said{
		{file: "overview.json", panel: "Connects", ref: "A", want: one(connects), only: true},
		{file: "overview.json", panel: "Failed", ref: "A", want: one(failures / connects), only: true},
		{file: "overview.json", panel: "Handshake, 99th percentile", ref: "A", want: one(handshake(0.99)), only: true},
		{file: "overview.json", panel: "Open connections", ref: "A", want: open, only: true},
		{file: "overview.json", panel: "Open connections", ref: "A", set: values{"role": {"client"}}, want: map[string]float64{`{role="client"}`: 3}, only: true},
		{file: "overview.json", panel: "Longest connect under way", ref: "A", want: one(119.5), only: true}, // began at 28:00.5, and is there at the sweep at 30:00
		{file: "overview.json", panel: "Sent", ref: "A", want: roles(clientSent, serverSent), only: true},
		{file: "overview.json", panel: "Connects by client", ref: "A", only: true, want: map[string]float64{
			`{local_namespace="shop", local_workload="web"}`: connects - 0.3, `{local_namespace="shop", local_workload="greedy"}`: 0.2,
			`{local_workload="/system.slice/intruder.service"}`: 0.1,
		}},
		{file: "overview.json", panel: "Failed connects by reason", ref: "A", only: true, want: reasons},
		{file: "overview.json", panel: "Handshake latency", ref: "A", want: one(handshake(0.5)), only: true},
		{file: "overview.json", panel: "Handshake latency", ref: "B", want: one(handshake(0.9)), only: true},
		{file: "overview.json", panel: "Handshake latency", ref: "C", want: one(handshake(0.99)), only: true},
		{file: "overview.json", panel: "Open and connecting", ref: "A", want: map[string]float64{`{role="client"}`: 3, `{role="server"}`: 3}, only: true},
		{file: "overview.json", panel: "Open and connecting", ref: "B", want: one(2), only: true},
		{file: "overview.json", panel: "Golden signals by edge", ref: "A", want: attempts, only: true},
		{file: "overview.json", panel: "Golden signals by edge", ref: "B", only: true, want: map[string]float64{
			toCart1: 0, toCart2: 0, toDatabase: 1, toNarrow: 0, toNobody: 1, toEmpty: 1, toOutside: 0, toBlackhole: 1, toFlaky1: 1, toFlaky2: 0, intrusion: 1,
		}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "C", only: true, want: map[string]float64{
			toCart1: 0.00175, toCart2: 0.00175, toNarrow: 0.00075, toFlaky2: 0.00075, toOutside: 1.75,
		}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "D", only: true, want: map[string]float64{
			toCart1: 0.002485, toCart2: 0.002485, toNarrow: 0.000995, toFlaky2: 0.000995, toOutside: 2.485,
		}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "E", want: map[string]float64{toCart1: 1, toCart2: 1, toFlaky2: 1, toDatabase: 0, toBlackhole: 0}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "F", want: map[string]float64{
			toCart1: 375, toCart2: 125, toNarrow: 10, toOutside: 200, toFlaky2: 25, toDatabase: 0,
		}},
		{file: "overview.json", panel: "Golden signals by edge", ref: "G", want: map[string]float64{
			toCart1: 1500, toCart2: 500, toNarrow: 10, toOutside: 200, toFlaky2: 25, toDatabase: 0,
		}},
		{file: "overview.json", panel: "Handshake latency of all edges", ref: "A", want: handshakes},
		{file: "overview.json", panel: "Service map", ref: "edges", only: true, want: map[string]float64{
			`{id="shop/web > shop/cart-1", source="shop/web", target="shop/cart-1"}`:                                             0.75,
			`{id="shop/web > shop/cart-2", source="shop/web", target="shop/cart-2"}`:                                             0.25,
			`{id="shop/web > data/database", source="shop/web", target="data/database"}`:                                         0.2,
			`{id="shop/web > shop/flaky-1", source="shop/web", target="shop/flaky-1"}`:                                           0.1,
			`{id="shop/web > shop/flaky-2", source="shop/web", target="shop/flaky-2"}`:                                           0.5,
			`{id="shop/web > external", source="shop/web", target="external"}`:                                                   0.2 + 1./30,
			`{id="external > shop/web", source="external", target="shop/web"}`:                                                   0.5,
			`{id="office > shop/web", source="office", target="shop/web"}`:                                                       0.25,
			`{id="external > shop/cart-1", source="external", target="shop/cart-1"}`:                                             0, // denied
			`{id="shop/web > blackhole", source="shop/web", target="blackhole"}`:                                                 1. / 60,
			`{id="shop/greedy > shop/narrow-1", source="shop/greedy", target="shop/narrow-1"}`:                                   0.1,
			`{id="shop/greedy > external", source="shop/greedy", target="external"}`:                                             0.1,
			`{id="/system.slice/intruder.service > shop/cart-1", source="/system.slice/intruder.service", target="shop/cart-1"}`: 0.1,
		}},
		{file: "overview.json", panel: "Service map", ref: "nodes", only: true, want: map[string]float64{
			`{id="shop/cart-1"}`: 0.75 + 0.1, `{id="shop/cart-2"}`: 0.25, `{id="data/database"}`: 0.2, `{id="/system.slice/intruder.service"}`: 0.1,
			`{id="shop/web"}`: 1 + 0.2 + 1./30 + 0.2 + 1./60 + 0.1 + 0.5 + 0.5 + 0.25, `{id="office"}`: 0.25, `{id="external"}`: 0.2 + 1./30 + 0.1 + 0.5,
			`{id="shop/greedy"}`: 0.2, `{id="shop/narrow-1"}`: 0.1, `{id="shop/flaky-1"}`: 0.1, `{id="shop/flaky-2"}`: 0.5, `{id="blackhole"}`: 1. / 60,
		}},
		// Of one server what connects to it is told by it, too: so it has the same edges.
		{file: "overview.json", panel: "Service map", ref: "edges", set: values{"workload": {"cart-2"}}, only: true, want: map[string]float64{
			`{id="shop/web > shop/cart-2", source="shop/web", target="shop/cart-2"}`: 0.25,
		}},

		{file: "service.json", panel: "Connects", ref: "A", set: cart, want: one(1.1), only: true},
		{file: "service.json", panel: "Failed", ref: "A", set: cart, want: one(0.1 / 1.1), only: true},
		{file: "service.json", panel: "Handshake, 99th percentile", ref: "A", set: cart, want: one(0.002485), only: true},
		{file: "service.json", panel: "Connects by client", ref: "A", set: cart, only: true, want: map[string]float64{
			`{local_namespace="shop", local_workload="web"}`: 1, `{local_workload="/system.slice/intruder.service"}`: 0.1,
		}},
		{file: "service.json", panel: "Failed connects by reason", ref: "A", set: cart, only: true, want: map[string]float64{`{reason="denied"}`: 0.1}},
		{file: "service.json", panel: "Handshake latency", ref: "A", set: cart, want: one(0.00175), only: true},
		{file: "service.json", panel: "Handshake latency", ref: "B", set: cart, want: one(0.00235), only: true},
		{file: "service.json", panel: "Handshake latency", ref: "C", set: cart, want: one(0.002485), only: true},
		{file: "service.json", panel: "First byte", ref: "A", set: cart, want: one(0.0075), only: true},
		{file: "service.json", panel: "First byte", ref: "B", set: cart, want: one(0.0095), only: true},
		{file: "service.json", panel: "First byte", ref: "C", set: cart, want: one(0.00995), only: true},
		{file: "service.json", panel: "Share of connections by endpoint", ref: "A", set: cart, only: true, want: map[string]float64{
			`{endpoint="shop/cart-1"}`: 0.75, `{endpoint="shop/cart-2"}`: 0.25,
		}},
		{file: "service.json", panel: "Payload", ref: "A", set: cart, want: one(500), only: true},
		{file: "service.json", panel: "Payload", ref: "B", set: cart, want: one(2000), only: true},
		{file: "service.json", panel: "Endpoints", ref: "A", set: flaky, want: map[string]float64{`{endpoint="shop/flaky-1"}`: 0.1, `{endpoint="shop/flaky-2"}`: 0.5}, only: true},
		{file: "service.json", panel: "Endpoints", ref: "B", set: flaky, want: map[string]float64{`{endpoint="shop/flaky-1"}`: 0.1, `{endpoint="shop/flaky-2"}`: 0}, only: true},
		{file: "service.json", panel: "Endpoints", ref: "C", set: flaky, want: map[string]float64{`{endpoint="shop/flaky-1"}`: 0, `{endpoint="shop/flaky-2"}`: 1}, only: true},
		{file: "service.json", panel: "Endpoints", ref: "D", set: flaky, want: map[string]float64{`{endpoint="shop/flaky-1"}`: 1}, only: true},
		{file: "service.json", panel: "Open and connecting against the limit", ref: "A", set: narrow, want: node(1), only: true},
		{file: "service.json", panel: "Open and connecting against the limit", ref: "B", set: narrow, want: node(0), only: true},
		{file: "service.json", panel: "Open and connecting against the limit", ref: "C", set: narrow, want: one(4), only: true},
		{file: "service.json", panel: "Open and connecting against the limit", ref: "D", set: narrow, want: one(2), only: true},
		{file: "service.json", panel: "Endpoints by state", ref: "A", set: cart, want: one(2), only: true},
		{file: "service.json", panel: "Endpoints by state", ref: "A", set: flaky, want: one(1), only: true},
		{file: "service.json", panel: "Endpoints by state", ref: "B", set: cart, only: true, want: map[string]float64{
			`{state="standby"}`: 1, `{state="draining"}`: 1, `{state="unhealthy"}`: 0, `{state="ejected"}`: 0, `{state="excluded"}`: 0,
		}},
		{file: "service.json", panel: "Refused by a limit", ref: "A", set: narrow, only: true, want: map[string]float64{
			`{cause="open"}`: 0.1, `{cause="connecting"}`: 0, `{cause="rate"}`: 0,
		}},
		{file: "service.json", panel: "Endpoints out of service", ref: "A", set: cart, want: one(0), only: true},
		{file: "service.json", panel: "Endpoints out of service", ref: "A", set: flaky, want: one(1), only: true},

		{file: "workload.json", panel: "Connects", ref: "A", want: one(connects), only: true},
		{file: "workload.json", panel: "Connects", ref: "A", set: values{"workload": {"/system.slice/intruder.service", "greedy"}}, want: one(0.3), only: true},
		{file: "workload.json", panel: "Failed", ref: "A", set: values{"workload": {"greedy"}}, want: one(0.5), only: true},
		{file: "workload.json", panel: "Accepts", ref: "A", want: one(accepted), only: true},
		{file: "workload.json", panel: "Open", ref: "A", want: open, only: true},
		{file: "workload.json", panel: "Sent", ref: "A", want: roles(clientSent, serverSent), only: true},
		{file: "workload.json", panel: "Received", ref: "A", want: roles(clientReceived, serverReceived), only: true},
		{file: "workload.json", panel: "Connects by peer", ref: "A", only: true, want: map[string]float64{
			`{peer_namespace="shop", peer_workload="cart-1"}`: 0.85, `{peer_namespace="shop", peer_workload="cart-2"}`: 0.25, `{peer_namespace="shop", peer_workload="narrow-1"}`: 0.1,
			`{peer_namespace="shop", peer_workload="flaky-1"}`: 0.1, `{peer_namespace="shop", peer_workload="flaky-2"}`: 0.5, `{peer_namespace="data", peer_workload="database"}`: 0.2,
			`{peer_workload="external"}`: 0.1 + 0.2 + 1./30, `{peer_workload="blackhole"}`: 1. / 60,
		}},
		{file: "workload.json", panel: "Failed connects by reason", ref: "A", only: true, want: reasons},
		{file: "workload.json", panel: "Handshake latency by peer, 99th percentile", ref: "A", only: true, want: map[string]float64{
			`{peer_namespace="shop", peer_workload="cart-1"}`: 0.002485, `{peer_namespace="shop", peer_workload="cart-2"}`: 0.002485,
			`{peer_namespace="shop", peer_workload="narrow-1"}`: 0.000995, `{peer_namespace="shop", peer_workload="flaky-2"}`: 0.000995, `{peer_workload="external"}`: 2.485,
		}},
		{file: "workload.json", panel: "Accepts by peer", ref: "A", set: values{"workload": {"cart-1"}}, only: true, want: map[string]float64{
			`{peer_namespace="shop", peer_workload="web"}`: 0.75, `{peer_workload="external"}`: 0,
		}},
		{file: "workload.json", panel: "Denied at its side", ref: "A", set: values{"workload": {"cart-1"}}, only: true, want: map[string]float64{
			`{peer_workload="external"}`: 0.1,
		}},
		{file: "workload.json", panel: "Ends by reason", ref: "A", only: true, want: map[string]float64{
			`{reason="ok", role="client"}`: established - 0.05, `{reason="reset_by_peer", role="client"}`: 0.05,
			`{reason="ok", role="server"}`: accepted - 0.05, `{reason="reset_by_local", role="server"}`: 0.05,
		}},
		{file: "workload.json", panel: "Life of connections", ref: "A", want: roles(life(0.5)), only: true},
		{file: "workload.json", panel: "Life of connections", ref: "B", want: roles(life(0.99)), only: true},
		{file: "workload.json", panel: "Open connections by peer", ref: "A", want: peers(1, 1, 0, 1, 0, 3, 0, 0, 0)},
		{file: "workload.json", panel: "Payload sent by peer", ref: "A", want: peers(375, 125, 10, 25, 200, 2000+25, 10, 4500, 100), only: true},
		{file: "workload.json", panel: "Payload received by peer", ref: "A", want: peers(1500, 500, 10, 25, 200, 500+25, 10, 150, 50), only: true},
		{file: "workload.json", panel: "Round-trip time and retransmits by peer", ref: "A", want: alike(0.5), only: true},
		{file: "workload.json", panel: "Round-trip time and retransmits by peer", ref: "B", want: alike(0.99), only: true},
		{file: "workload.json", panel: "Round-trip time and retransmits by peer", ref: "C", want: peers(0.15, 0.05, 0, 0, 0, 0, 0, 0, 0), only: true},

		{file: "connections.json", panel: "Phases, median", ref: "A", want: one(handshake(0.5)), only: true},
		{file: "connections.json", panel: "Phases, median", ref: "B", want: one(within(0.5, established, 0.005, 0.01, 0.6, 1)), only: true},
		{file: "connections.json", panel: "Phases, 99th percentile", ref: "A", want: one(handshake(0.99)), only: true},
		{file: "connections.json", panel: "Phases, 99th percentile", ref: "B", want: one(within(0.99, established, 0.025, 0.05, 1.6, 0.2)), only: true},
		{file: "connections.json", panel: "Handshake latency", ref: "A", want: handshakes},
		{file: "connections.json", panel: "Wait for the first byte", ref: "A", want: firstBytes},
		{file: "connections.json", panel: "Failed connects by reason", ref: "A", only: true, want: reasons},
		{file: "connections.json", panel: "Connections that did not end well", ref: "A", set: values{"role": {"server"}}, only: true, want: map[string]float64{
			`{reason="reset_by_local", role="server"}`: 0.05,
		}},
		{file: "connections.json", panel: "Where connects fail", ref: "A", only: true, want: map[string]float64{
			edgeOf("shop web", "", "data database", "reason", "refused"): 0.2, edgeOf("shop web", "shop flaky", "shop flaky-1", "reason", "refused"): 0.1,
			edgeOf("shop greedy", "shop narrow", "external", "reason", "circuit_open"): 0.1, edgeOf("shop web", "shop empty", "external", "reason", "no_endpoint"): 1. / 30,
			edgeOf("/system.slice/intruder.service", "shop cart", "shop cart-1", "reason", "denied"): 0.1, edgeOf("shop web", "", "blackhole", "reason", "timeout"): 1. / 60,
		}},
		{file: "connections.json", panel: "Longest connect under way, by edge", ref: "A", want: map[string]float64{toBlackhole: 119.5, toCart1: 0, toOutside: 0}},
		{file: "connections.json", panel: "Longest now", ref: "A", want: one(119.5), only: true},
		{file: "connections.json", panel: "Connects under way", ref: "A", only: true, want: map[string]float64{
			`{local_namespace="shop", local_workload="web"}`: 2, `{local_namespace="shop", local_workload="greedy"}`: 0, `{local_workload="/system.slice/intruder.service"}`: 0,
		}},
		{file: "connections.json", panel: "Retransmits", ref: "A", set: values{"role": {"client"}}, want: map[string]float64{`{role="client"}`: 0.2 + 6./60}, only: true},
		{file: "connections.json", panel: "Retransmits", ref: "B", set: values{"role": {"client"}}, want: map[string]float64{`{role="client"}`: 0.2}, only: true},
		{file: "connections.json", panel: "SYNs sent again per connect", ref: "A", only: true, want: map[string]float64{
			`{local_namespace="shop", local_workload="web"}`: (0.2 + 6./60) / (connects - 0.3), `{local_namespace="shop", local_workload="greedy"}`: 0,
			`{local_workload="/system.slice/intruder.service"}`: 0,
		}},
		{file: "connections.json", panel: "Retransmits per megabyte sent", ref: "A", set: values{"role": {"client"}}, only: true, want: map[string]float64{
			`{local_namespace="shop", local_workload="web", role="client"}`: 0.2 / (clientSent - 10) * 1e6, `{local_namespace="shop", local_workload="greedy", role="client"}`: 0,
		}},
		{file: "connections.json", panel: "Round-trip time", ref: "A", want: roles(roundTrip(0.5)), only: true},
		{file: "connections.json", panel: "Round-trip time", ref: "B", want: roles(roundTrip(0.9)), only: true},
		{file: "connections.json", panel: "Round-trip time", ref: "C", want: roles(roundTrip(0.99)), only: true},
		{file: "connections.json", panel: "Round-trip times", ref: "A", set: values{"role": {"client"}}, want: all(map[string]float64{
			`{le="0.0005"}`: 0, `{le="0.001"}`: 0.6, `{le="0.0025"}`: 1.6, `{le="0.025"}`: 1.6, `{le="0.05"}`: 1.8, `{le="+Inf"}`: 1.8,
		}, window)},
		{file: "connections.json", panel: "Slowest handshakes by edge", ref: "A", only: true, want: map[string]float64{
			toCart1: 0.002485, toCart2: 0.002485, toNarrow: 0.000995, toFlaky2: 0.000995, toOutside: 2.485,
		}},
		{file: "connections.json", panel: "Slowest handshakes by edge", ref: "B", only: true, want: map[string]float64{
			toCart1: 0, toCart2: 0, toNarrow: 0, toFlaky2: 0, toOutside: 1,
		}},
		{file: "connections.json", panel: "Began and ended", ref: "A", want: one(connects), only: true},
		{file: "connections.json", panel: "Began and ended", ref: "B", want: roles(established, accepted), only: true},
		{file: "connections.json", panel: "Began and ended", ref: "C", want: roles(0, 0), only: true},
		{file: "connections.json", panel: "Began and ended", ref: "D", want: roles(established, accepted), only: true},
		{file: "connections.json", panel: "Life of connections", ref: "A", want: roles(life(0.5)), only: true},
		{file: "connections.json", panel: "Life of connections", ref: "B", want: roles(life(0.9)), only: true},
		{file: "connections.json", panel: "Life of connections", ref: "C", want: roles(life(0.99)), only: true},

		{file: "decisions.json", panel: "Nodes that refuse the newest input", ref: "A", want: one(1), only: true},
		{file: "decisions.json", panel: "Inputs read", ref: "A", want: one(5), only: true},
		{file: "decisions.json", panel: "Oldest mesh in force", ref: "A", want: one(meshLength.Seconds()), only: true},
		{file: "decisions.json", panel: "Guarded namespaces", ref: "A", want: one(2), only: true},
		{file: "decisions.json", panel: "Connections by endpoint", ref: "A", want: picked(0.75, 0.25, 0.1, 0.1, 0.5), only: true},
		{file: "decisions.json", panel: "Share of the endpoint in its service", ref: "A", want: picked(0.75, 0.25, 1, 1./6, 5./6), only: true},
		{file: "decisions.json", panel: "Open by endpoint", ref: "A", want: picked(1, 1, 0, 0, 1), only: true},
		{file: "decisions.json", panel: "Failed handshakes by endpoint", ref: "A", want: picked(0, 0, 0, 1, 0), only: true},
		{file: "decisions.json", panel: "Endpoints out of service", ref: "A", only: true, want: map[string]float64{
			`{cause="outlier", endpoint="shop/flaky-1", service="flaky", service_namespace="shop"}`: 1,
		}},
		{file: "decisions.json", panel: "Ejections", ref: "A", only: true, want: map[string]float64{
			`{cause="outlier", endpoint="shop/flaky-1", service="flaky", service_namespace="shop"}`: 11,
		}},
		{file: "decisions.json", panel: "Ejections suppressed", ref: "A", only: true, want: map[string]float64{
			`{endpoint="shop/flaky-1", service="flaky", service_namespace="shop"}`: 5,
		}},
		{file: "decisions.json", panel: "What counts against limits", ref: "A", want: map[string]float64{`{instance="node1:9464", limit="service shop/narrow"}`: 1}, only: true},
		{file: "decisions.json", panel: "What counts against limits", ref: "B", want: map[string]float64{`{instance="node1:9464", limit="service shop/narrow"}`: 0}, only: true},
		{file: "decisions.json", panel: "Fill of limits", ref: "A", want: limited(1. / 4), only: true},
		{file: "decisions.json", panel: "Fill of limits", ref: "B", want: limited(0), only: true},
		{file: "decisions.json", panel: "Bounds of limits", ref: "A", want: limited(4), only: true},
		{file: "decisions.json", panel: "Bounds of limits", ref: "B", want: limited(2), only: true},
		{file: "decisions.json", panel: "Bounds of limits", ref: "C", want: limited(5), only: true},
		{file: "decisions.json", panel: "Bounds of limits", ref: "D", want: limited(10), only: true},
		{file: "decisions.json", panel: "Share of endpoints that serve", ref: "A", only: true, want: map[string]float64{
			`{service="cart", service_namespace="shop"}`: 1, `{service="narrow", service_namespace="shop"}`: 1, `{service="flaky", service_namespace="shop"}`: 0.5,
		}},
		{file: "decisions.json", panel: "Eligible endpoints", ref: "A", want: ofServices(2, 1, 1, 0), only: true},
		{file: "decisions.json", panel: "Services by the states of their endpoints", ref: "A", want: ofServices(2, 1, 1, 0), only: true},
		{file: "decisions.json", panel: "Services by the states of their endpoints", ref: "B", want: ofServices(1, 0, 0, 0), only: true},
		{file: "decisions.json", panel: "Services by the states of their endpoints", ref: "C", want: ofServices(1, 0, 0, 0), only: true},
		{file: "decisions.json", panel: "Services by the states of their endpoints", ref: "D", want: ofServices(0, 0, 0, 0), only: true},
		{file: "decisions.json", panel: "Services by the states of their endpoints", ref: "E", want: ofServices(0, 0, 1, 0), only: true},
		{file: "decisions.json", panel: "Services by the states of their endpoints", ref: "F", want: ofServices(0, 0, 0, 0), only: true},
		{file: "decisions.json", panel: "Time to decide", ref: "A", want: one(within(0.5, decided, 500e-9, 1e-6, 1./30+0.2, 1.6)), only: true},
		{file: "decisions.json", panel: "Time to decide", ref: "B", want: one(within(0.9, decided, 500e-9, 1e-6, 1./30+0.2, 1.6)), only: true},
		{file: "decisions.json", panel: "Time to decide", ref: "C", want: one(within(0.99, decided, 2.5e-6, 5e-6, 1./30+1.8, 0.1)), only: true},
		{file: "decisions.json", panel: "Times to decide", ref: "A", want: all(map[string]float64{
			`{le="2.5e-07"}`: 1. / 30, `{le="5e-07"}`: 1./30 + 0.2, `{le="1e-06"}`: 1./30 + 1.8, `{le="2.5e-06"}`: 1./30 + 1.8, `{le="5e-06"}`: decided, `{le="+Inf"}`: decided,
		}, window)},
		{file: "decisions.json", panel: "Refused by limits", ref: "A", only: true, want: map[string]float64{
			`{cause="open", limit="service shop/narrow"}`: 0.1, `{cause="connecting", limit="service shop/narrow"}`: 0, `{cause="rate", limit="service shop/narrow"}`: 0,
		}},
		{file: "decisions.json", panel: "Verdicts", ref: "A", want: map[string]float64{`{verdict="allow"}`: 2, `{verdict="deny"}`: 0.2}, only: true},
		{file: "decisions.json", panel: "Verdicts of dry runs", ref: "A", want: map[string]float64{`{policy="shop/soon", verdict="deny"}`: 0.5}, only: true},
		{file: "decisions.json", panel: "Rules that decide", ref: "A", only: true, want: map[string]float64{
			`{dry_run="false", policy="shop/cart", rule="0", verdict="allow"}`:        2, // each end is asked
			`{dry_run="false", policy="shop/no-intruders", rule="0", verdict="deny"}`: 0.1,
			`{dry_run="false", policy="shop/inside-only", rule="1", verdict="deny"}`:  0.1,
			`{dry_run="true", policy="shop/soon", rule="0", verdict="deny"}`:          0.5,
		}},
		{file: "decisions.json", panel: "Refused connections by reason", ref: "A", only: true, want: map[string]float64{
			`{reason="circuit_open", service="narrow", service_namespace="shop"}`: 0.1, `{reason="denied", service="cart", service_namespace="shop"}`: 0.1,
			`{reason="no_endpoint", service="empty", service_namespace="shop"}`: 1. / 30,
		}},
		{file: "decisions.json", panel: "Refused, by the kernel", ref: "A", only: true, want: roles(0.1+0.1+1./30, 0.1)},

		{file: "sidelight.json", panel: "Unaccounted", ref: "A", want: one(0), only: true},
		{file: "sidelight.json", panel: "Unaccounted by node", ref: "A", want: node(0), only: true},
		{file: "sidelight.json", panel: "Agents", ref: "A", want: one(1), only: true},
		{file: "sidelight.json", panel: "Lowest rung", ref: "A", want: one(2), only: true},
		{file: "sidelight.json", panel: "Rung", ref: "A", want: node(2), only: true},
		{file: "sidelight.json", panel: "CPU of the agent that takes most", ref: "A", want: one(0.006), only: true},
		{file: "sidelight.json", panel: "CPU against the budget", ref: "A", want: map[string]float64{`{component="agent"}`: 0.004, `{component="programs"}`: 0.002}, only: true},
		{file: "sidelight.json", panel: "CPU against the budget", ref: "B", want: one(0.01), only: true},
		{file: "sidelight.json", panel: "Memory against the budget", ref: "A", want: node(60 << 20), only: true},
		{file: "sidelight.json", panel: "Memory against the budget", ref: "B", want: one(128 << 20), only: true},
		{file: "sidelight.json", panel: "Steps on the ladder", ref: "A", want: map[string]float64{`{direction="down"}`: 2, `{direction="up"}`: 0}, only: true},
		{file: "sidelight.json", panel: "Sampling", ref: "A", want: one(1. / 8), only: true},
		{file: "sidelight.json", panel: "Time in a kernel program", ref: "A", want: map[string]float64{`{program="mesh_sockops"}`: 500e-9}, only: true},
		{file: "sidelight.json", panel: "Connections, by the kernel", ref: "A", only: true, want: map[string]float64{
			`{role="client", step="attempted"}`: connects, `{role="client", step="failed"}`: failures, `{role="client", step="established"}`: established,
			`{role="client", step="closed"}`: established, `{role="client", step="adopted"}`: 0,
			`{role="server", step="established"}`: accepted, `{role="server", step="closed"}`: accepted, `{role="server", step="adopted"}`: 0,
		}},
		{file: "sidelight.json", panel: "Connections that are followed", ref: "A", want: node(3 + 3 + 2), only: true},
		{file: "sidelight.json", panel: "Clients: attempted less established less failed", ref: "A", want: node(2), only: true},
		{file: "sidelight.json", panel: "Closed without having been seen open", ref: "A", want: node(0), only: true},
		// A second of trouble drops, waits and leaves out one of each, the ring for its first minute. It begins when the window does, with 0, which a rate
		// does not go behind.
		{file: "sidelight.json", panel: "Dropped", ref: "A", want: one(60), only: true},
		{file: "sidelight.json", panel: "Dropped by stage", ref: "A", want: map[string]float64{
			`{kind="close", stage="ring"}`: 60 / window, `{kind="established", stage="ring"}`: 0, `{kind="log", stage="access_log"}`: 0,
		}},
		{file: "sidelight.json", panel: "Closes that were only summed", ref: "A", want: map[string]float64{`{by="edge"}`: 60 / window, `{by="total"}`: 0}, only: true},
		{file: "sidelight.json", panel: "Trace ids in SYNs", ref: "A", only: true, want: map[string]float64{
			`{outcome="sent"}`: established, `{outcome="no_room"}`: 0, `{outcome="received"}`: accepted, `{outcome="missing"}`: 60 / window,
		}},
		{file: "sidelight.json", panel: "Records left out by the budget", ref: "A", want: map[string]float64{`{signal="logs"}`: 600 / window, `{signal="traces"}`: 600 / window}, only: true},
		{file: "sidelight.json", panel: "Waiting for backends", ref: "A", want: one(3 * 600), only: true},
		{file: "sidelight.json", panel: "Waiting for backends, by node", ref: "A", only: true, want: map[string]float64{
			`{instance="node1:9464", signal="logs"}`: 600, `{instance="node1:9464", signal="traces"}`: 600, `{instance="node1:9464", signal="metrics"}`: 600,
		}},
		{file: "sidelight.json", panel: "Fill of export queues", ref: "A", only: true, want: map[string]float64{
			`{instance="node1:9464", signal="logs"}`: 600. / 800, `{instance="node1:9464", signal="traces"}`: 600. / 800, `{instance="node1:9464", signal="metrics"}`: 600. / 800,
		}},
		{file: "sidelight.json", panel: "Fill of edges and of followed connections", ref: "A", want: one(edges / 1000.), only: true},
		{file: "sidelight.json", panel: "Fill of edges and of followed connections", ref: "B", want: one((3 + 3 + 2) / 1000.), only: true},
		{file: "sidelight.json", panel: "Taken by backends", ref: "A", only: true, want: map[string]float64{
			`{signal="logs"}`: closes - 1, `{signal="traces"}`: closes - 1, `{signal="metrics"}`: closes - 1,
		}},
		{file: "sidelight.json", panel: "Log lines and records for each connection that ended", ref: "A", want: one((closes - 1) / closes), only: true},
		{file: "sidelight.json", panel: "Log lines and records for each connection that ended", ref: "B", want: one((closes - 1) / closes), only: true},
		{file: "sidelight.json", panel: "Fill of the event ring", ref: "A", want: node(4096. / (4 << 20)), only: true},
		{file: "sidelight.json", panel: "Fill of kernel maps", ref: "A", want: map[string]float64{`{map="lost"}`: 16. / 128, `{map="backends"}`: 32. / 128}, only: true},
		{file: "sidelight.json", panel: "Events", ref: "A", want: one(events), only: true},
		{file: "sidelight.json", panel: "Events", ref: "B", want: one(events), only: true},
		{file: "sidelight.json", panel: "Events", ref: "C", want: one(0), only: true},
		{file: "sidelight.json", panel: "Edges", ref: "A", want: node(edges), only: true},
		{file: "sidelight.json", panel: "Edges folded and evicted", ref: "A", want: one(0), only: true},
		{file: "sidelight.json", panel: "Edges folded and evicted", ref: "B", want: one(0), only: true},
		{file: "sidelight.json", panel: "Versions", ref: "A", want: map[string]float64{`{go_version="go", instance="node1:9464", version="test"}`: 1}, only: true},
		{file: "sidelight.json", panel: "Agents that attended", ref: "A", want: node(1), only: true},
		{file: "sidelight.json", panel: "Time without an agent", ref: "A", want: node(0), only: true},
	}
	known := maps.Clone(notSaid)
	for _, s := range said {
		known[s.where()] = ""
		s.check(t, mesh)
	}
	for _, d := range load(t) {
		for where := range d.metricTargets() {
			if _, there := known[where]; !there {
				t.Errorf("%s: nobody says what it has to say", where)
			}
			delete(known, where)
		}
	}
	for where := range known {
		t.Errorf("there is no query %s", where)
	}
}
