package main

import (
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/maps"
)

// TestMeshSizes holds the two that say how large a mesh may be against each other.
func TestMeshSizes(t *testing.T) {
	c := config.Default()
	if have, want := sizesOf(&c.Mesh), maps.DefaultSizes(); have != want {
		t.Errorf("the configuration's are %+v, those of agent/maps %+v", have, want)
	}
	// Each size comes from a key of its own, and what the configuration takes for the largest the maps do too.
	c.Mesh = config.Mesh{
		MaxWorkloads: 1, MaxAddresses: 2, MaxFrontends: 3, MaxPools: 4, MaxBackends: 5, MaxSlots: 6, MaxLimits: 7, MaxPolicySets: 8, MaxPolicyEntries: 1 << 26,
	}
	want := maps.Sizes{
		Workloads: 1, Addresses: 2, Frontends: 3, Pools: 4, Backends: 5, Slots: 6, Limits: 7, PolicySets: 8, PolicyEntries: 1 << 26,
	}
	if have := sizesOf(&c.Mesh); have != want {
		t.Errorf("sizes %+v, want %+v", have, want)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if err := want.Validate(); err != nil {
		t.Error(err)
	}
	c.Mesh.MaxPolicyEntries++
	want.PolicyEntries++
	if c.Validate() == nil || want.Validate() == nil {
		t.Error("one more than the most is taken")
	}
}
