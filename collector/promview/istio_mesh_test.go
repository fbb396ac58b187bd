package promview

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

const (
	canonicalName     = "service.istio.io/canonical-name"
	canonicalRevision = "service.istio.io/canonical-revision"
	recommendedName   = "app.kubernetes.io/name"
	recommendedVer    = "app.kubernetes.io/version"
)

func shop(name string) model.Name { return model.Name{Namespace: "shop", Name: name} }

// catalog is of one workload for each set of labels, by name.
func catalog(workloads map[string]map[string]string, more ...model.Workload) *enrich.Catalog {
	c := enrich.NewCatalog()
	s := &model.Snapshot{Workloads: more}
	for name, labels := range workloads {
		s.Workloads = append(s.Workloads, model.Workload{Name: shop(name), Labels: labels})
	}
	c.SetSnapshot(s)
	return c
}

// The labels of a workload decide as Istio's do: see canonicalServiceName and canonicalServiceRevision of its package labels, and for app and version the
// description of its standard metrics.
func TestIstioLabelsOfTheMesh(t *testing.T) {
	type end struct{ app, version, service, revision, cluster string }
	for _, c := range []struct {
		name     string
		workload model.Workload
		want     end
	}{
		{"no labels", model.Workload{}, end{"unknown", "unknown", "web-1", "latest", "Kubernetes"}},
		{"app and version", model.Workload{Labels: map[string]string{"app": "web", "version": "v2"}}, end{"web", "v2", "web", "v2", "Kubernetes"}},
		{"app only", model.Workload{Labels: map[string]string{"app": "web"}}, end{"web", "unknown", "web", "latest", "Kubernetes"}},
		{"version only", model.Workload{Labels: map[string]string{"version": "v2"}}, end{"unknown", "v2", "web-1", "v2", "Kubernetes"}},
		{
			"those that Kubernetes recommends",
			model.Workload{Labels: map[string]string{recommendedName: "shop-web", recommendedVer: "1.2"}},
			end{"unknown", "unknown", "shop-web", "1.2", "Kubernetes"},
		},
		{
			"those before app and version",
			model.Workload{Labels: map[string]string{recommendedName: "shop-web", recommendedVer: "1.2", "app": "web", "version": "v2"}},
			end{"web", "v2", "shop-web", "1.2", "Kubernetes"},
		},
		{
			"Istio's before all",
			model.Workload{Labels: map[string]string{
				canonicalName: "canon", canonicalRevision: "r3", recommendedName: "shop-web", recommendedVer: "1.2", "app": "web", "version": "v2",
			}},
			end{"web", "v2", "canon", "r3", "Kubernetes"},
		},
		{"labels without a value", model.Workload{Labels: map[string]string{canonicalName: "", "app": "web", "version": ""}}, end{"web", "unknown", "web", "latest", "Kubernetes"}},
		{"a cluster", model.Workload{Cluster: "north"}, end{"unknown", "unknown", "web-1", "latest", "north"}},
		{"an identity", model.Workload{Identity: "spiffe://cluster.local/ns/shop/sa/web"}, end{"unknown", "unknown", "web-1", "latest", "Kubernetes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.workload.Name = shop("web-1")
			edges := func() edge.Snapshot {
				return edge.Snapshot{Edges: []edge.Edge{
					{Key: edge.Key{Role: connection.Client, LocalWorkload: "web-1", LocalNamespace: "shop", PeerWorkload: "external"}},
					{Key: edge.Key{Role: connection.Client, LocalWorkload: "curl.service", PeerWorkload: "web-1", PeerNamespace: "shop"}},
				}}
			}
			read := scraped(t, gather(t, New(edges, clock).IstioAliases("Kubernetes", catalog(nil, c.workload))))
			for _, s := range read[opened] {
				side, other := "source", "destination"
				if s.labels["source_workload"] != "web-1" {
					side, other = other, side
				}
				got := end{s.labels[side+"_app"], s.labels[side+"_version"], s.labels[side+"_canonical_service"], s.labels[side+"_canonical_revision"], s.labels[side+"_cluster"]}
				if got != c.want {
					t.Errorf("as %s it is %v, want %v", side, got, c.want)
				}
				for label, want := range plain(other, s.labels[other+"_workload"]) {
					if s.labels[label] != want {
						t.Errorf("%s of who is none of the mesh is %s, want %s", label, s.labels[label], want)
					}
				}
				if s.labels["source_principal"] != "unknown" || s.labels["destination_principal"] != "unknown" {
					t.Errorf("principals %s and %s that nobody has proved", s.labels["source_principal"], s.labels["destination_principal"])
				}
			}
		})
	}
}

