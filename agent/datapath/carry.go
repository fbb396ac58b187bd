package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// carry is a change from a set of maps of another layout to that of this process, from its plan until nothing is left of it:
//
//	a set is made beside the old one, with what the old one holds, and maps that are the same in both are the old ones (copy.go)
//	the links are moved to it, one by one; from then on it is the one in force
//	each hook gets a program that carries the state of sockets over before it makes way for the one of this version (carrier.go)
//	state of sockets that nothing happened to is carried over, and the hooks get the programs of this version
//	what was counted in the old maps is added up (Settle), and they are unpinned
//
// Who comes after one that ended in between goes on from there, if his maps have the new layout. What the ring had stays readable as it does when the ring gets another
// size; its records are translated.
type carry struct {
	pins   *pins
	set    string // that of before, by its name
	before map[string]*otherMap
	// types are translations of what maps that are not shared hold, by the map's name.
	types         map[string]entryTranslation
	shared        map[string]*ebpf.Map // maps of both sets
	mesh, hadMesh bool
	arrived       bool // an earlier process filled and pinned the new set
	carriers      *carriers
	failed        uint64 // states that found no room
}

// entryTranslation is that of a map's keys and values.
type entryTranslation struct{ key, value translation }

// The maps of the mesh: all of them have one entry where there is none.
var (
	// meshConfig and meshHashes are what the mesh is, written by agents only.
	meshConfig = []string{"workloads", "pools", "tables", "slots", "backends", "limits", "policy_sets"}
	meshHashes = []string{"cgroups", "addresses", "frontends", "policy_sources", "policy_blocks", "policy_ports"}
	// meshCounts and verdicts are what programs count.
	meshCounts = []string{"loads", "turns", "limit_states", "listens"}
	meshArrays = slices.Concat(meshConfig, meshCounts)
	// meshFleeting are of things that go on for a moment, which programs of before and of now have to see alike.
	meshFleeting = []string{"tickets", "listeners"}
)

const (
	connectionsMap = "connections"
	formatsMap     = "formats"
	formatsBefore  = formatsMap + "_before"
	ledgerMap      = "ledger"
	verdictsMap    = "verdicts"
	loadsMap       = "loads"
	limitStatesMap = "limit_states"
)

func isOfMesh(name string) bool {
	return name == verdictsMap || slices.Contains(meshArrays, name) || slices.Contains(meshHashes, name) || slices.Contains(meshFleeting, name)
}

// otherLayout is the error of a set that cannot be carried over.
func otherLayout(path, why string) error {
	return &PinError{path, "programs are attached whose maps have another layout, which cannot be carried over: " + why, "take them off with: sidelight uninstall"}
}

// roomOf gives the maps of the mesh the room that a set has which is in force: sizes grow, and do not shrink before everything is taken off. Where there was no mesh
// all of them have one entry.
func (p *pins) roomOf(set string, spec *ebpf.CollectionSpec, mesh bool) {
	if set == "" || !mesh {
		return
	}
	for _, name := range slices.Concat(meshArrays, meshHashes, []string{verdictsMap}) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, set, mapPrefix+name), nil)
		if err != nil {
			continue // who opens all of them says what is wrong
		}
		if spec.Maps[name] != nil {
			spec.Maps[name].MaxEntries = max(spec.Maps[name].MaxEntries, m.MaxEntries())
		}
		m.Close()
	}
}

func hasDecisions(connections *otherMap) bool {
	_, has := place(connections.value, "decided")
	return has
}

