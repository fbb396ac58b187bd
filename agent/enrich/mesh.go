package enrich

import (
	"net/netip"
	"path"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Names resolves the numbers of a connection.Decision. The second result is false for what is not known.
type Names interface {
	Service(id uint32) (model.Name, bool)
	// Backend returns an endpoint and its workload, which may have no name.
	Backend(index, tag uint32) (endpoint, workload model.Name, known bool)
	Workload(index uint32) (model.Name, bool)
	// Rule returns a policy and the index of a rule in it.
	Rule(set uint32, bit uint16) (policy model.Name, rule int, known bool)
	Limit(index uint32) (string, bool)
}

// Service is one that was dialled.
type Service struct {
	Name      string
	Namespace string
}

// Rule is one of a policy.
type Rule struct {
	Policy string // namespace/name
	Index  int
}

// Decision is what the numbers of a connection.Decision stand for. Equal ones have the same address.
type Decision struct {
	Service  *Service // nil: none was dialled
	Endpoint string   // namespace/name; empty: none was chosen
	Rule     *Rule    // that decided; nil: none did
	DryRule  *Rule
	Limit    string // that refused; empty: none
}

// Mesh puts names of the mesh on connections. SetSnapshot is safe at any time; all else is of the goroutine that identifies.
type Mesh struct {
	names    Names
	next     atomic.Pointer[meshView]
	view     *meshView
	locals   map[*Workload]*Workload // of the mesh, by what the cgroup says
	peers    map[model.Name]*Workload
	services map[uint32]*Service
	decided  map[decisionKey]*Decision
}

// meshView is a snapshot by what connections have.
type meshView struct {
	cgroups   map[string]model.Name
	addresses map[netip.Addr]model.Name
}

type decisionKey struct {
	service, backend, tag, set, limit uint32
	rule, dryRule                     uint16
}

// NewMesh returns a Mesh in which nobody is, until there is a snapshot.
func NewMesh(names Names) *Mesh {
	m := &Mesh{names: names, peers: make(map[model.Name]*Workload)}
	m.SetSnapshot(&model.Snapshot{})
	m.refresh()
	return m
}

// SetSnapshot changes who is where, for connections that are identified from now on.
func (m *Mesh) SetSnapshot(s *model.Snapshot) {
	view := &meshView{cgroups: make(map[string]model.Name), addresses: make(map[netip.Addr]model.Name)}
	for i := range s.Workloads {
		w := &s.Workloads[i]
		if w.Cgroup != "" {
			view.cgroups[path.Clean(w.Cgroup)] = w.Name
		}
		for _, addr := range w.Addresses {
			view.addresses[addr] = w.Name
		}
	}
	m.next.Store(view)
}

// refresh forgets what an older snapshot said. Names stay at their addresses, so that an edge does not change by it.
func (m *Mesh) refresh() {
	view := m.next.Load()
	if view == m.view {
		return
	}
	m.view = view
	m.locals = make(map[*Workload]*Workload)
	m.services = make(map[uint32]*Service)
	m.decided = make(map[decisionKey]*Decision)
}

// identify adds what the mesh knows of a connection.
func (m *Mesh) identify(e *connection.Event, id *Identity) {
	m.refresh()
	id.Local = m.local(id.Local)
	if name, known := m.view.addresses[e.Peer.Addr()]; known {
		id.Peer = m.peer(name)
	}
	if e.Flags&connection.Decided == 0 {
		return
	}
	d := &e.Decision
	if e.Role == connection.Client {
		if name, known := m.names.Workload(d.Destination); known {
			id.Peer = m.peer(name)
		}
	} else if name, known := m.names.Workload(d.Destination); known && e.Flags&connection.RefusedHere != 0 {
		// There is no socket, and so no cgroup that would say who it is.
		id.Local = m.peer(name)
	}
	id.Decision = m.decision(d)
}

// local is the workload of the nearest cgroup above that is one.
func (m *Mesh) local(w *Workload) *Workload {
	if named := m.locals[w]; named != nil {
		return named
	}
	named := w
	for dir := w.Cgroup; len(dir) > 1; dir = path.Dir(dir) {
		if name, known := m.view.cgroups[dir]; known {
			of := *w
			of.Name, of.Namespace = label(name.Name), label(name.Namespace)
			named = &of
			break
		}
	}
	if len(m.locals) >= cacheLimit {
		clear(m.locals)
	}
	m.locals[w] = named
	return named
}

func (m *Mesh) peer(name model.Name) *Workload {
	w := m.peers[name]
	if w == nil {
		w = &Workload{Name: label(name.Name), Namespace: label(name.Namespace)}
		if len(m.peers) >= cacheLimit {
			clear(m.peers)
		}
		m.peers[name] = w
	}
	return w
}

func (m *Mesh) service(id uint32) *Service {
	if s := m.services[id]; s != nil {
		return s
	}
	name, known := m.names.Service(id)
	if !known {
		return nil
	}
	if len(m.services) >= cacheLimit {
		clear(m.services)
	}
	s := &Service{Name: label(name.Name), Namespace: label(name.Namespace)}
	m.services[id] = s
	return s
}

func (m *Mesh) decision(d *connection.Decision) *Decision {
	key := decisionKey{d.Service, d.Backend, d.BackendTag, d.PolicySet, d.Limit, d.Rule, d.DryRule}
	if known := m.decided[key]; known != nil {
		return known
	}
	named := &Decision{Service: m.service(d.Service)}
	if endpoint, _, known := m.names.Backend(d.Backend, d.BackendTag); known {
		named.Endpoint = endpoint.String()
	}
	named.Rule, named.DryRule = m.rule(d.PolicySet, d.Rule), m.rule(d.PolicySet, d.DryRule)
	if limit, known := m.names.Limit(d.Limit); known {
		named.Limit = limit
	}
	if len(m.decided) >= cacheLimit {
		clear(m.decided)
	}
	m.decided[key] = named
	return named
}

func (m *Mesh) rule(set uint32, bit uint16) *Rule {
	if set == 0 || bit == connection.NoRule {
		return nil
	}
	policy, rule, known := m.names.Rule(set, bit)
	if !known {
		return nil
	}
	return &Rule{Policy: policy.String(), Index: rule}
}
