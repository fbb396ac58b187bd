package maps

import (
	"errors"
	"fmt"
	"math"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Sizes are how much of a mesh fits: what the configuration says, and not the sizes of the kernel's maps, which MaxEntries gives. A mesh that is
// larger is refused whole, nothing is cut off.
type Sizes struct {
	Workloads     uint32 // workloads, and bypassed cgroups without one
	Addresses     uint32 // of workloads
	Frontends     uint32 // addresses of services times their ports
	Pools         uint32 // ports of services times families
	Backends      uint32 // endpoints times ports times families
	Slots         uint32 // choices in all tables: an alias table has two an endpoint, an order as many as weights, Maglev 100 an endpoint
	Limits        uint32 // services and workloads with limits
	PolicySets    uint32 // distinct lists of policies that select a workload
	PolicyEntries uint32 // of all sets together, rules, and entries by source, by address and by port: each of the four
}

// DefaultSizes have room for 50,000 services. The maps take some 60 MB of kernel memory then.
func DefaultSizes() Sizes {
	return Sizes{
		Workloads:     64 << 10,
		Addresses:     64 << 10,
		Frontends:     64 << 10,
		Pools:         64 << 10,
		Backends:      64 << 10,
		Slots:         1 << 20,
		Limits:        16 << 10,
		PolicySets:    4 << 10,
		PolicyEntries: 64 << 10,
	}
}

// MaxEntries returns max_entries of each map of the mesh, by its name in the object: twice what a mesh may have, so that all of one can be replaced
// by another while connections still use the first, and one more where index 0 means none. Entries by source are four times as many: sets of both meshes
// have them for the sources of both.
func (s Sizes) MaxEntries() map[string]uint32 {
	return map[string]uint32{
		"cgroups":        2 * s.Workloads,
		"addresses":      2 * s.Addresses,
		"workloads":      2*s.Workloads + 1,
		"frontends":      2 * s.Frontends,
		"pools":          2*s.Pools + 1,
		"turns":          2*s.Pools + 1,
		"tables":         4*s.Pools + 1,
		"slots":          2 * s.Slots,
		"backends":       2*s.Backends + 1,
		"loads":          2*s.Backends + 1,
		"limits":         2*s.Limits + 1,
		"limit_states":   2*s.Limits + 1,
		"policy_sets":    2*s.PolicySets + 1,
		"policy_sources": 4 * s.PolicyEntries,
		"policy_blocks":  2 * s.PolicyEntries,
		"policy_ports":   2 * s.PolicyEntries,
		"verdicts":       2 * s.PolicyEntries,
	}
}

// maxSize keeps doubled sizes, and those of slots in bytes, within 32 bits.
const maxSize = 1 << 26

// Validate tells whether maps can have these sizes: each from 1 to 67,108,864.
func (s Sizes) Validate() error {
	var errs []error
	for _, f := range s.fields() {
		if f.size < 1 || f.size > maxSize {
			errs = append(errs, fmt.Errorf("%s is %d; it is from 1 to %d", f.key, f.size, maxSize))
		}
	}
	return errors.Join(errs...)
}

// field is one size by its key in the configuration.
type field struct {
	key  string
	size uint32
	what string // it is a number of
	maps string // that it makes large
}

func (s Sizes) fields() []field {
	return []field{
		{"mesh.max_workloads", s.Workloads, "workloads", "workloads and cgroups"},
		{"mesh.max_addresses", s.Addresses, "addresses of workloads", "addresses"},
		{"mesh.max_frontends", s.Frontends, "frontends (addresses of services times their ports)", "frontends"},
		{"mesh.max_pools", s.Pools, "pools (ports of services times families)", "pools and tables"},
		{"mesh.max_backends", s.Backends, "backends (endpoints times ports times families)", "backends"},
		{"mesh.max_slots", s.Slots, "slots of tables", "slots"},
		{"mesh.max_limits", s.Limits, "services and workloads with limits", "limits"},
		{"mesh.max_policy_sets", s.PolicySets, "distinct lists of policies that select a workload", "policy_sets"},
		{"mesh.max_policy_entries", s.PolicyEntries, "entries of policy sets", "policy_sources, policy_blocks, policy_ports and verdicts"},
	}
}

// SizeError says that a mesh is larger than the configuration allows.
type SizeError struct {
	What  string // what there is too much of
	Maps  string // the kernel's maps that it does not fit in
	Have  uint64
	Limit uint64
	Key   string // of the configuration, to be raised
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("the mesh has %d %s, and the kernel's %s have room for %d; raise %s", e.Have, e.What, e.Maps, e.Limit, e.Key)
}

// fit tells whether a mesh is within sizes. The error is joined of a SizeError for each that is exceeded.
func (m *Mesh) fit(sizes Sizes) error {
	have := Sizes(m.Usage).fields()
	var errs []error
	for i, f := range sizes.fields() {
		if have[i].size > f.size {
			errs = append(errs, &SizeError{What: f.what, Maps: f.maps, Have: uint64(have[i].size), Limit: uint64(f.size), Key: f.key})
		}
	}
	return errors.Join(errs...)
}

// use counts what a mesh takes. Its Sets and Classes must be complete.
func (m *Mesh) use() {
	u := &m.Usage
	u.Workloads = uint32(len(m.Workloads))
	count := func(limit bpf.Limit) {
		if limit != (bpf.Limit{}) {
			u.Limits++
		}
	}
	for _, w := range m.Workloads {
		u.Addresses += uint32(len(w.Addresses))
		count(w.Limit)
	}
	var slots uint64
	for _, s := range m.Services {
		u.Frontends += uint32(len(s.Frontends))
		u.Pools += uint32(len(s.Pools))
		u.Backends += uint32(len(s.Backends))
		count(s.Limit)
		for _, p := range s.Pools {
			slots += uint64(len(p.Slots))
		}
	}
	u.Slots = uint32(min(slots, math.MaxUint32))
	u.PolicySets = uint32(len(m.Sets))
	var rules, sources, blocks, ports uint32
	for _, s := range m.Sets {
		rules += uint32(len(s.Rules)) + 2 // and what no rule decided, enforced and dry
		blocks += uint32(len(s.Blocks))
		ports += uint32(len(s.Ports))
		sources += uint32(len(s.sources(m.Classes))) + 1
		s.forget(len(m.Classes))
	}
	u.PolicyEntries = max(rules, sources, blocks, ports)
}
