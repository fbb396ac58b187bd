package maps

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Recover makes a new Reconciler know what an earlier one left in the maps, wherever that was when it ended, so that the first Apply changes what is
// other than wanted and nothing else. What is there is known again by hashes of names; the names are those of the mesh that is to be applied next, and of
// those that the earlier one had in force or was about to. What has none there is called "?", and goes with Apply: connections that count against it drain.
// While there is such a thing, and until Apply returns, policies may not know who somebody is who they should know.
//
// It is called before the first Apply, and writes only what nothing refers to, and who somebody is to policies that lack it.
func (r *Reconciler) Recover(next *Mesh, before ...*Mesh) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := recovery{
		r: r, meshes: append([]*Mesh{next}, before...), limits: make(map[uint32]*limitState), sets: make(map[uint32]*setState),
		backends: make(map[backendName][]backendKnown), numbers: make(indexSet),
	}
	if err := c.recover(); err != nil {
		return fmt.Errorf("recover what an earlier agent left: %w", err)
	}
	return nil
}

type recovery struct {
	r      *Reconciler
	meshes []*Mesh // of two that know the same, the first is right
	have   held

	backends map[backendName][]backendKnown
	numbers  indexSet // of classes, and 0
	missing  entries
	limits   map[uint32]*limitState // by index
	sets     map[uint32]*setState   // by index
}

func (c *recovery) recover() (err error) {
	// The earlier agent may have ended before programs did that hold what it freed.
	if err := c.r.m.Grace(); err != nil {
		return err
	}
	if c.have, err = c.r.m.read(); err != nil {
		return err
	}
	c.services()
	c.workloads()
	c.policies()
	if err := c.drainingLimits(); err != nil {
		return err
	}
	if err := c.strayEntries(); err != nil {
		return err
	}
	c.allocate()
	c.r.frontends, c.r.addresses, c.r.cgroups = c.have.frontends, c.have.addresses, c.have.cgroups
	c.r.recovered = true
	return nil
}

// backendName is what a backend has of its name in the maps.
type backendName struct {
	endpoint uint64
	address  netip.AddrPort
}

type backendKnown struct {
	key          backendKey
	drainTimeout time.Duration
}

// nameless is the name of what has none in the mesh. No file can give anything such a name.
func nameless(kind string, index uint32) model.Name {
	return model.Name{Namespace: "?", Name: fmt.Sprint(kind, "-", index)}
}

func (c *recovery) services() {
	r := c.r
	names := make(map[uint64]model.Name)
	for _, mesh := range c.meshes {
		for _, service := range mesh.Services {
			names[hashName(seedService, service.Name)] = service.Name
			for i := range service.Backends {
				b := &service.Backends[i]
				name := backendName{hashName(seedEndpoint, b.Endpoint), b.Address}
				c.backends[name] = append(c.backends[name], backendKnown{backendKey{service.Name, b.Endpoint, b.Address}, service.DrainTimeout})
			}
		}
	}
	backends := make(map[uint32][]uint32) // by the id of their service
	for i := range r.m.Backends {
		b := &r.m.Backends[i]
		r.tags[i] = b.Tag
		r.lastID = max(r.lastID, b.Service)
		if b.Service != 0 {
			backends[b.Service] = append(backends[b.Service], uint32(i))
		}
	}
	for i := range r.m.Tables {
		r.lastID = max(r.lastID, r.m.Tables[i].Service)
	}
	byID := make(map[uint32]*serviceState)
	for i := range r.m.Pools {
		table := r.m.Pools[i].Table
		if table == 0 {
			continue
		}
		t := &r.m.Tables[table]
		s := byID[t.Service]
		if s == nil {
			s = c.service(t.Service, names[t.Name], backends[t.Service])
			byID[t.Service] = s
			delete(backends, t.Service)
		}
		c.pool(s, uint32(i), t)
	}
	// Those of services without a pool drained when the earlier agent ended.
	now := r.o.Now()
	for id, indices := range backends {
		for _, b := range c.backendsOf(nameless("service", id), indices) {
			b.gone, b.since = true, now
			r.draining[b.key] = b
		}
	}
}

