package main

import (
	"strings"
	"testing"
)

// TestMeshIdentityUnderWay holds SYNs back on their way while who sent them gets another identity. The policies of before and of since let both in, and so
// they do what was sent by the one and arrives with the other.
func TestMeshIdentityUnderWay(t *testing.T) {
	w := newMeshWorld(t, "web", "shop")
	wire := (&scene{t: t, cgroup: w.cgroup}).newWire()
	for _, family := range []struct{ name, address string }{{"IPv4", right4.Addr().String()}, {"IPv6", right6.Addr().String()}} {
		t.Run(family.name, func(*testing.T) {
			answer := family.address + ":8080"
			if strings.Contains(family.address, ":") {
				answer = "[" + family.address + "]:8080"
			}
			mesh := func(identity string) string {
				return workloadYAML("shop", "shop", family.address) +
					strings.Replace(workloadYAML("web", "web"), "identity: web", "identity: "+identity, 1) +
					policyYAML("allow", ofShop+"rules: [{from: [{source: {identities: [web1, web2]}}]}]")
			}
			w.ns = wire.right
			w.servers("shop", answer)
			w.ns = wire.left
			c := w.client("web")
			w.run(mesh("web1"))
			const count = 20
			order := meshOrder{To: to(family.address, 8080), Count: count, Workers: count}
			w.expect("before", c.do(order), only(answer, count), nil)
			wire.set(hold)
			c.begin(order)
			wire.waitHeld(flagSYN, count)
			w.change(mesh("web2"))
			wire.set(pass)
			w.expect("under way", c.end(), only(answer, count), nil)
			w.expect("since", c.do(order), only(answer, count), nil)
			w.agent.stop()
		})
	}
}
