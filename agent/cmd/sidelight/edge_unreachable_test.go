package main

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// TestUnreachable connects to where no way leads: as this machine knows, or as a router says.
func TestUnreachable(t *testing.T) {
	type route struct {
		to, errno string
		kind      int
	}
	var cases []edgeCase
	for _, r := range []struct {
		route
		reason string // of the line
		count  int
	}{
		// An IPv4 router sends a host five of these, then one a second (net.ipv4.route.error_burst, which no namespace can change).
		{route{"198.51.100.1", "EHOSTUNREACH", unix.RTN_UNREACHABLE}, "unreachable", 5},
		{route{"198.51.100.2", "EHOSTUNREACH", unix.RTN_PROHIBIT}, "unreachable", 5}, // for want of an errno of its own
		{route{"198.51.100.3", "ETIMEDOUT", unix.RTN_BLACKHOLE}, "timeout", many},
		{route{"2001:db8:1::1", "ENETUNREACH", unix.RTN_UNREACHABLE}, "unreachable", many},
		{route{"2001:db8:1::2", "EACCES", unix.RTN_PROHIBIT}, "denied", many},
		{route{"2001:db8:1::3", "ETIMEDOUT", unix.RTN_BLACKHOLE}, "timeout", many},
	} {
		to := netip.MustParseAddr(r.to)
		cases = append(cases, edgeCase{"a router says " + r.errno + " of " + r.to, func(e *scene) {
			w := e.newWire("ipv4/tcp_syn_retries=1")
			// A router that answers each packet, however many they are.
			e.sysctl(w.right, "ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/icmp_ratemask=0", "ipv6/icmp/ratelimit=0")
			if err := lab.In(w.right, func() error { return addRoute(to, r.kind) }); err != nil {
				e.t.Fatal(err)
			}
			if err := lab.In(w.left, func() error { return addGateway(to, w.zone[0]) }); err != nil {
				e.t.Fatal(err)
			}
			c := e.caller(w.left, "client")
			addr := netip.AddrPortFrom(to, 80)
			var clients []int
			for range r.count {
				clients = append(clients, c.connecting(addr))
			}
			for _, cf := range clients {
				c.state(cf, tcpClose)
				if errno := unix.ErrnoName(c.socketError(cf)); errno != r.errno {
					e.t.Fatalf("connect fails with %s", errno)
				}
			}
			e.check(r.count, map[end]int{clientEnd(c, r.reason, 0, 0): r.count})
			e.counted(map[string]uint64{"TcpAttemptFails": uint64(r.count)})
		}})
	}
	cases = append(cases, edgeCase{"this machine says so", func(e *scene) {
		// No SYN leaves, so there is no connection: only the last one counts.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for _, r := range []route{
			{"198.51.100.1", "EHOSTUNREACH", unix.RTN_UNREACHABLE},
			{"198.51.100.2", "EACCES", unix.RTN_PROHIBIT},
			{"198.51.100.3", "EINVAL", unix.RTN_BLACKHOLE},
			{"198.51.100.4", "ENETUNREACH", 0}, // no route at all
			{"2001:db8:1::1", "EHOSTUNREACH", unix.RTN_UNREACHABLE},
			{"2001:db8:1::2", "EACCES", unix.RTN_PROHIBIT},
			{"2001:db8:1::3", "EINVAL", unix.RTN_BLACKHOLE},
			{"2001:db8:1::4", "ENETUNREACH", 0},
		} {
			to := netip.MustParseAddr(r.to)
			if r.kind != 0 {
				if err := lab.In(e.spaces[0], func() error { return addRoute(to, r.kind) }); err != nil {
					e.t.Fatal(err)
				}
			}
			for range many {
				at := netip.AddrPortFrom(to, 80)
				cf := c.tcp(at)
				c.fails(r.errno, "connect", cf, at)
				c.close(cf)
			}
		}
		c.close(c.connect(addr))
		sf := s.call("accept", l)
		s.eof(sf)
		s.close(sf)
		e.check(1, map[end]int{clientEnd(c, "ok", 0, 0): 1, serverEnd(s, "ok", 0, 0): 1})
	}})
	runEdges(t, cases...)
}

func addRoute(to netip.Addr, kind int) error {
	return netlink.RouteAdd(&netlink.Route{Dst: prefix(netip.PrefixFrom(to, to.BitLen()).String()), Type: kind})
}

// addGateway has the other end of the wire be the way to an address.
func addGateway(to netip.Addr, link int) error {
	gateway := right4.Addr()
	if to.Is6() {
		gateway = right6.Addr()
	}
	return netlink.RouteAdd(&netlink.Route{Dst: prefix(netip.PrefixFrom(to, to.BitLen()).String()), Gw: gateway.AsSlice(), LinkIndex: link})
}
