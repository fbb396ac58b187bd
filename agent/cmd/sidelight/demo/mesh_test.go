package demo

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	meshmaps "github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
)

// newTestMesh reads mesh.yaml as it stands, and makes nothing of it.
func newTestMesh(t *testing.T) *MeshWorld {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(file, []byte(meshYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, err := controlplane.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	m := &MeshWorld{World: newWorld("/sys/fs/cgroup"), mesh: snapshot}
	m.cast()
	return m
}

// TestMeshFile has all that the demo is about in the file.
func TestMeshFile(t *testing.T) {
	m := newTestMesh(t)
	if m.Limit() == 0 || m.service(ejectedService).Outlier.ConsecutiveFailures == 0 {
		t.Error("no limit, or no outlier detection")
	}
	if near := m.near(); len(near) != 2 {
		t.Errorf("near endpoints %v, want two", near)
	}
	if len(m.mesh.Policies) != 1 || m.mesh.Policies[0].Name != deniedPolicy || m.mesh.Policies[0].Action != model.Deny {
		t.Errorf("policies %+v", m.mesh.Policies)
	}
	if len(m.scene.services) != 7 || len(m.scene.clients) != len(clientNames) || len(m.scene.addresses) != 16 {
		t.Errorf("%d services, %d clients, %d addresses", len(m.scene.services), len(m.scene.clients), len(m.scene.addresses))
	}
	for _, name := range []model.Name{failoverService, deniedService, limitedService, ejectedService} {
		families := make(map[bool]bool)
		for _, to := range m.dialled(name) {
			families[to.Addr().Is6()] = true
		}
		if len(families) != 2 {
			t.Errorf("%v is not dialled over both families", name)
		}
	}
}

func TestSteps(t *testing.T) {
	var next strings.Builder
	s := NewSteps(slog.NewTextHandler(&next, &slog.HandlerOptions{Level: slog.LevelWarn}))
	logger := slog.New(s).With("a", 1)
	end := time.Now().Add(time.Hour)
	logger.Info("endpoint ejected", "endpoint", "demo/e", "service", "demo/s", "cause", "outlier", "until", end)
	logger.Info("something else")
	logger.Debug("endpoint back", "endpoint", "demo/e")
	logger.Info("endpoint back", "endpoint", "demo/e")
	logger.Warn("worth knowing")
	all := s.All()
	if len(all) != 2 || all[0].Endpoint != "demo/e" || all[0].Service != "demo/s" || all[0].Cause != "outlier" || !all[0].Until.Equal(end) || all[1].What != stepBack {
		t.Errorf("steps %+v", all)
	}
	if text := next.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "worth knowing") || !strings.Contains(text, "a=1") {
		t.Errorf("passed on: %s", text)
	}
}

func TestDecisions(t *testing.T) {
	d := make(Decisions)
	for _, a := range []map[string]any{
		{"sidelight.role": "client", "sidelight.original_destination": "198.51.100.2:80", "sidelight.reason": "denied", "sidelight.policy.rule": int64(3)},
		{"sidelight.role": "client", "sidelight.original_destination": "198.51.100.2:80", "sidelight.reason": "denied", "sidelight.policy.rule": int64(3)},
		{"sidelight.role": "server", "sidelight.original_destination": "192.0.2.21:8080", "sidelight.reason": "ok"},
		{"sidelight.role": "client", "sidelight.reason": "ok"},
	} {
		d.add(&Line{Workload: "web", Attributes: a})
	}
	if len(d) != 1 || d[Decision{Client: "web", Reason: "denied", Rule: 3}] != 2 {
		t.Errorf("decisions %v", d)
	}
}

// dumpOf is of the service with failover: one pool, with its table's index and the backends in it. Backend 3 is the far one.
func dumpOf(table uint32, in []uint32, picks ...uint64) *meshmaps.Dump {
	names := []string{"demo/api-near-1", "demo/api-near-2", "demo/api-far-1"}
	pool := meshmaps.DumpPool{Index: 1, Table: table}
	d := &meshmaps.Dump{}
	for i, n := range picks {
		index := uint32(i + 1)
		d.Backends = append(d.Backends, meshmaps.DumpBackend{Service: "demo/api", Endpoint: names[i], Index: index, Address: "192.0.2.1:8080", Picks: n})
		if slices.Contains(in, index) {
			pool.Endpoints = append(pool.Endpoints, meshmaps.DumpEndpoint{Endpoint: names[i], Backend: index, Share: 1 / float64(len(in))})
		}
	}
	d.Services = []meshmaps.DumpService{{Name: "demo/api", ID: 1, Pools: []meshmaps.DumpPool{pool}}}
	return d
}

// TestWatch follows tables, and finds a connection to who is in none.
func TestWatch(t *testing.T) {
	all := []uint32{1, 2}
	for _, test := range []struct {
		name string
		last *meshmaps.Dump
		out  map[string]uint64
		over bool
	}{
		{"failed over", dumpOf(3, []uint32{3}, 5, 5, 9), nil, true},
		{"half", dumpOf(4, []uint32{2}, 5, 5, 9), nil, false},
		{"nobody left", dumpOf(4, nil, 5, 5, 2), nil, false},
		{"one to who is out", dumpOf(3, []uint32{3}, 6, 5, 9), map[string]uint64{"demo/api-near-1": 1}, true},
		{"another table since", dumpOf(4, []uint32{3}, 6, 5, 9), nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, at := NewWatch(newTestMesh(t)), time.Now()
			w.Observe(dumpOf(1, all, 3, 2, 0), at)
			w.Observe(dumpOf(1, all, 4, 4, 0), at)
			w.NearStopped(at)
			w.Observe(dumpOf(2, all[1:], 5, 4, 0), at)
			if test.over {
				w.Observe(dumpOf(3, []uint32{3}, 5, 5, 2), at)
			}
			w.Observe(test.last, at)
			for _, row := range w.rows(&MeshState{Dump: test.last}, nil, nil) {
				if row.PicksOut != test.out[row.Endpoint] {
					t.Errorf("%s got %d while it was out, want %d", row.Endpoint, row.PicksOut, test.out[row.Endpoint])
				}
			}
			if w.over.IsZero() == test.over {
				t.Errorf("failed over at %v, want it %t", w.over, test.over)
			}
		})
	}
}

