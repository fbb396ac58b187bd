package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// carriers are the programs of bpf/carry.bpf.c, which stand before those of this version while there is state in the old map.
type carriers struct {
	objects bpf.CarryObjects
	arrays  map[string]*ebpf.Map // of the programs that they make way for, by the name of their map
	trace   []traceLink
}

// loadCarriers loads them for two layouts.
func (c *carry) loadCarriers(d *Datapath) (err error) {
	spec, err := bpf.CarrySpec()
	if err != nil {
		return err
	}
	if err := c.setConstants(spec, d.spec); err != nil {
		return fmt.Errorf("make programs that carry state over: %w", err)
	}
	replaced := map[string]*ebpf.Map{
		"connections": d.objects.Connections, "connections_before": c.before[connectionsMap].Map,
		"loads": d.objects.Loads, "limit_states": d.objects.LimitStates,
		"verdicts": d.objects.Verdicts, "verdicts_before": d.objects.Verdicts,
	}
	if old := c.before[verdictsMap]; old != nil {
		replaced["verdicts_before"] = old.Map
	}
	for name, m := range replaced {
		if err := fit(spec.Maps[name], m); err != nil {
			return err
		}
	}
	loaded := &carriers{arrays: make(map[string]*ebpf.Map)}
	for name := range spec.Maps {
		if spec.Maps[name].Type != ebpf.ProgramArray {
			continue
		}
		// Those that an earlier process pinned have programs that make way for their content.
		m, err := ebpf.LoadPinnedMap(filepath.Join(c.pins.set, mapPrefix+name), nil)
		switch {
		case err == nil:
			replaced[name] = m
			defer m.Close()
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("open pinned map %s: %w", name, err)
		}
	}
	if err := spec.LoadAndAssign(&loaded.objects, &ebpf.CollectionOptions{MapReplacements: replaced}); err != nil {
		return fmt.Errorf("load programs that carry state over: %w", err)
	}
	c.carriers = loaded
	return nil
}

// fit makes a spec one for a map.
func fit(spec *ebpf.MapSpec, m *ebpf.Map) error {
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("look at map %s: %w", spec.Name, err)
	}
	spec.Type, spec.KeySize, spec.ValueSize, spec.MaxEntries, spec.Flags = info.Type, info.KeySize, info.ValueSize, info.MaxEntries, info.Flags
	spec.Key, spec.Value = nil, nil
	return nil
}