// planCarry tells how to get from a set to a layout, or why that cannot be done. It changes nothing.
func (p *pins) planCarry(set string, spec *ebpf.CollectionSpec, mesh bool) (_ *carry, err error) {
	c := &carry{
		pins: p, set: set, mesh: mesh, before: make(map[string]*otherMap), shared: make(map[string]*ebpf.Map), types: make(map[string]entryTranslation),
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	dir := filepath.Join(p.dir, set)
	names, _, err := p.content(set)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if c.before[name], err = openOther(filepath.Join(dir, mapPrefix+name)); err != nil {
			delete(c.before, name)
			return nil, err
		}
	}
	for _, name := range []string{connectionsMap, formatsMap, ledgerMap, bpf.EventsMap} {
		if c.before[name] == nil {
			return nil, otherLayout(dir, "it has no map "+name)
		}
	}
	c.hadMesh = hasDecisions(c.before[connectionsMap])
	wanted := layoutOf(spec)
	for name, m := range spec.Maps {
		if !lasting(name) || c.before[name] == nil {
			continue
		}
		if isOfMesh(name) && (!c.mesh || !c.hadMesh) {
			continue // it has nothing that is to be carried, or nobody wants it
		}
		if c.before[name].describe() == wanted[name] {
			c.shared[name] = c.before[name].Map
			continue
		}
		if err := c.plan(name, m); err != nil {
			return nil, err
		}
	}
	if err := c.separate(spec); err != nil {
		return nil, err
	}
	if c.newRing() {
		if _, next := p.ringsBefore(set); next == beforeName(mostRings) {
			return nil, otherLayout(dir, "agents have left too many event rings to read; start the version that was here last once more, and stop it when it has read them")
		}
		_, err = translateRecords(spec.Maps[formatsMap].Value, c.before[formatsMap].value)
		if err != nil {
			return nil, otherLayout(c.before[formatsMap].path, err.Error())
		}
	}
	return c, nil
}

// plan prepares to fill a map that is not the same in both sets.
func (c *carry) plan(name string, spec *ebpf.MapSpec) (err error) {
	old := c.before[name]
	if slices.Contains(meshFleeting, name) {
		return otherLayout(old.path, "it is about what goes on at this moment")
	}
	if name == bpf.EventsMap {
		return nil
	}
	if old.info.Type != spec.Type {
		return otherLayout(old.path, fmt.Sprintf("it is a %v, and not a %v", old.info.Type, spec.Type))
	}
	if old.value == nil || spec.Value == nil {
		return otherLayout(old.path, "it is not known what it holds")
	}
	var t entryTranslation
	if name == connectionsMap {
		t.value, err = c.translateState(spec.Value, old.value)
	} else {
		t.value, err = translate(spec.Value, old.value)
	}
	if err == nil {
		t.key, err = translate(spec.Key, old.key)
	}
	if err != nil {
		return otherLayout(old.path, err.Error())
	}
	c.types[name] = t
	return nil
}

// plainState is the member of a socket's state where there is a mesh that is all of it where there is none.
const plainState = "connection"

// translateState is for the state of a socket, which where there is a mesh is in a struct with what that decided.
func (c *carry) translateState(now, before btf.Type) (translation, error) {
	if c.mesh == c.hadMesh {
		return translate(now, before)
	}
	size, err := btf.Sizeof(now)
	if err != nil {
		return nil, fmt.Errorf("size of %v: %w", now, err)
	}
	t := make(translation, size)
	for i := range t {
		t[i] = nowhere
	}
	if c.mesh {
		m := memberOf(now, plainState)
		if m == nil {
			return nil, fmt.Errorf("there is no %s in %v", plainState, now)
		}
		return t, t.fill(m.Type, before, m.Offset.Bytes(), 0)
	}
	m := memberOf(before, plainState)
	if m == nil {
		return nil, fmt.Errorf("there is no %s in %v", plainState, before)
	}
	return t, t.fill(now, m.Type, 0, m.Offset.Bytes())
}

// separate takes out of what is shared the maps that have to go with others.
func (c *carry) separate(spec *ebpf.CollectionSpec) error {
	apart := func(name string) error {
		if c.shared[name] == nil {
			return nil
		}
		delete(c.shared, name)
		return c.plan(name, spec.Maps[name])
	}
	// What is counted there goes over with the state of the sockets.
	counted := []string{loadsMap, limitStatesMap, verdictsMap} // and what adds up verdicts is loaded with what carries state
	if c.mesh && c.hadMesh && slices.ContainsFunc(counted, func(name string) bool { return c.shared[name] == nil }) {
		if err := apart(connectionsMap); err != nil {
			return err
		}
	}
	// Programs of before go on with the mesh as it was, until their place is taken: none of it may change under them.
	config := slices.Concat(meshConfig, meshHashes)
	if c.mesh && c.hadMesh && slices.ContainsFunc(config, func(name string) bool { return c.shared[name] == nil }) {
		for _, name := range config {
			if err := apart(name); err != nil {
				return err
			}
		}
	}
	if c.shared[formatsMap] == nil { // records are made of something else
		delete(c.shared, bpf.EventsMap)
	}
	// What was lost, and what was read of that.
	for _, pair := range [][2]string{{"lost", "lost_read"}, {"lost_totals", "lost_totals_read"}, {"account", "account_before"}} {
		if (c.before[pair[0]] == nil) != (c.before[pair[1]] == nil) {
			return otherLayout(filepath.Join(c.pins.dir, c.set), fmt.Sprintf("it has only one of %s and %s", pair[0], pair[1]))
		}
		if c.shared[pair[0]] != nil && c.shared[pair[1]] != nil {
			continue
		}
		for _, name := range pair {
			if err := apart(name); err != nil {
				return err
			}
		}
	}
	if old := c.before[connectionsMap]; c.shared[connectionsMap] == nil && int(max(old.info.ValueSize, spec.Maps[connectionsMap].ValueSize)) > bpf.CarryRoom {
		return otherLayout(old.path, fmt.Sprintf("the state of a socket has more than %d bytes", bpf.CarryRoom))
	}
	return nil
}

