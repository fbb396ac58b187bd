package edge

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

var (
	web, backend = &enrich.Workload{Name: "web", Namespace: "shop"}, &enrich.Workload{Name: "backend", Namespace: "shop"}
	cart, find   = &enrich.Service{Name: "cart", Namespace: "shop"}, &enrich.Service{Name: "search", Namespace: "shop"}
)

// through is who is at the ends of a connection that dialled a service; nil for none.
func through(s *enrich.Service) enrich.Identity {
	return enrich.Identity{Local: web, Peer: backend, Decision: &enrich.Decision{Service: s}}
}

func edgeOf(s *enrich.Service) Key {
	key := Key{
		Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "backend", PeerNamespace: "shop", NetworkType: "ipv4",
	}
	if s != nil {
		key.Service, key.ServiceNamespace = s.Name, s.Namespace
	}
	return key
}

// observed runs events through a tracker that finds the same ends for all of them.
func observed(id enrich.Identity, events ...connection.Event) []enrich.Record {
	tracker := connection.NewTracker(1<<20, func(*connection.Event) enrich.Identity { return id })
	var batch []enrich.Record
	for i := range events {
		var r enrich.Record
		tracker.Observe(&events[i], &r)
		batch = append(batch, r)
	}
	return batch
}

// ended is a client's whole life, told at once.
func ended(cookie uint64) connection.Event {
	return connection.Event{
		Kind: connection.Close, Role: connection.Client, Flags: connection.Decided, Key: connection.Key{Cookie: cookie, StartNS: 1e9},
		ConnectNS: 1e9, EstablishedNS: 1e9 + 1e6, EventNS: 2e9, Local: v4, Peer: v4,
	}
}

// refused is one that the mesh did not let happen.
func refused(role connection.Role, reason connection.Reason, cookie uint64) connection.Event {
	e := connection.Event{
		Kind: connection.Close, Role: role, Reason: reason, Flags: connection.Decided | connection.RefusedHere,
		Key: connection.Key{Cookie: cookie, StartNS: 1e9}, EventNS: 1e9 + 500, Local: v4, Peer: v4,
	}
	if role == connection.Client {
		e.Local = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	return e
}

func TestServicesBetweenTheSameTwoAreEdgesOfTheirOwn(t *testing.T) {
	table := NewTable(10)
	other := &enrich.Service{Name: "cart", Namespace: "other"}
	for cookie, dialled := range []*enrich.Service{cart, find, other, nil, cart} {
		table.Consume(observed(through(dialled), ended(uint64(cookie))))
	}
	// A mesh that changed has the same service at another address.
	again := *cart
	table.Consume(observed(through(&again), ended(9)))
	plain := through(nil)
	plain.Decision = nil
	table.Consume(observed(plain, ended(10)))

	edges := byKey(table.Snapshot())
	want := map[Key]uint64{edgeOf(cart): 3, edgeOf(find): 1, edgeOf(other): 1, edgeOf(nil): 2}
	for key, n := range want {
		if edges[key] == nil || edges[key].Attempts != n || edges[key].Closed[connection.OK] != n {
			t.Errorf("%+v: %+v, want %d connections", key, edges[key], n)
		}
	}
	if len(edges) != len(want) {
		t.Errorf("%d edges, want %d", len(edges), len(want))
	}
}

func TestRefusedByTheMesh(t *testing.T) {
	for _, test := range []struct {
		name   string
		role   connection.Role
		reason connection.Reason
		want   numbers
	}{
		{"client, circuit open", connection.Client, connection.CircuitOpen, numbers{Since: 1e9 + 500, Attempts: 1, Failed: 1}},
		{"client, denied", connection.Client, connection.Denied, numbers{Since: 1e9 + 500, Attempts: 1, Failed: 1}},
		{"server, denied", connection.Server, connection.Denied, numbers{Since: 1e9 + 500, Failed: 1}},
	} {
		table := NewTable(10)
		batch := observed(through(cart), refused(test.role, test.reason, 1))
		table.Consume(batch)
		key := edgeOf(cart)
		key.Role = test.role
		s := byKey(table.Snapshot())[key]
		if s == nil {
			t.Fatalf("%s: no edge", test.name)
		}
		if got := numbersOf(s); got != test.want || s.Failures[test.reason] != 1 {
			t.Errorf("%s: failures %v,\n got %+v\nwant %+v", test.name, s.Failures, got, test.want)
		}
		// Nothing of it is live: another edge may take its room.
		if err := table.idle.check(table); err != nil || table.idle.oldest == nil {
			t.Errorf("%s: the edge is not idle: %v", test.name, err)
		}
	}
}

// TestRefusedWhileOthersConnect holds that a refusal leaves the gauges of its edge alone.
func TestRefusedWhileOthersConnect(t *testing.T) {
	table := NewTable(10)
	connecting := ended(1)
	connecting.Kind, connecting.EstablishedNS, connecting.EventNS = connection.PreConnect, 0, 1e9
	table.Consume(observed(through(cart), connecting, refused(connection.Client, connection.RateLimited, 2), refused(connection.Client, connection.RateLimited, 3)))
	got := numbersOf(byKey(table.Snapshot())[edgeOf(cart)])
	if want := (numbers{Since: 1e9, Attempts: 3, Failed: 2, Connecting: 1}); got != want {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

func TestLossesOfAServiceAreOfItsEdge(t *testing.T) {
	// The client of each is told as open; then the Close of each is lost.
	open := ended(1)
	open.Kind, open.EventNS = connection.Established, open.EstablishedNS
	table := NewTable(10)
	var losses []enrich.Loss
	for _, dialled := range []*enrich.Service{cart, find} {
		table.Consume(observed(through(dialled), open))
		number := map[*enrich.Service]uint32{cart: 1, find: 2}[dialled]
		lost := connection.Loss{Role: connection.Client, Peer: v4.Addr(), CgroupID: 5, Service: number, Closed: 1, OpenDown: 1, SentBytes: uint64(number)}
		// As enrich.Mesh does, by the number.
		losses = append(losses, enrich.NewLoss(&lost, time.Unix(0, 0), func(e *connection.Event) enrich.Identity {
			if e.Flags&connection.Decided == 0 || e.Role != connection.Client {
				t.Fatalf("asked for %+v", e)
			}
			return through([]*enrich.Service{nil, cart, find}[e.Decision.Service])
		}))
	}
	refusals := connection.Loss{Role: connection.Client, Reason: connection.CircuitOpen, Peer: v4.Addr(), CgroupID: 5, Service: 2, Attempts: 3, Failed: 3}
	losses = append(losses, enrich.Loss{Loss: refusals, Identity: through(find)})
	table.ConsumeLosses(losses)

	edges := byKey(table.Snapshot())
	for service, want := range map[*enrich.Service]numbers{
		cart: {Attempts: 1, Established: 1, Closed: 1, Sent: 1},
		find: {Attempts: 4, Established: 1, Closed: 1, Failed: 3, Sent: 2},
	} {
		s := edges[edgeOf(service)]
		if s == nil {
			t.Fatalf("%s: no edge", service.Name)
		}
		want.Since, want.ConnectDurations, want.ConnectSeconds = 1e9+1e6, 1, 0.001
		if got := numbersOf(s); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", service.Name, got, want)
		}
	}
	if len(edges) != 2 {
		t.Errorf("%d edges, want one for each service", len(edges))
	}
}
