package maps

import (
	"errors"
	"io/fs"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// plan is the difference between the kernel and a mesh. Making one takes indices, and changes nothing else.
type plan struct {
	r       *Reconciler
	mesh    *Mesh
	changes Changes

	services     []*servicePlan // that are new or other than they were
	goneServices []*serviceState
	workloads    []*workloadPlan
	newWorkloads map[workloadKey]*workloadState
	gone         []*workloadState
	sets         []*setState // new ones
	newSets      map[string]*setState
	goneSets     []*setState
	newClasses   map[Class]uint32
	goneClasses  []Class
	newLimits    map[string]*limitState
	setLimits    map[*limitState]bpf.Limit
	resetLimits  []uint32          // of indices that were used before
	newCgroups   map[string]cgroup // that were resolved

	// For undo.
	backends []uint32
	indices  []uint32 // of workloads
	pools    []uint32
	tables   []tableState
	entries  entries
}

type servicePlan struct {
	state    *serviceState
	old      *Service // nil: none
	want     *Service
	limit    *limitState
	pools    []*poolState // as want.Pools: new ones, and old ones that may get another table
	backends []*backendState
	tables   []tableState // as want.Pools; index 0: it keeps its own
	fresh    map[*backendState]bool
}

type workloadPlan struct {
	state *workloadState
	old   *Workload // nil: none
	want  *Workload
	index uint32 // another than state's, or the same
	set   *setState
	limit *limitState
}

// plan may fail in the midst, and the plan is to be undone then.
func (r *Reconciler) plan(mesh *Mesh) (*plan, error) {
	r.epoch++
	p := &plan{
		r: r, mesh: mesh, newWorkloads: make(map[workloadKey]*workloadState), newSets: make(map[string]*setState),
		newClasses: make(map[Class]uint32), newLimits: make(map[string]*limitState), setLimits: make(map[*limitState]bpf.Limit),
		newCgroups: make(map[string]cgroup),
	}
	for _, step := range []func() error{p.planSets, p.planClasses, p.planWorkloads, p.planServices, p.planCgroups} {
		if err := step(); err != nil {
			return p, err
		}
	}
	return p, nil
}

// index takes one, or says that the map is full.
func index(a *indices, name, key string) (uint32, bool, error) {
	i, fresh := a.take()
	if i == 0 {
		return 0, false, &FullError{Map: name, Used: a.used(), Size: a.most, Wanted: 1, Key: key}
	}
	return i, fresh, nil
}

func (p *plan) planSets() error {
	r := p.r
	for _, set := range p.mesh.Sets {
		if s, ok := r.sets[set.key]; ok {
			s.seen = r.epoch
			continue
		}
		if p.newSets[set.key] != nil {
			continue
		}
		i, _, err := index(r.free.sets, "policy_sets", "mesh.max_policy_sets")
		if err != nil {
			return err
		}
		s := &setState{set: set, index: i, generation: p.mesh.Generation, sources: make(map[uint32]bpf.Rules), seen: r.epoch}
		p.newSets[set.key] = s
		p.sets = append(p.sets, s)
	}
	for _, s := range r.sets {
		if s.seen != r.epoch {
			p.goneSets = append(p.goneSets, s)
		}
	}
	return nil
}

func (p *plan) set(set *PolicySet) *setState {
	if set == nil {
		return nil
	}
	if s, ok := p.r.sets[set.key]; ok {
		return s
	}
	return p.newSets[set.key]
}

func (p *plan) planClasses() error {
	r := p.r
	kept := 0
	for _, c := range p.mesh.Classes {
		if _, ok := r.classes[c]; ok {
			kept++
			continue
		}
		i, _, err := index(r.free.classes, "workloads", "mesh.max_workloads")
		if err != nil {
			return err
		}
		p.newClasses[c] = i
	}
	if kept == len(r.classes) {
		return nil
	}
	wanted := make(map[Class]bool, len(p.mesh.Classes))
	for _, c := range p.mesh.Classes {
		wanted[c] = true
	}
	for c := range r.classes {
		if _, retired := r.retired[c]; !wanted[c] && !retired {
			p.goneClasses = append(p.goneClasses, c)
		}
	}
	return nil
}

// limit finds or makes the limit that something has. One that drains is taken up again, with what stands against it.
func (p *plan) limit(kind string, name model.Name, limit bpf.Limit) (*limitState, error) {
	if limit == (bpf.Limit{}) {
		return nil, nil
	}
	text := kind + " " + name.String()
	if s, ok := p.r.limits[text]; ok {
		p.setLimits[s] = limit
		return s, nil
	}
	i, fresh, err := index(p.r.free.limits, "limits", "mesh.max_limits")
	if err != nil {
		return nil, err
	}
	if !fresh {
		p.resetLimits = append(p.resetLimits, i)
	}
	s := &limitState{text: text, index: i, limit: limit}
	p.newLimits[text] = s
	return s, nil
}

func (p *plan) planWorkloads() error {
	r := p.r
	kept := 0
	for _, want := range p.mesh.Workloads {
		state := r.workloads[want.key()]
		if state != nil {
			kept++
			state.seen = r.epoch
			if state.compiled == want && state.set == p.set(want.Set) {
				continue
			}
		}
		limit, err := p.limit("workload", want.Name, want.Limit)
		if err != nil {
			return err
		}
		w := &workloadPlan{state: state, want: want, set: p.set(want.Set), limit: limit}
		if state != nil && state.compiled.sameSource(want) {
			w.index = state.index
		} else {
			if w.index, _, err = index(r.free.workloads, "workloads", "mesh.max_workloads"); err != nil {
				return err
			}
			p.indices = append(p.indices, w.index)
		}
		if state == nil {
			w.state = &workloadState{backends: make(map[*backendState]struct{}), seen: r.epoch}
			p.newWorkloads[want.key()] = w.state
		}
		w.old = w.state.compiled
		p.workloads = append(p.workloads, w)
	}
	if kept == len(r.workloads) {
		return nil
	}
	for _, s := range r.workloads {
		if s.seen != r.epoch {
			p.gone = append(p.gone, s)
		}
	}
	return nil
}

// workload finds who is of a name; nil if nobody.
func (p *plan) workload(name model.Name) *workloadState {
	if name == (model.Name{}) {
		return nil
	}
	key := workloadKey{name: name}
	if s, ok := p.newWorkloads[key]; ok {
		return s
	}
	return p.r.workloads[key]
}

// planCgroups resolves those that are new; Rescan does the others.
func (p *plan) planCgroups() error {
	for _, w := range p.workloads {
		path := w.want.Cgroup
		if _, ok := p.r.resolved[path]; ok || path == "" {
			continue
		}
		c, err := p.r.resolve(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		p.newCgroups[path] = c
	}
	var levels uint64
	for _, w := range p.mesh.Workloads {
		c, ok := p.newCgroups[w.Cgroup]
		if !ok {
			c, ok = p.r.resolved[w.Cgroup]
		}
		if ok && !addLevel(&levels, c.level) {
			return errLevels(w.Cgroup)
		}
	}
	return nil
}
