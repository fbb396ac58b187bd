package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestHalfClose ends one direction of a connection long before the other.
func TestHalfClose(t *testing.T) {
	const request, response = 1000, 256 << 10
	runEdges(t, edgeCase{"client first", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.call("shutdown", cf, unix.SHUT_WR)
			s.recv(sf, request)
			s.eof(sf)
			for range response / (64 << 10) {
				s.send(sf, 64<<10)
				c.recv(cf, 64<<10)
			}
			s.close(sf)
			c.eof(cf)
			c.close(cf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, response): many,
			serverEnd(s, "ok", response, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": 0, "TcpOutRsts": 0})
	}}, edgeCase{"server first", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback6, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			s.send(sf, request)
			s.call("shutdown", sf, unix.SHUT_WR)
			c.recv(cf, request)
			c.eof(cf)
			for range response / (64 << 10) {
				c.send(cf, 64<<10)
				s.recv(sf, 64<<10)
			}
			c.close(cf)
			s.eof(sf)
			s.close(sf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", response, request): many,
			serverEnd(s, "ok", request, response): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": 0, "TcpOutRsts": 0})
	}}, edgeCase{"closed, then data", func(e *scene) {
		// The FIN is acknowledged, and close() leaves the rest to a socket of TIME_WAIT's kind: the line comes then. What the server sends
		// later is answered with a reset that is of no connection of the client any more.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		var servers []int
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			c.close(cf)
			s.eof(sf)
			servers = append(servers, sf)
		}
		e.waitLines(many) // acknowledged, which the kernel may do late
		for _, sf := range servers {
			s.send(sf, 10)
			s.state(sf, tcpClose)
		}
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0):             many,
			serverEnd(s, "reset_by_peer", 10, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many, "TcpOutRsts": many, "TcpExtTCPAbortOnData": 0})
	}}, edgeCase{"closed, then data with the acknowledgement", func(e *scene) {
		// The same from outside, and the same reason; but here one segment does both, and the reset is of the client's socket.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			c.close(cf)
			s.send(sf, 10) // before the late acknowledgement, or after: the numbers are the same
			s.state(sf, tcpClose)
			s.close(sf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0):             many,
			serverEnd(s, "reset_by_peer", 10, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many, "TcpOutRsts": many})
	}})
}