// goodReport is one of a demo in which all was seen.
func goodReport(begin time.Time) *MeshReport {
	row := func(service, endpoint string, picks, failed uint64, ejections uint64) EndpointRow {
		return EndpointRow{
			Service: "demo/" + service, Endpoint: "demo/" + endpoint, Picks: picks, Failed: failed, Ejections: ejections,
			Records: int(picks), Answers: int(picks - failed),
		}
	}
	tally := func(dialled int, errs map[string]int, answers map[string]int) Tally {
		return Tally{Dialled: dialled, IPv6: dialled / 2, Errors: errs, Answers: answers}
	}
	greedy := tally(24, map[string]int{"ECONNREFUSED": 8}, map[string]int{"demo/narrow-1": 16})
	greedy.Rounds, greedy.FewestHeld, greedy.MostHeld = 2, 8, 8
	return &MeshReport{
		Endpoints: []EndpointRow{
			row("api", "api-far-1", 20, 0, 0), row("api", "api-near-1", 10, 4, 1), row("api", "api-near-2", 10, 3, 1),
			row("flaky", "flaky-1", 9, 0, 0), row("flaky", "flaky-2", 9, 0, 0), row("flaky", "flaky-3", 3, 3, 1),
			row("narrow", "narrow-1", 16, 0, 0), row("shop", "shop-1", 7, 0, 0),
		},
		Policies: []PolicyRow{{Verdict: "allow", Records: 7, Kernel: 14}, {Policy: "demo/no-intruders", Verdict: "deny", Records: 6, Kernel: 6}},
		Limits:   []LimitRow{{Limit: "service demo/narrow", Bound: 8, MostOpen: 8, Rejected: 8, Records: 8}},
		Clients: map[string]map[string]Tally{
			"web": {
				"demo/api":   tally(40, map[string]int{"ECONNREFUSED": 7}, map[string]int{"demo/api-far-1": 20, "demo/api-near-1": 6, "demo/api-near-2": 7}),
				"demo/flaky": tally(21, map[string]int{"ECONNREFUSED": 3}, map[string]int{"demo/flaky-1": 9, "demo/flaky-2": 9}),
				"demo/shop":  tally(7, nil, map[string]int{"demo/shop-1": 7}),
			},
			"intruder": {"demo/shop": tally(6, map[string]int{"EPERM": 6}, nil)},
			"greedy":   {"demo/narrow": greedy},
		},
		Steps: []Step{
			{At: begin, What: stepEjected, Endpoint: "demo/flaky-3", Until: begin.Add(time.Second)},
			{At: begin.Add(time.Second), What: stepBack, Endpoint: "demo/flaky-3"},
		},
		NearStopped: begin, FailedOver: begin.Add(time.Second),
	}
}

