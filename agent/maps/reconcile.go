package maps

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Options of a Reconciler.
type Options struct {
	Sizes Sizes // that the maps were made for
	// Resolve finds a cgroup by its path below the root of cgroup v2: its id, which is its inode number, and its depth, of which the root's is 0. One
	// that does not exist is fs.ErrNotExist.
	Resolve func(path string) (id uint64, level int, err error)
	// SetLevels hears which depths have cgroups of workloads, a bit each, before the first at a depth is entered and after the last is gone.
	SetLevels func(levels uint64) error
	// SetHas hears what there is to look for, bpf.HasPolicies and the others as bits: before the first of it is there, and after the last is gone. nil: nobody
	// asks.
	SetHas func(has uint32) error
	// Retire is for how long policies know a class of sources that nobody has any more: as long as a SYN may be under way that was sent by one who had it.
	Retire time.Duration
	Now    func() time.Time // nil is time.Now
}

// Reconciler makes the kernel's maps as a mesh says. It holds which index stands for what. All its methods are safe for concurrent use.
type Reconciler struct {
	m     *Maps
	o     Options
	names *Names

	mu        sync.Mutex
	has       uint32 // as SetHas was told last
	hasSet    bool
	epoch     uint64 // of Apply
	services  map[model.Name]*serviceState
	workloads map[workloadKey]*workloadState
	sets      map[string]*setState
	classes   map[Class]uint32             // also those that are retired
	retired   map[Class]time.Time          // until when nobody has them, and policies know them
	limits    map[string]*limitState       // also those that drain
	draining  map[backendKey]*backendState // gone from the mesh, and not free yet

	// What the hashes hold.
	frontends map[bpf.Frontend]uint32
	addresses map[bpf.Address]uint32
	cgroups   map[uint64]uint32
	resolved  map[string]cgroup
	levels    uint64
	stale     bool // that may not be so: one could not be written
	recovered bool // that was read from the kernel, and is not all of the mesh's
	held      bool // see Hold

	free    allocators
	tags    []uint32 // of backends, by index
	lastID  uint32   // of services: none is used again
	pending garbage
	failed  *plan                 // to be undone
	counted map[verdictKey]uint64 // of sets that are gone
}

type allocators struct {
	workloads, pools, tables, backends, limits, sets, classes *indices
	slots                                                     *spans
}

// Changes counts what an Apply wrote.
type Changes struct {
	Tables, Slots, Backends, Workloads, Limits, PolicySets int // new ones
	References                                             int // words that were flipped
	Puts, Deletes                                          int // elements of hashes
}

