package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bench/bpfcount"
	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// hooked are the programs that the agent attaches to a cgroup when there is a mesh.
var hooked = []struct {
	name   string
	attach ebpf.AttachType
}{
	{"mesh_release", ebpf.AttachCgroupInetSockRelease},
	{"mesh_create", ebpf.AttachCGroupInetSockCreate},
	{"mesh_peername4", ebpf.AttachCgroupInet4GetPeername},
	{"mesh_peername6", ebpf.AttachCgroupInet6GetPeername},
	{"mesh_sockops_in_mesh", ebpf.AttachCGroupSockOps},
	{"mesh_connect4_in_mesh", ebpf.AttachCGroupInet4Connect},
	{"mesh_connect6_in_mesh", ebpf.AttachCGroupInet6Connect},
}

// counted is those programs with counters in them.
type counted struct {
	counts  map[string]*ebpf.Map
	objects bpf.Objects
	ring    *ringbuf.Reader
	mesh    *mesh
	links   []link.Link
}

func newCounted(cgroup datapath.Cgroup, s *model.Snapshot, burn int) (_ *counted, err error) {
	c := new(counted)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	spec, err := bpf.Spec()
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(cgroup.Dir, &stat); err != nil {
		return nil, fmt.Errorf("stat cgroup: %w", err)
	}
	for name, value := range map[string]any{bpf.WakeupBytes: ^uint64(0), bpf.AttachedCgroup: stat.Ino, bpf.FirstBytes: true} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	if err := bpf.WithMesh(spec); err != nil {
		return nil, err
	}
	for name, size := range sizes.MaxEntries() {
		spec.Maps[name].MaxEntries = size
	}
	bpfcount.Waste(spec.Programs["mesh_connect4_in_mesh"], burn)
	programs := make([]string, 0, len(hooked))
	for _, p := range hooked {
		programs = append(programs, p.name)
	}
	if c.counts, err = bpfcount.Spec(spec, programs...); err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&c.objects, nil); err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	if c.ring, err = ringbuf.NewReader(c.objects.Events); err != nil {
		return nil, err
	}
	if c.mesh, err = newMesh(&c.objects, maps.Options{
		Resolve: cgroup.Resolve, SetHas: func(has uint32) error { return c.objects.MeshHas.Set(has) }, SetLevels: func(levels uint64) error { return c.objects.CgroupLevels.Set(levels) },
	}); err != nil {
		return nil, err
	}
	if _, err := c.mesh.apply(s); err != nil {
		return nil, err
	}
	for _, p := range hooked {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup.Dir, Attach: p.attach, Program: c.programs()[p.name]})
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", p.name, err)
		}
		c.links = append(c.links, l)
	}
	return c, nil
}

func (c *counted) programs() map[string]*ebpf.Program {
	o := &c.objects
	return map[string]*ebpf.Program{
		"mesh_release": o.MeshRelease, "mesh_create": o.MeshCreate, "mesh_peername4": o.MeshPeername4, "mesh_peername6": o.MeshPeername6,
		"mesh_sockops_in_mesh": o.MeshSockopsInMesh, "mesh_connect4_in_mesh": o.MeshConnect4InMesh, "mesh_connect6_in_mesh": o.MeshConnect6InMesh,
	}
}

func (c *counted) close() error {
	var errs []error
	for _, l := range c.links {
		errs = append(errs, l.Close())
	}
	if c.ring != nil {
		errs = append(errs, c.ring.Close())
	}
	if c.mesh != nil {
		errs = append(errs, c.mesh.kernel.Close())
	}
	errs = append(errs, c.objects.Close())
	for _, m := range c.counts {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// cost is what the programs did so far.
type cost struct{ instructions, runs uint64 }

func (c *counted) read() (sum cost, err error) {
	for name, p := range c.programs() {
		stats, err := p.Stats()
		if err != nil {
			return sum, err
		}
		sum.runs += stats.RunCount
		var n uint64
		if err := c.counts[name].Lookup(uint32(0), &n); err != nil {
			return sum, err
		}
		sum.instructions += n
	}
	return sum, nil
}

// counts are those figures that are the same each time.
func counts(ctx context.Context, _ figure.Options) ([]figure.Figure, error) {
	return countsWith(ctx, 0)
}

// countsWith wastes instructions in each connect: what the gate's own test injects.
func countsWith(ctx context.Context, burn int) (figures []figure.Figure, err error) {
	stop, err := datapath.Measure() // it counts runs only then
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, c := range []struct {
		name   string
		script script
		mesh   func(*model.Snapshot) *model.Snapshot
		what   string
	}{
		{"frontend", churn, func(s *model.Snapshot) *model.Snapshot { return s }, "one connection through a service, both ends, whole life"},
		{"denied", denied, denying, "one connect to a service that a policy refuses"},
	} {
		one, err := countOne(ctx, c.script, c.mesh, burn)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		figures = append(figures,
			figure.Figure{
				Name: "mesh." + c.name + ".instructions", Unit: "1", Value: float64(one.instructions),
				Note: "executed for " + c.what + ", without those of helpers",
			},
			figure.Figure{Name: "mesh." + c.name + ".runs", Unit: "1", Value: float64(one.runs), Note: "of programs for " + c.what})
	}
	return figures, nil
}

func countOne(ctx context.Context, of script, with func(*model.Snapshot) *model.Snapshot, burn int) (_ cost, err error) {
	p, err := newPlace()
	defer func() { err = errors.Join(err, p.close()) }()
	if err != nil {
		return cost{}, err
	}
	cgroup, _, err := p.add(way{First: netip.AddrPortFrom(address(firstService), servicePort)})
	if err != nil {
		return cost{}, err
	}
	c, err := newCounted(cgroup, with(snapshot(shape{1, 1}, strings.TrimPrefix(cgroup.Dir, cgroup.Mount))), burn)
	if err != nil {
		return cost{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := p.start(); err != nil {
		return cost{}, err
	}
	// What a timer adds that fires in between, because the machine was busy, is not in the fewest of several.
	const connections, times = 20, 40
	all := make([]cost, 0, times)
	for range times + 1 { // the very first makes entries in maps
		if err := ctx.Err(); err != nil {
			return cost{}, err
		}
		before, err := c.read()
		if err != nil {
			return cost{}, err
		}
		if _, err := p.ask(order{Script: of, Targets: 1, Count: connections}); err != nil {
			return cost{}, err
		}
		after, err := c.read()
		if err != nil {
			return cost{}, err
		}
		if err := drain(c.ring); err != nil {
			return cost{}, err
		}
		all = append(all, cost{(after.instructions - before.instructions) / connections, (after.runs - before.runs) / connections})
	}
	return slices.MinFunc(all[1:], func(a, b cost) int { return cmp.Compare(a.instructions, b.instructions) }), nil
}