// TestJudge changes a good report one number at a time, and each is missed.
func TestJudge(t *testing.T) {
	m, begin := newTestMesh(t), time.Now()
	change := func(client, service string, f func(*Tally)) func(*MeshReport) {
		return func(r *MeshReport) {
			tally := r.Clients[client][service]
			f(&tally)
			r.Clients[client][service] = tally
		}
	}
	for _, test := range []struct {
		name    string
		change  func(*MeshReport)
		missing []string
	}{
		{"good", func(*MeshReport) {}, nil},
		{"no failover", func(r *MeshReport) { r.FailedOver = time.Time{} }, []string{"failover"}},
		{"the far one fails", func(r *MeshReport) { r.Endpoints[0].Failed, r.Endpoints[0].Answers = 1, 19 }, []string{"failover"}},
		{"a connect to an ejected one", func(r *MeshReport) { r.Endpoints[1].PicksOut = 1 }, []string{"failover"}},
		{"a pick without a line", func(r *MeshReport) { r.Endpoints[7].Records-- }, []string{"exact counts"}},
		{"a pick too many", func(r *MeshReport) { r.Endpoints[7].Picks++; r.Endpoints[7].Records++ }, []string{"exact counts"}},
		{"something open", func(r *MeshReport) { r.Endpoints[7].Open = 1 }, []string{"exact counts"}},
		{"drift", func(r *MeshReport) { r.Drift = []string{"x"} }, []string{"exact counts"}},
		{"an intruder is answered", change("intruder", "demo/shop", func(t *Tally) {
			t.Errors, t.Answers = map[string]int{"EPERM": 5}, map[string]int{"demo/shop-1": 1}
		}), []string{"denied client"}},
		{"another errno", change("intruder", "demo/shop", func(t *Tally) { t.Errors = map[string]int{"EPERM": 5, "ECONNREFUSED": 1} }), []string{"denied client"}},
		{"a verdict without a line", func(r *MeshReport) { r.Policies[1].Kernel++ }, []string{"denied client"}},
		{"one more passes", change("greedy", "demo/narrow", func(t *Tally) { t.MostHeld = 9 }), []string{"circuit breaker"}},
		{"one fewer passes", change("greedy", "demo/narrow", func(t *Tally) { t.FewestHeld = 7 }), []string{"circuit breaker"}},
		{"more were open", func(r *MeshReport) { r.Limits[0].MostOpen = 9 }, []string{"circuit breaker"}},
		{"a refusal without a line", func(r *MeshReport) { r.Limits[0].Records-- }, []string{"circuit breaker"}},
		{"never ejected", func(r *MeshReport) { r.Steps, r.Endpoints[5].Ejections = nil, 0 }, []string{"ejected endpoint"}},
		{"not back", func(r *MeshReport) { r.Steps = r.Steps[:1] }, []string{"ejected endpoint"}},
		{"another fails", func(r *MeshReport) { r.Endpoints[3].Failed, r.Endpoints[3].Answers = 1, 8 }, []string{"ejected endpoint"}},
		{"nothing ran", func(r *MeshReport) { *r = MeshReport{} }, []string{"failover", "denied client", "circuit breaker", "ejected endpoint", "exact counts"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := goodReport(begin)
			test.change(r)
			r.Judge(m, begin.Add(10*time.Second))
			if missing := r.Missing(); !slices.Equal(missing, test.missing) {
				t.Errorf("missing %q, want %q:\n%+v", missing, test.missing, r.Seen)
			}
		})
	}
}
