package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// count does what programs do with a backend.
func count(m *Maps, index uint32, open int, picks, failed uint64) {
	load := &m.Loads[index]
	atomic.AddUint64(&load.Open, uint64(open))
	atomic.AddUint64(&load.Picks, picks)
	atomic.AddUint64(&load.Failed, failed)
}

func loadsOf(t *testing.T, r *Reconciler) string {
	t.Helper()
	loads, err := r.Loads()
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, e := range loads.Endpoints {
		text += fmt.Sprintf("%v %v: %d open, %d picks, %d failed\n", e.Service, e.Endpoint, e.Open, e.Picks, e.Failed)
	}
	return text
}

// TestLoadsOfAnEndpoint follows one through everything that gives it other backends.
func TestLoadsOfAnEndpoint(t *testing.T) {
	m, r := newTest(t, small, nil)
	want := func(what, text string) {
		t.Helper()
		if have := loadsOf(t, r); have != text {
			t.Errorf("%s:\n%swant\n%s", what, have, text)
		}
	}
	twoPorts := func(s *model.Snapshot) {
		s.Services[0].Ports = append(s.Services[0].Ports, model.Port{Name: "https", Port: 443, TargetPort: 8443})
	}
	apply(t, r, shop(twoPorts, "e1", "e2"), nil)
	want("nobody was picked", "")
	for _, b := range r.services[cart].backends {
		if b.key.endpoint.Name == "e1" {
			count(m, b.index, 1, 10, 2)
		}
	}
	want("two ports", "shop/cart shop/e1: 2 open, 20 picks, 4 failed\n")

	// One of its ports goes, first with a connection, then without.
	apply(t, r, shop(nil, "e1", "e2"), nil)
	want("one port drains", "shop/cart shop/e1: 2 open, 20 picks, 4 failed\n")
	for _, b := range r.draining {
		count(m, b.index, -1, 0, 0)
	}
	if n, err := r.Reap(); n != 1 || err != nil {
		t.Fatalf("reaped %d, %v", n, err)
	}
	want("one port is gone", "shop/cart shop/e1: 1 open, 20 picks, 4 failed\n")

	// It moves.
	moved := func(s *model.Snapshot) { s.Endpoints[0].Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.99")} }
	old := backendOf(r, "e1").index
	apply(t, r, shop(moved, "e1", "e2"), nil)
	count(m, old, -1, 0, 1)
	count(m, backendOf(r, "e1").index, 1, 1, 0)
	if n, err := r.Reap(); n != 1 || err != nil {
		t.Fatalf("reaped %d, %v", n, err)
	}
	want("it is elsewhere", "shop/cart shop/e1: 1 open, 21 picks, 5 failed\n")

	// It leaves, drains, is gone, and comes back.
	b := backendOf(r, "e1")
	apply(t, r, shop(nil, "e2"), nil)
	want("it drains", "shop/cart shop/e1: 1 open, 21 picks, 5 failed\n")
	count(m, b.index, -1, 0, 0)
	if n, err := r.Reap(); n != 1 || err != nil {
		t.Fatalf("reaped %d, %v", n, err)
	}
	want("it is gone", "")
	apply(t, r, shop(nil, "e1", "e2"), nil)
	want("it is back", "shop/cart shop/e1: 0 open, 21 picks, 5 failed\n")
}

func TestLoadsOfLimits(t *testing.T) {
	m, r := newTest(t, small, nil)
	of := func(limits model.Limits) func(*model.Snapshot) {
		return func(s *model.Snapshot) { s.Services[0].Limits = limits }
	}
	apply(t, r, shop(nil, "e1"), nil)
	index := r.limits["service shop/cart"].index
	state := bpf.LimitState{}
	state.Counts.Open, state.Counts.Connecting = 3, 1
	state.Counts.RejectedOpen, state.Counts.RejectedConnecting, state.Counts.RejectedRate = 7, 8, 9
	if err := m.LimitStates.Put([]uint32{index}, []bpf.LimitState{state}); err != nil {
		t.Fatal(err)
	}
	want := func(what string, bounds LimitBounds) {
		t.Helper()
		loads, err := r.Loads()
		all := []LimitLoad{{
			"service shop/cart", bounds, DumpLimitCounts{Open: 3, Connecting: 1, RejectedOpen: 7, RejectedConnecting: 8, RejectedRate: 9},
		}}
		if err != nil || !slices.Equal(loads.Limits, all) {
			t.Errorf("%s: %+v, error %v", what, loads, err)
		}
	}
	want("one bound", LimitBounds{MaxOpen: 5})
	apply(t, r, shop(of(model.Limits{MaxConnections: 50, MaxConnecting: 6, ConnectionsPerSecond: 7, Burst: 8}), "e1"), nil)
	want("all bounds", LimitBounds{MaxOpen: 50, MaxConnecting: 6, PerSecond: 7, Burst: 8})
	apply(t, r, shop(of(model.Limits{ConnectionsPerSecond: 7}), "e1"), nil)
	want("a rate", LimitBounds{PerSecond: 7, Burst: 7})
	apply(t, r, shop(of(model.Limits{}), "e1"), nil)
	want("it drains", LimitBounds{})
	apply(t, r, shop(of(model.Limits{MaxConnecting: 6}), "e1"), nil)
	want("it is back", LimitBounds{MaxConnecting: 6})
}

// BenchmarkLoads is of all endpoints in use, and of none.
func BenchmarkLoads(b *testing.B) {
	for _, c := range []struct {
		name     string
		services int
		used     int
	}{{"of_50000_services", 50000, 50000}, {"of_1000_services", 1000, 50000}, {"of_50000_idle", 50000, 0}} {
		b.Run(c.name, func(b *testing.B) {
			m, r := newTest(b, DefaultSizes(), nil)
			apply(b, r, many(c.services, 50000), nil)
			for i := range c.used {
				count(m, uint32(i+1), 1, 1, 0)
			}
			for b.Loop() {
				loads, err := r.Loads()
				if err != nil || len(loads.Endpoints) != c.used {
					b.Fatalf("%d endpoints, error %v", len(loads.Endpoints), err)
				}
			}
		})
	}
}
