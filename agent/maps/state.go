package maps

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// What the kernel has of each thing of the mesh.
type (
	serviceState struct {
		name     model.Name
		id       uint32
		compiled *Service
		limit    *limitState // nil: none
		pools    []*poolState
		backends []*backendState // as compiled.Backends
		seen     uint64
	}
	poolState struct {
		index uint32
		table tableState
		want  *Pool
		limit *limitState
	}
	tableState struct {
		index uint32
		slots span
	}
	backendState struct {
		key      backendKey
		index    uint32
		tag      uint32
		workload *workloadState // nil: none
		weight   uint32
		timeout  time.Duration
		since    time.Time // that it drains; zero: it does not
		gone     bool      // from the mesh
	}
	workloadState struct {
		compiled *Workload
		index    uint32
		set      *setState   // nil: none
		limit    *limitState // nil: none
		backends map[*backendState]struct{}
		seen     uint64
	}
	setState struct {
		set        *PolicySet
		index      uint32
		generation uint64
		sources    map[uint32]bpf.Rules // by class, as written, with that of all others
		seen       uint64
	}
	limitState struct {
		text  string
		index uint32
		limit bpf.Limit
		gone  bool // from the mesh
	}
)

type backendKey struct {
	service, endpoint model.Name
	address           netip.AddrPort
}

// workloadKey tells a Bypass from a Workload of the same name.
type workloadKey struct {
	name  model.Name
	alone bool
}

func (w *Workload) key() workloadKey { return workloadKey{w.Name, w.Alone} }

func (w *Workload) flags() uint32 {
	if w.Bypass {
		return bpf.WorkloadBypass
	}
	return 0
}

// sameSource tells whether a workload can keep its index: connections that it opens are decided by what may not change there.
func (w *Workload) sameSource(o *Workload) bool {
	return w.Class == o.Class && w.Affinity == o.Affinity && w.Bypass == o.Bypass
}

func (s *limitState) at() uint32 {
	if s == nil {
		return 0
	}
	return s.index
}

func (s *setState) at() uint32 {
	if s == nil {
		return 0
	}
	return s.index
}

func (s *workloadState) at() uint32 {
	if s == nil {
		return 0
	}
	return s.index
}

// as16 is an address as the kernel has it.
func as16(a netip.Addr) [16]uint8 { return a.As16() }

func frontendKey(a netip.AddrPort) bpf.Frontend {
	return bpf.Frontend{Addr: as16(a.Addr()), Port: a.Port()}
}

func blockKey(set uint32, b netip.Prefix) bpf.PolicyBlock {
	bits := uint32(b.Bits())
	if b.Addr().Is4() {
		bits += 96
	}
	return bpf.PolicyBlock{PrefixBits: 32 + bits, Set: set, Addr: as16(b.Addr())}
}

// garbage is what nothing refers to any more, but programs that run may still hold.
type garbage struct {
	workloads []uint32
	pools     []uint32
	tables    []tableState
	backends  []*backendState
	limits    []*limitState
	sets      []*setState
	classes   []Class
}

func (g *garbage) empty() bool {
	return len(g.workloads) == 0 && len(g.pools) == 0 && len(g.tables) == 0 && len(g.backends) == 0 && len(g.limits) == 0 && len(g.sets) == 0 &&
		len(g.classes) == 0
}

// FullError says that a mesh is within its sizes, and that there is no room for it now, because of what still drains or, of slots, because of
// how those that are free lie.
type FullError struct {
	Map    string
	Used   uint32
	Size   uint32
	Wanted uint32
	Key    string // of the configuration
}

func (e *FullError) Error() string {
	return fmt.Sprintf("map %s has no room for %d more, with %d of %d in use; wait for what drains, or raise %s", e.Map, e.Wanted, e.Used, e.Size, e.Key)
}
