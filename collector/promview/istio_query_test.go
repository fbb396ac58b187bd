package promview

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

// query is a PromQL expression that is one sum over one selector, which is all that these tests are about. A parser of the whole language is a
// server's worth of modules.
type query struct {
	metric string
	where  []matcher
	by     []string
}

type matcher struct {
	label, op, value string
	pattern          *regexp.Regexp // of =~ and !~
}

var (
	selector = regexp.MustCompile(`(istio_[a-z_]+)\{([^}]*)\}`)
	matching = regexp.MustCompile(`^\s*([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*$`)
	grouping = regexp.MustCompile(`\bby\s*\(([^)]*)\)`)
)

func parseQuery(t *testing.T, text string) query {
	t.Helper()
	found := selector.FindAllStringSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("%d selectors in %s", len(found), text)
	}
	q := query{metric: found[0][1]}
	for part := range strings.SplitSeq(strings.TrimSuffix(found[0][2], ","), ",") {
		m := matching.FindStringSubmatch(part)
		if m == nil {
			t.Fatalf("%q is no matcher", part)
		}
		q.where = append(q.where, matcher{m[1], m[2], m[3], regexp.MustCompile("^(?:" + m[3] + ")$")})
	}
	if by := grouping.FindStringSubmatch(text); by != nil {
		for label := range strings.SplitSeq(by[1], ",") {
			q.by = append(q.by, strings.TrimSpace(label))
		}
	}
	return q
}

func (m *matcher) matches(labels map[string]string) bool {
	value := labels[m.label]
	switch m.op {
	case "=":
		return value == m.value
	case "!=":
		return value != m.value
	case "=~":
		return m.pattern.MatchString(value)
	default:
		return !m.pattern.MatchString(value)
	}
}

// sums are what the query comes to without its rate, by the values of its labels that are not unknown. A label that a series lacks is an error: PromQL
// would take it for an empty one, and a panel would stay empty without a word.
func (q *query) sums(t *testing.T, read map[string][]series) map[string]float64 {
	t.Helper()
	sums := make(map[string]float64)
	if len(read[q.metric]) == 0 {
		t.Errorf("there is no %s", q.metric)
	}
	for _, s := range read[q.metric] {
		selected := true
		for _, m := range q.where {
			if _, ok := s.labels[m.label]; !ok {
				t.Errorf("%s has no label %s", q.metric, m.label)
			}
			selected = selected && m.matches(s.labels)
		}
		if !selected {
			continue
		}
		var group []string
		for _, label := range q.by {
			value, ok := s.labels[label]
			if !ok {
				t.Errorf("%s has no label %s", q.metric, label)
			}
			if value != istioUnknown {
				group = append(group, value)
			}
		}
		sums[strings.Join(group, " ")] += s.value
	}
	return sums
}

// queried is a world with both ends of shop's web and its service cart, a client and a server of whom nothing is known, and one in another namespace.
func queried() []edge.Edge {
	of := func(role connection.Role, local, localNamespace, peer, peerNamespace, service string, n uint64) edge.Edge {
		e := edge.Edge{Key: edge.Key{
			Role: role, LocalWorkload: local, LocalNamespace: localNamespace, PeerWorkload: peer, PeerNamespace: peerNamespace,
			Service: service, NetworkType: "ipv4",
		}}
		if service != "" {
			e.Key.ServiceNamespace = "shop"
		}
		// The client sends n bytes and the server 10n.
		e.Sums.SentBytes, e.Sums.ReceivedBytes = n, 10*n
		if role == connection.Server {
			e.Sums.SentBytes, e.Sums.ReceivedBytes = 10*n, n
		}
		e.Sums.Established = n
		e.Sums.Closed[connection.OK] = n
		return e
	}
	six := of(connection.Client, "web", "shop", "cart-1", "shop", "cart", 5)
	six.Key.NetworkType = "ipv6"
	return []edge.Edge{
		of(connection.Client, "web", "shop", "cart-1", "shop", "cart", 1), six,
		of(connection.Client, "web", "shop", "external", "", "", 20),
		of(connection.Client, "probe", "watch", "cart-1", "shop", "cart", 300),
		of(connection.Server, "cart-1", "shop", "web", "shop", "", 6),
		of(connection.Server, "cart-1", "shop", "probe", "watch", "", 300),
		of(connection.Server, "web", "shop", "external", "", "", 4000),
	}
}

// What Kiali asks for an edge of its graph.
const kialiGraph = "source_cluster,source_workload_namespace,source_workload,source_canonical_service,source_canonical_revision,destination_cluster," +
	"destination_service_namespace,destination_service,destination_service_name,destination_workload_namespace,destination_workload," +
	"destination_canonical_service,destination_canonical_revision,response_flags"

