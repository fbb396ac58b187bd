package promview

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

// series is one of a family, as a scraper reads it.
type series struct {
	labels map[string]string
	value  float64
}

// scraped is what a scraper reads of /metrics, by the names of families. A series that is there twice is an error.
func scraped(t *testing.T, families []*dto.MetricFamily) map[string][]series {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(bytes.NewReader(text(t, families, expfmt.NewFormat(expfmt.TypeTextPlain))))
	if err != nil {
		t.Fatal(err)
	}
	read := make(map[string][]series)
	seen := make(map[string]bool)
	for name, f := range parsed {
		for _, m := range f.GetMetric() {
			s := series{labels: make(map[string]string), value: m.GetCounter().GetValue() + m.GetGauge().GetValue()}
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			if id := fmt.Sprint(name, s.labels); seen[id] {
				t.Errorf("%s is there twice", id)
			} else {
				seen[id] = true
			}
			read[name] = append(read[name], s)
		}
	}
	return read
}

// total is the sum of the series whose label has the value.
func total(all []series, label, value string) float64 {
	sum := 0.0
	for _, s := range all {
		if s.labels[label] == value {
			sum += s.value
		}
	}
	return sum
}

// aliased scrapes edges under both names.
func aliased(t *testing.T, edges ...edge.Edge) map[string][]series {
	t.Helper()
	return scraped(t, gather(t, New(func() edge.Snapshot { return edge.Snapshot{Edges: edges} }, clock).IstioAliases("Kubernetes", nil)))
}

// istioFamilies are those of Istio.
func istioFamilies(families []*dto.MetricFamily) []*dto.MetricFamily {
	return slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "istio_") })
}

func caseTable(t *testing.T, dir string) *edge.Table {
	t.Helper()
	input := fixture.Load(t, filepath.Join(dir, "records.yaml"))
	table := edge.NewTable(input.MaxEdges)
	table.Consume(input.Records)
	return table
}

func TestIstioGolden(t *testing.T) {
	fixture.Cases(t, "records.yaml", func(t *testing.T, dir string) {
		families := istioFamilies(gather(t, New(caseTable(t, dir).Snapshot, clock).IstioAliases("Kubernetes", nil)))
		fixture.Golden(t, filepath.Join(dir, "expected_istio.prom"), text(t, families, expfmt.NewFormat(expfmt.TypeTextPlain)))
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil || len(problems) != 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
	})
}

// plain are the labels of an end that is none of the mesh, by side.
func plain(side, workload string) map[string]string {
	if workload == "unknown" {
		return map[string]string{
			side + "_app": "unknown", side + "_version": "unknown", side + "_canonical_service": "unknown", side + "_canonical_revision": "unknown",
			side + "_cluster": "unknown",
		}
	}
	return map[string]string{
		side + "_app": "unknown", side + "_version": "unknown", side + "_canonical_service": workload, side + "_canonical_revision": "latest",
		side + "_cluster": "Kubernetes",
	}
}

