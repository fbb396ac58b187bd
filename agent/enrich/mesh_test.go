package enrich

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/model"
)

// numbered are Names of a test, by number.
type numbered struct {
	services  map[uint32]model.Name
	backends  map[[2]uint32]model.Name // by index and tag
	workloads map[uint32]model.Name
	rules     map[string]Rule // by set/bit; the policy as a plain name
	limits    map[uint32]string
}

func (n *numbered) Service(id uint32) (model.Name, bool) {
	name, known := n.services[id]
	return name, known
}

func (n *numbered) Backend(index, tag uint32) (endpoint, workload model.Name, known bool) {
	endpoint, known = n.backends[[2]uint32{index, tag}]
	return endpoint, model.Name{}, known
}

func (n *numbered) Workload(index uint32) (model.Name, bool) {
	name, known := n.workloads[index]
	return name, known
}

func (n *numbered) Rule(set uint32, bit uint16) (policy model.Name, rule int, known bool) {
	r, known := n.rules[fmt.Sprintf("%d/%d", set, bit)]
	return shop(r.Policy), r.Index, known
}

func (n *numbered) Limit(index uint32) (string, bool) {
	name, known := n.limits[index]
	return name, known
}

func shop(name string) model.Name { return model.Name{Namespace: "shop", Name: name} }

// Ids of the test's cgroups and addresses of its workloads.
const (
	cgWorker uint64 = iota + 1
	cgOther
	cgGone
)

var (
	addrWeb  = netip.MustParseAddr("10.0.0.1")
	addrCart = netip.MustParseAddr("10.0.0.21")
	addrDB   = netip.MustParseAddr("fd00::5")
)

func snapshot() *model.Snapshot {
	return &model.Snapshot{Workloads: []model.Workload{
		{Name: shop("web"), Cgroup: "/shop.slice/web.service", Addresses: []netip.Addr{addrWeb}},
		{Name: shop("cart"), Addresses: []netip.Addr{addrCart, addrDB}},
	}}
}

