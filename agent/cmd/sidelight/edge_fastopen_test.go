package main

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Bits of net.ipv4.tcp_fastopen, and what is not in package unix.
const (
	fastopenBoth     = "ipv4/tcp_fastopen=3"    // client and server, with a cookie
	fastopenNoCookie = "ipv4/tcp_fastopen=1543" // 0x607: neither needs one, every listener takes part
	fastopenInVain   = "ipv4/tcp_fastopen=5"    // a client without a cookie, a server that takes no part
	msgFastopen      = unix.MSG_FASTOPEN
)

// TestFastOpen sends data with the SYN.
func TestFastOpen(t *testing.T) {
	const request, response = 500, 3000
	// serve answers and lets the client close.
	serve := func(c *caller, cf int, s *caller, l int) {
		sf := s.call("accept", l)
		s.recv(sf, request)
		s.send(sf, response)
		c.recv(cf, response)
		c.close(cf)
		s.eof(sf)
		s.close(sf)
	}
	ok := func(e *scene, c, s *caller, n int) []edgeLine {
		e.t.Helper()
		return e.check(n, map[end]int{
			clientEnd(c, "ok", request, response): n,
			serverEnd(s, "ok", response, request): n,
		})
	}
	runEdges(t, edgeCase{"without a cookie", func(e *scene) {
		c, s := e.pair(fastopenNoCookie)
		for _, at := range []netip.AddrPort{loopback4, loopback6} {
			l, addr := s.listen(at, many)
			for range many {
				cf := c.tcp(addr)
				c.call("send", cf, request, msgFastopen, addr)
				serve(c, cf, s, l)
			}
		}
		ok(e, c, s, 2*many)
		e.counted(map[string]uint64{"TcpExtTCPFastOpenActive": 2 * many, "TcpExtTCPFastOpenPassive": 2 * many})
	}}, edgeCase{"with a cookie", func(e *scene) {
		// The first connection gets the cookie, and sends its data after the handshake.
		c, s := e.pair(fastopenBoth)
		l, addr := s.listen(loopback4, many)
		s.call("setsockopt", l, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, many)
		for range many {
			cf := c.tcp(addr)
			c.call("send", cf, request, msgFastopen, addr)
			serve(c, cf, s, l)
		}
		ok(e, c, s, many)
		e.counted(map[string]uint64{
			"TcpExtTCPFastOpenCookieReqd": 1, "TcpExtTCPFastOpenActive": many - 1, "TcpExtTCPFastOpenPassive": many - 1,
		})
	}}, edgeCase{"by connect and write", func(e *scene) {
		// With TCP_FASTOPEN_CONNECT connect does nothing yet, the first write sends the SYN.
		c, s := e.pair(fastopenNoCookie)
		l, addr := s.listen(loopback6, many)
		for range many {
			cf := c.tcp(addr)
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
			c.call("connect", cf, addr)
			c.send(cf, request)
			serve(c, cf, s, l)
		}
		ok(e, c, s, many)
		e.counted(map[string]uint64{"TcpExtTCPFastOpenActive": many, "TcpExtTCPFastOpenPassive": many})
	}}, edgeCase{"by connect, and no write", func(e *scene) {
		// No SYN leaves: no connection.
		c, s := e.pair(fastopenNoCookie)
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.tcp(addr)
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
			c.call("connect", cf, addr)
			c.close(cf)
		}
		cf := c.connect(addr)
		c.send(cf, request)
		serve(c, cf, s, l)
		ok(e, c, s, 1)
	}}, edgeCase{"in vain", func(e *scene) {
		// The server's kernel takes the SYN and not its data, which is sent again.
		c, s := e.pair(fastopenInVain)
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.tcp(addr)
			c.call("send", cf, request, msgFastopen, addr)
			serve(c, cf, s, l)
		}
		ok(e, c, s, many)
		e.counted(map[string]uint64{"TcpExtTCPFastOpenActive": 0, "TcpExtTCPFastOpenActiveFail": many, "TcpExtTCPFastOpenPassive": 0})
	}}, edgeCase{"refused", func(e *scene) {
		// The data left with the SYN, and arrived nowhere.
		c := e.caller(e.space(fastopenNoCookie), "client")
		for range many {
			cf := c.tcp(nobody)
			c.fails("ECONNREFUSED", "send", cf, request, msgFastopen, nobody)
			c.close(cf)
		}
		e.check(many, map[end]int{clientEnd(c, "refused", request, 0): many})
		e.counted(map[string]uint64{"TcpAttemptFails": many})
	}}, edgeCase{"never accepted", func(e *scene) {
		c, s := e.pair(fastopenNoCookie)
		l, addr := s.listen(loopback4, many)
		for range many {
			c.call("send", c.tcp(addr), request, msgFastopen, addr)
		}
		s.close(l)
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_peer", request, 0):  many,
			serverEnd(s, "reset_by_local", 0, request): many,
		})
	}})
}
