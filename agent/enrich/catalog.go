package enrich

import (
	"net/netip"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Catalog is what a mesh says of its workloads and services beside their names, by the names that connections have: for whoever shows connections to
// somebody who wants to know more. Nothing of it is on a connection, so that an edge is the same edge whatever becomes of it. Safe for concurrent use.
type Catalog struct{ now atomic.Pointer[catalogView] }

type catalogView struct {
	workloads map[model.Name]*About
	services  map[model.Name]string // their host names
}

// About is what there is to know of a workload.
type About struct {
	Cluster string // empty: the mesh names none
	// Service is the one that has the workload among its endpoints; nil without one, and with several: at a server's end it is not known which was dialled.
	Service *Service
	labels  map[string]string
}

// NewCatalog returns one of nothing.
func NewCatalog() *Catalog {
	c := &Catalog{}
	c.SetSnapshot(&model.Snapshot{})
	return c
}

// SetSnapshot replaces all of it.
func (c *Catalog) SetSnapshot(s *model.Snapshot) {
	view := &catalogView{workloads: make(map[model.Name]*About, len(s.Workloads)), services: make(map[model.Name]string, len(s.Services))}
	owners := make(map[netip.Addr]model.Name)
	for i := range s.Workloads {
		w := &s.Workloads[i]
		view.workloads[labels(w.Name)] = &About{Cluster: label(w.Cluster), labels: w.Labels}
		for _, addr := range w.Addresses {
			owners[addr] = w.Name
		}
	}
	for i := range s.Services {
		view.services[labels(s.Services[i].Name)] = label(s.Services[i].Hostname)
	}
	several := make(map[*About]struct{})
	serves := func(workload model.Name, service Service) {
		about := view.workloads[labels(workload)]
		switch {
		case about == nil:
		case about.Service == nil:
			about.Service = &service
		case *about.Service != service:
			several[about] = struct{}{}
		}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		name := labels(e.Service)
		service := Service{Name: name.Name, Namespace: name.Namespace}
		if e.Workload != (model.Name{}) {
			serves(e.Workload, service)
			continue
		}
		for _, addr := range e.Addresses {
			if owner, known := owners[addr]; known {
				serves(owner, service)
			}
		}
	}
	for about := range several {
		about.Service = nil
	}
	c.now.Store(view)
}

// Workload returns what is known of one; nil: it is none of the mesh. It must not be changed.
func (c *Catalog) Workload(namespace, name string) *About {
	return c.now.Load().workloads[model.Name{Namespace: namespace, Name: name}]
}

// Host returns the host name of a service, which is empty where the mesh gives it none, and whether the mesh has it.
func (c *Catalog) Host(namespace, name string) (host string, known bool) {
	host, known = c.now.Load().services[model.Name{Namespace: namespace, Name: name}]
	return host, known
}

// Label returns the first of these labels that the workload has with a value; empty: none.
func (a *About) Label(keys ...string) string {
	for _, key := range keys {
		if value := a.labels[key]; value != "" {
			return label(value)
		}
	}
	return ""
}

// labels are the names that connections have for one of the mesh.
func labels(n model.Name) model.Name {
	return model.Name{Namespace: label(n.Namespace), Name: label(n.Name)}
}