// The whole mapping without a mesh: for each key of an edge the labels that are not unknown.
func TestIstioLabels(t *testing.T) {
	every := []string{
		"connection_security_policy", "destination_app", "destination_canonical_revision", "destination_canonical_service", "destination_cluster",
		"destination_principal", "destination_service", "destination_service_name", "destination_service_namespace", "destination_version",
		"destination_workload", "destination_workload_namespace", "reporter", "request_protocol", "response_flags", "source_app",
		"source_canonical_revision", "source_canonical_service", "source_cluster", "source_principal", "source_version", "source_workload",
		"source_workload_namespace",
	}
	for _, c := range []struct {
		name string
		key  edge.Key
		// Of names. The others are plain, and request_protocol and response_flags are "tcp" and "-" in all of them.
		want string
	}{
		{
			"client of a service",
			edge.Key{
				Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "cart-1", PeerNamespace: "store", Service: "cart", ServiceNamespace: "front", NetworkType: "ipv4",
			},
			"destination_service=cart.front.svc.cluster.local destination_service_name=cart destination_service_namespace=front " +
				"destination_workload=cart-1 destination_workload_namespace=store reporter=source source_workload=web source_workload_namespace=shop",
		},
		{
			"client of a workload",
			edge.Key{
				Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "cart-1", PeerNamespace: "store", NetworkType: "ipv6",
			},
			"destination_service_namespace=store destination_workload=cart-1 destination_workload_namespace=store reporter=source source_workload=web source_workload_namespace=shop",
		},
		{
			"client of who knows",
			edge.Key{
				Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "external", NetworkType: "ipv4",
			},
			"reporter=source source_workload=web source_workload_namespace=shop",
		},
		{
			"client of a peer group",
			edge.Key{
				Role: connection.Client, LocalWorkload: "shop.service", PeerWorkload: "database", PeerNamespace: "backends", NetworkType: "ipv4",
			},
			"destination_service_namespace=backends destination_workload=database destination_workload_namespace=backends reporter=source source_workload=shop.service",
		},
		{
			"client of a peer group that is called external, in a namespace",
			edge.Key{
				Role: connection.Client, LocalWorkload: "shop.service", PeerWorkload: "external", PeerNamespace: "backends", NetworkType: "ipv4",
			},
			"destination_service_namespace=backends destination_workload=external destination_workload_namespace=backends reporter=source source_workload=shop.service",
		},
		{
			"client of a service without a namespace, whose endpoint is nobody's",
			edge.Key{
				Role: connection.Client, LocalWorkload: "web", LocalNamespace: "shop", PeerWorkload: "external", Service: "cart", NetworkType: "ipv4",
			},
			"destination_service=cart destination_service_name=cart reporter=source source_workload=web source_workload_namespace=shop",
		},
		{
			"server of a workload",
			edge.Key{
				Role: connection.Server, LocalWorkload: "cart-1", LocalNamespace: "store", PeerWorkload: "web", PeerNamespace: "shop", NetworkType: "ipv4",
			},
			"destination_service_namespace=store destination_workload=cart-1 destination_workload_namespace=store reporter=destination source_workload=web source_workload_namespace=shop",
		},
		{
			"server of who knows",
			edge.Key{
				Role: connection.Server, LocalWorkload: "cart.service", PeerWorkload: "external", NetworkType: "ipv4",
			},
			"destination_workload=cart.service reporter=destination",
		},
		{
			"a server that is called external",
			edge.Key{
				Role: connection.Server, LocalWorkload: "external", PeerWorkload: "web", PeerNamespace: "shop", NetworkType: "ipv4",
			},
			"destination_workload=external reporter=destination source_workload=web source_workload_namespace=shop",
		},
		{
			"somebody whose cgroup is gone",
			edge.Key{
				Role: connection.Client, LocalWorkload: "unknown", PeerWorkload: "localhost", NetworkType: "ipv4",
			},
			"destination_workload=localhost reporter=source",
		},
		{
			"overflow",
			edge.Key{Role: connection.Server, LocalWorkload: edge.Overflow, PeerWorkload: edge.Overflow},
			"destination_workload=overflow reporter=destination source_workload=overflow",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			read := aliased(t, edge.Edge{Key: c.key})
			for _, name := range []string{
				"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total",
			} {
				if len(read[name]) != 1 {
					t.Fatalf("%s has %d series", name, len(read[name]))
				}
				labels := read[name][0].labels
				if have := slices.Sorted(maps.Keys(labels)); !slices.Equal(have, every) {
					t.Errorf("%s has the labels %v, want %v", name, have, every)
				}
				policy := "unknown"
				if labels["reporter"] == "destination" {
					policy = "none"
				}
				others := plain("source", labels["source_workload"])
				maps.Copy(others, plain("destination", labels["destination_workload"]))
				maps.Copy(others, map[string]string{
					"request_protocol": "tcp", "response_flags": "-", "connection_security_policy": policy, "source_principal": "unknown", "destination_principal": "unknown",
				})
				var said []string
				for _, label := range every {
					value := labels[label]
					if want, other := others[label]; other && value != want {
						t.Errorf("%s=%s, want %s", label, value, want)
					} else if !other && value != "unknown" {
						said = append(said, label+"="+value)
					}
				}
				if got := strings.Join(said, " "); got != c.want {
					t.Errorf("%s\ngot  %s\nwant %s", name, got, c.want)
				}
			}
		})
	}
}