// served is a mesh in which cart has a service, both has two, one has the service of another namespace, hosted has one with a host name, and nobody has none.
func served(hostname string) *model.Snapshot {
	s := &model.Snapshot{Services: []model.Service{
		{Name: shop("cart")}, {Name: shop("a")}, {Name: shop("b")}, {Name: model.Name{Namespace: "front", Name: "door"}}, {Name: shop("api"), Hostname: hostname},
	}}
	for _, w := range []string{"cart-1", "both", "one", "hosted", "nobody", "web"} {
		s.Workloads = append(s.Workloads, model.Workload{Name: shop(w)})
	}
	for _, e := range [][2]model.Name{
		{shop("cart"), shop("cart-1")},
		{shop("a"), shop("both")},
		{shop("b"), shop("both")},
		{{Namespace: "front", Name: "door"}, shop("one")},
		{shop("api"), shop("hosted")},
	} {
		s.Endpoints = append(s.Endpoints, model.Endpoint{Service: e[0], Workload: e[1]})
	}
	return s
}

// Both ends of a connection name the same service, as far as that can be known at the server's.
func TestIstioServiceOfBothEnds(t *testing.T) {
	mesh := enrich.NewCatalog()
	mesh.SetSnapshot(served("api.example.com"))
	for _, c := range []struct {
		workload, namespace, service string
		client, server               string // host, name, namespace
	}{
		{"cart-1", "shop", "cart", "cart.shop.svc.cluster.local cart shop", "cart.shop.svc.cluster.local cart shop"},
		{"one", "front", "door", "door.front.svc.cluster.local door front", "door.front.svc.cluster.local door front"},
		{"hosted", "shop", "api", "api.example.com api shop", "api.example.com api shop"},
		{"nobody", "", "", "unknown unknown shop", "unknown unknown shop"},
		// Here they cannot agree.
		{"both", "shop", "a", "a.shop.svc.cluster.local a shop", "unknown unknown shop"},
		{"cart-1", "", "", "unknown unknown shop", "cart.shop.svc.cluster.local cart shop"},
	} {
		edges := func() edge.Snapshot {
			return edge.Snapshot{Edges: []edge.Edge{
				{Key: edge.Key{Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: c.workload, PeerNamespace: "shop", Service: c.service, ServiceNamespace: c.namespace}},
				{Key: edge.Key{Role: connection.Server, LocalWorkload: c.workload, LocalNamespace: "shop", PeerWorkload: "web", PeerNamespace: "shop"}},
			}}
		}
		said := make(map[string]map[string]string)
		for _, s := range scraped(t, gather(t, New(edges, clock).IstioAliases("Kubernetes", mesh)))[opened] {
			said[s.labels["reporter"]] = s.labels
		}
		for reporter, want := range map[string]string{"source": c.client, "destination": c.server} {
			l := said[reporter]
			if got := strings.Join([]string{l["destination_service"], l["destination_service_name"], l["destination_service_namespace"]}, " "); got != want {
				t.Errorf("%s of %s, service %q: %s, want %s", reporter, c.workload, c.service, got, want)
			}
		}
		if c.client != c.server {
			continue
		}
		for _, own := range []string{"reporter", "connection_security_policy"} {
			delete(said["source"], own)
			delete(said["destination"], own)
		}
		if !maps.Equal(said["source"], said["destination"]) {
			t.Errorf("of %s one end says\n%v\nand the other\n%v", c.workload, said["source"], said["destination"])
		}
	}
}