// meshed returns an enricher of a mesh, with two cgroups that nobody made.
func meshed(t *testing.T, names Names) (*Enricher, *Mesh) {
	t.Helper()
	e, err := New(t.TempDir(), NewPeers([]PeerGroup{{Name: "database", CIDRs: prefixes("10.9.0.0/16", "10.0.0.0/24")}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	e.cgroups.byID[cgWorker] = workloadOf("/shop.slice/web.service/worker")
	e.cgroups.byID[cgOther] = workloadOf("/system.slice/cron.service")
	e.cgroups.byID[cgGone] = workloadOf("")
	m := NewMesh(names)
	m.SetSnapshot(snapshot())
	e.Use(m)
	return e, m
}

// dials is an event of a client.
func dials(peer netip.Addr, decision *connection.Decision) *connection.Event {
	e := &connection.Event{Role: connection.Client, CgroupID: cgWorker, Peer: netip.AddrPortFrom(peer, 80)}
	if decision != nil {
		e.Flags, e.Decision = connection.Decided, *decision
	}
	return e
}

func TestLocalWorkloadIsThatOfTheNearestCgroup(t *testing.T) {
	m := NewMesh(&numbered{})
	m.SetSnapshot(&model.Snapshot{Workloads: []model.Workload{
		{Name: shop("web"), Cgroup: "/shop.slice/web.service"},
		{Name: shop("sidecar"), Cgroup: "/shop.slice/web.service/a/b/"},
		{Name: shop("shop"), Cgroup: "/shop.slice"},
		{Name: shop("remote")},
	}})
	for _, test := range []struct{ cgroup, name, namespace string }{
		{"/shop.slice/web.service", "web", "shop"},
		{"/shop.slice/web.service/a", "web", "shop"},
		{"/shop.slice/web.service/a/b", "sidecar", "shop"},
		{"/shop.slice/web.service/a/b/c/d", "sidecar", "shop"},
		{"/shop.slice/web.service2", "shop", "shop"}, // a name that begins alike is another
		{"/shop.slice", "shop", "shop"},
		{"/system.slice/cron.service", "cron.service", ""},
		{"/", "/", ""},
		{"", "unknown", ""},
	} {
		found := workloadOf(test.cgroup)
		before := *found
		id := Identity{Local: found, Peer: &Workload{Name: External}}
		m.identify(&connection.Event{Role: connection.Client}, &id)
		want := before
		want.Name, want.Namespace = test.name, test.namespace
		if *id.Local != want {
			t.Errorf("%s: %+v, want %+v", test.cgroup, *id.Local, want)
		}
		if *found != before {
			t.Errorf("%s: what others share was changed to %+v", test.cgroup, *found)
		}
		again := Identity{Local: found, Peer: id.Peer}
		m.identify(&connection.Event{Role: connection.Server}, &again)
		if again.Local != id.Local {
			t.Errorf("%s: two of one cgroup have different workloads", test.cgroup)
		}
	}
}

func TestEndsOfTheMesh(t *testing.T) {
	e, _ := meshed(t, &numbered{workloads: map[uint32]model.Name{1: shop("cart"), 2: shop("behind-nat"), 3: shop("web")}})
	to := func(destination uint32) *connection.Decision { return &connection.Decision{Destination: destination} }
	server := func(peer netip.Addr, destination uint32, flags connection.Flags) *connection.Event {
		event := dials(peer, to(destination))
		event.Role, event.Flags = connection.Server, flags
		return event
	}
	elsewhere, group := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.9.0.1")
	web, cart := Workload{Name: "web", Namespace: "shop"}, Workload{Name: "cart", Namespace: "shop"}
	worker := web
	worker.Cgroup, worker.SystemdUnit = "/shop.slice/web.service/worker", "web.service"
	refused := connection.Decided | connection.RefusedHere
	strangers := server(elsewhere, 3, refused)
	strangers.CgroupID = 0
	unknown := server(elsewhere, 9, refused)
	unknown.CgroupID = 0
	for _, test := range []struct {
		name        string
		event       *connection.Event
		local, peer Workload
	}{
		{"client, peer by address", dials(addrCart, nil), worker, cart},
		{"client, peer by another address", dials(addrDB, nil), worker, cart},
		{"client, peer of a group", dials(group, nil), worker, Workload{Name: "database"}},
		{"client, nobody", dials(elsewhere, nil), worker, Workload{Name: External}},
		{"client, peer by what was decided", dials(elsewhere, to(2)), worker, Workload{Name: "behind-nat", Namespace: "shop"}},
		{"client, what was decided before the address", dials(addrCart, to(2)), worker, Workload{Name: "behind-nat", Namespace: "shop"}},
		{"client, decided for nobody", dials(addrCart, to(0)), worker, cart},
		{"client, decided for one that is not known any more", dials(addrCart, to(9)), worker, cart},
		{"server, peer by address", server(addrCart, 0, 0), worker, cart},
		{"server, whose destination is itself", server(addrCart, 3, connection.Decided), worker, cart},
		{"server that refused, without a socket", strangers, web, Workload{Name: External}},
		{"server that refused, and is not known", unknown, Workload{Name: "unknown"}, Workload{Name: External}},
	} {
		if got := e.Identify(test.event); *got.Local != test.local || *got.Peer != test.peer {
			t.Errorf("%s: %+v to %+v, want %+v to %+v", test.name, *got.Local, *got.Peer, test.local, test.peer)
		}
	}
	// One workload is one, whichever way it was found: edges compare addresses.
	if a, b, c := e.Identify(dials(addrCart, nil)), e.Identify(dials(addrDB, nil)), e.Identify(dials(elsewhere, to(1))); a.Peer != b.Peer || a.Peer != c.Peer {
		t.Error("one workload has several addresses")
	}
}

func mesh() *numbered {
	return &numbered{
		services:  map[uint32]model.Name{1: shop("cart"), 2: shop("search")},
		backends:  map[[2]uint32]model.Name{{4, 40}: shop("cart-1"), {4, 41}: shop("cart-2"), {5, 50}: shop("search-1")},
		workloads: map[uint32]model.Name{1: shop("cart")},
		rules:     map[string]Rule{"6/0": {"allow", 0}, "6/1": {"allow", 1}, "6/2": {"dry", 0}},
		limits:    map[uint32]string{7: "service shop/cart"},
	}
}

func TestDecisionsHaveNames(t *testing.T) {
	e, _ := meshed(t, mesh())
	const none = connection.NoRule
	cart := &Service{Name: "cart", Namespace: "shop"}
	for _, test := range []struct {
		name     string
		decision connection.Decision
		want     Decision
	}{
		{"nothing", connection.Decision{Rule: none, DryRule: none}, Decision{}},
		{
			"through a service",
			connection.Decision{Service: 1, Backend: 4, BackendTag: 40, PolicySet: 6, Rule: 1, DryRule: 2},
			Decision{Service: cart, Endpoint: "shop/cart-1", Rule: &Rule{"shop/allow", 1}, DryRule: &Rule{"shop/dry", 0}},
		},
		{
			"an index that is another's since",
			connection.Decision{Service: 1, Backend: 4, BackendTag: 41, Rule: none, DryRule: none},
			Decision{Service: cart, Endpoint: "shop/cart-2"},
		},
		{
			"refused by a limit",
			connection.Decision{Service: 1, Rule: none, DryRule: none, Limit: 7, LimitValue: 100},
			Decision{Service: cart, Limit: "service shop/cart"},
		},
		{"denied by no rule", connection.Decision{PolicySet: 6, Rule: none, DryRule: none}, Decision{}},
		{
			"the first rule",
			connection.Decision{PolicySet: 6, Rule: 0, DryRule: none},
			Decision{Rule: &Rule{"shop/allow", 0}},
		},
		// Rule 0 of no set is no rule.
		{"no policy", connection.Decision{}, Decision{}},
		{
			"numbers that stand for nothing any more",
			connection.Decision{Service: 99, Backend: 99, BackendTag: 1, Destination: 99, PolicySet: 99, Rule: 3, DryRule: 4, Limit: 99},
			Decision{},
		},
		{"a tag that was never given out", connection.Decision{Backend: 4, BackendTag: 1, Rule: none, DryRule: none}, Decision{}},
	} {
		got := e.Identify(dials(addrCart, &test.decision)).Decision
		if got == nil {
			t.Errorf("%s: no decision", test.name)
			continue
		}
		if text, want := describe(got), describe(&test.want); text != want {
			t.Errorf("%s: %s, want %s", test.name, text, want)
		}
	}
	if got := e.Identify(dials(addrCart, nil)).Decision; got != nil {
		t.Errorf("a decision where there was none: %s", describe(got))
	}
}

func describe(d *Decision) string {
	if d == nil {
		return "none"
	}
	var s Service
	var rule, dry Rule
	if d.Service != nil {
		s = *d.Service
	}
	if d.Rule != nil {
		rule = *d.Rule
	}
	if d.DryRule != nil {
		dry = *d.DryRule
	}
	return fmt.Sprintf("service %t %+v, endpoint %q, rule %t %+v, dry rule %t %+v, limit %q",
		d.Service != nil, s, d.Endpoint, d.Rule != nil, rule, d.DryRule != nil, dry, d.Limit)
}

// TestEqualDecisionsAreOne holds that what is equal has one address: an edge is found by that, and the tracker keeps each identity once.
func TestEqualDecisionsAreOne(t *testing.T) {
	e, _ := meshed(t, mesh())
	d := connection.Decision{Service: 1, Backend: 4, BackendTag: 40, PolicySet: 6, Rule: 0, DryRule: connection.NoRule, Destination: 1}
	first := e.Identify(dials(addrCart, &d))
	// Of each connection its own, and in no name.
	other := d
	other.Original, other.DecisionNS, other.Generation, other.LimitValue = netip.MustParseAddrPort("10.96.0.1:80"), 900, 7, 3
	other.Verdict, other.DryVerdict = connection.VerdictAllow, connection.VerdictDeny
	if second := e.Identify(dials(addrCart, &other)); second != first {
		t.Errorf("equal connections have the identities %+v and %+v", first, second)
	}
	for name, change := range map[string]func(*connection.Decision){
		"backend": func(d *connection.Decision) { d.BackendTag = 41 },
		"rule":    func(d *connection.Decision) { d.Rule = 1 },
		"dry":     func(d *connection.Decision) { d.DryRule = 2 },
		"limit":   func(d *connection.Decision) { d.Limit = 7 },
	} {
		changed := d
		change(&changed)
		got := e.Identify(dials(addrCart, &changed))
		if got.Decision == first.Decision || got.Decision.Service != first.Decision.Service {
			t.Errorf("another %s: the same decision: %t, the same service: %t; want another and the same", name, got.Decision == first.Decision,
				got.Decision.Service == first.Decision.Service)
		}
	}
	if got := e.Identify(dials(addrCart, &connection.Decision{Service: 2})).Decision.Service; got == first.Decision.Service {
		t.Error("two services are one")
	}
}

func TestSnapshotOnTheWay(t *testing.T) {
	names := mesh()
	e, m := meshed(t, names)
	d := connection.Decision{Service: 1, Backend: 4, BackendTag: 40, Rule: connection.NoRule, DryRule: connection.NoRule}
	late := connection.Decision{Service: 3, Rule: connection.NoRule, DryRule: connection.NoRule}
	before, unnamed := e.Identify(dials(addrCart, &d)), e.Identify(dials(addrCart, &late))
	if unnamed.Decision.Service != nil {
		t.Fatalf("service 3 is %+v, and nobody has named it", unnamed.Decision.Service)
	}

	// Another workload has the address, the cgroup is nobody's, number 1 another's, and number 3 somebody's.
	names.services[1], names.services[3] = shop("checkout"), shop("late")
	m.SetSnapshot(&model.Snapshot{Workloads: []model.Workload{
		{Name: shop("queue"), Addresses: []netip.Addr{addrCart}},
		{Name: shop("cart"), Addresses: []netip.Addr{addrWeb}},
	}})
	after := e.Identify(dials(addrCart, &d))
	if after.Local.Name != "web.service" || after.Local.Namespace != "" || after.Peer.Name != "queue" || after.Decision.Service.Name != "checkout" {
		t.Errorf("after the change %+v to %+v through %+v", *after.Local, *after.Peer, *after.Decision.Service)
	}
	if got := e.Identify(dials(addrCart, &late)).Decision.Service; got == nil || got.Name != "late" {
		t.Errorf("service 3 is %+v, want that which got its name", got)
	}
	if before.Local.Name != "web" || before.Peer.Name != "cart" || before.Decision.Service.Name != "cart" {
		t.Errorf("what connections have already was changed: %+v to %+v through %+v", *before.Local, *before.Peer, *before.Decision.Service)
	}
	// Who is still there keeps its address.
	if moved := e.Identify(dials(addrWeb, nil)); moved.Peer != before.Peer {
		t.Error("a workload that moved is another")
	}
	if gone := e.Identify(dials(addrDB, nil)); gone.Peer.Name != External {
		t.Errorf("an address that nobody has any more is %+v", *gone.Peer)
	}
}

func TestSetSnapshotWhileConnectionsAreIdentified(t *testing.T) {
	e, m := meshed(t, mesh())
	var changes sync.WaitGroup
	changes.Go(func() {
		for i := range 1000 {
			s := snapshot()
			if i%2 == 0 {
				s.Workloads[1].Name = shop("queue")
			}
			m.SetSnapshot(s)
		}
	})
	for range 1000 {
		if got := e.Identify(dials(addrCart, nil)).Peer.Name; got != "cart" && got != "queue" {
			t.Fatalf("peer is %s, and no snapshot says so", got)
		}
	}
	changes.Wait()
}

// TestLossIsNamedAsItsConnections holds that what was lost goes to the edge of the events that were not.
func TestLossIsNamedAsItsConnections(t *testing.T) {
	e, _ := meshed(t, mesh())
	event := dials(addrCart, &connection.Decision{
		Service: 1, Backend: 4, BackendTag: 40, Destination: 1, PolicySet: 6, Rule: 0, DryRule: connection.NoRule,
	})
	told := e.Identify(event)
	for _, service := range []uint32{1, 2, 0} {
		lost := NewLoss(&connection.Loss{
			Role: connection.Client, CgroupID: cgWorker, Peer: addrCart, Service: service, OpenDown: 1,
		}, time.Unix(0, 0), e.Identify)
		if lost.Identity.Local != told.Local || lost.Identity.Peer != told.Peer {
			t.Errorf("service %d: %+v to %+v, want %+v to %+v", service, *lost.Identity.Local, *lost.Identity.Peer, *told.Local, *told.Peer)
		}
		switch d := lost.Identity.Decision; {
		case service == 0 && d != nil:
			t.Errorf("a loss without a service has the decision %s", describe(d))
		case service != 0 && (d == nil || (d.Service == told.Decision.Service) != (service == 1)):
			t.Errorf("a loss of service %d has the decision %s", service, describe(d))
		}
	}
}
