package dashboards

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	meshmodel "github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/promview"
)

// istioEdge is one over which n connections a second open and close, in each of which the client sends a byte and the server ten.
func istioEdge(role connection.Role, local, peer, service, network string, n uint64) edge.Edge {
	e := edge.Edge{Key: edge.Key{Role: role, NetworkType: network}}
	name := func(text string, name, namespace *string) {
		if before, after, found := strings.Cut(text, "/"); found {
			*namespace, *name = before, after
		} else {
			*name = text
		}
	}
	name(local, &e.Key.LocalWorkload, &e.Key.LocalNamespace)
	name(peer, &e.Key.PeerWorkload, &e.Key.PeerNamespace)
	name(service, &e.Key.Service, &e.Key.ServiceNamespace)
	e.Sums.Established, e.Sums.SentBytes, e.Sums.ReceivedBytes = n, n, 10*n
	if role == connection.Server {
		e.Sums.SentBytes, e.Sums.ReceivedBytes = 10*n, n
	}
	return e
}

// istioNodes are what the agents of two nodes tell: of the clients shop's web and watch's probe, which is none of an app, and of the server shop's cart, on
// the other node. Web is dialled from outside as well, and dials out.
var istioNodes = map[string][]edge.Edge{
	"node1": {
		istioEdge(connection.Client, "shop/web", "shop/cart-1", "shop/cart", "ipv4", 1),
		istioEdge(connection.Client, "shop/web", "shop/cart-1", "shop/cart", "ipv6", 5),
		istioEdge(connection.Client, "shop/web", "external", "", "ipv4", 20),
		istioEdge(connection.Client, "watch/probe", "shop/cart-1", "shop/cart", "ipv4", 300),
		istioEdge(connection.Client, "watch/probe", "shop/web", "", "ipv4", 7),
		istioEdge(connection.Server, "shop/web", "external", "", "ipv4", 4000),
		istioEdge(connection.Server, "shop/web", "watch/probe", "", "ipv4", 7),
	},
	"node2": {
		istioEdge(connection.Server, "shop/cart-1", "shop/web", "", "ipv4", 1),
		istioEdge(connection.Server, "shop/cart-1", "shop/web", "", "ipv6", 5),
		istioEdge(connection.Server, "shop/cart-1", "watch/probe", "", "ipv4", 300),
	},
}

