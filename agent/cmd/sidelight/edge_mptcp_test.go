package main

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func (c *caller) mptcp(addr netip.AddrPort) int {
	c.t.Helper()
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	return c.call("socket", 0, family, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
}

// TestMPTCP is about connections of several TCP connections, each of which has a line at each end: the subflows.
func TestMPTCP(t *testing.T) {
	const request, response = 500, 100_000
	exchange := func(c *caller, cf int, s *caller, sf int) {
		c.send(cf, request)
		s.recv(sf, request)
		s.send(sf, response)
		c.recv(cf, response)
		c.close(cf)
		s.eof(sf)
		s.close(sf)
	}
	var cases []edgeCase
	for _, one := range []struct {
		name           string
		client, server func(c *caller, addr netip.AddrPort) int
		counter        string
	}{
		{"both ends", (*caller).mptcp, (*caller).mptcp, "MPTcpExt MPCapableSYNRX"},
		{"client only", (*caller).mptcp, (*caller).tcp, "MPTcpExt MPCapableSYNTX"},
		{"server only", (*caller).tcp, (*caller).mptcp, ""},
	} {
		cases = append(cases, edgeCase{one.name, func(e *scene) {
			c, s := e.pair()
			for _, at := range []netip.AddrPort{loopback4, loopback6} {
				l := one.server(s, at)
				s.call("bind", l, at)
				s.call("listen", l, many)
				addr := s.name(l, at)
				for range many {
					cf := one.client(c, addr)
					c.call("connect", cf, addr)
					exchange(c, cf, s, s.call("accept", l))
				}
				s.close(l)
			}
			e.check(2*many, map[end]int{
				clientEnd(c, "ok", request, response): 2 * many,
				serverEnd(s, "ok", response, request): 2 * many,
			})
			if one.counter != "" {
				e.counted(map[string]uint64{one.counter: 2 * many})
			}
		}})
	}
	runEdges(t, cases...)
}
