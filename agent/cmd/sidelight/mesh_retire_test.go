package main

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// TestMeshPortUsedAgain connects from a port whose last connection the server does not know to have ended. The server's old socket answers the SYN with an ACK,
// the client resets it, and sends its SYN again at once: it comes after the end of the old connection, and is allowed all the same.
func TestMeshPortUsedAgain(t *testing.T) {
	w := newMeshWorld(t, "web", "shop")
	w.servers("shop", serverV4(1), serverV6(1))
	// Nobody is known by his address: what lets the client in is his cgroup.
	w.run(workloadYAML("shop", "shop") + workloadYAML("web", "web") + policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]"))
	c := startCaller(t, w.ns, w.dir("web"))
	for _, ends := range []struct{ client, server string }{{"127.0.0.1:4001", serverV4(1)}, {"[fd00::2]:4001", serverV6(1)}} {
		from, to := netip.MustParseAddrPort(ends.client), netip.MustParseAddrPort(ends.server)
		connect := func() int {
			fd := c.tcp(from)
			c.call("bind", fd, from)
			c.call("connect", fd, to)
			c.recv(fd, len(ends.server)+1)
			return fd
		}
		fd := connect()
		// As a machine that crashes: nothing says to the server that this is the end.
		c.call("setsockopt", fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
		c.close(fd)
		c.close(connect())
	}
	c.kill()
	w.finish()
	type line struct{ role, reason string }
	got := make(map[line]int)
	for _, l := range readLog[meshLine](t, w.agent.Access) {
		got[line{l.Role, l.Reason}]++
	}
	if want := map[line]int{
		{"client", "reset_by_local"}: 2, {"server", "reset_by_peer"}: 2, {"client", "ok"}: 2, {"server", "ok"}: 2,
	}; !maps.Equal(got, want) {
		t.Errorf("lines: %v, want %v", got, want)
	}
}
