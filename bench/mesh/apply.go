package mesh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// changed is how many endpoints change.
const changed = 1000

// applies changes endpoints of a mesh of 50,000 services, in the kernel's maps.
func applies(ctx context.Context, o figure.Options) (figures []figure.Figure, err error) {
	rounds := 10
	if !o.Quick {
		rounds = 50
	}
	var objects bpf.Objects
	defer func() { err = errors.Join(err, objects.Close()) }()
	spec, err := bpf.Spec()
	if err != nil {
		return nil, err
	}
	for name, size := range sizes.MaxEntries() {
		spec.Maps[name].MaxEntries = size
	}
	if err := spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{}); err != nil {
		return nil, fmt.Errorf("load maps: %w", err)
	}
	root, err := datapath.OpenCgroup("")
	if err != nil {
		return nil, err
	}
	m, err := newMesh(&objects, maps.Options{Resolve: root.Resolve, SetLevels: func(uint64) error { return nil }})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.kernel.Close()) }()
	s := snapshot(shape{50000, 1}, "/")
	if _, err := m.apply(s); err != nil {
		return nil, err
	}
	var samples []float64
	var wrote maps.Changes
	for round := range rounds + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s = moving(s, changed)
		start := time.Now()
		changes, err := m.apply(s)
		took := time.Since(start)
		if err != nil {
			return nil, err
		}
		if round == 0 { // it warms up
			wrote = changes
			continue
		}
		if changes != wrote {
			return nil, fmt.Errorf("the same change wrote %+v, and then %+v", wrote, changes)
		}
		samples = append(samples, float64(took)/float64(time.Millisecond))
	}
	exact := func(what string, n int, note string) figure.Figure {
		return figure.Figure{Name: "mesh.apply.endpoints_1000." + what, Unit: "1", Value: float64(n), Note: note}
	}
	return []figure.Figure{
		{
			Name: "mesh.apply.endpoints_1000.time", Unit: "ms", Samples: samples,
			Note: "from the model to the kernel's maps, until no program uses any more what was replaced, among 50,000 services with an endpoint each",
		},
		exact("backends", wrote.Backends, "written"),
		exact("tables", wrote.Tables, "written"),
		exact("slots", wrote.Slots, "written"),
		exact("references", wrote.References, "words that were flipped"),
		exact("elements", wrote.Puts+wrote.Deletes, "of hashes, written or deleted: the addresses of the workloads, the old and the new"),
		exact("others", wrote.Workloads+wrote.Limits+wrote.PolicySets, "workloads, limits and sets of policies written"),
	}, nil
}