func TestIstioResponseFlags(t *testing.T) {
	want := map[connection.Reason]struct{ client, server string }{
		connection.OK:           {"-", "-"},
		connection.Refused:      {"UF", "UF"},
		connection.ResetByPeer:  {"UC", "DC"},
		connection.ResetByLocal: {"DC", "UC"},
		connection.Timeout:      {"UC", "DC"},
		connection.Unreachable:  {"UC", "DC"},
		connection.Denied:       {"DENY", "DENY"},
		connection.CircuitOpen:  {"UO", "UO"},
		connection.RateLimited:  {"RL", "RL"},
		connection.NoEndpoint:   {"UH", "UH"},
		connection.Other:        {"unknown", "unknown"},
		connection.UnknownLost:  {"unknown", "unknown"},
		connection.Aborted:      {"DC", "UC"},
	}
	for reason := range connection.ReasonCount {
		flags, ok := want[reason]
		if !ok {
			t.Errorf("nothing is wanted of %s", reason)
		}
		if got := responseFlags(connection.Client, reason); got != flags.client {
			t.Errorf("%s of a client has the flags %s, want %s", reason, got, flags.client)
		}
		if got := responseFlags(connection.Server, reason); got != flags.server {
			t.Errorf("%s of a server has the flags %s, want %s", reason, got, flags.server)
		}
	}
}

// The two ends of the same connections tell the same: what is sent is the server's, and who reset is the one who did.
func TestIstioReportersAgree(t *testing.T) {
	client := edge.Edge{Key: edge.Key{Role: connection.Client, LocalWorkload: "web", PeerWorkload: "cart", NetworkType: "ipv4"}}
	client.Sums.Established, client.Sums.SentBytes, client.Sums.ReceivedBytes = 3, 100, 5000
	client.Sums.Closed[connection.OK], client.Sums.Closed[connection.ResetByPeer] = 2, 1
	server := edge.Edge{Key: edge.Key{Role: connection.Server, LocalWorkload: "cart", PeerWorkload: "web", NetworkType: "ipv4"}}
	server.Sums.Established, server.Sums.SentBytes, server.Sums.ReceivedBytes = 3, 5000, 100
	server.Sums.Closed[connection.OK], server.Sums.Closed[connection.ResetByLocal] = 2, 1
	read := aliased(t, client, server)
	for _, reporter := range []string{"source", "destination"} {
		if got := total(read["istio_tcp_sent_bytes_total"], "reporter", reporter); got != 5000 {
			t.Errorf("%s: sent %v, want the response's 5000", reporter, got)
		}
		if got := total(read["istio_tcp_received_bytes_total"], "reporter", reporter); got != 100 {
			t.Errorf("%s: received %v, want the request's 100", reporter, got)
		}
		flags := make(map[string]float64)
		for _, s := range read["istio_tcp_connections_closed_total"] {
			if s.labels["reporter"] == reporter {
				flags[s.labels["response_flags"]] = s.value
			}
		}
		if want := map[string]float64{"-": 2, "UC": 1}; !maps.Equal(flags, want) {
			t.Errorf("%s: closed %v, want %v", reporter, flags, want)
		}
	}
}