// service recovers one with its backends; name: the zero value if no mesh has it.
func (c *recovery) service(id uint32, name model.Name, backends []uint32) *serviceState {
	if name == (model.Name{}) || c.r.services[name] != nil {
		name = nameless("service", id)
	} else {
		c.r.names.setService(id, name)
	}
	s := &serviceState{name: name, id: id, compiled: new(Service), backends: c.backendsOf(name, backends)}
	c.r.services[name] = s
	return s
}

// backendsOf recovers those of a service. Of two that are the same the first has the name, and the other drains.
func (c *recovery) backendsOf(service model.Name, indices []uint32) []*backendState {
	states := make([]*backendState, 0, len(indices))
	taken := make(map[backendKey]bool)
	for _, index := range indices {
		b := &c.r.m.Backends[index]
		name := backendName{b.Name, netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port)}
		state := &backendState{key: backendKey{service, nameless("endpoint", index), name.address}, index: index, tag: b.Tag, weight: b.Weight}
		for i, known := range c.backends[name] {
			if i == 0 {
				state.timeout = known.drainTimeout
			}
			if known.key.service == service && !taken[known.key] {
				state.key, state.timeout = known.key, known.drainTimeout
				break
			}
		}
		taken[state.key] = true
		states = append(states, state)
	}
	return states
}

