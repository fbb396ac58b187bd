package maps

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Recover makes a new Reconciler know what an earlier one left in the maps, wherever that was when it ended, so that the first Apply changes what is
// other than wanted and nothing else. The maps hold no names: what is there is recognised by the mesh that is to be applied next. A service is one
// of whose frontends leads to a pool, a backend is a service's by address, a workload is one by a cgroup or an address, a limit is its owner's, a list of
// policies is one that says the same. What nobody is recognised in has no name, and goes with Apply: connections that count against it drain.
//
// It is called before the first Apply, and writes only what nothing refers to.
func (r *Reconciler) Recover(mesh *Mesh) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := recovery{r: r, mesh: mesh, now: kernelContent{}}
	if err := c.now.read(r.m); err != nil {
		return fmt.Errorf("recover what an earlier agent left: %w", err)
	}
	c.pools()
	c.recoverServices()
	c.dropServices()
	c.recoverWorkloads()
	c.dropWorkloads()
	c.recoverSets()
	if err := c.recoverLimits(); err != nil {
		return fmt.Errorf("recover what an earlier agent left: %w", err)
	}
	if err := c.strayEntries(); err != nil {
		return fmt.Errorf("recover what an earlier agent left: %w", err)
	}
	c.allocate()
	r.frontends, r.addresses, r.cgroups = c.now.frontends, c.now.addresses, c.now.cgroups
	r.recovered = true
	return nil
}

// LastGeneration is the highest that anything in the maps is of.
func (r *Reconciler) LastGeneration() uint64 {
	var last uint64
	for i := range r.m.Pools {
		if table := r.m.Pools[i].Table; table != 0 {
			last = max(last, r.m.Tables[table].Generation)
		}
	}
	for i := range r.m.PolicySets {
		last = max(last, r.m.PolicySets[i].Generation)
	}
	return last
}

// kernelContent is a copy of the hashes.
type kernelContent struct {
	frontends map[bpf.Frontend]uint32
	addresses map[bpf.Address]uint32
	cgroups   map[uint64]uint32
	sources   map[bpf.PolicySource]bpf.Rules
	blocks    map[bpf.PolicyBlock]bpf.Rules
	ports     map[bpf.PolicyPort]bpf.Rules
}

func (k *kernelContent) read(m *Maps) (err error) {
	if k.frontends, err = m.Frontends.All(); err != nil {
		return err
	}
	if k.addresses, err = m.Addresses.All(); err != nil {
		return err
	}
	if k.cgroups, err = m.Cgroups.All(); err != nil {
		return err
	}
	if k.sources, err = m.PolicySources.All(); err != nil {
		return err
	}
	if k.blocks, err = m.PolicyBlocks.All(); err != nil {
		return err
	}
	k.ports, err = m.PolicyPorts.All()
	return err
}

type recovery struct {
	r    *Reconciler
	mesh *Mesh
	now  kernelContent

	live     map[uint32]bool // pools that lead to a table
	services map[uint32]*serviceState
	backends map[uint32][]uint32 // indices by the id of their service
	sets     map[uint32]*setState
	limits   map[uint32]*limitState
}

// nameless is the name of what nobody is recognised in. No file can give anything such a name.
func nameless(kind string, index uint32) model.Name {
	return model.Name{Name: "\x00" + kind + " " + strconv.FormatUint(uint64(index), 10)}
}

// pools looks at what is in use of the arrays.
func (c *recovery) pools() {
	m := c.r.m
	c.live, c.services, c.backends = make(map[uint32]bool), make(map[uint32]*serviceState), make(map[uint32][]uint32)
	c.limits = make(map[uint32]*limitState)
	for i := range m.Pools {
		if m.Pools[i].Table != 0 {
			c.live[uint32(i)] = true
		}
	}
	for i := range m.Backends {
		c.r.tags[i] = m.Backends[i].Tag
		if id := m.Backends[i].Service; id != 0 {
			c.backends[id] = append(c.backends[id], uint32(i))
			c.r.lastID = max(c.r.lastID, id)
		}
	}
}