// identities are the series of a family by all of their labels.
func identities(all []series) map[string]float64 {
	of := make(map[string]float64)
	for _, s := range all {
		of[fmt.Sprint(s.labels)] = s.value
	}
	return of
}

// Another mesh ends series and begins others, with all of their sums. What is gone from it goes on as it was.
func TestIstioFollowsTheMesh(t *testing.T) {
	table := newAging(10)
	table.connection(connection.Client, "web", "cart", ipv4, connection.OK)
	table.connection(connection.Client, "web", "cart", ipv6, connection.OK)
	mesh := enrich.NewCatalog()
	view := New(func() edge.Snapshot {
		s := table.Snapshot()
		for i := range s.Edges {
			s.Edges[i].Key.LocalNamespace = "shop"
		}
		return s
	}, clock).IstioAliases("Kubernetes", mesh)
	expect := func(what string, want map[string]float64) {
		t.Helper()
		got := make(map[string]float64)
		for _, s := range scraped(t, gather(t, view))[opened] {
			got[s.labels["source_app"]+" "+s.labels["source_canonical_revision"]] = s.value
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	set := func(labels map[string]string) {
		mesh.SetSnapshot(&model.Snapshot{Workloads: []model.Workload{{Name: shop("web"), Labels: labels}}})
	}
	expect("before it is of a mesh", map[string]float64{"unknown latest": 2})
	set(map[string]string{"app": "web", "version": "v1"})
	expect("in a mesh", map[string]float64{"web v1": 2})
	table.connection(connection.Client, "web", "cart", ipv4, connection.OK)
	expect("and on", map[string]float64{"web v1": 3})
	set(map[string]string{"app": "web", "version": "v2"})
	expect("another version", map[string]float64{"web v2": 3})
	mesh.SetSnapshot(&model.Snapshot{})
	expect("gone from it", map[string]float64{"web v2": 3})
	table.connection(connection.Client, "web", "cart", ipv6, connection.OK)
	expect("and still there", map[string]float64{"web v2": 4})
	set(nil)
	expect("back without labels", map[string]float64{"unknown latest": 4})
}

// A service that is gone keeps its host name, and a server that is none of the mesh any more its service.
func TestIstioServicesThatAreGone(t *testing.T) {
	mesh := enrich.NewCatalog()
	mesh.SetSnapshot(served("api.example.com"))
	edges := []edge.Edge{
		{Key: edge.Key{Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "external", Service: "api", ServiceNamespace: "shop"}},
		{Key: edge.Key{Role: connection.Server, LocalWorkload: "hosted", LocalNamespace: "shop", PeerWorkload: "external"}},
	}
	view := New(func() edge.Snapshot { return edge.Snapshot{Edges: edges} }, clock).IstioAliases("Kubernetes", mesh)
	before := identities(scraped(t, gather(t, view))[opened])
	mesh.SetSnapshot(&model.Snapshot{})
	if now := identities(scraped(t, gather(t, view))[opened]); !maps.Equal(now, before) {
		t.Errorf("they are\n%v\nand before\n%v", now, before)
	}
	mesh.SetSnapshot(served("")) // known, and of no host name any more
	for _, s := range scraped(t, gather(t, view))[opened] {
		if s.labels["destination_service"] != "api.shop.svc.cluster.local" {
			t.Errorf("the host is %s", s.labels["destination_service"])
		}
	}
	// Without edges nothing is remembered.
	edges = nil
	gather(t, view)
	if len(view.istio.said.ends)+len(view.istio.said.hosts) != 0 {
		t.Errorf("it remembers %v", view.istio.said)
	}
}

// Whatever the mesh becomes and whatever is folded: no series falls while it is there, and together they are always ours, each edge once.
func TestIstioNeverFallsWhateverTheMesh(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 1))
	of := func(some ...string) string { return some[random.IntN(len(some))] }
	table := newAging(8)
	mesh := enrich.NewCatalog()
	view := New(func() edge.Snapshot { return table.Snapshot() }, clock).IstioAliases("Kubernetes", mesh)
	names := []string{"web", "cart", "unknown", "external", edge.Overflow}
	before := make(map[string]float64)
	changed, kept := 0, 0
	for range 80 {
		table.now += 10e9
		if random.IntN(5) == 0 {
			changed++
			s := &model.Snapshot{}
			for _, name := range names {
				if random.IntN(3) == 0 {
					continue
				}
				// Names without a namespace are those of no mesh but in this test: these are the ones that could be taken for another.
				s.Workloads = append(s.Workloads, model.Workload{
					Name: model.Name{Namespace: "unknown", Name: name}, Cluster: of("", "north"), Labels: map[string]string{"app": of("a", "b"), "version": of("", "v1")},
				})
				for range random.IntN(3) {
					s.Endpoints = append(s.Endpoints, model.Endpoint{Workload: model.Name{Namespace: "unknown", Name: name}, Service: shop(of("web", "cart"))})
				}
			}
			mesh.SetSnapshot(s)
		}
		table.connection(connection.Role(1+random.IntN(2)), of(names...), of(names...), of(ipv4, ipv6), connection.Reason(random.IntN(int(connection.ReasonCount))))
		kept += len(table.Snapshot().Gone)
		read := scraped(t, gather(t, view))
		consistent(t, read)
		now := make(map[string]float64)
		for name, all := range read {
			if strings.HasPrefix(name, "istio_") {
				for id, value := range identities(all) {
					now[name+id] = value
				}
			}
		}
		for _, id := range slices.Sorted(maps.Keys(now)) {
			if now[id] < before[id] {
				t.Fatalf("%s falls from %v to %v", id, before[id], now[id])
			}
		}
		before = now
	}
	if changed == 0 || kept == 0 {
		t.Errorf("the mesh changed %d times, %d were kept", changed, kept)
	}
}

