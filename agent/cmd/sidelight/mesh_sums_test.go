package main

import (
	"fmt"
	"testing"
)

// TestMeshSums holds the sums of edges by service, with every event and without any: those that the mesh refused are in them.
func TestMeshSums(t *testing.T) {
	for _, events := range []string{"all", "closes", "none"} {
		t.Run(events, func(t *testing.T) {
			w := newMeshWorld(t, "client", "rogue", "shop")
			w.servers("shop", serverV4(1), serverV6(1))
			w.run(shopMesh(policyYAML("p", ofShop+`action: DENY, rules: [{from: [{source: {identities: [rogue]}}]}, {from: [{source: {ipBlocks: ["127.0.0.99/32"]}}]}]`))+
				workloadYAML("client", "client")+
				serviceYAML("few", 2, ", limits: {maxConnections: 5}")+`---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: few-1, namespace: demo}
spec: {service: few, workload: shop}
`+serviceYAML("empty", 3, ""), "events: "+events)
			c, rogue := w.client("client"), w.client("rogue")
			c.do(meshOrder{To: to(serviceV4(1), 80), Count: 10})
			c.do(meshOrder{To: to(serviceV6(1), 80), Count: 4})
			w.expect("few", c.do(meshOrder{To: to(serviceV4(2), 80), Count: 12, Hold: true}), only(serverV4(1), 5), only("ECONNREFUSED", 7))
			c.do(meshOrder{Release: true})
			w.expect("empty", c.do(meshOrder{To: to(serviceV4(3), 80), Count: 3}), nil, only("ECONNREFUSED", 3))
			w.expect("denied", rogue.do(meshOrder{To: to(serviceV4(1), 80), Count: 6}), nil, only("EPERM", 6))
			w.expect("denied at the server's side", c.do(meshOrder{To: to("127.0.1.1", 8080), Count: 2, Bind: "127.0.0.99"}), nil, only("EPERM", 2))
			w.idle()
			w.agent.waitClosed()
			text := w.agent.metrics()
			edge := func(role, local, peer, service, family string) string {
				namespace := ""
				if service != "" {
					namespace = "demo"
				}
				peerNamespace := "demo"
				if peer == "localhost" || peer == "external" {
					peerNamespace = ""
				}
				return fmt.Sprintf(`local_namespace="demo",local_workload="%s",network_type="%s",peer_namespace="%s",peer_workload="%s",`, local, family, peerNamespace, peer) +
					"%s" + fmt.Sprintf(`role="%s",service="%s",service_namespace="%s"`, role, service, namespace)
			}
			series := func(name, edge, reason string) string {
				if reason != "" {
					reason = `reason="` + reason + `",`
				}
				return "sidelight_tcp_connection_" + name + "{" + fmt.Sprintf(edge, reason) + "}"
			}
			for what, want := range map[string]uint64{
				series("attempts_total", edge("client", "client", "shop", "shop", "ipv4"), ""):                 10,
				series("attempts_total", edge("client", "client", "shop", "shop", "ipv6"), ""):                 4,
				series("closed_total", edge("client", "client", "shop", "shop", "ipv4"), "ok"):                 10,
				series("attempts_total", edge("client", "client", "shop", "few", "ipv4"), ""):                  12,
				series("failures_total", edge("client", "client", "shop", "few", "ipv4"), "circuit_open"):      7,
				series("closed_total", edge("client", "client", "shop", "few", "ipv4"), "ok"):                  5,
				series("failures_total", edge("client", "client", "external", "empty", "ipv4"), "no_endpoint"): 3,
				series("attempts_total", edge("client", "rogue", "shop", "shop", "ipv4"), ""):                  6,
				series("failures_total", edge("client", "rogue", "shop", "shop", "ipv4"), "denied"):            6,
				series("failures_total", edge("client", "client", "shop", "", "ipv4"), "denied"):               2,
				series("open", edge("client", "client", "shop", "few", "ipv4"), ""):                            0,
				series("connecting", edge("client", "client", "shop", "few", "ipv4"), ""):                      0,
				series("connecting", edge("client", "rogue", "shop", "shop", "ipv4"), ""):                      0,
			} {
				if got := value(t, text, what); got != want {
					t.Errorf("%s is %d, want %d", what, got, want)
				}
			}
			w.finish()
		})
	}
}
