package maps

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// TestRetire gives a workload another identity: a SYN that was sent before is judged by policies that know the one it had, until its time is over.
func TestRetire(t *testing.T) {
	name := func(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }
	snapshot := func(generation uint64, identity string) *model.Snapshot {
		return &model.Snapshot{
			Generation: generation,
			Workloads:  []model.Workload{{Name: name("web"), Identity: identity}, {Name: name("cart"), Identity: "cart"}},
			Policies: []model.AuthorizationPolicy{{
				Name: name("web-only"), Action: model.Allow, Rules: []model.Rule{{From: []model.Source{{Identities: []string{"web1", "web2"}}}}},
			}},
		}
	}
	m, r := newTest(t, DefaultSizes(), nil)
	now := time.Unix(1000, 0)
	r.o.Now, r.o.Retire = func() time.Time { return now }, 10*time.Second
	class := func() uint32 { return m.Workloads[r.workloads[workloadKey{name: name("web")}].index].Source }
	judged := func(source uint32) uint8 {
		return judge(m, m.Workloads[r.workloads[workloadKey{name: name("cart")}].index].PolicySet, source, peer{address: netip.MustParseAddr("10.0.0.1"), port: 80}, false)
	}
	want := func(when string, source uint32, verdict uint8) {
		t.Helper()
		if got := judged(source); got != verdict {
			t.Errorf("%s: verdict %d, want %d", when, got, verdict)
		}
	}
	apply(t, r, snapshot(1, "web1"), nil)
	first := class()
	mesh := apply(t, r, snapshot(2, "web2"), nil)
	second := class()
	if first == second {
		t.Fatalf("both identities have class %d", first)
	}
	want("under way since before", first, bpf.VerdictAllow)
	want("since", second, bpf.VerdictAllow)
	noDrift(t, r, mesh)

	// Back again: it is the same number, and nothing lets it go.
	mesh = apply(t, r, snapshot(3, "web1"), nil)
	if class() != first {
		t.Errorf("class %d, and again %d", first, class())
	}
	now = now.Add(9 * time.Second)
	if _, err := r.Reap(); err != nil {
		t.Fatal(err)
	}
	want("before the end", second, bpf.VerdictAllow)
	now = now.Add(time.Second)
	if _, err := r.Reap(); err != nil {
		t.Fatal(err)
	}
	want("after the end", second, bpf.VerdictDeny)
	want("of the one that is wanted", first, bpf.VerdictAllow)
	noDrift(t, r, mesh)
}

// TestRetireRoom gives a workload one identity after the other, more than there is room for: those that are retired make room.
func TestRetireRoom(t *testing.T) {
	sizes := Sizes{2, 2, 2, 2, 2, 2, 2, 2, 8}
	_, r := newTest(t, sizes, nil)
	r.o.Retire = time.Hour
	most := 0
	for i := range uint64(20) {
		noDrift(t, r, apply(t, r, &model.Snapshot{
			Generation: i + 1,
			Workloads:  []model.Workload{{Name: model.Name{Namespace: "shop", Name: "web"}, Identity: fmt.Sprint("web", i)}},
		}, nil))
		most = max(most, len(r.retired))
	}
	if most != 3 {
		t.Errorf("%d classes were retired at a time, and there is room for 4", most)
	}
}

// TestRetireRandom changes random meshes while classes of earlier ones are retired: nothing drifts, what is full makes room, and all is free in the end.
func TestRetireRandom(t *testing.T) {
	early := 0
	for seed := range uint64(100) {
		w := newWorld(seed)
		_, r := newTest(t, w.sizes(), nil)
		now := time.Unix(1000, 0)
		r.o.Now, r.o.Retire = func() time.Time { return now }, 10*time.Second
		for range 30 {
			w.step()
			s := w.snapshot()
			before := len(r.retired)
			noDrift(t, r, apply(t, r, s, nil))
			if len(r.retired) < before {
				early++
			}
			now = now.Add(time.Duration(w.IntN(4)) * time.Second)
		}
		if _, err := r.Apply(&Mesh{Generation: w.generation + 1}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Minute)
		if _, err := r.Reap(); err != nil {
			t.Fatal(err)
		}
		if err := allFree(r); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if early == 0 {
		t.Error("no class came back or went")
	}
}
