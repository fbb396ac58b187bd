package config

import (
	"fmt"
	"time"
)

// Mesh is where the mesh is written down, and how large it may be. Without a path there is none, and its programs are not loaded.
type Mesh struct {
	// Path is a YAML file, or a directory of them.
	Path string `yaml:"path"`
	// Locality is where this node is.
	Locality Locality `yaml:"locality"`
	// FailClosedAfter is for how long policies hold without an agent that could change them: then they deny everything. 0: for ever.
	FailClosedAfter time.Duration `yaml:"fail_closed_after"`
	// The kernel's maps have room for twice as much: all of a mesh can be replaced while connections still use it.
	MaxWorkloads     uint32 `yaml:"max_workloads"`
	MaxAddresses     uint32 `yaml:"max_addresses"`      // of workloads
	MaxFrontends     uint32 `yaml:"max_frontends"`      // addresses of services times their ports
	MaxPools         uint32 `yaml:"max_pools"`          // ports of services times families
	MaxBackends      uint32 `yaml:"max_backends"`       // endpoints times ports times families
	MaxSlots         uint32 `yaml:"max_slots"`          // choices in all tables: two an endpoint, for maglev a hundred
	MaxLimits        uint32 `yaml:"max_limits"`         // services and workloads with limits
	MaxPolicySets    uint32 `yaml:"max_policy_sets"`    // different lists of policies that select a workload
	MaxPolicyEntries uint32 `yaml:"max_policy_entries"` // rules, and what they name, of all sets
}

// Locality is a place.
type Locality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	Subzone string `yaml:"subzone"`
	Node    string `yaml:"node"`
}

// mostOfMesh keeps sizes of maps within 32 bits.
const mostOfMesh = 1 << 26

func defaultMesh() Mesh {
	return Mesh{
		MaxWorkloads: 64 << 10, MaxAddresses: 64 << 10, MaxFrontends: 64 << 10, MaxPools: 64 << 10, MaxBackends: 64 << 10,
		MaxSlots: 1 << 20, MaxLimits: 16 << 10, MaxPolicySets: 4 << 10, MaxPolicyEntries: 64 << 10,
	}
}

func (m *Mesh) validate() []error {
	var errs []error
	for _, size := range []struct {
		key   string
		value uint32
	}{
		{"max_workloads", m.MaxWorkloads},
		{"max_addresses", m.MaxAddresses},
		{"max_frontends", m.MaxFrontends},
		{"max_pools", m.MaxPools},
		{"max_backends", m.MaxBackends},
		{"max_slots", m.MaxSlots},
		{"max_limits", m.MaxLimits},
		{"max_policy_sets", m.MaxPolicySets},
		{"max_policy_entries", m.MaxPolicyEntries},
	} {
		if size.value < 1 || size.value > mostOfMesh {
			errs = append(errs, fmt.Errorf("mesh.%s: %d is out of range; use 1 to %d", size.key, size.value, mostOfMesh))
		}
	}
	// An agent says every second that it is there.
	if m.FailClosedAfter != 0 && (m.FailClosedAfter < 5*time.Second || m.FailClosedAfter > 30*24*time.Hour) {
		errs = append(errs, fmt.Errorf("mesh.fail_closed_after: %v is out of range; use 5s to 720h, or 0 for never", m.FailClosedAfter))
	}
	return errs
}
