package maps

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// held is what the hashes have.
type held struct {
	frontends map[bpf.Frontend]uint32
	addresses map[bpf.Address]uint32
	cgroups   map[uint64]uint32
	sources   map[bpf.PolicySource]bpf.Rules
	blocks    map[bpf.PolicyBlock]bpf.Rules
	ports     map[bpf.PolicyPort]bpf.Rules
}

func (m *Maps) read() (h held, err error) {
	for _, f := range []func() error{
		func() (err error) { h.frontends, err = m.Frontends.All(); return err },
		func() (err error) { h.addresses, err = m.Addresses.All(); return err },
		func() (err error) { h.cgroups, err = m.Cgroups.All(); return err },
		func() (err error) { h.sources, err = m.PolicySources.All(); return err },
		func() (err error) { h.blocks, err = m.PolicyBlocks.All(); return err },
		func() (err error) { h.ports, err = m.PolicyPorts.All(); return err },
	} {
		if err := f(); err != nil {
			return h, err
		}
	}
	return h, nil
}

// drift collects differences.
type drift struct {
	r     *Reconciler
	lines []string
}

func (d *drift) addf(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

// Drift compares the maps with the mesh that was applied last: one line a difference, sorted; none is the good case.
func (r *Reconciler) Drift(mesh *Mesh) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, err := r.m.read()
	if err != nil {
		return nil, err
	}
	d := &drift{r: r}
	want := held{
		frontends: make(map[bpf.Frontend]uint32), addresses: make(map[bpf.Address]uint32), cgroups: make(map[uint64]uint32),
		sources: make(map[bpf.PolicySource]bpf.Rules), blocks: make(map[bpf.PolicyBlock]bpf.Rules), ports: make(map[bpf.PolicyPort]bpf.Rules),
	}
	for _, s := range mesh.Services {
		d.service(s, &want)
	}
	for _, w := range mesh.Workloads {
		d.workload(w, &want)
	}
	for _, s := range mesh.Sets {
		d.set(s, mesh.Classes, &want)
	}
	if n := len(mesh.Services); len(r.services) != n {
		d.addf("%d services were applied, and the mesh has %d", len(r.services), n)
	}
	if n := len(mesh.Workloads); len(r.workloads) != n {
		d.addf("%d workloads were applied, and the mesh has %d", len(r.workloads), n)
	}
	compareHash(d, have.frontends, want.frontends, frontendText)
	compareHash(d, have.addresses, want.addresses, func(k bpf.Address) string { return "address " + addressText(k.Addr) })
	compareHash(d, have.cgroups, want.cgroups, func(k uint64) string { return fmt.Sprintf("cgroup %d", k) })
	compareHash(d, have.sources, want.sources, func(k bpf.PolicySource) string { return fmt.Sprintf("policy set %d source %d", k.Set, k.Source) })
	compareHash(d, have.blocks, want.blocks, func(k bpf.PolicyBlock) string { return fmt.Sprintf("policy set %d block %s", k.Set, blockText(k)) })
	compareHash(d, have.ports, want.ports, func(k bpf.PolicyPort) string { return fmt.Sprintf("policy set %d port %d", k.Set, k.Port) })
	slices.Sort(d.lines)
	return slices.Compact(d.lines), nil
}

func compareHash[K, V comparable](d *drift, have, want map[K]V, text func(K) string) {
	for key, w := range want {
		if h, ok := have[key]; !ok {
			d.addf("%s: missing, should be %v", text(key), w)
		} else if h != w {
			d.addf("%s: is %v, should be %v", text(key), h, w)
		}
	}
	for key, h := range have {
		if _, ok := want[key]; !ok {
			d.addf("%s: extra, is %v", text(key), h)
		}
	}
}

func frontendText(k bpf.Frontend) string {
	return "frontend " + netip.AddrPortFrom(netip.AddrFrom16(k.Addr).Unmap(), k.Port).String()
}

func addressText(a [16]uint8) string { return netip.AddrFrom16(a).Unmap().String() }

func blockText(k bpf.PolicyBlock) string {
	bits := int(k.PrefixBits) - 32
	if a := netip.AddrFrom16(k.Addr); a.Is4In6() && bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), bits-96).String()
	}
	return netip.PrefixFrom(netip.AddrFrom16(k.Addr), bits).String()
}

// is notes a difference of one thing.
func is[T comparable](d *drift, what string, have, want T) {
	if have != want {
		d.addf("%s: is %v, should be %v", what, have, want)
	}
}