func (c *recovery) recoverServices() {
	for _, want := range c.mesh.Services {
		s := &serviceState{name: want.Name}
		indices := make([]uint32, len(want.Pools)) // into pools, of want.Pools
		for _, f := range want.Frontends {
			index := c.now.frontends[frontendKey(f.Address)]
			if indices[f.Pool] != 0 || !c.live[index] {
				continue
			}
			id := c.r.m.Tables[c.r.m.Pools[index].Table].Service
			if s.id == 0 && c.services[id] == nil {
				s.id = id
			}
			if id == s.id && !slices.Contains(indices, index) {
				indices[f.Pool] = index
			}
		}
		if s.id == 0 {
			continue
		}
		c.addService(s, want)
		for i, index := range indices {
			if index != 0 {
				c.addPool(s, index, want.Pools[i].IPv6, want.Pools[i].Port)
			}
		}
	}
}

// addService gives a service its id and its backends; want: what they are to be recognised by.
func (c *recovery) addService(s *serviceState, want *Service) {
	r := c.r
	s.compiled = &Service{Name: s.name}
	c.services[s.id] = s
	r.services[s.name] = s
	r.lastID = max(r.lastID, s.id)
	names := make(map[netip.AddrPort][]model.Name)
	for i := range want.Backends {
		b := &want.Backends[i]
		names[b.Address] = append(names[b.Address], b.Endpoint)
	}
	if s.name == want.Name {
		r.names.setService(s.id, s.name)
	}
	for _, index := range c.backends[s.id] {
		b := c.backend(s.name, index)
		if of := names[b.key.address]; len(of) > 0 {
			b.key.endpoint, names[b.key.address] = of[0], of[1:]
		}
		s.backends = append(s.backends, b)
	}
	delete(c.backends, s.id)
}

func (c *recovery) backend(service model.Name, index uint32) *backendState {
	b := &c.r.m.Backends[index]
	return &backendState{
		key:   backendKey{service, nameless("endpoint", index), netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port)},
		index: index, tag: b.Tag, weight: b.Weight,
	}
}

func (c *recovery) addPool(s *serviceState, index uint32, ipv6 bool, port uint16) *poolState {
	m := c.r.m
	delete(c.live, index)
	t := &m.Tables[m.Pools[index].Table]
	slots := t.Size
	if t.Algorithm == bpf.Random || t.Algorithm == bpf.LeastConnections {
		slots *= 2
	}
	at := make(map[uint32]int, len(s.backends))
	for i, b := range s.backends {
		at[b.index] = i
	}
	pool := &Pool{IPv6: ipv6, Port: port, Algorithm: t.Algorithm, Size: t.Size, Slots: make([]uint64, slots)}
	for i := range pool.Slots {
		slot := m.Slots[int(t.FirstSlot)+i]
		number, ok := at[uint32(slot)]
		if !ok { // never, but then this is not the table that is wanted
			number, pool.Algorithm = 0, ^uint32(0)
		}
		pool.Slots[i] = slot&^always | uint64(number)
	}
	state := &poolState{index: index, table: tableState{index: m.Pools[index].Table, slots: span{t.FirstSlot, slots}}, want: pool}
	if t.Limit != 0 {
		state.limit = c.limit(t.Limit, "service", s.name)
		s.limit = state.limit
	}
	s.pools = append(s.pools, state)
	return state
}

// limit returns the one at an index, whose owner is who asks first; nil if that was another. Who moved from one index to another when the earlier
// agent ended has both, and one limit, which must not go with either.
func (c *recovery) limit(index uint32, kind string, owner model.Name) *limitState {
	text := kind + " " + owner.String()
	if l := c.limits[index]; l != nil {
		if l.text != text {
			return nil
		}
		return l
	}
	if c.r.limits[text] != nil {
		text = kind + " " + nameless("limit", index).String()
	}
	l := &limitState{text: text, index: index, limit: c.r.m.Limits[index]}
	c.limits[index] = l
	c.r.limits[l.text] = l
	c.r.names.setLimit(index, l.text)
	return l
}

// dropServices keeps what is left for Apply to drop.
func (c *recovery) dropServices() {
	r := c.r
	for _, index := range slices.Sorted(maps.Keys(c.live)) {
		id := r.m.Tables[r.m.Pools[index].Table].Service
		s := c.services[id]
		if s == nil {
			s = &serviceState{name: nameless("service", id), id: id}
			c.addService(s, new(Service))
		}
		c.addPool(s, index, false, 0).left = true
	}
	// Those of services without a pool drained when the earlier agent ended.
	now := r.o.Now()
	for id, indices := range c.backends {
		for _, index := range indices {
			b := c.backend(nameless("service", id), index)
			b.gone, b.since = true, now
			r.draining[b.key] = b
		}
	}
}

