package maps

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Dump is what the kernel's maps hold, with names for numbers.
type Dump struct {
	Services   []DumpService   `json:"services"`
	Workloads  []DumpWorkload  `json:"workloads"`
	PolicySets []DumpPolicySet `json:"policy_sets"`
	Limits     []DumpLimit     `json:"limits"`
	Backends   []DumpBackend   `json:"backends"`
}

// DumpService is a service by its pools.
type DumpService struct {
	Name  string     `json:"name"`
	ID    uint32     `json:"id"`
	Pools []DumpPool `json:"pools"`
}

// DumpPool is what some frontends lead to.
type DumpPool struct {
	Index      uint32         `json:"index"`
	Frontends  []string       `json:"frontends"` // address:port
	Table      uint32         `json:"table"`
	Generation uint64         `json:"generation"`
	Algorithm  string         `json:"algorithm"`
	Size       uint32         `json:"size"`
	Limit      string         `json:"limit,omitempty"`
	Endpoints  []DumpEndpoint `json:"endpoints"`
}

// DumpEndpoint is the part that one backend has of a table.
type DumpEndpoint struct {
	Endpoint string  `json:"endpoint"`
	Backend  uint32  `json:"backend"`
	Address  string  `json:"address"`
	Weight   uint32  `json:"weight"`
	Share    float64 `json:"share"` // of the choices, 0 to 1
}

// DumpWorkload is a workload and what leads to it.
type DumpWorkload struct {
	Name      string   `json:"name"`
	Identity  string   `json:"identity,omitempty"`
	Index     uint32   `json:"index"`
	Cgroups   []uint64 `json:"cgroups"` // ids
	Addresses []string `json:"addresses"`
	PolicySet uint32   `json:"policy_set"`
	Source    uint32   `json:"source"`
	Limit     string   `json:"limit,omitempty"`
	Bypass    bool     `json:"bypass"`
}

// DumpPolicySet is a set by its rules.
type DumpPolicySet struct {
	Index      uint32              `json:"index"`
	Generation uint64              `json:"generation"`
	HasAllow   bool                `json:"has_allow"`
	HasDry     bool                `json:"has_dry_allow"`
	Rules      []string            `json:"rules"`   // by bit: "deny shop/policy rule 0"
	Sources    map[string][]uint16 `json:"sources"` // bits by identity and namespace
	Blocks     map[string][]uint16 `json:"blocks"`  // bits by prefix
	Ports      map[string][]uint16 `json:"ports"`   // bits by port
}

// DumpLimit is a limit and what stands against it.
type DumpLimit struct {
	Name          string          `json:"name"` // "service ns/name" or "workload ns/name"
	Index         uint32          `json:"index"`
	MaxOpen       uint32          `json:"max_open"`
	MaxConnecting uint32          `json:"max_connecting"`
	PerSecond     uint32          `json:"per_second"`
	Burst         uint32          `json:"burst"`
	Draining      bool            `json:"draining"`
	Counts        DumpLimitCounts `json:"counts"`
}

// DumpLimitCounts are of connections.
type DumpLimitCounts struct {
	Open               uint64 `json:"open"`
	Connecting         uint64 `json:"connecting"`
	RejectedOpen       uint64 `json:"rejected_open"`
	RejectedConnecting uint64 `json:"rejected_connecting"`
	RejectedRate       uint64 `json:"rejected_rate"`
}

// DumpBackend is a backend with its counts.
type DumpBackend struct {
	Service  string `json:"service"`
	Endpoint string `json:"endpoint"`
	Index    uint32 `json:"index"`
	Tag      uint32 `json:"tag"`
	Address  string `json:"address"`
	Workload string `json:"workload,omitempty"`
	Weight   uint32 `json:"weight"`
	Draining bool   `json:"draining"`
	Open     uint64 `json:"open"`
	Picks    uint64 `json:"picks"`
	Failed   uint64 `json:"failed"`
}

// Dump reads the maps back.
func (r *Reconciler) Dump() (*Dump, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, err := r.m.read()
	if err != nil {
		return nil, err
	}
	d := &Dump{}
	r.dumpServices(d, have)
	r.dumpWorkloads(d, have)
	r.dumpSets(d, have)
	for _, b := range r.draining {
		d.Backends = append(d.Backends, r.dumpBackend(b))
	}
	for _, s := range r.services {
		for _, b := range s.backends {
			d.Backends = append(d.Backends, r.dumpBackend(b))
		}
	}
	slices.SortFunc(d.Backends, func(a, b DumpBackend) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Index, b.Index))
	})
	for _, s := range r.limits {
		state, _, err := r.m.LimitStates.Get(s.index)
		if err != nil {
			return nil, err
		}
		l, c := loadLimit(&r.m.Limits[s.index]), state.Counts
		d.Limits = append(d.Limits, DumpLimit{
			Name: s.text, Index: s.index, MaxOpen: l.MaxOpen, MaxConnecting: l.MaxConnecting, PerSecond: l.PerSecond, Burst: l.Burst, Draining: s.gone,
			Counts: DumpLimitCounts{c.Open, c.Connecting, c.RejectedOpen, c.RejectedConnecting, c.RejectedRate},
		})
	}
	slices.SortFunc(d.Limits, func(a, b DumpLimit) int { return cmp.Compare(a.Name, b.Name) })
	return d, nil
}