func (d *drift) service(want *Service, all *held) {
	m, state := d.r.m, d.r.services[want.Name]
	name := "service " + want.Name.String()
	if state == nil || len(state.pools) != len(want.Pools) || len(state.backends) != len(want.Backends) {
		d.addf("%s: was not applied as it is in the mesh", name)
		return
	}
	for _, f := range want.Frontends {
		all.frontends[frontendKey(f.Address)] = state.pools[f.Pool].index
	}
	for i := range want.Backends {
		w, b := &want.Backends[i], state.backends[i]
		h := loadBackend(&m.Backends[b.index])
		what := fmt.Sprintf("%s endpoint %v %v backend %d", name, w.Endpoint, w.Address, b.index)
		is(d, what, h, bpf.Backend{
			Addr: as16(w.Address.Addr()), Port: w.Address.Port(), Tag: b.tag, Workload: d.r.workloads[workloadKey{name: w.Workload}].at(), Weight: w.Weight,
			Service: state.id, Name: hashName(seedEndpoint, w.Endpoint),
		})
	}
	d.limit(name, want.Limit)
	for i, w := range want.Pools {
		p := state.pools[i]
		what := fmt.Sprintf("%s port %d %s pool %d", name, w.Port, familyText(w.IPv6), p.index)
		index := atomic.LoadUint32(&m.Pools[p.index].Table)
		if index != p.table.index {
			d.addf("%s table: is %d, should be %d", what, index, p.table.index)
			continue
		}
		t := m.Tables[index]
		if t.Generation == 0 {
			d.addf("%s table %d: has no generation", what, index)
		}
		is(d, fmt.Sprintf("%s table %d", what, index), t, bpf.Table{
			Generation: t.Generation, Service: state.id, Algorithm: w.Algorithm, FirstSlot: p.table.slots.start, Size: w.Size,
			Limit: d.r.limits["service "+want.Name.String()].atIf(want.Limit), Pool: p.index,
			Name: hashName(seedService, want.Name), Port: uint32(w.Port), Ipv6: toWord(w.IPv6),
		})
		d.slots(what, state, w, p.table.slots)
	}
}

// atIf is the index of a limit that something has.
func (s *limitState) atIf(limit bpf.Limit) uint32 {
	if limit == (bpf.Limit{}) {
		return 0
	}
	return s.at()
}

func (d *drift) slots(what string, state *serviceState, want *Pool, at span) {
	differ, first := 0, 0
	for i, slot := range want.Slots {
		if d.r.m.Slots[int(at.start)+i] != slot&^always|uint64(state.backends[slot&always].index) {
			if differ == 0 {
				first = i
			}
			differ++
		}
	}
	if differ > 0 {
		d.addf("%s: %d of %d slots differ, the first is %d", what, differ, len(want.Slots), first)
	}
}

func (d *drift) limit(name string, want bpf.Limit) {
	if want == (bpf.Limit{}) {
		return
	}
	s := d.r.limits[name]
	if s == nil {
		d.addf("%s limit: missing", name)
		return
	}
	is(d, name+" limit", loadLimit(&d.r.m.Limits[s.index]), want)
}

func (d *drift) workload(want *Workload, all *held) {
	r := d.r
	name := "workload " + want.Name.String()
	state := r.workloads[want.key()]
	if state == nil {
		d.addf("%s: was not applied", name)
		return
	}
	for _, a := range want.Addresses {
		all.addresses[bpf.Address{Addr: as16(a)}] = state.index
	}
	if c, ok := r.resolved[want.Cgroup]; ok && want.Cgroup != "" {
		all.cgroups[c.id] = state.index
	}
	var set *setState
	if want.Set != nil {
		if set = r.sets[want.Set.key]; set == nil {
			d.addf("%s: its policy set was not applied", name)
		}
	}
	d.limit(name, want.Limit)
	is(d, name, loadWorkload(&r.m.Workloads[state.index]), bpf.Workload{
		PolicySet: set.at(), Source: r.classes[want.Class], Limit: r.limits[name].atIf(want.Limit), Affinity: want.Affinity, Flags: want.flags(),
		Name: want.key().hash(), Class: want.Class.hash(),
	})
}

func (d *drift) set(want *PolicySet, classes []Class, all *held) {
	r := d.r
	state := r.sets[want.key]
	if state == nil {
		d.addf("policy set of %v: was not applied", want.Rules)
		return
	}
	is(d, fmt.Sprintf("policy set %d", state.index), r.m.PolicySets[state.index], want.value(state.generation))
	all.sources[bpf.PolicySource{Set: state.index, Source: bpf.SourceOther}] = want.Other
	classes = slices.AppendSeq(slices.Clip(classes), maps.Keys(r.retired))
	for c, rules := range want.sources(classes) {
		all.sources[bpf.PolicySource{Set: state.index, Source: r.classes[c]}] = rules
	}
	for _, b := range want.Blocks {
		all.blocks[blockKey(state.index, b.Block)] = b.Rules
	}
	for _, p := range want.Ports {
		all.ports[bpf.PolicyPort{Set: state.index, Port: uint32(p.Port)}] = p.Rules
	}
}

func familyText(ipv6 bool) string {
	if ipv6 {
		return "ipv6"
	}
	return "ipv4"
}

// What is changed in place is read word by word.

func loadBackend(b *bpf.Backend) bpf.Backend {
	return bpf.Backend{
		Addr: b.Addr, Port: b.Port, Tag: b.Tag, Workload: atomic.LoadUint32(&b.Workload), Weight: atomic.LoadUint32(&b.Weight),
		Service: atomic.LoadUint32(&b.Service), Name: b.Name,
	}
}

func loadWorkload(w *bpf.Workload) bpf.Workload {
	return bpf.Workload{
		PolicySet: atomic.LoadUint32(&w.PolicySet), Source: w.Source, Limit: atomic.LoadUint32(&w.Limit), Affinity: w.Affinity, Flags: w.Flags,
		Name: w.Name, Class: w.Class,
	}
}

func loadLimit(l *bpf.Limit) bpf.Limit {
	return bpf.Limit{
		MaxOpen: atomic.LoadUint32(&l.MaxOpen), MaxConnecting: atomic.LoadUint32(&l.MaxConnecting),
		PerSecond: atomic.LoadUint32(&l.PerSecond), Burst: atomic.LoadUint32(&l.Burst),
	}
}
