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
		e.counted(map[string]uint64{"Tcp EstabResets": 0, "Tcp OutRsts": 0})
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
		e.counted(map[string]uint64{"Tcp EstabResets": 0, "Tcp OutRsts": 0})
	}}, edgeCase{"closed, then data", func(e *scene) {
		// close() leaves FIN_WAIT2 to a socket of TIME_WAIT's kind, and the line comes then: what arrives later is answered with a reset
		// that belongs to no connection of the client any more.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			c.close(cf)
			s.eof(sf)
			s.send(sf, 10)
			s.state(sf, tcpClose)
			s.close(sf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0):             many,
			serverEnd(s, "reset_by_peer", 10, request): many,
		})
		e.counted(map[string]uint64{"Tcp EstabResets": many, "Tcp OutRsts": many})
	}})
}