// Edges that are one to Istio are one series with their sum: two would make the scrape fail.
func TestIstioSumsEdgesOfOneLabelSet(t *testing.T) {
	var edges []edge.Edge
	// Over both families, to whom nobody names, and to those that a peer group calls unknown.
	for _, k := range []edge.Key{
		{Role: connection.Client, LocalWorkload: "web", PeerWorkload: "external", NetworkType: "ipv4"},
		{Role: connection.Client, LocalWorkload: "web", PeerWorkload: "external", NetworkType: "ipv6"},
		{Role: connection.Client, LocalWorkload: "web", PeerWorkload: "unknown", NetworkType: "ipv4"},
	} {
		e := edge.Edge{Key: k}
		e.Sums.SinceUnixNS = 1e9
		e.Sums.Established, e.Sums.Adopted, e.Sums.SentBytes, e.Sums.ReceivedBytes = 1, 10, 100, 1000
		e.Sums.Closed[connection.Timeout], e.Sums.Closed[connection.ResetByPeer] = 1, 1 // of one flag
		edges = append(edges, e)
	}
	families := gather(t, New(func() edge.Snapshot { return edge.Snapshot{Edges: edges} }, clock).IstioAliases("Kubernetes", nil))
	read := scraped(t, families)
	for name, want := range map[string]float64{
		"istio_tcp_connections_opened_total": 33, "istio_tcp_sent_bytes_total": 3000, "istio_tcp_received_bytes_total": 300,
	} {
		if got := read[name]; len(got) != 1 || got[0].value != want {
			t.Errorf("%s is %v, want one of %v", name, got, want)
		}
	}
	closed := read["istio_tcp_connections_closed_total"]
	if len(closed) != 2 || total(closed, "response_flags", "UC") != 6 || total(closed, "response_flags", "-") != 0 {
		t.Errorf("closed is %v, want 6 by UC, and none by -", closed)
	}
	for _, f := range istioFamilies(families) {
		for _, m := range f.GetMetric() {
			if m.GetCounter().GetCreatedTimestamp() != nil {
				t.Errorf("%s says since when it counts", f.GetName())
			}
		}
	}
}

// consistent wants Istio's names to tell what ours do.
func consistent(t *testing.T, read map[string][]series) {
	t.Helper()
	for role, reporter := range map[string]string{"client": "source", "server": "destination"} {
		sent, received := "sidelight_tcp_sent_bytes_total", "sidelight_tcp_received_bytes_total"
		if role == "client" {
			sent, received = received, sent
		}
		for alias, ours := range map[string][]string{
			"istio_tcp_connections_opened_total": {"sidelight_tcp_connection_established_total", "sidelight_tcp_connection_adopted_total"},
			"istio_tcp_connections_closed_total": {"sidelight_tcp_connection_closed_total"},
			"istio_tcp_sent_bytes_total":         {sent},
			"istio_tcp_received_bytes_total":     {received},
		} {
			want := 0.0
			for _, name := range ours {
				want += total(read[name], "role", role)
			}
			if got := total(read[alias], "reporter", reporter); got != want {
				t.Errorf("%s by %s is %v, ours %v", alias, reporter, got, want)
			}
		}
		open := total(read["istio_tcp_connections_opened_total"], "reporter", reporter) - total(read["istio_tcp_connections_closed_total"], "reporter", reporter)
		if want := total(read["sidelight_tcp_connection_open"], "role", role); open != want {
			t.Errorf("opened less closed by %s is %v, open are %v", reporter, open, want)
		}
	}
}