func (c *recovery) recoverWorkloads() {
	r := c.r
	taken := make(map[uint32]bool)
	numbers := make(map[uint32]Class) // who has a class
	for _, want := range c.mesh.Workloads {
		index := c.workload(want)
		if index == 0 || taken[index] {
			continue
		}
		taken[index] = true
		have := &r.m.Workloads[index]
		w := &Workload{Name: want.Name, Alone: want.Alone, Class: want.Class, Affinity: have.Affinity, Bypass: have.Flags&bpf.WorkloadBypass != 0}
		if !c.class(numbers, want.Class, have.Source) {
			w.Class = Class{Identity: nameless("class", have.Source).Name} // so that it does not keep its index
		}
		c.addWorkload(want.key(), w, index)
	}
}

// workload finds one by its cgroup, and else by an address.
func (c *recovery) workload(want *Workload) uint32 {
	if want.Cgroup != "" {
		if found, err := c.r.resolve(want.Cgroup); err == nil {
			if index := c.now.cgroups[found.id]; index != 0 {
				return index
			}
		}
	}
	for _, a := range want.Addresses {
		if index := c.now.addresses[bpf.Address{Addr: as16(a)}]; index != 0 {
			return index
		}
	}
	return 0
}

// class tells whether a number can stand for a class, as it did: neither may have another meaning yet.
func (c *recovery) class(numbers map[uint32]Class, class Class, number uint32) bool {
	if class == (Class{}) || number == 0 {
		return class == (Class{}) && number == 0
	}
	if of, known := numbers[number]; known {
		return of == class
	}
	if _, known := c.r.classes[class]; known {
		return false
	}
	numbers[number] = class
	c.r.classes[class] = number
	return true
}

func (c *recovery) addWorkload(key workloadKey, w *Workload, index uint32) {
	r := c.r
	state := &workloadState{compiled: w, index: index, backends: make(map[*backendState]struct{})}
	if limit := r.m.Workloads[index].Limit; limit != 0 {
		state.limit = c.limit(limit, "workload", w.Name)
	}
	r.workloads[key] = state
}

// dropWorkloads keeps for Apply to drop who is left of those that an address, a cgroup or a backend leads to.
func (c *recovery) dropWorkloads() {
	r := c.r
	known := map[uint32]bool{0: true}
	for _, w := range r.workloads {
		known[w.index] = true
	}
	numbers := make(map[uint32]bool)
	for _, n := range r.classes {
		numbers[n] = true
	}
	add := func(index uint32) {
		if known[index] || uint64(index) >= uint64(len(r.m.Workloads)) {
			return
		}
		known[index] = true
		have := &r.m.Workloads[index]
		w := &Workload{Name: nameless("workload", index), Affinity: have.Affinity, Bypass: have.Flags&bpf.WorkloadBypass != 0}
		if have.Source != 0 && !numbers[have.Source] {
			numbers[have.Source] = true
			w.Class = Class{Identity: nameless("class", have.Source).Name}
			r.classes[w.Class] = have.Source
		}
		c.addWorkload(w.key(), w, index)
	}
	for _, index := range c.now.cgroups {
		add(index)
	}
	for _, index := range c.now.addresses {
		add(index)
	}
	for i := range r.m.Backends {
		if r.m.Backends[i].Service != 0 {
			add(r.m.Backends[i].Workload)
		}
	}
}

// recoverSets recognises lists of policies by what they say.
func (c *recovery) recoverSets() {
	r := c.r
	c.sets = make(map[uint32]*setState)
	for _, w := range r.workloads {
		index := r.m.Workloads[w.index].PolicySet
		if index == 0 {
			continue
		}
		if c.sets[index] == nil {
			c.sets[index] = &setState{index: index, generation: r.m.PolicySets[index].Generation, sources: make(map[uint32]bpf.Rules)}
		}
		w.set = c.sets[index]
	}
	blocks, ports := make(map[uint32][]BlockRules), make(map[uint32][]PortRules)
	for key, rules := range c.now.sources {
		if s := c.sets[key.Set]; s != nil {
			s.sources[key.Source] = rules
		}
	}
	for key, rules := range c.now.blocks {
		blocks[key.Set] = append(blocks[key.Set], BlockRules{netip.PrefixFrom(netip.AddrFrom16(key.Addr), int(key.PrefixBits)-32), rules})
	}
	for key, rules := range c.now.ports {
		ports[key.Set] = append(ports[key.Set], PortRules{uint16(key.Port), rules})
	}
	for _, index := range slices.Sorted(maps.Keys(c.sets)) {
		s := c.sets[index]
		for _, want := range c.mesh.Sets {
			if r.sets[want.key] == nil && c.says(s, want, blocks[index], ports[index]) {
				s.set = want
				r.names.setRules(index, want.Rules)
				break
			}
		}
		if s.set == nil {
			s.set = &PolicySet{
				Blocks: blocks[index], Ports: ports[index], key: nameless("set", index).Name, classes: make(map[Class]bpf.Rules), unknown: true,
			}
		}
		r.sets[s.set.key] = s
	}
}

