package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// sumsByEnd parses metrics, and adds up each family at each end: "NAME client", "NAME server". A series that is there twice is an error.
func sumsByEnd(t *testing.T, metrics string) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader([]byte(metrics)))
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]string{"client": "client", "server": "server", "source": "client", "destination": "server"}
	sums, seen := make(map[string]float64), make(map[string]bool)
	for name, family := range families {
		for _, m := range family.GetMetric() {
			id, end := name, ""
			for _, l := range m.GetLabel() {
				id += "," + l.GetName() + "=" + l.GetValue()
				if l.GetName() == "role" || l.GetName() == "reporter" {
					end = ends[l.GetValue()]
				}
			}
			if seen[id] {
				t.Errorf("%s is there twice", id)
			}
			seen[id] = true
			sums[name+" "+end] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sums
}

// sameByIstiosNames wants them to tell the same as ours, at each end. It returns how much the servers and clients sent, both together.
func sameByIstiosNames(t *testing.T, metrics string) (moved float64) {
	t.Helper()
	sums := sumsByEnd(t, metrics)
	for _, end := range []string{"client", "server"} {
		sent, received := sums["sidelight_tcp_sent_bytes_total "+end], sums["sidelight_tcp_received_bytes_total "+end]
		moved += sent
		if end == "client" {
			sent, received = received, sent
		}
		closed := sums["sidelight_tcp_connection_closed_total "+end]
		for alias, want := range map[string]float64{
			"istio_tcp_connections_opened_total ": sums["sidelight_tcp_connection_established_total "+end] + sums["sidelight_tcp_connection_adopted_total "+end],
			"istio_tcp_connections_closed_total ": closed,
			"istio_tcp_sent_bytes_total ":         sent,
			"istio_tcp_received_bytes_total ":     received,
		} {
			if got := sums[alias+end]; got != want {
				t.Errorf("%s%s is %v, ours %v", alias, end, got, want)
			}
		}
		if open := sums["istio_tcp_connections_opened_total "+end] - closed; open != sums["sidelight_tcp_connection_open "+end] {
			t.Errorf("opened less closed is %v at the %s, open are %v", open, end, sums["sidelight_tcp_connection_open "+end])
		}
	}
	return moved
}

// TestIstioAliases replays what a kernel told with and without Istio's names: they tell the same as ours, and nothing else changes.
func TestIstioAliases(t *testing.T) {
	on := filepath.Join(t.TempDir(), "sidelight.yaml")
	writeFile(t, on, "prometheus: {istio_aliases: true}\n")
	for _, name := range []string{"mix", "loss"} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join("testdata", "recordings", name)
			with := replayFile(t, base+".rec", "--config", on)
			if moved := sameByIstiosNames(t, with.metrics); moved == 0 {
				t.Error("nothing was moved")
			}
			var ours strings.Builder
			for line := range strings.Lines(with.metrics) {
				if !strings.Contains(line, "istio_tcp_") {
					ours.WriteString(line)
				}
			}
			if ours.String() != readFile(t, base+".prom") {
				t.Errorf("without Istio's names it is not %s.prom:\n%s", base, ours.String())
			}
		})
	}
}

// TestIstioAliasesLive scrapes an agent while both families are on the way between the same two: one series each, and none of refused connects.
func TestIstioAliasesLive(t *testing.T) {
	needRoot(t)
	const count, request, response = 200, 100, 5000
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	a := startAgent(t, cgroup, "--config", writeConfig(t, "prometheus: {istio_aliases: true}"))
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	for _, s := range []script{
		{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses},
		{Addr: netip.AddrPortFrom(netip.MustParseAddr("::1"), port), Ending: clientCloses},
		{Addr: netip.MustParseAddrPort("127.0.0.1:1"), Ending: connectOnly},
	} {
		s.Count, s.Parallel, s.Request, s.Response = count, 20, request, response
		runScript(t, ns, filepath.Join(cgroup, "client"), s)
	}
	a.waitClosed()
	metrics := a.metrics()
	a.stop()
	sameByIstiosNames(t, metrics)
	sums := sumsByEnd(t, metrics)
	for name, want := range map[string]float64{
		"sidelight_tcp_connection_attempts_total": 3 * count, "sidelight_tcp_connection_failures_total": count,
		"istio_tcp_connections_opened_total": 2 * count, "istio_tcp_connections_closed_total": 2 * count,
		"istio_tcp_sent_bytes_total": 2 * count * response, "istio_tcp_received_bytes_total": 2 * count * (headerBytes + request),
	} {
		if got := sums[name+" client"]; got != want {
			t.Errorf("%s of the client is %v, want %v", name, got, want)
		}
	}
}

// istioEnds are the series of connections opened between two workloads of demo, by who tells: what they say of either end, and their value.
func istioEnds(t *testing.T, metrics, source, destination string) map[string]string {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(metrics))
	if err != nil {
		t.Fatal(err)
	}
	said := make(map[string]string)
	for _, m := range families["istio_tcp_connections_opened_total"].GetMetric() {
		of := make(map[string]string)
		for _, l := range m.GetLabel() {
			of[l.GetName()] = l.GetValue()
		}
		if of["source_workload"] != source || of["destination_workload"] != destination {
			continue
		}
		var values []string
		for _, side := range []string{"source", "destination"} {
			for _, label := range []string{"_app", "_version", "_canonical_service", "_canonical_revision", "_cluster"} {
				values = append(values, of[side+label])
			}
		}
		said[of["reporter"]] = fmt.Sprint(values, of["destination_service"], " ", m.GetCounter().GetValue())
	}
	return said
}

// TestIstioAliasesOfMesh has both ends of connections of a mesh tell the same, and follow it when it gives a workload another version.
func TestIstioAliasesOfMesh(t *testing.T) {
	w := newMeshWorld(t, "web", "shop")
	w.servers("shop", serverV4(1))
	mesh := func(version string) string {
		text := strings.Replace(shopMesh(), "kind: Service\nmetadata: {name: shop, namespace: demo}\nspec: {", "kind: Service\nmetadata: {name: shop, namespace: demo}\nspec: {hostname: shop.example.com, ", 1)
		text = strings.Replace(text, "labels: {app: shop}", "labels: {app: shop, app.kubernetes.io/name: cart, version: "+version+"}", 1)
		return strings.Replace(text, "spec: {identity: web, ", "spec: {cluster: north, addresses: [127.0.0.7], identity: web, ", 1)
	}
	w.run(mesh("v1"), "prometheus: {istio_aliases: true, istio_cluster: south}")
	c := w.client("web")
	expect := func(version, opened string) {
		t.Helper()
		w.agent.waitClosed()
		metrics := w.agent.metrics()
		sameByIstiosNames(t, metrics)
		said := "[web unknown web latest north shop " + version + " cart " + version + " south]shop.example.com " + opened
		if got, want := istioEnds(t, metrics, "web", "shop"), map[string]string{"source": said, "destination": said}; !maps.Equal(got, want) {
			t.Errorf("\ngot  %v\nwant %v", got, want)
		}
	}
	w.expect("a service", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 10, Bind: "127.0.0.7"}), only(serverV4(1), 10), nil)
	expect("v1", "10")
	w.change(mesh("v2"))
	expect("v2", "10")
	w.expect("a service", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 5, Bind: "127.0.0.7"}), only(serverV4(1), 5), nil)
	expect("v2", "15")
	w.finish()
}
