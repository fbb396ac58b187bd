package maps

import (
	"maps"
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// endpoint is what a service's tables depend on of one.
type endpoint struct {
	name     model.Name
	workload model.Name // zero also if there is none of the name
	address  [2]netip.Addr
	port     uint16
	ports    map[string]uint16
	weight   uint32
	priority uint32
	health   model.Health
	out      bool
	locality model.Locality
}

// families are the indices of endpoint.address.
const (
	ipv4 = iota
	ipv6
)

func familyOf(a netip.Addr) int {
	if a.Is4() || a.Is4In6() {
		return ipv4
	}
	return ipv6
}

// resolve fills in what an endpoint takes from its workload, which is nil if there is none.
func resolve(e *model.Endpoint, w *model.Workload, out bool) endpoint {
	r := endpoint{
		name: e.Name, port: e.Port, ports: e.Ports, weight: e.Weight, priority: e.Priority, health: e.Health, out: out, locality: e.Locality,
	}
	addresses := e.Addresses
	if w != nil {
		r.workload = w.Name
		if len(addresses) == 0 {
			addresses = w.Addresses
		}
		if r.locality == (model.Locality{}) {
			r.locality = w.Locality
		}
	}
	for _, a := range addresses {
		if f := familyOf(a); !r.address[f].IsValid() {
			r.address[f] = a.Unmap()
		}
	}
	return r
}

func (e *endpoint) equal(o *endpoint) bool {
	return e.name == o.name && e.workload == o.workload && e.address == o.address && e.port == o.port && e.weight == o.weight &&
		e.priority == o.priority && e.health == o.health && e.out == o.out && e.locality == o.locality && maps.Equal(e.ports, o.ports)
}

// target is where an endpoint listens for a port of its service; 0 is the port that was dialled.
func (e *endpoint) target(p model.Port) uint16 {
	if own, ok := e.ports[p.Name]; ok {
		return own
	}
	if e.port != 0 {
		return e.port
	}
	if p.TargetPort != 0 {
		return p.TargetPort
	}
	return p.Port
}

// eligible are those that a family's pools choose from, by their numbers.
func eligible(s *model.Service, endpoints []endpoint, node model.Locality, family int) []int {
	var found []int
	for i := range endpoints {
		e := &endpoints[i]
		if e.health != model.Healthy || e.out || e.weight == 0 || !e.address[family].IsValid() {
			continue
		}
		if s.LocalityMode == model.LocalityStrict && !within(node, e.locality, s.LocalityScope) {
			continue
		}
		found = append(found, i)
	}
	found = smallest(found, func(i int) int { return int(endpoints[i].priority) })
	if s.LocalityMode == model.LocalityFailover {
		found = smallest(found, func(i int) int { return -nearness(node, endpoints[i].locality) })
	}
	return found
}

// smallest keeps those with the smallest value.
func smallest(all []int, value func(int) int) []int {
	kept := all[:0]
	for _, i := range all {
		switch v := value(i); {
		case len(kept) == 0 || v < value(kept[0]):
			kept = append(kept[:0], i)
		case v == value(kept[0]):
			kept = append(kept, i)
		}
	}
	return kept
}