func TestIstioIsConsistentWithOurNames(t *testing.T) {
	fixture.Cases(t, "records.yaml", func(t *testing.T, dir string) {
		consistent(t, scraped(t, gather(t, New(caseTable(t, dir).Snapshot, clock).IstioAliases("Kubernetes", nil))))
	})
	t.Run("any edges", func(t *testing.T) {
		random := rand.New(rand.NewPCG(7, 1))
		any := func(of ...string) string { return of[random.IntN(len(of))] }
		table := make(map[edge.Key]edge.Edge)
		for range 3000 {
			key := edge.Key{
				Role:          connection.Role(1 + random.IntN(2)),
				LocalWorkload: any("web", "cart", "unknown", "external"), LocalNamespace: any("", "shop", "unknown"),
				PeerWorkload: any("web", "cart", "unknown", "external"), PeerNamespace: any("", "shop", "unknown"),
				Service: any("", "cart", "unknown"), ServiceNamespace: any("", "shop", "unknown"), NetworkType: any("ipv4", "ipv6"),
			}
			e := edge.Edge{Key: key}
			e.Sums.SinceUnixNS = random.Int64N(1e18)
			e.Sums.Open = random.Int64N(100)
			e.Sums.SentBytes, e.Sums.ReceivedBytes = random.Uint64N(1e9), random.Uint64N(1e9)
			ever := uint64(e.Sums.Open)
			for reason := range connection.ReasonCount {
				e.Sums.Closed[reason] = random.Uint64N(3) * random.Uint64N(1000)
				e.Sums.Failures[reason] = random.Uint64N(1000)
				ever += e.Sums.Closed[reason]
			}
			e.Sums.Adopted = random.Uint64N(ever + 1)
			e.Sums.Established = ever - e.Sums.Adopted
			table[key] = e
		}
		read := aliased(t, slices.Collect(maps.Values(table))...)
		consistent(t, read)
		if n := len(read["istio_tcp_connections_opened_total"]); n == 0 || n >= len(table) {
			t.Errorf("%d series of %d edges, want fewer", n, len(table))
		}
	})
}

// A connect that failed is no connection to Istio's names, but its edge is there.
func TestIstioFailedConnectsOpenNothing(t *testing.T) {
	e := edge.Edge{Key: edge.Key{Role: connection.Client, LocalWorkload: "web", PeerWorkload: "gone", NetworkType: "ipv4"}}
	e.Sums.Attempts = 7
	for reason := range connection.ReasonCount {
		e.Sums.Failures[reason] = 1
	}
	read := aliased(t, e)
	for name, all := range read {
		if strings.HasPrefix(name, "istio_") && (len(all) != 1 || all[0].value != 0) {
			t.Errorf("%s is %v, want one of 0", name, all)
		}
	}
	// The same by the way of events.
	refused := scraped(t, gather(t, New(caseTable(t, "testdata/mesh").Snapshot, clock).IstioAliases("Kubernetes", nil)))
	if total(refused["sidelight_tcp_connection_failures_total"], "reason", "circuit_open") != 1 {
		t.Error("the case has no failure")
	}
	if got := total(refused["istio_tcp_connections_opened_total"], "reporter", "source"); got != 2 {
		t.Errorf("%v are opened, want the 2 that are", got)
	}
}

func TestIstioOff(t *testing.T) {
	snapshots := 0
	edges := caseTable(t, "testdata/edges").Snapshot()
	off := New(func() edge.Snapshot { snapshots++; return edges }, clock)
	on := New(func() edge.Snapshot { snapshots++; return edges }, clock).IstioAliases("Kubernetes", nil)
	if off.istio != nil {
		t.Error("what is off has something to show")
	}
	without, with := gather(t, off), gather(t, on)
	if n := len(istioFamilies(slices.Clone(without))); n != 0 {
		t.Errorf("%d of Istio's families", n)
	}
	if got := len(with) - len(without); got != 4 {
		t.Errorf("%d families more with it, want 4", got)
	}
	if snapshots != 2 {
		t.Errorf("%d copies of the table for 2 scrapes", snapshots)
	}
	described := func(v *View) int {
		ch := make(chan *prometheus.Desc, 100)
		v.Describe(ch)
		return len(ch)
	}
	if got := described(on) - described(off); got != 4 {
		t.Errorf("%d descriptions more with it, want 4", got)
	}
	// Ours are the same either way.
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	ours := slices.DeleteFunc(with, func(f *dto.MetricFamily) bool { return strings.HasPrefix(f.GetName(), "istio_") })
	if !bytes.Equal(text(t, ours, format), text(t, without, format)) {
		t.Error("our own metrics differ with it")
	}
}