// dumpServices goes the way of a connection: from frontends to pools, tables, slots and backends.
func (r *Reconciler) dumpServices(d *Dump, have held) {
	frontends := make(map[uint32][]string)
	for key, pool := range have.frontends {
		frontends[pool] = append(frontends[pool], strings.TrimPrefix(frontendText(key), "frontend "))
	}
	services := make(map[uint32]*DumpService)
	for _, s := range r.services {
		services[s.id] = &DumpService{Name: s.name.String(), ID: s.id}
	}
	for _, pool := range slices.Sorted(maps.Keys(frontends)) {
		slices.Sort(frontends[pool])
		p := DumpPool{Index: pool, Frontends: frontends[pool]}
		var id uint32
		if int(pool) < len(r.m.Pools) {
			p.Table = atomic.LoadUint32(&r.m.Pools[pool].Table)
		}
		if int(p.Table) < len(r.m.Tables) {
			t := &r.m.Tables[p.Table]
			id = t.Service
			p.Generation, p.Algorithm, p.Size = t.Generation, algorithmText(t.Algorithm), t.Size
			if limit, ok := r.names.Limit(t.Limit); ok {
				p.Limit = *limit
			}
			p.Endpoints = r.dumpEndpoints(t)
		}
		if services[id] == nil {
			services[id] = &DumpService{Name: "?", ID: id}
		}
		services[id].Pools = append(services[id].Pools, p)
	}
	for _, s := range services {
		d.Services = append(d.Services, *s)
	}
	slices.SortFunc(d.Services, func(a, b DumpService) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
}

func algorithmText(algorithm uint32) string {
	switch algorithm {
	case bpf.Random:
		return "random"
	case bpf.RoundRobin:
		return "round_robin"
	case bpf.LeastConnections:
		return "least_connections"
	case bpf.Maglev:
		return "maglev"
	default:
		return fmt.Sprint(algorithm)
	}
}

// dumpEndpoints sums up what each backend has of a table. With least connections it is what it has of each of the two choices.
func (r *Reconciler) dumpEndpoints(t *bpf.Table) []DumpEndpoint {
	pairs := t.Algorithm == bpf.Random || t.Algorithm == bpf.LeastConnections
	slots := uint64(t.Size)
	if pairs {
		slots *= 2
	}
	if uint64(t.FirstSlot)+slots > uint64(len(r.m.Slots)) {
		return nil
	}
	parts := make(map[uint32]float64)
	for i := range uint64(t.Size) {
		if !pairs {
			parts[uint32(r.m.Slots[uint64(t.FirstSlot)+i])]++
			continue
		}
		first, second := r.m.Slots[uint64(t.FirstSlot)+2*i], r.m.Slots[uint64(t.FirstSlot)+2*i+1]
		part := 1.0
		if first>>32 != always {
			part = float64(first>>32) / (1 << 32)
		}
		parts[uint32(first)] += part
		parts[uint32(second)] += 1 - part
	}
	var all []DumpEndpoint
	for _, index := range slices.Sorted(maps.Keys(parts)) {
		e := DumpEndpoint{Endpoint: "?", Backend: index, Share: parts[index] / float64(t.Size)}
		if int(index) < len(r.m.Backends) {
			b := loadBackend(&r.m.Backends[index])
			e.Address, e.Weight = backendText(b), b.Weight
			if name, ok := r.names.Backend(index, b.Tag); ok {
				e.Endpoint = name.Endpoint.String()
			}
		}
		all = append(all, e)
	}
	return all
}

func backendText(b bpf.Backend) string {
	return netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), b.Port).String()
}

func (r *Reconciler) dumpBackend(b *backendState) DumpBackend {
	have, load := loadBackend(&r.m.Backends[b.index]), &r.m.Loads[b.index]
	d := DumpBackend{
		Service: b.key.service.String(), Endpoint: b.key.endpoint.String(), Index: b.index, Tag: have.Tag, Address: backendText(have),
		Weight: have.Weight, Draining: !b.since.IsZero(),
		Open: atomic.LoadUint64(&load.Open), Picks: atomic.LoadUint64(&load.Picks), Failed: atomic.LoadUint64(&load.Failed),
	}
	if name, ok := r.names.Backend(b.index, have.Tag); ok && name.Workload != (model.Name{}) {
		d.Workload = name.Workload.String()
	}
	return d
}