func (c *recovery) pool(s *serviceState, index uint32, t *bpf.Table) {
	slots := t.Size
	if t.Algorithm == bpf.Random || t.Algorithm == bpf.LeastConnections {
		slots *= 2
	}
	at := make(map[uint32]int, len(s.backends))
	for i, b := range s.backends {
		at[b.index] = i
	}
	have := &Pool{IPv6: t.Ipv6 != 0, Port: uint16(t.Port), Algorithm: t.Algorithm, Size: t.Size, Slots: make([]uint64, slots)}
	for i := range have.Slots {
		slot := c.r.m.Slots[int(t.FirstSlot)+i]
		number, ok := at[uint32(slot)]
		if !ok { // never, but then this is not the table that is wanted
			number, have.Algorithm = 0, ^uint32(0)
		}
		have.Slots[i] = slot&^always | uint64(number)
	}
	state := &poolState{index: index, table: tableState{index: c.r.m.Pools[index].Table, slots: span{t.FirstSlot, slots}}, want: have}
	if t.Limit != 0 {
		state.limit = c.limit(t.Limit, "service", s.name)
		s.limit = state.limit
	}
	s.pools = append(s.pools, state)
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

func (c *recovery) workloads() {
	r := c.r
	wanted, classes := make(map[uint64]*Workload), make(map[uint64]Class)
	for _, mesh := range c.meshes {
		for _, w := range mesh.Workloads {
			if hash := w.key().hash(); wanted[hash] == nil {
				wanted[hash] = w
			}
		}
		for _, class := range mesh.Classes {
			classes[class.hash()] = class
		}
	}
	numbers := make(map[uint32]Class)
	numbers[0] = Class{}
	c.numbers.use(0)
	// Those that the mesh wants first: limits are theirs.
	indices := c.liveWorkloads()
	for _, named := range []bool{true, false} {
		for _, index := range indices {
			have := &r.m.Workloads[index]
			want := wanted[have.Name]
			if want != nil && r.workloads[want.key()] != nil && r.workloads[want.key()].index != index {
				want = nil // it was about to move
			}
			if (want != nil) != named {
				continue
			}
			number := have.Source
			class, known := numbers[number]
			if !known {
				class = classes[have.Class]
				if _, taken := r.classes[class]; taken || class == (Class{}) {
					class = Class{Namespace: "?", Identity: fmt.Sprint(number)}
				}
				numbers[number], r.classes[class] = class, number
				c.numbers.use(number)
			}
			w := &Workload{Name: nameless("workload", index), Class: class, Affinity: have.Affinity, Bypass: have.Flags&bpf.WorkloadBypass != 0}
			if want != nil {
				w.Name, w.Alone = want.Name, want.Alone
			}
			state := &workloadState{compiled: w, index: index, backends: make(map[*backendState]struct{})}
			if have.Limit != 0 {
				state.limit = c.limit(have.Limit, "workload", w.Name)
			}
			r.workloads[w.key()] = state
		}
	}
}

// liveWorkloads are those that something refers to.
func (c *recovery) liveWorkloads() []uint32 {
	live := make(map[uint32]bool)
	for _, index := range c.have.cgroups {
		live[index] = true
	}
	for _, index := range c.have.addresses {
		live[index] = true
	}
	for i := range c.r.m.Backends {
		if b := &c.r.m.Backends[i]; b.Service != 0 {
			live[b.Workload] = true
		}
	}
	delete(live, 0)
	return slices.Sorted(maps.Keys(live))
}

// policies recognises lists of policies that say the same as those which the workloads that have them are to have.
func (c *recovery) policies() {
	r := c.r
	for _, w := range r.workloads {
		if index := r.m.Workloads[w.index].PolicySet; index != 0 {
			if c.sets[index] == nil {
				c.sets[index] = &setState{index: index, generation: r.m.PolicySets[index].Generation, sources: make(map[uint32]bpf.Rules)}
			}
			w.set = c.sets[index]
		}
	}
	blocks, ports := make(map[uint32][]BlockRules), make(map[uint32][]PortRules)
	for key, rules := range c.have.sources {
		if s := c.sets[key.Set]; s != nil && c.isClass(key.Source) {
			s.sources[key.Source] = rules
		}
	}
	for key, rules := range c.have.blocks {
		blocks[key.Set] = append(blocks[key.Set], BlockRules{netip.PrefixFrom(netip.AddrFrom16(key.Addr), int(key.PrefixBits)-32), rules})
	}
	for key, rules := range c.have.ports {
		ports[key.Set] = append(ports[key.Set], PortRules{uint16(key.Port), rules})
	}
	type pair struct {
		index uint32
		key   string
	}
	compared := make(map[pair]bool)
	for _, mesh := range c.meshes {
		for _, want := range mesh.Workloads {
			w := r.workloads[want.key()]
			if w == nil || w.set == nil || w.set.set != nil || want.Set == nil || r.sets[want.Set.key] != nil {
				continue
			}
			s := w.set
			if of := (pair{s.index, want.Set.key}); compared[of] {
				continue
			} else if compared[of] = true; c.says(s, want.Set, blocks[s.index], ports[s.index]) {
				s.set = want.Set
				r.sets[want.Set.key] = s
				r.names.setRules(s.index, want.Set.Rules)
			}
		}
	}
	for index, s := range c.sets {
		if s.set == nil {
			s.set = &PolicySet{
				Blocks: blocks[index], Ports: ports[index], key: nameless("set", index).Name, classes: make(map[Class]bpf.Rules), unknown: true,
			}
			r.sets[s.set.key] = s
		}
	}
}

// says tells whether a set in the maps is one that is wanted, bit for bit, but that it may not know everybody yet. Those that it does not are made known.
func (c *recovery) says(s *setState, want *PolicySet, blocks []BlockRules, ports []PortRules) bool {
	if c.r.m.PolicySets[s.index] != want.value(s.generation) || len(blocks) != len(want.Blocks) || len(ports) != len(want.Ports) {
		return false
	}
	for _, b := range want.Blocks {
		if rules, ok := c.have.blocks[blockKey(s.index, b.Block)]; !ok || rules != b.Rules {
			return false
		}
	}
	for _, p := range want.Ports {
		if rules, ok := c.have.ports[bpf.PolicyPort{Set: s.index, Port: uint32(p.Port)}]; !ok || rules != p.Rules {
			return false
		}
	}
	expected := &setState{index: s.index, set: want, sources: map[uint32]bpf.Rules{bpf.SourceOther: want.Other}}
	expected.enter(Class{}, 0)
	for class, number := range c.r.classes {
		expected.enter(class, number)
	}
	for number, rules := range s.sources {
		if expected.sources[number] != rules {
			return false
		}
	}
	for number, rules := range expected.sources {
		if _, ok := s.sources[number]; !ok {
			c.missing.addSource(s, number, rules)
			s.sources[number] = rules
		}
	}
	return true
}

// drainingLimits finds those that only connections are left of.
func (c *recovery) drainingLimits() error {
	r := c.r
	for i := 1; i < len(r.m.Limits); i++ {
		index := uint32(i)
		if c.limits[index] != nil || r.m.Limits[i] == (bpf.Limit{}) { // nobody had it ever
			continue
		}
		state, ok, err := r.m.LimitStates.Get(index)
		if err != nil {
			return err
		}
		if ok && (state.Counts.Open != 0 || state.Counts.Connecting != 0 || r.held) {
			c.limit(index, "limit", nameless("limit", index)).gone = true
		}
	}
	return nil
}

func (c *recovery) isClass(number uint32) bool { return number == bpf.SourceOther || c.numbers[number] }

// strayEntries deletes what belongs to sets and classes that nothing refers to, and writes what lacks: the earlier agent ended between one step and the
// next.
func (c *recovery) strayEntries() error {
	if err := c.missing.put(c.r.m); err != nil {
		return err
	}
	var stray entries
	for key, rules := range c.have.sources {
		if c.sets[key.Set] == nil || !c.isClass(key.Source) {
			stray.sources.add(key, rules)
		}
	}
	for key, rules := range c.have.blocks {
		if c.sets[key.Set] == nil {
			stray.blocks.add(key, rules)
		}
	}
	for key, rules := range c.have.ports {
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

// allocate gives the allocators all that is not in use.
func (c *recovery) allocate() {
	r := c.r
	backends, pools, tables, workloads := make(indexSet), make(indexSet), make(indexSet), make(indexSet)
	classes, sets, limits := make(indexSet), make(indexSet), make(indexSet)
	var slots []span
	for _, s := range r.services {
		for _, b := range s.backends {
			backends.use(b.index)
		}
		for _, p := range s.pools {
			pools.use(p.index)
			tables.use(p.table.index)
			slots = append(slots, p.table.slots)
		}
	}
	for _, b := range r.draining {
		backends.use(b.index)
	}
	for _, w := range r.workloads {
		workloads.use(w.index)
	}
	for _, number := range r.classes {
		classes.use(number)
	}
	for index := range c.sets {
		sets.use(index)
	}
	for index := range c.limits {
		limits.use(index)
	}
	// What nobody had ever is zero.
	lastClass := uint32(0)
	for i := range r.m.Workloads {
		lastClass = max(lastClass, r.m.Workloads[i].Source)
	}
	r.free.pools.occupy(pools, max(lastOf(r.m.Pools), lastOf(r.m.Turns)))
	r.free.tables.occupy(tables, lastOf(r.m.Tables))
	r.free.backends.occupy(backends, lastOf(r.m.Backends))
	r.free.workloads.occupy(workloads, lastOf(r.m.Workloads))
	r.free.classes.occupy(classes, lastClass)
	r.free.sets.occupy(sets, lastOf(r.m.PolicySets))
	r.free.limits.occupy(limits, lastOf(r.m.Limits))
	r.free.slots.occupy(slots)
}

// indexSet are those in use.
type indexSet map[uint32]bool

func (s indexSet) use(index uint32) { s[index] = true }

// lastOf is the highest index of an array that was ever written.
func lastOf[T comparable](array []T) uint32 {
	var zero T
	for i := len(array) - 1; i > 0; i-- {
		if array[i] != zero {
			return uint32(i)
		}
	}
	return 0
}