// setConstants tells the programs where everything is.
func (c *carry) setConstants(spec, mainSpec *ebpf.CollectionSpec) error {
	now, before := mainSpec.Maps[connectionsMap].Value, c.before[connectionsMap].value
	of := func(t btf.Type, way ...string) (uint16, error) {
		at, ok := place(t, way...)
		if !ok {
			return 0, fmt.Errorf("there is no %v in %v", way, t)
		}
		return uint16(at), nil
	}
	var from [bpf.CarryRoom]uint16
	for i := range from {
		from[i] = nowhere
	}
	copy(from[:], c.types[connectionsMap].value)
	values := map[string]any{
		"carry_from": from, "carry_size": uint32(len(c.types[connectionsMap].value)), "carry_size_before": c.before[connectionsMap].info.ValueSize,
	}
	var base, baseBefore []string
	if c.mesh {
		base = []string{plainState}
	}
	if c.hadMesh {
		baseBefore = []string{plainState}
	}
	type wanted struct {
		name string
		t    btf.Type
		way  []string
	}
	under := func(base []string, way ...string) []string { return slices.Concat(base, way) }
	places := []wanted{
		{"carry_start", now, under(base, "event", "start_ns")},
		{"carry_start_before", before, under(baseBefore, "event", "start_ns")},
		{"carry_phase", now, under(base, "phase")},
		{"carry_phase_before", before, under(baseBefore, "phase")},
		{"carry_flags", now, under(base, "event", "flags")},
		{"carry_traced_before", before, under(baseBefore, "traced")},
	}
	switch {
	case c.mesh && c.hadMesh:
		load, state := mainSpec.Maps[loadsMap].Value, mainSpec.Maps[limitStatesMap].Value
		places = append(places,
			wanted{"carry_holds", now, []string{"decided", "holds"}}, wanted{"carry_holds_before", before, []string{"decided", "holds"}},
			wanted{"carry_backend", now, []string{"decided", "decision", "backend"}}, wanted{"carry_limits", now, []string{"decided", "limits"}},
			wanted{"carry_load_open", load, []string{"open"}}, wanted{"carry_limit_lock", state, []string{"lock"}},
			wanted{"carry_limit_open", state, []string{"counts", "open"}}, wanted{"carry_limit_connecting", state, []string{"counts", "connecting"}})
		values["carry_counts_loads"], values["carry_counts_limits"] = c.shared[loadsMap] == nil, c.shared[limitStatesMap] == nil
	case c.hadMesh:
		values["carry_flags_gone"] = uint16(bpf.Decided)
	}
	for _, w := range places {
		at, err := of(w.t, w.way...)
		if err != nil {
			return err
		}
		values[w.name] = at
	}
	for name, value := range values {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// of returns the program that stands before that of a hook; nil: none does.
func (c *carriers) of(hook string) *ebpf.Program {
	if c == nil {
		return nil
	}
	o := &c.objects
	return map[string]*ebpf.Program{
		"sockops": o.CarrySockops, "connect4": o.CarryConnect4, "connect6": o.CarryConnect6,
		"peername4": o.CarryPeername4, "peername6": o.CarryPeername6, "release": o.CarryRelease,
	}[hook]
}

// ready gives these programs those that they make way for, and keeps them: the kernel empties such a map when user space has let go of it. Not before this
// process's programs may run: an earlier one's may be at work with these maps.
func (c *carriers) ready(d *Datapath) error {
	if c == nil {
		return nil
	}
	o := &c.objects
	for _, a := range []struct {
		name    string
		array   *ebpf.Map
		program *ebpf.Program
	}{
		{"to_sockops", o.ToSockops, d.sockops()},
		{"to_connect4", o.ToConnect4, d.either(d.objects.MeshConnect4, d.objects.MeshConnect4InMesh)},
		{"to_connect6", o.ToConnect6, d.either(d.objects.MeshConnect6, d.objects.MeshConnect6InMesh)},
		{"to_peername4", o.ToPeername4, d.objects.MeshPeername4},
		{"to_peername6", o.ToPeername6, d.objects.MeshPeername6},
		{"to_release", o.ToRelease, d.objects.MeshRelease},
		{"to_state", o.ToState, d.objects.MeshState},
		{"to_state_nested", o.ToStateNested, d.objects.MeshStateNested},
	} {
		if err := a.array.Put(uint32(0), a.program); err != nil {
			return fmt.Errorf("put program into %s: %w", a.name, err)
		}
		c.arrays[a.name] = a.array
	}
	for name, m := range c.arrays {
		path := filepath.Join(d.pins.set, mapPrefix+name)
		if exists(path) {
			continue
		}
		if err := pinAgain(m, path); err != nil {
			return err
		}
	}
	return nil
}

func (c *carriers) unpin(p *pins) error {
	if c == nil {
		return nil
	}
	for name := range c.arrays {
		if err := removeMap(filepath.Join(p.set, mapPrefix+name)); err != nil {
			return err
		}
	}
	return nil
}

// attachTrace puts programs in the place of those that an earlier process attached to the tracepoint. Such a link cannot get another program: the old ones go
// when the new ones are there.
func (c *carriers) attachTrace(p *pins) error {
	if c == nil {
		return nil
	}
	for _, t := range []namedProgram{{traceName, c.objects.CarryState}, {"state_nested", c.objects.CarryStateNested}} {
		if !exists(p.linkPath(t.name)) {
			continue
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: t.program})
		if err != nil {
			return fmt.Errorf("attach %s to inet_sock_set_state: %w", t.name, err)
		}
		c.trace = append(c.trace, traceLink{t.name, l})
		if err := p.removeLink(t.name); err != nil {
			return err
		}
		if err := p.pinLink(t.name, l); err != nil {
			return err
		}
	}
	return nil
}

// walk carries over what no hook came by. The first look holds the sockets' locks, and finds those in namespaces that it can find; the other finds all.
func (c *carriers) walk(before *ebpf.Map) error {
	if c == nil {
		return nil
	}
	sockets, err := link.AttachIter(link.IterOptions{Program: c.objects.CarrySockets})
	if err != nil {
		return fmt.Errorf("attach iterator over TCP sockets: %w", err)
	}
	defer sockets.Close()
	_ = inNamespaces(sockets, openNamespaces()) // what it cannot reach the other does
	rest, err := link.AttachIter(link.IterOptions{Program: c.objects.CarryRest, Map: before})
	if err != nil {
		return fmt.Errorf("attach iterator over states: %w", err)
	}
	defer rest.Close()
	if err := walk(rest); err != nil {
		return fmt.Errorf("walk over states: %w", err)
	}
	return nil
}

// traceName is the name of the first of them, and of its pin.
const traceName = "state"

func (c *carriers) attached() []traceLink {
	if c == nil {
		return nil
	}
	return c.trace
}

func (c *carriers) close() {
	if c == nil {
		return
	}
	for _, t := range c.trace {
		t.link.Close()
	}
	c.trace = nil
	c.objects.Close()
}
