package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// TestServicesThatAreTold are those in use, and those that lack an endpoint: a mesh of which a node uses little has few series.
func TestServicesThatAreTold(t *testing.T) {
	name := func(name string) model.Name { return model.Name{Namespace: "shop", Name: name} }
	services := []*maps.Service{
		{Name: name("used"), Endpoints: maps.EndpointCounts{maps.StateEligible: 2, maps.StateStandby: 3, maps.StateExcluded: 1}},
		{Name: name("idle"), Endpoints: maps.EndpointCounts{maps.StateEligible: 2}},
		{Name: name("elsewhere"), Endpoints: maps.EndpointCounts{maps.StateExcluded: 2}},
		{Name: name("empty")},
		{Name: name("ill"), Endpoints: maps.EndpointCounts{maps.StateDraining: 1, maps.StateUnhealthy: 4, maps.StateEjected: 5}},
	}
	var v values
	v.addServices(services, []maps.EndpointLoad{{Service: name("used"), Endpoint: name("used-1")}, {Service: name("gone"), Endpoint: name("gone-1")}})
	var have []string
	for _, value := range v.Values {
		if value.Metric != self.MeshEndpoints || value.Attributes[1] != "shop" {
			t.Errorf("%+v", value)
		}
		have = append(have, fmt.Sprintf("%s %s %v", value.Attributes[0], value.Attributes[2], value.Number))
	}
	want := []string{
		"used eligible 2", "used standby 3", "used draining 0", "used unhealthy 0", "used ejected 0", "used excluded 1",
		"empty eligible 0", "empty standby 0", "empty draining 0", "empty unhealthy 0", "empty ejected 0", "empty excluded 0",
		"ill eligible 0", "ill standby 0", "ill draining 1", "ill unhealthy 4", "ill ejected 5", "ill excluded 0",
	}
	if !slices.Equal(have, want) {
		t.Errorf("%q, want %q", have, want)
	}
}

func TestBoundsThatAreTold(t *testing.T) {
	var v values
	v.addLoads(&maps.Loads{Limits: []maps.LimitLoad{
		{Limit: "service shop/cart", Bounds: maps.LimitBounds{MaxOpen: 4, MaxConnecting: 3, PerSecond: 2, Burst: 1}},
		{Limit: "workload shop/web", Bounds: maps.LimitBounds{MaxConnecting: 9}},
		{Limit: "service shop/drains"},
	}})
	have := make(map[string]float64)
	for _, value := range v.Values {
		if value.Metric != self.MeshLimitOpen && value.Metric != self.MeshLimitConnecting && value.Metric != self.MeshLimitRejections {
			have[value.Metric.Prometheus+" "+value.Attributes[0]] = value.Number
		}
	}
	want := map[string]float64{
		"sidelight_mesh_limit_max_open service shop/cart": 4, "sidelight_mesh_limit_max_connecting service shop/cart": 3,
		"sidelight_mesh_limit_max_rate_per_second service shop/cart": 2, "sidelight_mesh_limit_burst service shop/cart": 1,
		"sidelight_mesh_limit_max_connecting workload shop/web": 9,
	}
	if len(have) != len(want) {
		t.Errorf("%v, want %v", have, want)
	}
	for series, n := range want {
		if have[series] != n {
			t.Errorf("%s is %v, want %v", series, have[series], n)
		}
	}
}
