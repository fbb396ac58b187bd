package maps

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// serviceInputs are all that a Service depends on, but for the place of the node.
type serviceInputs struct {
	service   model.Service
	endpoints []endpoint // sorted by name
}

// sameService leaves out what the kernel does not hear of.
func sameService(a, b *model.Service) bool {
	return a.Name == b.Name && a.Balancer == b.Balancer && a.LocalityMode == b.LocalityMode && a.LocalityScope == b.LocalityScope &&
		a.Limits == b.Limits && a.DrainTimeout == b.DrainTimeout && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Ports, b.Ports)
}

func limitOf(l model.Limits) bpf.Limit {
	limit := bpf.Limit{MaxOpen: l.MaxConnections, MaxConnecting: l.MaxConnecting, PerSecond: l.ConnectionsPerSecond, Burst: l.Burst}
	switch {
	case limit.PerSecond == 0:
		limit.Burst = 0
	case limit.Burst == 0:
		limit.Burst = limit.PerSecond
	}
	return limit
}

// compileService makes tables anew.
func compileService(in *serviceInputs, node model.Locality) (*Service, error) {
	s := &in.service
	c := &Service{Name: s.Name, Limit: limitOf(s.Limits), DrainTimeout: s.DrainTimeout, inputs: in}
	numbers := c.backends(in)
	var addresses [2][]netip.Addr
	for _, a := range s.Addresses {
		addresses[familyOf(a)] = append(addresses[familyOf(a)], a.Unmap())
	}
	gets := make([]bool, len(in.endpoints)) // connections of some family
	for family := range addresses {
		if len(addresses[family]) == 0 {
			continue
		}
		chosen := eligible(s, in.endpoints, node, family)
		for _, i := range chosen {
			gets[i] = true
		}
		slots, err := choices(s, in.endpoints, chosen)
		if err != nil {
			return nil, fmt.Errorf("service %v: %w", s.Name, err)
		}
		for i, p := range s.Ports {
			pool := &Pool{IPv6: family == ipv6, Port: p.Port, Algorithm: slots.algorithm, Size: slots.size, Slots: slices.Clone(slots.slots)}
			for j, slot := range pool.Slots {
				pool.Slots[j] = slot&^always | uint64(numbers[family][i][chosen[slot&always]])
			}
			for _, a := range addresses[family] {
				c.Frontends = append(c.Frontends, Frontend{Address: netip.AddrPortFrom(a, p.Port), Pool: len(c.Pools)})
			}
			c.Pools = append(c.Pools, pool)
		}
	}
	has := [2]bool{ipv4: len(addresses[ipv4]) > 0, ipv6: len(addresses[ipv6]) > 0}
	for i := range in.endpoints {
		c.Endpoints[in.endpoints[i].stateOf(s, node, has, gets[i])]++
	}
	return c, nil
}

// backends fills in Backends, and returns their numbers by family, port and endpoint.
func (c *Service) backends(in *serviceInputs) (numbers [2][][]uint32) {
	type key struct {
		endpoint int
		address  netip.AddrPort
	}
	known := make(map[key]uint32)
	for family := range numbers {
		numbers[family] = make([][]uint32, len(in.service.Ports))
		for i, p := range in.service.Ports {
			numbers[family][i] = make([]uint32, len(in.endpoints))
			for j := range in.endpoints {
				e := &in.endpoints[j]
				if !e.address[family].IsValid() {
					continue
				}
				k := key{j, netip.AddrPortFrom(e.address[family], e.target(p))}
				number, ok := known[k]
				if !ok {
					number = uint32(len(c.Backends))
					known[k] = number
					c.Backends = append(c.Backends, Backend{
						Endpoint: e.name, Address: k.address, Workload: e.workload, Weight: e.weight, Draining: e.health == model.Draining,
					})
				}
				numbers[family][i][j] = number
			}
		}
	}
	return numbers
}

// table is one whose slots number the backends as they were chosen.
type table struct {
	algorithm uint32
	size      uint32
	slots     []uint64
}

func choices(s *model.Service, endpoints []endpoint, chosen []int) (table, error) {
	algorithms := [...]uint32{
		model.Random: bpf.Random, model.RoundRobin: bpf.RoundRobin, model.LeastConnections: bpf.LeastConnections, model.Maglev: bpf.Maglev,
	}
	if int(s.Balancer) >= len(algorithms) {
		return table{}, fmt.Errorf("unknown balancer %d", s.Balancer)
	}
	t := table{algorithm: algorithms[s.Balancer]}
	if len(chosen) == 0 {
		return t, nil
	}
	weights := make([]uint32, len(chosen))
	for i, e := range chosen {
		weights[i] = endpoints[e].weight
	}
	switch s.Balancer {
	case model.RoundRobin:
		t.slots = orderSlots(weights)
	case model.Maglev:
		if most := maglevSizes[len(maglevSizes)-1]; uint64(len(chosen)) > most {
			return table{}, fmt.Errorf("%d endpoints for Maglev, which takes at most %d; use another balancer or split the service", len(chosen), most)
		}
		names := make([]model.Name, len(chosen))
		for i, e := range chosen {
			names[i] = endpoints[e].name
		}
		t.slots = maglevSlots(names, weights)
	default:
		t.slots = aliasSlots(weights)
		t.size = uint32(len(t.slots) / 2)
		return t, nil
	}
	t.size = uint32(len(t.slots))
	return t, nil
}
