// Package maps turns the mesh as values into what the kernel reads: Compile says what is wanted (pure), the Reconciler writes the difference to
// what is there, in an order such that no program sees anything half done.
package maps

import "github.com/sidelight-mesh/sidelight/bpf"

// Maps are the kernel's maps of the mesh, or memory that looks like them. The slices are the arrays themselves, shared with the programs: what
// is in force changes by atomic stores of single words only.
type Maps struct {
	Workloads  []bpf.Workload
	Pools      []Reference
	Tables     []bpf.Table
	Slots      []uint64
	Backends   []bpf.Backend
	Loads      []bpf.Load
	Turns      []uint64
	Limits     []bpf.Limit
	PolicySets []bpf.PolicySet

	Cgroups       Hash[uint64, uint32]
	Addresses     Hash[bpf.Address, uint32]
	Frontends     Hash[bpf.Frontend, uint32]
	PolicySources Hash[bpf.PolicySource, bpf.Rules]
	PolicyBlocks  Hash[bpf.PolicyBlock, bpf.Rules]
	PolicyPorts   Hash[bpf.PolicyPort, bpf.Rules]
	Verdicts      Hash[bpf.VerdictKey, uint64]   // sums over the CPUs; never Put
	LimitStates   Hash[uint32, bpf.LimitState]   // an array: Get and Put only, by index
	Listeners     Hash[bpf.Listen, bpf.Listener] // never Put: programs do, and agent/datapath deletes

	// Grace returns when all programs have ended that ran when it was called.
	Grace func() error
}

// Reference is an element of the map `pools`: the kernel aligns elements of arrays to 8 bytes.
type Reference struct {
	Table uint32
	_     uint32
}

// Hash is a map by key.
type Hash[K comparable, V any] interface {
	// Get returns a value, and false where there is none.
	Get(key K) (V, bool, error)
	// Put creates or replaces, each element atomically. After an error some may be written.
	Put(keys []K, values []V) error
	// Delete takes keys out, and leaves those alone that are not there.
	Delete(keys []K) error
	// All returns everything.
	All() (map[K]V, error)
}
