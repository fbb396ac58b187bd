package main

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTimeWait is about the end of the end: who closes first is done when the other end's FIN arrives, and what the kernel keeps in
// TIME_WAIT afterwards is no connection any more.
func TestTimeWait(t *testing.T) {
	const request = 100
	runEdges(t, edgeCase{"the line comes with the peer's FIN", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		var clients []int
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.call("shutdown", cf, unix.SHUT_WR)
			s.recv(sf, request)
			c.state(cf, tcpFinWait2)
			s.close(sf)
			c.state(cf, tcpClose)
			clients = append(clients, cf)
		}
		// Nobody has closed the client's sockets, nor read their end.
		e.waitLines(2 * many)
		c.close(clients...)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpOutRsts": 0})
	}}, edgeCase{"client reuses its port", func(e *scene) {
		// The client has TIME_WAIT. It may have the port again after a second.
		e.reusePort(func(c, s *caller, cf, sf int) {
			c.close(cf)
			s.eof(sf)
			s.close(sf)
		}, "ipv4/tcp_tw_reuse=1")
		e.counted(map[string]uint64{"TcpExtTWRecycled": many, "TcpOutRsts": 0})
	}}, edgeCase{"server gets a SYN in TIME_WAIT", func(e *scene) {
		// One within a millisecond of the last segment does not pass for new: it is reset out of the way, and sent again.
		e.reusePort(func(c, s *caller, cf, sf int) {
			s.close(sf)
			c.eof(cf)
			c.close(cf)
		})
		e.counted(map[string]uint64{"TcpExtTWRecycled": 0})
	}}, edgeCase{"simultaneous close", func(e *scene) {
		w, c, s := e.wired()
		l, addr := s.listen(right4, many)
		var clients, servers []int
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			s.send(sf, 2*request)
			c.recv(cf, 2*request)
			clients, servers = append(clients, cf), append(servers, sf)
		}
		w.set(hold)
		for i := range many {
			c.call("shutdown", clients[i], unix.SHUT_WR)
			s.call("shutdown", servers[i], unix.SHUT_WR)
		}
		w.waitHeld(flagFIN|flagACK, 2*many)
		w.set(hold) // the FINs cross, their acknowledgements are held
		for i := range many {
			c.state(clients[i], tcpClosing)
			s.state(servers[i], tcpClosing)
		}
		w.set(pass)
		c.close(clients...)
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 2*request): many,
			serverEnd(s, "ok", 2*request, request): many,
		})
		e.counted(map[string]uint64{"TcpOutRsts": 0})
	}}, edgeCase{"no room for TIME_WAIT, orphan", func(e *scene) {
		// close() wants a TIME_WAIT socket for FIN_WAIT2 already; without one the client's end is gone, and the server's FIN gets a reset.
		c, s := e.pair("ipv4/tcp_max_tw_buckets=0")
		l, addr := s.listen(loopback4, many)
		var servers []int
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.close(cf)
			s.recv(sf, request)
			s.eof(sf)
			servers = append(servers, sf)
		}
		e.waitLines(many) // the servers' kernel has acknowledged the FIN, which it may do late
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0):            many,
			serverEnd(s, "reset_by_peer", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpOutRsts": many, "TcpExtTCPTimeWaitOverflow": many})
	}}, edgeCase{"no room for TIME_WAIT", func(e *scene) {
		c, s := e.pair("ipv4/tcp_max_tw_buckets=0")
		l, addr := s.listen(loopback6, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.call("shutdown", cf, unix.SHUT_WR)
			s.recv(sf, request)
			s.eof(sf)
			s.close(sf)
			c.eof(cf)
			c.close(cf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpOutRsts": 0, "TcpExtTCPTimeWaitOverflow": many})
	}})
}

// reusePort makes connections twice between the same ports; the first have been closed as told.
func (e *scene) reusePort(finish func(c, s *caller, cf, sf int), sysctls ...string) {
	e.t.Helper()
	c, s := e.pair(sysctls...)
	l, addr := s.listen(loopback4, many)
	ports := make([]netip.AddrPort, many)
	for round := 1; round <= 2; round++ {
		for i := range ports {
			var cf int
			eventually(e.t, "the port", func() error {
				cf = c.tcp(addr)
				c.call("setsockopt", cf, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
				if round == 1 {
					c.call("bind", cf, loopback4)
					ports[i] = c.name(cf, addr)
				} else {
					c.call("bind", cf, ports[i])
				}
				if a := c.try("connect", cf, addr); a.Errno != "" {
					c.close(cf) // EADDRNOTAVAIL: no SYN has left
					return errors.New(a.Errno)
				}
				return nil
			})
			sf := s.call("accept", l)
			c.send(cf, 10*round)
			s.recv(sf, 10*round)
			finish(c, s, cf, sf)
		}
	}
	e.check(2*many, map[end]int{
		clientEnd(c, "ok", 10, 0): many, clientEnd(c, "ok", 20, 0): many,
		serverEnd(s, "ok", 0, 10): many, serverEnd(s, "ok", 0, 20): many,
	})
}
