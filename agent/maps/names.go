package maps

import (
	"net/netip"
	"sync"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Names says what the numbers in the kernel's decisions stand for. What it returns is the same pointer for the same thing for as long as that is in
// the mesh, and must not be changed. Safe for concurrent use. What left the mesh is known until its number is used again, which is as late as can
// be; a service, whose number is not used again, until 65,536 others left after it.
type Names struct {
	mu        sync.RWMutex
	services  map[uint32]*model.Name
	gone      []uint32 // services, first in, first out
	backends  []backendEntry
	workloads []*WorkloadName
	sets      [][]*RuleName
	limits    []*string

	// Written by the reconciler only, under mu.
	serviceNames  interned[model.Name]
	backendNames  interned[BackendName]
	workloadNames interned[WorkloadName]
	ruleNames     interned[RuleName]
	limitNames    interned[string]
}

// goneServices is how many are remembered.
const goneServices = 64 << 10

type backendEntry struct {
	tag  uint32
	name *BackendName
}

// BackendName is what a backend stands for.
type BackendName struct {
	Service  model.Name
	Endpoint model.Name
	Workload model.Name // the zero value: none
	Address  netip.AddrPort
}

// WorkloadName is what a workload stands for.
type WorkloadName struct {
	Name     model.Name
	Identity string
}

// interned keeps one copy of each value. It grows with the values there ever were, until most of them are of no use.
type interned[T comparable] struct {
	all  map[T]*T
	most int
}

func (i *interned[T]) of(value T, inUse func(func(*T))) *T {
	if p, ok := i.all[value]; ok {
		return p
	}
	if len(i.all) >= i.most {
		kept := make(map[T]*T)
		inUse(func(p *T) {
			if p != nil {
				kept[*p] = p
			}
		})
		i.all, i.most = kept, 2*len(kept)+1024
	}
	p := new(T)
	*p = value
	i.all[value] = p
	return p
}

func newNames(sizes map[string]uint32) *Names {
	return &Names{
		services:  make(map[uint32]*model.Name),
		backends:  make([]backendEntry, sizes["backends"]),
		workloads: make([]*WorkloadName, sizes["workloads"]),
		sets:      make([][]*RuleName, sizes["policy_sets"]),
		limits:    make([]*string, sizes["limits"]),
	}
}

// Service resolves the id of a service.
func (n *Names) Service(id uint32) (*model.Name, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	name, ok := n.services[id]
	return name, ok
}

// Backend resolves an index into `backends` and its tag.
func (n *Names) Backend(index, tag uint32) (*BackendName, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if uint64(index) >= uint64(len(n.backends)) || n.backends[index].tag != tag || n.backends[index].name == nil {
		return nil, false
	}
	return n.backends[index].name, true
}

// Workload resolves an index into `workloads`.
func (n *Names) Workload(index uint32) (*WorkloadName, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return at(n.workloads, index)
}

// Rule resolves a bit of a policy set.
func (n *Names) Rule(set uint32, bit uint16) (*RuleName, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if uint64(set) >= uint64(len(n.sets)) {
		return nil, false
	}
	return at(n.sets[set], uint32(bit))
}

// Limit resolves an index into `limits`: "service ns/name" or "workload ns/name".
func (n *Names) Limit(index uint32) (*string, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return at(n.limits, index)
}

func at[T any](all []*T, index uint32) (*T, bool) {
	if uint64(index) >= uint64(len(all)) || all[index] == nil {
		return nil, false
	}
	return all[index], true
}

func (n *Names) setService(id uint32, name model.Name) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.services[id] = n.serviceNames.of(name, func(use func(*model.Name)) {
		for _, p := range n.services {
			use(p)
		}
	})
}

func (n *Names) dropService(id uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone = append(n.gone, id); len(n.gone) > goneServices {
		delete(n.services, n.gone[0])
		n.gone = n.gone[1:]
	}
}

func (n *Names) setBackend(index, tag uint32, name BackendName) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.backends[index]; e.tag == tag && e.name != nil && *e.name == name {
		return
	}
	n.backends[index] = backendEntry{tag, n.backendNames.of(name, func(use func(*BackendName)) {
		for _, e := range n.backends {
			use(e.name)
		}
	})}
}

func (n *Names) setWorkload(index uint32, name WorkloadName) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.workloads[index] = n.workloadNames.of(name, each(n.workloads))
}

func (n *Names) setRules(set uint32, rules []RuleName) {
	names := make([]*RuleName, len(rules))
	for i, r := range rules {
		names[i] = n.rule(r)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sets[set] = names
}

// rule interns one. Rules are counted for as long as the process lives: they are all kept.
func (n *Names) rule(r RuleName) *RuleName {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.ruleNames.all[r]; ok {
		return p
	}
	if n.ruleNames.all == nil {
		n.ruleNames.all = make(map[RuleName]*RuleName)
	}
	p := &r
	n.ruleNames.all[r] = p
	return p
}

func (n *Names) setLimit(index uint32, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.limits[index] = n.limitNames.of(text, each(n.limits))
}

func each[T any](all []*T) func(func(*T)) {
	return func(use func(*T)) {
		for _, p := range all {
			use(p)
		}
	}
}
