package main

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMeshListeners judges who connects to a server that shares its addresses with others: it is known by where it listens.
func TestMeshListeners(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop", "other")
	// One that listens before the agent is there, on any address of both families; and one beside it that is no workload.
	early := w.servers("shop", "[::]:8001")
	w.servers("other", "[::]:8002")
	mesh := func(policy string) string {
		return workloadYAML("shop", "shop") + workloadYAML("web", "web") + workloadYAML("rogue", "rogue") + policy
	}
	w.run(mesh(policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]")))
	servers := w.servers("shop", "127.0.0.1:8003", "[::1]:8003", "0.0.0.0:8004", "[::]:8005")
	web, rogue, stranger := w.client("web"), w.client("rogue"), w.client("other")
	try := func(what string, allowed bool, targets ...string) {
		t.Helper()
		for _, target := range targets {
			for name, c := range map[string]*meshCaller{"web": web, "rogue": rogue, "stranger": stranger} {
				got := c.do(meshOrder{To: netip.MustParseAddrPort(target), Count: 2})
				// That an address is this namespace's only the server's side knows, unless it is of loopback.
				errno := "ECONNREFUSED"
				if netip.MustParseAddrPort(target).Addr().IsLoopback() {
					errno = "EPERM"
				}
				if ok := allowed || name == "web"; ok != (len(got.Errors) == 0) || !ok && got.Errors[errno] != 2 {
					t.Errorf("%s: %s to %s: answers %v and errors %v", what, name, target, got.Answers, got.Errors)
				}
			}
		}
	}
	try("a server from before", false, "127.0.0.1:8001", "[::1]:8001", "127.0.5.5:8001", "[fd00::3]:8001")
	try("no workload", true, "127.0.0.1:8002", "[::1]:8002")
	try("one address", false, "127.0.0.1:8003", "[::1]:8003")
	try("any of IPv4", false, "127.0.0.1:8004", "127.0.7.7:8004")
	try("any of both", false, "127.0.0.1:8005", "[::1]:8005", "[fd00::2]:8005")
	// By address: there is no way to know before the SYN, so the server's side refuses.
	w.change(mesh(policyYAML("p", ofShop+`rules: [{from: [{source: {ipBlocks: ["127.0.0.2/32"]}}]}]`)))
	for bind, errs := range map[string]map[string]int{"127.0.0.2": nil, "127.0.0.3": only("EPERM", 1), "": only("ECONNREFUSED", 1)} {
		got := web.do(meshOrder{To: netip.MustParseAddrPort("127.0.0.1:8003"), Count: 1, Bind: bind})
		if fmt.Sprint(got.Errors) != fmt.Sprint(errs) && len(got.Errors)+len(errs) > 0 {
			t.Errorf("from %q: errors %v, want %v", bind, got.Errors, errs)
		}
	}
	w.change(mesh(policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]")))
	// Two listeners share a port; one goes, the other is still judged for.
	a, b := startCaller(t, w.ns, w.dir("shop")), startCaller(t, w.ns, w.dir("shop"))
	at := netip.MustParseAddrPort("127.0.0.1:8006")
	shared := func(c *caller) int {
		fd := c.tcp(at)
		c.call("setsockopt", fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		c.call("bind", fd, at)
		c.call("listen", fd, 10)
		return fd
	}
	first := shared(a)
	shared(b)
	a.close(first)
	waitLooks(t, w, 3)
	if got := rogue.do(meshOrder{To: at, Count: 1}); got.Errors["EPERM"] != 1 {
		t.Errorf("after one of two listeners went: %v %v, want EPERM", got.Answers, got.Errors)
	}
	// Somebody who is no workload listens where a workload did.
	servers.say("close 127.0.0.1:8003")
	w.servers("other", "127.0.0.1:8003")
	try("after another took the port", true, "127.0.0.1:8003")
	a.kill()
	b.kill()
	early.say("close [::]:8001")
	w.finish()
}

// waitLooks waits until the agent has looked around so often.
func waitLooks(t *testing.T, w *meshWorld, n uint64) {
	t.Helper()
	looks := func() uint64 {
		report, err := fetchMesh(t.Context(), w.state)
		if err != nil {
			t.Fatal(err)
		}
		return report.Looks
	}
	begin := looks()
	eventually(t, "the agent to look around", func() error {
		if got := looks(); got < begin+n {
			return fmt.Errorf("it has done so %d times", got-begin)
		}
		return nil
	})
}
