package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestMeshRivals has by name what other meshes get wrong (Kmesh at ec501a98, by its source and issues), each as a case that must not happen here.
func TestMeshRivals(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop", "stranger")
	servers := []string{serverV4(1), serverV6(1), serverV4(2), serverV6(2), "127.0.1.9:80", "127.0.1.1:9000"}
	for port := 8100; port < 8120; port++ {
		servers = append(servers, fmt.Sprintf("127.0.1.3:%d", port))
	}
	w.servers("shop", servers...)
	w.servers("web", "127.0.1.4:8080", "[fd00::4]:8080")
	w.run(shopMesh())
	web, rogue, shop, stranger := w.client("web"), w.client("rogue"), w.client("shop"), w.client("stranger")
	dial := func(c *meshCaller, address string, n int) meshTally {
		return c.do(meshOrder{To: netip.MustParseAddrPort(address), Count: n, Workers: 4})
	}
	deny := func(identity string) string {
		return policyYAML("p", ofShop+"action: DENY, rules: [{from: [{source: {identities: ["+identity+"]}}]}]")
	}

	t.Run("a service without endpoints does not fall through to its address", func(*testing.T) {
		// Somebody listens at the service's own address.
		w.change(shopMesh() + strings.ReplaceAll(serviceYAML("empty", 9, ""), "10.96.0.9", "127.0.1.9"))
		w.expect("no endpoint", dial(web, "127.0.1.9:80", 5), nil, only("ECONNREFUSED", 5))
	})
	t.Run("strict locality is strict", func(*testing.T) {
		far := endpointsYAML("far", ", locality: {region: elsewhere}")
		w.change(shopMesh() + strings.ReplaceAll(serviceYAML("far", 9, ", loadBalancing: {locality: strict, scope: region}"), "10.96.0.9", "127.0.1.9") + far)
		w.expect("nobody is near", dial(web, "127.0.1.9:80", 5), nil, only("ECONNREFUSED", 5))
	})
	t.Run("a dual-stack endpoint has both of its addresses", func(*testing.T) {
		w.change(shopMesh())
		w.expect("IPv4", dial(web, serviceV4(1)+":80", 5), only(serverV4(1), 5), nil)
		w.expect("IPv6", dial(web, "["+serviceV6(1)+"]:80", 5), only(serverV6(1), 5), nil)
	})
	t.Run("balancing, port and address change together", func(t *testing.T) {
		w.change(strings.NewReplacer("targetPort: 8080}]", "targetPort: 9000}], loadBalancing: {policy: maglev}", "10.96.0.1", "10.96.0.77").Replace(shopMesh()))
		w.expect("the new one", dial(web, "10.96.0.77:80", 5), only("127.0.1.1:9000", 5), nil)
		if got := dial(web, serviceV4(1)+":80", 1); len(got.Answers) != 0 {
			t.Errorf("the old address answers: %v", got.Answers)
		}
	})
	t.Run("a name is a name", func(*testing.T) {
		w.change(shopMesh() + serviceYAML("my-waypoint", 2, "") + endpointsYAML("my-waypoint", ""))
		w.expect("waypoint in it", dial(web, serviceV4(2)+":80", 5), only(serverV4(1), 5), nil)
	})
	t.Run("a service has as many ports as it likes", func(*testing.T) {
		var ports []string
		for port := 8100; port < 8120; port++ {
			ports = append(ports, fmt.Sprintf("{name: p%d, port: %d}", port, port))
		}
		w.change(shopMesh() + strings.ReplaceAll(serviceYAML("many", 3, ""), "{name: http, port: 80, targetPort: 8080}", strings.Join(ports, ", ")) + `---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: many-1, namespace: demo}
spec: {service: many, addresses: [127.0.1.3]}
`)
		for port := 8100; port < 8120; port++ {
			w.expect("a port", dial(web, fmt.Sprintf("%s:%d", serviceV4(3), port), 1), only(fmt.Sprintf("127.0.1.3:%d", port), 1), nil)
		}
	})
	t.Run("nobody takes himself out", func(*testing.T) {
		w.change(shopMesh(deny("rogue")))
		// With Kmesh a connect to this address and port from inside takes a pod out of the mesh.
		for _, command := range []string{"0.0.0.2:930", "0.0.0.1:929", "0.0.0.2:929", "0.0.0.1:930"} {
			_ = dial(rogue, command, 1)
		}
		w.expect("still denied", dial(rogue, serverV4(1), 5), nil, only("EPERM", 5))
	})
	t.Run("policies have as many rules and members as they like", func(*testing.T) {
		var policies []string
		for p := range 10 {
			var rules []string
			for r := range 10 {
				var members []string
				for m := range 10 {
					members = append(members, fmt.Sprintf("other-%d-%d-%d", p, r, m))
				}
				if p == 9 && r == 9 {
					members = append(members, "rogue")
				}
				rules = append(rules, "{from: [{source: {identities: ["+strings.Join(members, ", ")+"]}}]}")
			}
			policies = append(policies, policyYAML(fmt.Sprintf("p%d", p), ofShop+"action: DENY, rules: ["+strings.Join(rules, ", ")+"]"))
		}
		w.change(shopMesh(policies...))
		w.expect("the last member of the last rule", dial(rogue, serverV4(1), 5), nil, only("EPERM", 5))
		w.expect("who is in none", dial(web, serverV4(1), 5), only(serverV4(1), 5), nil)
	})
	t.Run("replies are not judged", func(*testing.T) {
		w.change(shopMesh(policyYAML("p", ofShop+"action: ALLOW")))
		w.expect("what the server itself opens", dial(shop, "127.0.1.4:8080", 5), only("127.0.1.4:8080", 5), nil)
	})
	t.Run("a denied client never gets a byte through", func(*testing.T) {
		// By address, so that only the server's side can tell: more refusals than any map has room for, and not one comes through.
		w.change(shopMesh(policyYAML("p", ofShop+`action: DENY, rules: [{from: [{source: {ipBlocks: ["127.0.0.0/8"]}}]}]`)))
		n := ticketRoom + ticketRoom/8
		if emulatedMachine() {
			n = 2000
		}
		w.expect("a spray", dial(stranger, serverV4(1), n), nil, only("ECONNREFUSED", n))
	})
	t.Run("a policy that is gone is gone", func(*testing.T) {
		w.change(shopMesh())
		w.expect("without policies", dial(rogue, serverV4(1), 5), only(serverV4(1), 5), nil)
	})
	w.finish()
}
