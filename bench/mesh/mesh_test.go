package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/gate"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Argument {
		if err := Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// lives skips what needs root, and looks afterwards whether something stayed.
func lives(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("loads programs: needs root")
	}
	t.Cleanup(func() {
		root, err := datapath.OpenCgroup("")
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(root.Dir, fmt.Sprintf("%s%d-*", placePrefix, os.Getpid()))); len(left) > 0 {
			t.Errorf("cgroups stayed: %v", left)
		}
	})
}

// TestCounts: the same programs twice cost the same to the instruction, and slower ones break a budget of what these cost.
func TestCounts(t *testing.T) {
	lives(t)
	const burn = 20
	measure := func(burn int) map[string]float64 {
		figures, err := countsWith(t.Context(), burn)
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, f := range figures {
			values[f.Name] = f.Value
		}
		return values
	}
	first, second, slow := measure(0), measure(0), measure(burn)
	for name, value := range first {
		if second[name] != value {
			t.Errorf("%s is %v, and then %v", name, value, second[name])
		}
		want, broken := value, false
		if strings.HasSuffix(name, ".instructions") {
			want, broken = value+burn, true
		}
		if slow[name] != want {
			t.Errorf("%s of the slower program is %v, want %v", name, slow[name], want)
		}
		results, err := gate.Judge([]figure.Figure{{Name: name, Value: slow[name]}}, []gate.Budget{{Figure: name, AtMost: &value, Why: "reached"}}, nil, 1)
		if err != nil || (results[0].Verdict == gate.Broken) != broken {
			t.Errorf("%s: %v, %v; want it broken: %t", name, results, err, broken)
		}
	}
}

// TestSlower: what is added to a connect through a service shows as much, breaks the budget, and shows nowhere else.
func TestSlower(t *testing.T) {
	lives(t)
	const burn = 20 * time.Microsecond
	s := &Source{burn: burn}
	figures, err := s.frontends(t.Context(), figure.Options{Quick: true, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	limit, ratio := 500.0, 1.25
	results, err := gate.Judge(figures, []gate.Budget{
		{Figure: "mesh.frontend.connect.added", AtMost: &limit, Why: "it is the limit"},
		{Figure: "mesh.aa.connect", Within: &ratio, Why: "the harness's own check, on a machine that does something else too"},
	}, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		switch r.Figure.Name {
		case "mesh.frontend.connect.added":
			if r.Verdict != gate.Broken || r.Estimate.Point < float64(burn) || r.Estimate.Point > 1.5*float64(burn) {
				t.Errorf("%s: %s, %+v", r.Figure.Name, r.Verdict, r.Estimate)
			}
		case "mesh.aa.connect":
			if r.Verdict == gate.Broken {
				t.Errorf("%s: %+v", r.Figure.Name, r.Estimate)
			}
		}
	}
}

// TestMeasure: the whole source works, leaves nothing behind, and every figure is one.
func TestMeasure(t *testing.T) {
	lives(t)
	s := new(Source)
	for _, part := range s.parts() {
		start := time.Now()
		figures, err := part(t.Context(), figure.Options{Quick: true, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range figures {
			if err := f.Check(); err != nil {
				t.Error(err)
			}
		}
		if len(figures) == 0 {
			t.Error("no figures")
		}
		t.Logf("%d figures in %v", len(figures), time.Since(start))
	}
	for prefix, reason := range s.Absent() {
		t.Logf("not on this kernel: %s: %s", prefix, reason)
	}
}

// TestLost: connections that were not made, or not by a service, are no measurement.
func TestLost(t *testing.T) {
	lives(t)
	for name, c := range map[string]struct {
		condition condition
		spoil     func(*live)
		want      string
	}{
		"none":           {condition{name: "c", observed: true, mesh: shape{3, 2}}, func(*live) {}, ""},
		"more":           {condition{name: "c", observed: true}, func(l *live) { l.connections-- }, "connections were made"},
		"not by service": {condition{name: "c", observed: true, mesh: shape{1, 1}, direct: true}, func(l *live) { l.direct = false }, "by a service"},
	} {
		t.Run(name, func(t *testing.T) {
			g, _, err := open([]condition{c.condition}, rand.New(rand.NewPCG(1, 1)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := g.close(); err != nil {
					t.Error(err)
				}
			}()
			c.spoil(g.all[0])
			err = g.measure(t.Context(), 1, rand.New(rand.NewPCG(1, 1)))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestEnds: a run that is ended leaves nothing behind either.
func TestEnds(t *testing.T) {
	lives(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := new(Source)
	for _, part := range s.parts() {
		if figures, err := part(ctx, figure.Options{Quick: true}); !errors.Is(err, context.Canceled) {
			t.Errorf("%d figures, %v", len(figures), err)
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err != nil {
		t.Skip(err)
	}
	if len(children) > 0 {
		t.Errorf("processes stayed: %s", children)
	}
}

// TestAbsent: a rival whose program is missing is named, with the reason, and the rest is measured.
func TestAbsent(t *testing.T) {
	lives(t)
	t.Setenv("PATH", t.TempDir())
	for _, kind := range []string{nftables, iptables, haproxy} {
		g, absent, err := open([]condition{{name: "bare"}, {name: "rival", rival: &rival{kind: kind, services: 1}}}, rand.New(rand.NewPCG(1, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(absent[kind], "not installed") || len(g.all) != 1 {
			t.Errorf("%s: %v, %d conditions", kind, absent, len(g.all))
		}
		if err := g.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRivals: each really brings all of its services to all of their endpoints.
func TestRivals(t *testing.T) {
	lives(t)
	for kind, program := range map[string]string{nftables: "nft", iptables: "iptables-legacy-restore", haproxy: "haproxy"} {
		t.Run(kind, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Skip(err)
			}
			g, absent, err := open([]condition{{name: kind, rival: &rival{kind: kind, services: 20}}}, rand.New(rand.NewPCG(1, 1)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := g.close(); err != nil {
					t.Error(err)
				}
			}()
			if reason := absent[kind]; reason != "" {
				t.Skip(reason)
			}
			a, err := g.place.ask(order{Script: look, Targets: 20, Count: 400})
			if err != nil {
				t.Fatal(err)
			}
			// By chance one of 40 has none of 400: one in 600 runs of this test.
			if a.Endpoints != 20*rivalEndpoints {
				t.Errorf("%d endpoints, want %d", a.Endpoints, 20*rivalEndpoints)
			}
		})
	}
}

// TestMoving: a change is of exactly as many endpoints, and what is written is the difference.
func TestMoving(t *testing.T) {
	s := snapshot(shape{5000, 1}, "/client")
	next := moving(s, 100)
	different := 0
	for i := range s.Workloads {
		if s.Workloads[i].Addresses == nil {
			continue
		}
		if s.Workloads[i].Addresses[0] != next.Workloads[i].Addresses[0] {
			different++
		}
	}
	if different != 100 || next.Generation != 2 {
		t.Errorf("%d changed, generation %d", different, next.Generation)
	}
	if back := moving(next, 100); back.Workloads[1].Addresses[0] != s.Workloads[1].Addresses[0] {
		t.Error("what moved does not move back")
	}
	if _, err := maps.Compile(denying(next), nil, sizes); err != nil {
		t.Error(err)
	}
}