// says tells whether a set in the maps is one that is wanted, bit for bit.
func (c *recovery) says(s *setState, want *PolicySet, blocks []BlockRules, ports []PortRules) bool {
	have := c.r.m.PolicySets[s.index]
	have.Generation = 0
	if have != want.value(0) || len(blocks) != len(want.Blocks) || len(ports) != len(want.Ports) {
		return false
	}
	for _, b := range want.Blocks {
		if rules, ok := c.now.blocks[blockKey(s.index, b.Block)]; !ok || rules != b.Rules {
			return false
		}
	}
	for _, p := range want.Ports {
		if rules, ok := c.now.ports[bpf.PolicyPort{Set: s.index, Port: uint32(p.Port)}]; !ok || rules != p.Rules {
			return false
		}
	}
	expected := map[uint32]bpf.Rules{bpf.SourceOther: want.Other}
	enter := func(class Class, number uint32) {
		if rules := want.Source(class); rules != want.Other {
			expected[number] = rules
		}
	}
	enter(Class{}, 0)
	for class, number := range c.r.classes {
		enter(class, number)
	}
	return maps.Equal(s.sources, expected)
}

// recoverLimits finds those that only connections are left of.
func (c *recovery) recoverLimits() error {
	r := c.r
	for i := 1; i < len(r.m.Limits); i++ {
		index := uint32(i)
		if c.limits[index] != nil {
			continue
		}
		state, ok, err := r.m.LimitStates.Get(index)
		if err != nil {
			return err
		}
		if ok && (state.Counts.Open != 0 || state.Counts.Connecting != 0) {
			c.limit(index, "?", nameless("limit", index)).gone = true
		}
	}
	return nil
}

// strayEntries deletes what belongs to sets that nothing refers to: the earlier agent ended between one step and the next.
func (c *recovery) strayEntries() error {
	var stray entries
	for key, rules := range c.now.sources {
		if c.sets[key.Set] == nil {
			stray.sources.add(key, rules)
		}
	}
	for key, rules := range c.now.blocks {
		if c.sets[key.Set] == nil {
			stray.blocks.add(key, rules)
		}
	}
	for key, rules := range c.now.ports {
		if c.sets[key.Set] == nil {
			stray.ports.add(key, rules)
		}
	}
	if err := stray.delete(c.r.m); err != nil {
		return err
	}
	counts, err := c.r.m.Verdicts.All()
	if err != nil {
		return err
	}
	var gone []bpf.VerdictKey
	for key := range counts {
		if c.sets[key.PolicySet] == nil {
			gone = append(gone, key)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return c.r.m.Verdicts.Delete(gone)
}

// allocate gives the allocators all that is not in use. Every index may have been used before.
func (c *recovery) allocate() {
	r := c.r
	used := make(map[*indices]map[uint32]bool)
	use := func(a *indices, index uint32) {
		if used[a] == nil {
			used[a] = make(map[uint32]bool)
		}
		used[a][index] = true
	}
	var slots []span
	for _, s := range r.services {
		for _, b := range s.backends {
			use(r.free.backends, b.index)
		}
		for _, p := range s.pools {
			use(r.free.pools, p.index)
			use(r.free.tables, p.table.index)
			slots = append(slots, p.table.slots)
		}
	}
	for _, b := range r.draining {
		use(r.free.backends, b.index)
	}
	for _, w := range r.workloads {
		use(r.free.workloads, w.index)
	}
	for _, number := range r.classes {
		use(r.free.classes, number)
	}
	for _, s := range r.sets {
		use(r.free.sets, s.index)
	}
	for _, l := range r.limits {
		use(r.free.limits, l.index)
	}
	for _, a := range []*indices{r.free.backends, r.free.pools, r.free.tables, r.free.workloads, r.free.classes, r.free.sets, r.free.limits} {
		a.occupy(used[a])
	}
	r.free.slots.occupy(slots)
}
