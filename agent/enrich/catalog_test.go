package enrich

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

func TestCatalog(t *testing.T) {
	name := func(namespace, name string) model.Name { return model.Name{Namespace: namespace, Name: name} }
	long := strings.Repeat("x", 300)
	c := NewCatalog()
	if _, known := c.Host("shop", "web"); known || c.Workload("shop", "web") != nil {
		t.Error("there is something in an empty one")
	}
	c.SetSnapshot(&model.Snapshot{
		Workloads: []model.Workload{
			{Name: name("shop", "web"), Cluster: "north", Labels: map[string]string{"app": "", "version": "v1", "team": "\xff" + long}},
			{Name: name("shop", "cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}},
			{Name: name("shop", "both")},
			{Name: name("shop", long)},
			{Name: name("other", "cart")},
		},
		Services: []model.Service{{Name: name("shop", "web"), Hostname: "web.example.com"}, {Name: name("shop", "cart")}},
		Endpoints: []model.Endpoint{
			{Service: name("front", "web"), Workload: name("shop", "web")},
			{Service: name("front", "web"), Workload: name("shop", "web"), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			{Service: name("shop", "cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.9.9.9")}},
			{Service: name("shop", "a"), Workload: name("shop", "both")},
			{Service: name("shop", "b"), Workload: name("shop", "both")},
			{Service: name("shop", "a"), Workload: name("shop", "both")},
			{Service: name("shop", "a"), Workload: name("shop", "nobody")},
		},
	})
	for _, want := range []struct{ namespace, name, cluster, service string }{
		{"shop", "web", "north", "front/web"},
		{"shop", "cart", "", "shop/cart"},
		{"shop", "both", "", ""},
		{"shop", label(long), "", ""},
		{"other", "cart", "", ""},
	} {
		about := c.Workload(want.namespace, want.name)
		if about == nil {
			t.Errorf("%s/%s is not known", want.namespace, want.name)
			continue
		}
		service := ""
		if about.Service != nil {
			service = about.Service.Namespace + "/" + about.Service.Name
		}
		if about.Cluster != want.cluster || service != want.service {
			t.Errorf("%s/%s is in the cluster %q and of the service %q, want %q and %q", want.namespace, want.name, about.Cluster, service, want.cluster, want.service)
		}
	}
	if about := c.Workload("shop", "nobody"); about != nil {
		t.Errorf("nobody is known: %+v", about)
	}
	web := c.Workload("shop", "web")
	for _, want := range []struct {
		keys  []string
		value string
	}{
		{[]string{"version"}, "v1"},
		{[]string{"app"}, ""},
		{[]string{"app", "version"}, "v1"},
		{[]string{"none"}, ""},
		{[]string{"team"}, label("\xff" + long)},
	} {
		if got := web.Label(want.keys...); got != want.value {
			t.Errorf("the label %v is %q, want %q", want.keys, got, want.value)
		}
	}
	for _, want := range []struct {
		name, host string
		known      bool
	}{{"web", "web.example.com", true}, {"cart", "", true}, {"a", "", false}} {
		if host, known := c.Host("shop", want.name); host != want.host || known != want.known {
			t.Errorf("the host of %s is %q, %v, want %q, %v", want.name, host, known, want.host, want.known)
		}
	}
}