// istioMesh is the mesh of both nodes.
var istioMesh = &meshmodel.Snapshot{
	Workloads: []meshmodel.Workload{
		{Name: meshmodel.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web", "version": "v1"}},
		{Name: meshmodel.Name{Namespace: "shop", Name: "cart-1"}, Labels: map[string]string{"app": "cart", "version": "v2"}},
		{Name: meshmodel.Name{Namespace: "watch", Name: "probe"}},
	},
	Services: []meshmodel.Service{{Name: meshmodel.Name{Namespace: "shop", Name: "cart"}}},
	Endpoints: []meshmodel.Endpoint{{
		Service: meshmodel.Name{Namespace: "shop", Name: "cart"}, Workload: meshmodel.Name{Namespace: "shop", Name: "cart-1"},
	}},
}

// istioStore has both nodes scraped for five minutes, with another mesh from after some seconds on. It returns the end of these.
func istioStore(t *testing.T, others map[uint64]*meshmodel.Snapshot) (*store, time.Time) {
	t.Helper()
	s, end := newStore(t), meshStart
	var targets []*target
	var meshes []*enrich.Catalog
	seconds := uint64(0)
	for _, node := range slices.Sorted(maps.Keys(istioNodes)) {
		mesh := enrich.NewCatalog()
		mesh.SetSnapshot(istioMesh)
		meshes = append(meshes, mesh)
		registry := prometheus.NewPedanticRegistry()
		view := promview.New(func() edge.Snapshot {
			all := slices.Clone(istioNodes[node])
			for i := range all {
				sums := &all[i].Sums
				sums.SinceUnixNS = meshStart.UnixNano()
				sums.Established, sums.SentBytes, sums.ReceivedBytes = seconds*sums.Established, seconds*sums.SentBytes, seconds*sums.ReceivedBytes
				sums.Closed[connection.OK] = sums.Established
			}
			return edge.Snapshot{Edges: all}
		}, clock).IstioAliases("Kubernetes", mesh)
		if err := registry.Register(view); err != nil {
			t.Fatal(err)
		}
		// Without the label that Prometheus puts on in our examples: Kiali knows nothing of it.
		targets = append(targets, &target{labels.FromStrings("instance", node+":9464", "job", "sidelight"), newTarget(registry, "", "").handler})
	}
	for ; seconds <= 300; seconds += 15 {
		end = meshStart.Add(time.Duration(seconds) * time.Second)
		if other := others[seconds]; other != nil {
			for _, mesh := range meshes {
				mesh.SetSnapshot(other)
			}
		}
		for _, target := range targets {
			s.scrape(t, target, end)
		}
	}
	return s, end
}

// kialiGroup are the labels by which Kiali groups TCP traffic: graph/telemetry/istio/istio.go, buildNamespaceTrafficMap.
const kialiGroup = "app,source_cluster,source_workload_namespace,source_workload,source_canonical_service,source_canonical_revision,destination_cluster," +
	"destination_service_namespace,destination_service,destination_service_name,destination_workload_namespace,destination_workload," +
	"destination_canonical_service,destination_canonical_revision,response_flags"

// kialiGraph are the queries from which Kiali draws the graph of a namespace, by the same function, and its rounding of graph/util.go, PromQueryAppender.
func kialiGraph(metric, namespace, app, source, destination string) []string {
	unserved := fmt.Sprintf(`round(sum(rate(%s{%s%s,source_workload_namespace!="%s",destination_workload_namespace="unknown",destination_workload="unknown",`+
		`destination_service=~"^.+\\.%s\\..+$"} [60s])) by (%s) > 0,0.001)`, metric, app, source, namespace, namespace, kialiGroup)
	incoming := fmt.Sprintf(`round(sum(rate(%s{%s%s,destination_workload_namespace="%s"} [60s])) by (%s) > 0,0.001)`, metric, app, destination, namespace, kialiGroup)
	outgoing := fmt.Sprintf(`round(sum(rate(%s{%s%s,source_workload_namespace="%s"} [60s])) by (%s) > 0,0.001)`, metric, app, source, namespace, kialiGroup)
	return []string{unserved, incoming, outgoing}
}

// kialiEdges are what Kiali makes of the answers to these queries (graph/telemetry/istio/istio.go, populateTrafficMap, addTraffic; util.go beside it): it skips
// what lacks a label, and what has a namespace and an unknown cluster; it takes what both ends tell once, by all labels but the reporter's; and
// traffic to a service goes over a node of that service. A workload with a canonical service is an app's.
func kialiEdges(t *testing.T, s *store, at time.Time, queries []string) map[string]float64 {
	t.Helper()
	known := func(value string) bool { return value != "" && value != "unknown" }
	edges := make(map[string]float64)
	seen := make(map[string]bool)
	for _, query := range queries {
		vector, err := s.instant(t, query, at)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		for _, sample := range vector {
			get := sample.Metric.Get
			for label := range strings.SplitSeq(kialiGroup, ",") {
				if label != "app" && get(label) == "" {
					t.Errorf("%s is skipped without %s", sample.Metric, label)
				}
			}
			source, destination := get("source_cluster"), get("destination_cluster")
			serviceNamespace, service := get("destination_service_namespace"), get("destination_service_name")
			if !known(destination) && known(source) && known(serviceNamespace) {
				destination = source
			}
			if known(get("source_workload_namespace")) && (!known(get("source_workload")) && !known(get("source_canonical_service")) || !known(source)) {
				t.Errorf("%s is skipped as bad telemetry of its source", sample.Metric)
				continue
			}
			if known(serviceNamespace) && !known(destination) {
				t.Errorf("%s is skipped as bad telemetry of its destination", sample.Metric)
				continue
			}
			if seen[sample.Metric.String()] {
				continue
			}
			seen[sample.Metric.String()] = true
			node := func(side string) string {
				return fmt.Sprintf("%s/%s/%s", get(side+"_cluster"), get(side+"_workload_namespace"), get(side+"_canonical_service"))
			}
			from, to := node("source"), node("destination")
			if known(service) {
				via := fmt.Sprintf("%s/%s/service %s", destination, serviceNamespace, service)
				edges[from+" -> "+via] += sample.F
				from = via
			}
			edges[from+" -> "+to] += sample.F
		}
	}
	return edges
}

// Kiali's graph has each connection once, over its service where it has one, between apps.
func TestKialiGraph(t *testing.T) {
	s, end := istioStore(t, nil)
	for name, reporter := range map[string]func(string) (app, reporter string){
		"ambient traffic is not shown": func(of string) (string, string) { return `app!="ztunnel",`, fmt.Sprintf(`reporter="%s"`, of) },
		"all ambient traffic is shown": func(of string) (string, string) { return "", fmt.Sprintf(`reporter=~"waypoint|%s"`, of) },
	} {
		// Kiali calls received what the client does.
		for metric, bytes := range map[string]float64{"istio_tcp_received_bytes_total": 1, "istio_tcp_sent_bytes_total": 10} {
			app, source := reporter("source")
			_, destination := reporter("destination")
			for namespace, want := range map[string]map[string]float64{
				"shop": {
					"Kubernetes/shop/web -> Kubernetes/shop/service cart":    6,
					"Kubernetes/watch/probe -> Kubernetes/shop/service cart": 300,
					"Kubernetes/shop/service cart -> Kubernetes/shop/cart":   306,
					"Kubernetes/watch/probe -> Kubernetes/shop/web":          7,
					"unknown/unknown/unknown -> Kubernetes/shop/web":         4000,
					"Kubernetes/shop/web -> unknown/unknown/unknown":         20,
				},
				"watch": {
					"Kubernetes/watch/probe -> Kubernetes/shop/service cart": 300,
					"Kubernetes/shop/service cart -> Kubernetes/shop/cart":   300,
					"Kubernetes/watch/probe -> Kubernetes/shop/web":          7,
				},
			} {
				got := kialiEdges(t, s, end, kialiGraph(metric, namespace, app, source, destination))
				for id := range want {
					want[id] *= bytes
				}
				if !maps.Equal(got, want) {
					t.Errorf("%s, %s of %s:\ngot  %v\nwant %v", name, metric, namespace, got, want)
				}
			}
		}
	}
}

// asked answers a query, by the values of its labels that are not unknown. Rounded as Kiali does it: a rate is extrapolated.
func asked(t *testing.T, s *store, at time.Time, query string) map[string]float64 {
	t.Helper()
	vector, err := s.instant(t, query, at)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	got := make(map[string]float64)
	for _, sample := range vector {
		var values []string
		sample.Metric.Range(func(l labels.Label) {
			if l.Value != "unknown" {
				values = append(values, l.Value)
			}
		})
		got[strings.Join(values, " ")] += math.Round(sample.F*1000) / 1000
	}
	return got
}

// The queries of Kiali's other pages, and those of Istio's dashboards that ask for TCP, with their variables filled in.
func TestIstioQueries(t *testing.T) {
	const (
		anybody = `source_workload=~".*", source_workload_namespace=~".*"`
		cart    = `destination_service="cart.shop.svc.cluster.local"`
	)
	s, end := istioStore(t, nil)
	for _, c := range []struct {
		name, query string
		want        map[string]float64
	}{
		{
			// Kiali, graph/telemetry/istio/istio.go, buildNodeTrafficMap.
			"Kiali: into the app cart",
			`sum(rate(istio_tcp_received_bytes_total{reporter="destination",destination_cluster="Kubernetes",destination_service_namespace="shop",` +
				`destination_canonical_service="cart",destination_canonical_revision="v2"} [60s])) by (source_canonical_service) > 0`,
			map[string]float64{"web": 6, "probe": 300},
		},
		{
			"Kiali: into the app web, which has no service",
			`sum(rate(istio_tcp_received_bytes_total{reporter="destination",destination_cluster="Kubernetes",destination_service_namespace="shop",` +
				`destination_canonical_service="web"} [60s])) by (source_canonical_service) > 0`,
			map[string]float64{"": 4000, "probe": 7},
		},
		{
			"Kiali: out of the app web",
			`sum(rate(istio_tcp_received_bytes_total{reporter="source",source_cluster="Kubernetes",source_workload_namespace="shop",` +
				`source_canonical_service="web",source_canonical_revision="v1"} [60s])) by (destination_canonical_service) > 0`,
			map[string]float64{"": 20, "cart": 6},
		},
		{
			"Kiali: into the workload cart-1",
			`sum(rate(istio_tcp_received_bytes_total{reporter="destination",destination_cluster="Kubernetes",destination_workload_namespace="shop",` +
				`destination_workload="cart-1"} [60s])) by (source_workload) > 0`,
			map[string]float64{"web": 6, "probe": 300},
		},
		{
			"Kiali: into the service cart",
			`sum(rate(istio_tcp_received_bytes_total{app!="ztunnel",reporter="destination",destination_cluster="Kubernetes",destination_service_namespace="shop",` +
				`destination_service=~"^cart\\.shop\\..*$"} [60s])) by (source_workload) > 0`,
			map[string]float64{"web": 6, "probe": 300},
		},
		{
			// Kiali, graph/telemetry/istio/appender/security_policy.go.
			"Kiali: security of what comes in",
			`(sum(rate(istio_tcp_sent_bytes_total{reporter="destination",source_workload_namespace!="shop",destination_service_namespace="shop"}[60s])) by ` +
				`(source_principal,destination_principal,connection_security_policy) > 0)`,
			map[string]float64{"none": 10 * (4000 + 7 + 300)},
		},
		{
			// Kiali, handlers/overview.go, buildServiceTcpThroughputQuery.
			"Kiali: services by throughput",
			`round(topk(6, sum(rate(istio_tcp_sent_bytes_total{destination_workload!="unknown",destination_cluster="Kubernetes",reporter="destination"}[60s])) by ` +
				`(destination_cluster,destination_service_namespace,destination_service_name) > 0), 0.001)`,
			map[string]float64{"Kubernetes cart shop": 3060, "Kubernetes shop": 10 * 4007},
		},
		{
			// Kiali, business/metrics_labels_builder.go and prometheus/metrics.go, fetchRateRange.
			"Kiali: metrics of a workload, inbound",
			`sum(rate(istio_tcp_received_bytes_total{reporter="destination",destination_workload_namespace="shop",destination_workload="cart-1",destination_cluster="Kubernetes"}[60s]))`,
			map[string]float64{"": 306},
		},
		{
			"Kiali: metrics of an app, outbound, by remote app",
			`sum(rate(istio_tcp_sent_bytes_total{reporter="source",source_workload_namespace="shop",source_canonical_service="web",source_cluster="Kubernetes"}[60s])) by ` +
				`(destination_canonical_service)`,
			map[string]float64{"": 200, "cart": 60},
		},
		{
			"Kiali: metrics of a service, by the version of its clients",
			`sum(rate(istio_tcp_connections_opened_total{reporter="source",destination_service_name="cart",destination_service_namespace="shop",destination_cluster="Kubernetes"}[60s])) by ` +
				`(source_canonical_service,source_canonical_revision)`,
			map[string]float64{"latest probe": 300, "v1 web": 6},
		},
		{
			"Kiali: connections closed of a workload",
			`sum(rate(istio_tcp_connections_closed_total{reporter="destination",destination_workload_namespace="shop",destination_workload="cart-1",destination_cluster="Kubernetes"}[60s]))`,
			map[string]float64{"": 306},
		},
		{
			// Istio, manifests/addons/dashboards/istio-mesh-dashboard.gen.json.
			"mesh dashboard: TCP workloads",
			`label_join(sum by (destination_workload,destination_workload_namespace,destination_service) (rate(istio_tcp_received_bytes_total{reporter=~"source|waypoint"}[1m])), ` +
				`"destination_workload_var", ".", "destination_workload", "destination_workload_namespace")`,
			map[string]float64{
				"cart.shop.svc.cluster.local cart-1 shop cart-1.shop": 306, "web shop web.shop": 7, "unknown.unknown": 20,
			},
		},
		{
			// Istio, manifests/addons/dashboards/istio-service-dashboard.json; its variable qrep is "destination" by default.
			"service dashboard: services to choose from",
			`sum(istio_requests_total{}) by (destination_service) or sum(istio_tcp_sent_bytes_total{}) by (destination_service)`,
			map[string]float64{"cart.shop.svc.cluster.local": 2 * 10 * 300 * 306, "": 300 * (200 + 70 + 40000 + 70)},
		},
		{
			"service dashboard: clusters of clients to choose from",
			`sum(istio_requests_total{reporter=~"destination", ` + cart + `}) by (source_cluster) or sum(istio_tcp_sent_bytes_total{reporter=~"destination", ` + cart + `}) by (source_cluster)`,
			map[string]float64{"Kubernetes": 10 * 300 * 306},
		},
		{
			"service dashboard: TCP received bytes",
			`sum(irate(istio_tcp_received_bytes_total{reporter=~"destination", ` + cart + `}[1m]))`,
			map[string]float64{"": 306},
		},
		{
			"service dashboard: bytes received from incoming TCP connections",
			`round(sum(irate(istio_tcp_received_bytes_total{reporter=~"source", connection_security_policy!="mutual_tls", ` + cart + `, ` + anybody +
				`}[1m])) by (source_workload, source_workload_namespace), 0.001)`,
			map[string]float64{"web shop": 6, "probe watch": 300},
		},
		{
			"service dashboard: the same in mutual TLS",
			`round(sum(irate(istio_tcp_received_bytes_total{reporter=~"source", connection_security_policy="mutual_tls", ` + cart + `, ` + anybody +
				`}[1m])) by (source_workload, source_workload_namespace), 0.001)`,
			map[string]float64{},
		},
		{
			"service dashboard: bytes sent by the service's workloads",
			`round(sum(irate(istio_tcp_sent_bytes_total{connection_security_policy!="mutual_tls", reporter="destination", ` + cart +
				`, destination_workload=~"cart-1", destination_workload_namespace=~"shop"}[1m])) by (destination_workload, destination_workload_namespace), 0.001)`,
			map[string]float64{"cart-1 shop": 3060},
		},
		{
			// Istio, manifests/addons/dashboards/istio-workload-dashboard.json.
			"workload dashboard: workloads to choose from",
			`(sum(istio_tcp_sent_bytes_total{destination_workload_namespace=~"shop"}) by (destination_workload) or ` +
				`sum(istio_tcp_sent_bytes_total{source_workload_namespace=~"shop"}) by (source_workload))`,
			map[string]float64{"cart-1": 2 * 10 * 300 * 306, "web": 300*(40000+70+70) + 300*(60+60+200)},
		},
		{
			"workload dashboard: TCP server traffic",
			`sum(irate(istio_tcp_sent_bytes_total{reporter=~"destination", destination_workload_namespace=~"shop", destination_workload=~"cart-1"}[1m])) + ` +
				`sum(irate(istio_tcp_received_bytes_total{reporter=~"destination", destination_workload_namespace=~"shop", destination_workload=~"cart-1"}[1m]))`,
			map[string]float64{"": 3366},
		},
		{
			"workload dashboard: bytes sent on outgoing TCP connections",
			`round(sum(irate(istio_tcp_sent_bytes_total{reporter="source", connection_security_policy!="mutual_tls", source_workload_namespace=~"shop", ` +
				`source_workload=~"web", destination_service=~".*"}[1m])) by (destination_service), 0.001)`,
			map[string]float64{"cart.shop.svc.cluster.local": 60, "": 200},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := asked(t, s, end, c.query); !maps.Equal(got, c.want) {
				t.Errorf("\ngot  %v\nwant %v", got, c.want)
			}
		})
	}
}

// Series that end because the mesh has other labels, and those that begin, count each byte once at most: what is lost is one scrape. The start times that
// Prometheus makes zeros of would count all of it a second time.
func TestIstioAfterAChangeOfTheMesh(t *testing.T) {
	other := *istioMesh
	other.Workloads = slices.Clone(istioMesh.Workloads)
	other.Workloads[0].Labels = map[string]string{"app": "web", "version": "v9"}
	s, end := istioStore(t, map[uint64]*meshmodel.Snapshot{150: &other})
	const grown = `sum by (source_version) (max_over_time(istio_tcp_received_bytes_total{%[1]s}[10m]) - min_over_time(istio_tcp_received_bytes_total{%[1]s}[10m]))`
	for _, reporter := range []string{"source", "destination"} {
		query := fmt.Sprintf(grown, `reporter="`+reporter+`",source_workload="web",destination_workload="cart-1"`)
		if got, want := asked(t, s, end, query), map[string]float64{"v1": 6 * 135, "v9": 6 * 150}; !maps.Equal(got, want) {
			t.Errorf("by the %s %v, want %v", reporter, got, want)
		}
	}
}