// NewReconciler returns a reconciler of maps that are empty, or of maps that another had before: then Recover is called next.
func NewReconciler(m *Maps, o Options) (*Reconciler, error) {
	if o.Resolve == nil || o.SetLevels == nil {
		return nil, errors.New("make reconciler: Resolve and SetLevels are needed")
	}
	if err := o.Sizes.Validate(); err != nil {
		return nil, fmt.Errorf("make reconciler: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	have := map[string]int{
		"workloads": len(m.Workloads), "pools": len(m.Pools), "turns": len(m.Turns), "tables": len(m.Tables), "slots": len(m.Slots),
		"backends": len(m.Backends), "loads": len(m.Loads), "limits": len(m.Limits), "policy_sets": len(m.PolicySets),
	}
	want := o.Sizes.MaxEntries()
	for name, n := range have {
		if uint32(n) < want[name] {
			return nil, fmt.Errorf("make reconciler: map %s has %d entries, and %d by the configuration", name, n, want[name])
		}
		want[name] = uint32(n) // maps keep the room that an earlier agent's configuration gave them
	}
	last := func(name string) *indices { return newIndices(want[name] - 1) }
	return &Reconciler{
		m: m, o: o, names: newNames(want),
		services: make(map[model.Name]*serviceState), workloads: make(map[workloadKey]*workloadState), sets: make(map[string]*setState),
		classes: make(map[Class]uint32), retired: make(map[Class]time.Time), limits: make(map[string]*limitState), draining: make(map[backendKey]*backendState),
		frontends: make(map[bpf.Frontend]uint32), addresses: make(map[bpf.Address]uint32), cgroups: make(map[uint64]uint32),
		resolved: make(map[string]cgroup), counted: make(map[verdictKey]uint64),
		free: allocators{
			workloads: last("workloads"), pools: last("pools"), tables: last("tables"), backends: last("backends"), limits: last("limits"),
			sets: last("policy_sets"), classes: last("workloads"), slots: newSpans(want["slots"]),
		},
		tags: make([]uint32, want["backends"]),
	}, nil
}

// has says what programs have to look for, as bits: bpf.HasPolicies and the others.
func (m *Mesh) has() uint32 {
	var has uint32
	if len(m.Sets) > 0 {
		has |= bpf.HasPolicies
	}
	for _, s := range m.Services {
		for _, f := range s.Frontends {
			if f.Address.Port() == 0 {
				has |= bpf.HasAnyPort
			}
		}
	}
	return has
}

func (r *Reconciler) setHas(has uint32) error {
	if r.o.SetHas == nil || has == r.has && r.hasSet {
		return nil
	}
	if err := r.o.SetHas(has); err != nil {
		return err
	}
	r.has, r.hasSet = has, true
	return nil
}

// Names resolves the numbers of this reconciler.
func (r *Reconciler) Names() *Names { return r.names }

// Apply makes the maps as the mesh says. It returns when no program uses any more what was replaced, which takes some ten milliseconds. After an
// error that is an ErrPartly each service and each workload is as it was or as it is wanted, and the next Apply, Rescan or Reap does the rest;
// after any other nothing has changed.
func (r *Reconciler) Apply(mesh *Mesh) (Changes, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := mesh.fit(r.o.Sizes); err != nil {
		return Changes{}, err
	}
	if err := r.repair(); err != nil {
		return Changes{}, err
	}
	p, err := r.prepare(mesh)
	if err != nil && len(r.retired) > 0 && r.failed == nil { // perhaps for want of the room that these have
		r.endRetirement(r.o.Now().Add(r.o.Retire))
		if err := r.settle(); err != nil {
			return Changes{}, err
		}
		p, err = r.prepare(mesh)
	}
	if err != nil {
		return Changes{}, err
	}
	// What comes is looked for before it is there, and what goes until it is gone.
	has := mesh.has()
	if err := r.setHas(r.has | has); err != nil {
		return Changes{}, errors.Join(err, p.undo())
	}
	p.write()
	p.flip()
	if err := r.enter(p); err != nil {
		return p.changes, fmt.Errorf("%w: %w", ErrPartly, err)
	}
	if err := r.settle(); err != nil {
		return p.changes, fmt.Errorf("%w: %w", ErrPartly, err)
	}
	return p.changes, r.setHas(has)
}

// prepare makes a plan that only needs to be put in force. After an error nothing has changed.
func (r *Reconciler) prepare(mesh *Mesh) (*plan, error) {
	p, err := r.plan(mesh)
	if err == nil {
		err = p.prepare()
	}
	if err != nil {
		return nil, errors.Join(err, p.undo())
	}
	return p, nil
}

// enter makes the hashes as the reconciler's state is now.
func (r *Reconciler) enter(p *plan) error {
	if !r.recovered {
		return p.enter()
	}
	// What an earlier agent entered is in no plan.
	if err := r.enterAll(&p.changes); err != nil {
		return err
	}
	r.recovered = false
	return nil
}

// ErrPartly is of a mesh that is in force, or parts of it, while something remains to be done.
var ErrPartly = errors.New("the mesh is partly in force")

// repair does what an Apply before could not.
func (r *Reconciler) repair() error {
	if r.failed != nil {
		if err := r.failed.undo(); err != nil {
			return err
		}
	}
	if r.stale {
		if err := r.enterAll(&Changes{}); err != nil {
			return err
		}
	}
	return r.settle()
}
