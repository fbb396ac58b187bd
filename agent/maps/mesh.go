package maps

import (
	"net/netip"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Mesh is the wanted state of the kernel's maps in names and values, before anything has an index. It is not changed once made, and parts of
// it are shared by meshes that one Compiler made.
type Mesh struct {
	Generation uint64
	Services   []*Service   // sorted by name
	Workloads  []*Workload  // sorted by name
	Sets       []*PolicySet // those that Workloads refer to
	Classes    []Class      // those of Workloads, without the zero value
	Usage      Usage
}

// Usage is what a mesh takes of Sizes.
type Usage Sizes

// Service is a service with what leads to it and where it leads.
type Service struct {
	Name         model.Name
	Limit        bpf.Limit // the zero value: none
	DrainTimeout time.Duration
	Frontends    []Frontend
	Pools        []*Pool
	Backends     []Backend
	Endpoints    EndpointCounts

	inputs *serviceInputs
}

// Frontend is an address that is dialled. Port 0 is all ports that have no frontend of their own.
type Frontend struct {
	Address netip.AddrPort
	Pool    int // in Service.Pools
}

// Pool is one port of a service in one family, and the table that chooses from its endpoints.
type Pool struct {
	IPv6      bool
	Port      uint16
	Algorithm uint32 // bpf.Random and the others
	Size      uint32 // choices; 0: no endpoint
	// Slots are as in the kernel, but for backends, which are numbered as in Service.Backends.
	Slots []uint64
}

// Backend is an endpoint at one port in one family, whether any pool chooses it or not.
type Backend struct {
	Endpoint model.Name
	Address  netip.AddrPort // port 0: as dialled
	Workload model.Name     // the zero value: none
	Weight   uint32
	Draining bool // the control plane says so
}

// Workload is somebody with an identity, or a cgroup that is bypassed.
type Workload struct {
	Name      model.Name // of a Bypass, if Alone
	Alone     bool       // a bypassed cgroup without workload
	Identity  string
	Class     Class
	Cgroup    string
	Addresses []netip.Addr
	Affinity  uint32
	Bypass    bool
	Limit     bpf.Limit  // the zero value: none
	Set       *PolicySet // nil: everybody may connect to it

	inputs *model.Workload // nil if Alone
}

// Class is what policies tell sources apart by. The zero value is of those that nobody knows.
type Class struct {
	Identity  string
	Namespace string
}

// Health says which endpoints are out of service for now, by the name of the endpoint.
type Health map[model.Name]struct{}
