package outlier

import (
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// place is where an endpoint's connections go, by family; the zero value of one that it has not. It is what is checked, and an endpoint that has
// another than before is another endpoint, whatever it is called.
type place struct {
	v4, v6 netip.AddrPort
}

// checkable says whether there is something to connect to.
func (p place) checkable() bool {
	return p.v4.Port() != 0 || p.v6.Port() != 0 // an invalid one has port 0
}

// placeOf returns the place of an endpoint of a service. The port is that which the endpoint has for the first of the service's ports that is not
// any port. If all are any port it is the endpoint's own, and 0 if it has none.
func placeOf(e *model.Endpoint, s *model.Service, addresses []netip.Addr) place {
	port := e.Port
	for i := range s.Ports {
		if s.Ports[i].Port != 0 {
			port = portOf(e, &s.Ports[i])
			break
		}
	}
	var p place
	for _, a := range addresses {
		a = a.Unmap()
		switch {
		case a.Is4() && !p.v4.IsValid():
			p.v4 = netip.AddrPortFrom(a, port)
		case a.Is6() && !p.v6.IsValid():
			p.v6 = netip.AddrPortFrom(a, port)
		}
	}
	return p
}

// portOf returns what an endpoint listens on for a port of its service: what it says of that port, of all ports, or else what the service says.
func portOf(e *model.Endpoint, p *model.Port) uint16 {
	if port := e.Ports[p.Name]; port != 0 {
		return port
	}
	if e.Port != 0 {
		return e.Port
	}
	if p.TargetPort != 0 {
		return p.TargetPort
	}
	return p.Port
}

// visit calls each for the endpoints of the services that are wanted.
func visit(snapshot *model.Snapshot, want func(*model.Service) bool, each func(*model.Endpoint, *model.Service, place)) {
	services := make(map[model.Name]*model.Service)
	for i := range snapshot.Services {
		if s := &snapshot.Services[i]; want(s) {
			services[s.Name] = s
		}
	}
	if len(services) == 0 {
		return
	}
	workloads := make(map[model.Name]*model.Workload, len(snapshot.Workloads))
	for i := range snapshot.Workloads {
		workloads[snapshot.Workloads[i].Name] = &snapshot.Workloads[i]
	}
	for i := range snapshot.Endpoints {
		e := &snapshot.Endpoints[i]
		s, wanted := services[e.Service]
		if !wanted {
			continue
		}
		addresses := e.Addresses
		if len(addresses) == 0 {
			if w := workloads[e.Workload]; w != nil {
				addresses = w.Addresses
			}
		}
		each(e, s, placeOf(e, s, addresses))
	}
}
