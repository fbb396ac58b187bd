package outlier

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// TestNeverMoreThanTheShare plays at random, and holds what is out against the mesh after each move.
func TestNeverMoreThanTheShare(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		b := newBench(&model.Snapshot{})
		var m model.Snapshot
		var longest time.Duration
		for move := range 400 {
			b.clock = b.clock.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
			switch {
			case move == 0 || r.IntN(40) == 0:
				m = randomMesh(r)
				b.SetSnapshot(&m)
				for i := range m.Services {
					longest = max(longest, m.Services[i].Outlier.MaxEjectionTime)
				}
			case r.IntN(3) == 0:
				if next := b.Advance(); !next.IsZero() && !next.After(b.clock) {
					t.Fatalf("seed %d move %d: the next is at %v, now it is %v", seed, move, next, b.clock)
				}
			case len(m.Endpoints) > 0:
				e := m.Endpoints[r.IntN(len(m.Endpoints))]
				for range r.IntN(5) {
					b.Observe(e.Name, e.Service, r.IntN(8) != 0, b.clock.Add(-time.Duration(r.IntN(100))*time.Millisecond))
				}
			}
			holdShare(t, b, &m, longest)
			if t.Failed() {
				t.Fatalf("seed %d move %d", seed, move)
			}
		}
	}
}

func randomMesh(r *rand.Rand) model.Snapshot {
	var m model.Snapshot
	for _, s := range []string{"cart", "pay"} {
		n := r.IntN(25)
		m.Services = append(m.Services, model.Service{Name: name(s), Outlier: model.OutlierDetection{
			ConsecutiveFailures: uint32(r.IntN(4)), BaseEjectionTime: time.Duration(r.IntN(10)) * time.Second,
			MaxEjectionTime: time.Duration(1+r.IntN(30)) * time.Second, MaxEjectionPercent: uint32(r.IntN(110)),
		}})
		for _, e := range endpoints(s, n) {
			e.Name.Namespace = s
			m.Endpoints = append(m.Endpoints, e)
		}
	}
	return m
}

func holdShare(t *testing.T, b *bench, m *model.Snapshot, longest time.Duration) {
	t.Helper()
	out := map[model.Name]int{}
	known := map[model.Name]model.Name{}
	size := map[model.Name]int{}
	for _, e := range m.Endpoints {
		known[e.Name] = e.Service
		size[e.Service]++
	}
	for _, e := range b.Out() {
		if _, in := known[e]; !in {
			t.Errorf("%v is out and not in the mesh", e)
		}
		out[known[e]]++
	}
	for i := range m.Services {
		s := &m.Services[i]
		allowed := max(1, size[s.Name]*int(min(100, s.Outlier.MaxEjectionPercent))/100)
		if !detects(s) {
			allowed = 0
		}
		if out[s.Name] > allowed {
			t.Errorf("%d of %v are out, allowed are %d", out[s.Name], s.Name, allowed)
		}
	}
	for _, s := range b.Stats() {
		if s.Cause == Outlier && s.Until.After(b.clock.Add(longest)) {
			t.Errorf("%+v is out for longer than %v", s, longest)
		}
	}
}