// The queries are of the form that Kiali's graph and metrics, and the TCP panels of Istio's dashboards for Grafana, send, with their variables filled in.
func TestIstioQueries(t *testing.T) {
	const (
		cart      = "shop cart.shop.svc.cluster.local cart shop cart-1"
		everybody = `source_workload=~".*",source_workload_namespace=~".*"`
	)
	read := aliased(t, queried()...)
	for _, c := range []struct {
		name, query string
		want        map[string]float64
	}{
		{
			"what is known by source and service",
			`sum(rate(istio_tcp_sent_bytes_total{reporter="source",source_workload_namespace!="unknown"}[1m])) by (source_workload, destination_service_name)`,
			map[string]float64{"web cart": 60, "web": 200, "probe cart": 3000},
		},
		{
			"Kiali: graph, into a namespace from nobody known",
			`sum(rate(istio_tcp_sent_bytes_total{reporter=~"destination|waypoint",source_workload="unknown",destination_workload_namespace="shop"}[60s])) by (` +
				kialiGraph + `) > 0`,
			map[string]float64{"shop web -": 40000},
		},
		{
			"Kiali: graph, into a namespace from others",
			`sum(rate(istio_tcp_sent_bytes_total{reporter=~"source|waypoint",source_workload_namespace!="shop",source_workload!="unknown",` +
				`destination_service_namespace="shop"}[60s])) by (` + kialiGraph + `) > 0`,
			map[string]float64{"watch probe " + cart + " -": 3000},
		},
		{
			"Kiali: graph, within and out of a namespace",
			`sum(rate(istio_tcp_received_bytes_total{reporter=~"source|waypoint",source_workload_namespace="shop"}[60s])) by (` + kialiGraph + `) > 0`,
			map[string]float64{"shop web " + cart + " -": 6, "shop web -": 20},
		},
		{
			"Kiali: traffic in mutual TLS",
			`sum(rate(istio_tcp_sent_bytes_total{reporter="destination",destination_workload_namespace="shop",connection_security_policy!="none"}[60s])) by (` +
				`source_principal,destination_principal,connection_security_policy)`,
			map[string]float64{"": 43060},
		},
		{
			"Kiali: outbound metrics of a workload",
			`sum(rate(istio_tcp_sent_bytes_total{source_workload_namespace="shop",source_workload="web",reporter="source"}[1m]))`,
			map[string]float64{"": 260},
		},
		{
			"Kiali: inbound metrics of a workload",
			`sum(rate(istio_tcp_received_bytes_total{destination_workload_namespace="shop",destination_workload="cart-1",reporter="destination"}[1m]))`,
			map[string]float64{"": 306},
		},
		{
			"Kiali: metrics of a service by its clients",
			`sum(rate(istio_tcp_received_bytes_total{destination_service_name="cart",destination_service_namespace="shop",reporter="source"}[1m])) by ` +
				`(source_canonical_service,source_workload_namespace)`,
			map[string]float64{"shop": 6, "watch": 300},
		},
		{
			"Kiali: connections opened",
			`sum(rate(istio_tcp_connections_opened_total{source_workload_namespace="shop",source_workload="web",reporter="source"}[1m]))`,
			map[string]float64{"": 26},
		},
		{
			"Kiali: connections closed",
			`sum(rate(istio_tcp_connections_closed_total{destination_workload_namespace="shop",destination_workload="cart-1",reporter="destination"}[1m]))`,
			map[string]float64{"": 306},
		},
		{
			"Istio Mesh Dashboard: TCP services",
			`label_join(sum(rate(istio_tcp_received_bytes_total{reporter=~"source|waypoint"}[1m])) by (destination_workload, destination_workload_namespace, ` +
				`destination_service), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")`,
			map[string]float64{"cart-1 shop cart.shop.svc.cluster.local": 306, "": 20},
		},
		{
			"Istio Service Dashboard: TCP server traffic",
			`sum(irate(istio_tcp_sent_bytes_total{reporter="source",connection_security_policy!="mutual_tls",destination_service=~` +
				`"cart.shop.svc.cluster.local",` + everybody + `}[5m])) by (source_workload, source_workload_namespace)`,
			map[string]float64{"web shop": 60, "probe watch": 3000},
		},
		{
			"Istio Workload Dashboard: bytes received",
			`round(sum(irate(istio_tcp_received_bytes_total{reporter="destination",connection_security_policy!="mutual_tls",` +
				`destination_workload_namespace=~"shop",destination_workload=~"cart-1",` + everybody + `}[5m])) by (source_workload, source_workload_namespace), 0.001)`,
			map[string]float64{"web shop": 6, "probe watch": 300},
		},
		{
			"Istio Workload Dashboard: outbound by service",
			`sum(irate(istio_tcp_sent_bytes_total{reporter="source",connection_security_policy!="mutual_tls",source_workload_namespace=~"shop",` +
				`source_workload=~"web",destination_service=~".*"}[5m])) by (destination_service)`,
			map[string]float64{"cart.shop.svc.cluster.local": 60, "": 200},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := parseQuery(t, c.query)
			if got := q.sums(t, read); !maps.Equal(got, c.want) {
				t.Errorf("\ngot  %v\nwant %v", got, c.want)
			}
		})
	}
}

// The labels of each family are those of all four, so that queries can be written with any.
func TestIstioFamiliesHaveTheSameLabels(t *testing.T) {
	names := make(map[string][]string)
	for name, all := range aliased(t, queried()...) {
		for _, s := range all {
			if strings.HasPrefix(name, "istio_") {
				labels := fmt.Sprint(slices.Sorted(maps.Keys(s.labels)))
				names[labels] = append(names[labels], name)
			}
		}
	}
	if len(names) != 1 {
		t.Errorf("different labels: %v", names)
	}
}
