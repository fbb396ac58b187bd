package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/budget"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

// TestOwnTraces runs an agent with the shipped configuration that turns its own spans on, and wants each sort of them at a real OTLP receiver.
func TestOwnTraces(t *testing.T) {
	needRoot(t)
	const count = 100
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	grpc, http := freePort(t), freePort(t)
	b := startBackend(t, grpc, http)
	text, err := os.ReadFile(filepath.Join(root, "otel-config", "self-traces.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "collector.yaml")
	writeFile(t, file, strings.NewReplacer(
		"127.0.0.1:4317", grpc, "127.0.0.1:4318", http, "report_interval: 10s", "report_interval: 200ms",
	).Replace(string(text)))
	// A budget that is always broken makes a step, if only one.
	a := startNode(t, nodeSettings{
		Config: writeConfig(t, "otel_config: "+file, "budget: {cpu: off, memory: 32MiB}"), Cgroup: cgroup,
		Interval: 1, Pace: budget.Pace{Down: 2, Up: 4, MostUp: 64}, Profile: 1, Rest: 1 << 40,
	})
	a.audit()
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 5,
	})
	eventually(t, "spans of the agent itself", func() error {
		own := b.Received().OwnSpans
		for _, want := range ownSpans(t) {
			if !slices.Contains(own, want) {
				return fmt.Errorf("no span %s among %v", want, own)
			}
		}
		// The pipelines work beside: the ladder goes to its bottom, whatever connections there are.
		if r := b.Received(); len(r.Own) != 5 || r.DataPoints == 0 {
			return fmt.Errorf("%d steps and %d data points", len(r.Own), r.DataPoints)
		}
		return nil
	})
	a.stop()
}

// ownSpans are those of the table.
func ownSpans(t *testing.T) (names []string) {
	t.Helper()
	table, err := metadata.Read(filepath.Join(root, "collector", "meshreceiver", "metadata.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range table.SelfSpans {
		names = append(names, s.Name)
	}
	return names
}
