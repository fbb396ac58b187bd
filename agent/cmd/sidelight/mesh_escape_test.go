package main

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	calls["filter"] = func(c call) (answer, error) {
		return answer{}, attachFilter(c.FD, filterSize{c.Args[0], c.Args[1]})
	}
}

// TestMeshNowhere dials 0.0.0.0 and ::, which the kernel takes for an address of this machine, but only after the connect hook.
func TestMeshNowhere(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop")
	w.servers("shop", "127.0.0.1:8003", "[::1]:8003", "127.0.1.1:8080", "0.0.0.0:8004")
	// The server is known by its addresses at one port and by where it listens at the others.
	w.run(workloadYAML("shop", "shop", "127.0.1.1") + workloadYAML("web", "web") + workloadYAML("rogue", "rogue") +
		policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web, shop]}}]}]"))
	web, rogue := w.client("web"), w.client("rogue")
	for _, test := range []struct{ to, bind, answer string }{
		{"0.0.0.0:8003", "", "127.0.0.1:8003"},
		{"[::]:8003", "", "[::1]:8003"},
		{"0.0.0.0:8004", "", "0.0.0.0:8004"},
		{"0.0.0.0:8080", "127.0.1.1", "127.0.1.1:8080"}, // bound to the server's own address: nobody is who he says by that
		{"127.0.1.1:8080", "127.0.1.1", "127.0.1.1:8080"},
	} {
		o := meshOrder{To: netip.MustParseAddrPort(test.to), Count: 1, Bind: test.bind}
		w.expect("web to "+test.to, web.do(o), only(test.answer, 1), nil)
		w.expect("rogue to "+test.to, rogue.do(o), nil, only("EPERM", 1))
	}
	c := startCaller(t, w.ns, w.dir("rogue"))
	mapped := c.call("socket", 0, unix.AF_INET6, unix.SOCK_STREAM, 0)
	c.fails("EPERM", "connect", mapped, netip.MustParseAddrPort("[::ffff:0.0.0.0]:8003"))
	c.kill()
	w.finish()
}

// TestMeshListenersTaken has others listen where a server does: its policies stay.
func TestMeshListenersTaken(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop", "other")
	w.run(workloadYAML("shop", "shop") + workloadYAML("web", "web") + workloadYAML("rogue", "rogue") +
		policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]"))
	rogue := w.client("rogue")
	shop := startCaller(t, w.ns, w.dir("shop"))
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	denied := func(what string, port uint16) {
		t.Helper()
		w.expect(what, rogue.do(meshOrder{To: at(port), Count: 1}), nil, only("EPERM", 1))
	}
	only6 := func(c *caller, port uint16) int {
		fd := c.call("socket", 0, unix.AF_INET6, unix.SOCK_STREAM, 0)
		c.call("setsockopt", fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		c.call("bind", fd, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		c.call("listen", fd, 10)
		return fd
	}
	shop.listen(netip.MustParseAddrPort("0.0.0.0:8004"), 10)
	denied("at first", 8004)
	taker := startCaller(t, w.ns, w.dir("rogue"))
	six := only6(taker, 8004)
	denied("while another listens over IPv6", 8004)
	taker.close(six)
	waitLooks(t, w, 3)
	denied("after it closed", 8004)
	// Who is no workload is first, shares the port, and goes.
	stranger := startCaller(t, w.ns, w.dir("other"))
	six = only6(stranger, 8005)
	shop.listen(netip.MustParseAddrPort("0.0.0.0:8005"), 10)
	denied("beside a stranger", 8005)
	stranger.close(six)
	waitLooks(t, w, 3)
	denied("after the stranger closed", 8005)
	// On the same address and port by SO_REUSEPORT, before and after.
	share := func(c *caller, port uint16) int {
		fd := c.tcp(at(port))
		c.call("setsockopt", fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		c.call("bind", fd, at(port))
		c.call("listen", fd, 10)
		return fd
	}
	share(taker, 8006)
	share(shop, 8006)
	denied("after another that shares the port", 8006)
	share(shop, 8007)
	share(taker, 8007)
	denied("before another that shares the port", 8007)
	// A server on all addresses has nothing to do with addresses that are not its own.
	got := rogue.do(meshOrder{To: netip.MustParseAddrPort("203.0.113.7:8004"), Count: 1})
	w.expect("elsewhere", got, nil, only("ENETUNREACH", 1))
	taker.kill()
	stranger.kill()
	shop.kill()
	w.finish()
}

// TestMeshLeaksOfMemory has sockets with too little option memory for the state of their connection, but enough for the mesh's decision.
func TestMeshLeaksOfMemory(t *testing.T) {
	w := newMeshWorld(t, "web")
	w.run(serviceYAML("few", 1, ", limits: {maxConnections: 100000}") + `---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: few-1, namespace: demo}
spec: {service: few, addresses: [198.51.100.9]}
`)
	size, err := largestFilter()
	if err != nil {
		t.Fatal(err)
	}
	c := startCaller(t, w.ns, w.dir("web"))
	for less := range 120 {
		long, short := size.long, size.short-less
		for short < 0 { // a long one is as much as some short ones
			long--
			short += 6
		}
		fd := c.call("socket", 0, unix.AF_INET, unix.SOCK_STREAM, 0)
		c.call("filter", fd, long, short)
		for try := range 2 {
			if a := c.try("connect", fd, to(serviceV4(1), 80)); a.Errno != "ENETUNREACH" && a.Errno != "EPERM" {
				t.Fatalf("with %d less: %+v", less, a)
			}
			if try == 0 {
				c.call("setsockopt", fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			}
		}
		c.close(fd)
	}
	c.kill()
	w.finish()
}

// TestMeshAllowedStays changes workloads and policies around connections that are allowed all the time: none is cut.
func TestMeshAllowedStays(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop")
	w.servers("shop", serverV4(1))
	clients := workloadYAML("web", "web") + workloadYAML("rogue", "rogue")
	policies := policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]") +
		policyYAML("q", "selector: {matchLabels: {app: rogue}}, rules: [{from: [{source: {identities: [web]}}]}]")
	first := workloadYAML("shop", "shop", "127.0.1.1") + clients + policies
	w.run(first)
	web := w.client("web")
	hold := meshOrder{To: netip.MustParseAddrPort(serverV4(1)), Count: 3, Hold: true}
	w.expect("allowed", web.do(hold), only(serverV4(1), 3), nil)
	w.change(clients + policies) // the workload goes, its policy stays
	if got := web.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("%d connections were cut when their server left the mesh", got.Cut)
	}
	w.change(first)
	w.expect("allowed", web.do(hold), only(serverV4(1), 3), nil)
	moved := workloadYAML("shop", "shop", "127.0.1.7", "127.0.1.1") + clients // another first address
	w.change(moved + policies)
	w.change(moved + policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web, other]}}]}]"))
	if got := web.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("%d connections were cut that were allowed all the time", got.Cut)
	}
	// And one that is allowed no more is, wherever its server has moved to.
	w.expect("allowed", web.do(hold), only(serverV4(1), 3), nil)
	w.change(workloadYAML("shop", "shop", "127.0.1.8", "127.0.1.1") + clients + policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [other]}}]}]"))
	want := 0
	if kernelCuts() {
		want = 3
	}
	if got := web.do(meshOrder{Release: true}); got.Cut != want {
		t.Errorf("%d connections were cut that are allowed no more, want %d", got.Cut, want)
	}
	w.finish()
}