// Scrapes at the same time, of a mesh that changes meanwhile, each have the labels of one mesh or the other.
func TestIstioScrapesAtOnce(t *testing.T) {
	mesh := enrich.NewCatalog()
	versions := []string{"v1", "v2"}
	set := func(version string) {
		mesh.SetSnapshot(&model.Snapshot{Workloads: []model.Workload{{Name: shop("web"), Labels: map[string]string{"version": version}}}})
	}
	set(versions[0])
	edges := []edge.Edge{{Key: edge.Key{Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "web", PeerNamespace: "shop"}}}
	view := New(func() edge.Snapshot { return edge.Snapshot{Edges: edges} }, clock).IstioAliases("Kubernetes", mesh)
	var scrapes sync.WaitGroup
	for range 4 {
		scrapes.Go(func() {
			for range 50 {
				for _, s := range scraped(t, gather(t, view))[opened] {
					if v := s.labels["source_version"]; !slices.Contains(versions, v) || v != s.labels["destination_version"] {
						t.Errorf("the versions are %s and %s", v, s.labels["destination_version"])
					}
				}
			}
		})
	}
	for i := range 200 {
		set(versions[i%2])
	}
	scrapes.Wait()
}

// The labels of each family are those of all four, so that queries can be written with any, and none has a series more than there are names and flags.
func TestIstioFamiliesHaveTheSameLabels(t *testing.T) {
	edges := caseTable(t, "testdata/mesh").Snapshot()
	labels := make(map[string][]string)
	for name, all := range scraped(t, gather(t, New(func() edge.Snapshot { return edges }, clock).IstioAliases("Kubernetes", nil))) {
		for _, s := range all {
			if strings.HasPrefix(name, "istio_") {
				of := fmt.Sprint(slices.Sorted(maps.Keys(s.labels)))
				labels[of] = append(labels[of], name)
			}
		}
	}
	if len(labels) != 1 {
		t.Errorf("different labels: %v", labels)
	}
}