// newRing says that events go to another ring from now on.
func (c *carry) newRing() bool { return c.shared[bpf.EventsMap] == nil }

// carries says that sockets have state in another map.
func (c *carry) carries() bool { return c.shared[connectionsMap] == nil }

// arrive makes the new set the one in force. After an error all is as it was, unless that cannot be had either.
func (c *carry) arrive(all map[string]*ebpf.Map) (err error) {
	if !c.arrived {
		if err := c.pinAll(all); err != nil {
			return errors.Join(err, c.pins.removeSetIfThere(filepath.Base(c.pins.set)))
		}
	}
	_, links, err := c.pins.content(c.set)
	if err != nil {
		return err
	}
	var moved []string
	for _, name := range links {
		if err = os.Rename(filepath.Join(c.pins.dir, c.set, linkPrefix+name), c.pins.linkPath(name)); err != nil {
			err = fmt.Errorf("move link %s to the new set: %w", name, err)
			break
		}
		step()
		moved = append(moved, name)
	}
	if err == nil || c.arrived {
		return err
	}
	for _, name := range moved {
		if back := os.Rename(c.pins.linkPath(name), filepath.Join(c.pins.dir, c.set, linkPrefix+name)); back != nil {
			return errors.Join(err, back)
		}
	}
	return errors.Join(err, c.pins.removeSet(filepath.Base(c.pins.set)))
}

// pinAll pins the new set, and last says in it which one it takes the place of.
func (c *carry) pinAll(all map[string]*ebpf.Map) error {
	step()
	if err := c.pins.pinMaps(all); err != nil {
		return err
	}
	step()
	rings, next := c.pins.ringsBefore(c.set)
	again := make(map[string]string)
	for _, ring := range rings {
		again[ring] = ring
		again[beforeFormats(ring)] = formatsMap // unless it has one of its own
		if c.before[beforeFormats(ring)] != nil {
			again[beforeFormats(ring)] = beforeFormats(ring)
		}
	}
	if c.newRing() {
		again[next], again[beforeFormats(next)] = bpf.EventsMap, formatsMap
	}
	for to, from := range again {
		if err := pinAgain(c.before[from].Map, filepath.Join(c.pins.set, mapPrefix+to)); err != nil {
			return err
		}
	}
	if err := os.Symlink(filepath.Join("..", c.set), filepath.Join(c.pins.set, comesAfter)); err != nil {
		return fmt.Errorf("note which set the new one comes after: %w", err)
	}
	step()
	return nil
}

// pinAgain pins a map at one more place: Pin of one that is pinned would move it.
func pinAgain(m *ebpf.Map, path string) error {
	clone, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin map once more: %w", err)
	}
	defer clone.Close()
	if err := clone.Pin(path); err != nil {
		return fmt.Errorf("pin map once more: %w", err)
	}
	return nil
}

// leave unpins what is left of the set before.
func (c *carry) leave() error {
	if err := c.carriers.unpin(c.pins); err != nil {
		return err
	}
	step()
	if err := os.Remove(filepath.Join(c.pins.set, comesAfter)); err != nil {
		return fmt.Errorf("end the change of layout: %w", err)
	}
	step()
	return c.pins.removeSetIfThere(c.set)
}

func (c *carry) close() {
	if c == nil {
		return
	}
	c.carriers.close()
	for _, m := range c.before {
		m.Close()
	}
}
