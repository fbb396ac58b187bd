package main

import (
	"bytes"
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
