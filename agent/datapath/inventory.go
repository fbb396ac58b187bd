package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Inventory is what a Datapath has in the kernel.
type Inventory struct {
	Programs []Program `json:"programs"`
	Links    []Link    `json:"links"`
	Maps     []Map     `json:"maps"`
}

// Program is one that is loaded, as the kernel knows it.
type Program struct {
	Name string `json:"name"`
	Type string `json:"type"`
	ID   uint32 `json:"id"`
	Tag  string `json:"tag"`
	// Runs and Seconds are those of the times in which the kernel measured; see ProgramStats.
	Runs    uint64  `json:"runs"`
	Seconds float64 `json:"seconds"`
}

// Link is where a program is attached.
type Link struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	ID      uint32 `json:"id"`
	Program uint32 `json:"program"` // id
	// Cgroup and Netns are the inode numbers of what it is attached to; 0: it is another kind.
	Cgroup uint64 `json:"cgroup,omitempty"`
	Netns  uint32 `json:"netns,omitempty"`
}

// Map is one of the programs' maps.
type Map struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	ID         uint32 `json:"id"`
	MaxEntries uint32 `json:"max_entries"` // of a ring buffer its bytes; 0: there is no bound
	Memory     uint64 `json:"memory_bytes"`
	// Entries are those in use; nil: it is not known, or the map is not filled by and by.
	Entries *uint64 `json:"entries,omitempty"`
}

// Inventory asks the kernel. Safe for concurrent use until Close.
func (d *Datapath) Inventory() (*Inventory, error) {
	var all Inventory
	for _, p := range d.programs() {
		program, err := describeProgram(p)
		if err != nil {
			return nil, err
		}
		all.Programs = append(all.Programs, program)
	}
	if err := d.describeLinks(&all); err != nil {
		return nil, err
	}
	if err := d.describeMaps(&all); err != nil {
		return nil, err
	}
	slices.SortFunc(all.Programs, func(a, b Program) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(all.Links, func(a, b Link) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	slices.SortFunc(all.Maps, func(a, b Map) int { return cmp.Compare(a.Name, b.Name) })
	return &all, nil
}

func describeProgram(p namedProgram) (Program, error) {
	info, err := p.program.Info()
	if err != nil {
		return Program{}, fmt.Errorf("look at program %s: %w", p.name, err)
	}
	described := Program{Name: p.name, Type: info.Type.String(), Tag: info.Tag}
	if id, known := info.ID(); known {
		described.ID = uint32(id)
	}
	stats, err := p.program.Stats()
	if err != nil {
		return described, fmt.Errorf("read statistics of %s: %w", p.name, err)
	}
	described.Runs, described.Seconds = stats.RunCount, stats.Runtime.Seconds()
	return described, nil
}

func (d *Datapath) describeLinks(all *Inventory) error {
	add := func(name string, l link.Link) error {
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("look at link %s: %w", name, err)
		}
		described := Link{Name: name, ID: uint32(info.ID), Program: uint32(info.Program), Type: "other"}
		if cgroup := info.Cgroup(); cgroup != nil {
			described.Type, described.Cgroup = "cgroup", cgroup.CgroupId
		} else if netns := info.NetNs(); netns != nil {
			described.Type, described.Netns = "netns", netns.NetnsInode
		} else if info.Tracing() != nil {
			described.Type = "tracing"
		}
		all.Links = append(all.Links, described)
		return nil
	}
	return errors.Join(d.eachLink(add), d.trace.eachLink(add), d.mesh.eachLink(add))
}

func (d *Datapath) eachLink(f func(string, link.Link) error) error {
	d.linksMu.Lock()
	defer d.linksMu.Unlock()
	for i := range d.links {
		if err := f(d.links[i].name, d.links[i].Link); err != nil {
			return err
		}
	}
	return nil
}

func (t *trace) eachLink(f func(string, link.Link) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.links {
		if err := f(l.name, l.link); err != nil {
			return err
		}
	}
	return nil
}

func (m *meshState) eachLink(f func(string, link.Link) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lookups {
		if err := f(l.name, l.link); err != nil {
			return err
		}
	}
	return nil
}

// maps are those that there is something in: of the mesh's only where there is one.
func (d *Datapath) maps() map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	objects := reflect.ValueOf(d.objects)
	for _, outer := range reflect.VisibleFields(objects.Type()) {
		name, tagged := outer.Tag.Lookup("ebpf")
		if !tagged {
			continue
		}
		if m, isMap := objects.FieldByIndex(outer.Index).Interface().(*ebpf.Map); isMap && (d.mesh.on || !isOfMesh(name)) {
			all[name] = m
		}
	}
	return all
}

func (d *Datapath) describeMaps(all *Inventory) error {
	counted := d.Entries()
	for name, m := range d.maps() {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("look at map %s: %w", name, err)
		}
		described := Map{Name: name, Type: m.Type().String(), MaxEntries: m.MaxEntries()}
		if id, known := info.ID(); known {
			described.ID = uint32(id)
		}
		described.Memory, _ = info.Memlock()
		if n, known := counted[name]; known {
			described.Entries = &n
		}
		all.Maps = append(all.Maps, described)
	}
	return nil
}

// Entries counts those of maps that programs fill and user space reads anyway. It takes no look at the kernel. Safe for concurrent use.
func (d *Datapath) Entries() map[string]uint64 {
	counted := map[string]uint64{"lost": d.losses.known.Load()}
	if d.mesh.on {
		counted["listeners"] = d.listeners.Load()
	}
	return counted
}

// MaxEntries returns the room of each map, which does not change. It takes no look at the kernel; the caller does not change it. Safe for concurrent use.
func (d *Datapath) MaxEntries() map[string]uint32 { return d.room }
