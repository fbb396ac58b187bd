package main

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is a port on which nobody listens.
var nobody = netip.MustParseAddrPort("127.0.0.1:1")

// connecting makes a socket whose connect is under way.
func (c *caller) connecting(addr netip.AddrPort) int {
	c.t.Helper()
	fd := c.tcp(addr)
	c.call("nonblock", fd, 1)
	c.fails("EINPROGRESS", "connect", fd, addr)
	return fd
}

// socketError takes a socket's error.
func (c *caller) socketError(fd int) unix.Errno {
	c.t.Helper()
	return unix.Errno(c.call("getsockopt", fd, unix.SOL_SOCKET, unix.SO_ERROR))
}

// gauge waits for a client's gauge of the case.
func (e *scene) gauge(metric string, want uint64) {
	e.t.Helper()
	name := fmt.Sprintf("sidelight_tcp_connection_%s{local_workload=%q,role=\"client\"}", metric, e.label()+"/client")
	eventually(e.t, name, func() error {
		if got, found := find(e.metrics(), name); got != want || !found {
			return fmt.Errorf("it is %d, want %d", got, want)
		}
		return nil
	})
}

// TestConnect is about connects that do not come off at once, or the first time.
func TestConnect(t *testing.T) {
	const request = 100
	runEdges(t, edgeCase{"non-blocking, answered late", func(e *scene) {
		w, c, s := e.wired()
		l, addr := s.listen(right4, many)
		w.set(hold)
		var clients []int
		for range many {
			clients = append(clients, c.connecting(addr))
		}
		e.gauge("connecting", many)
		w.set(pass)
		for _, cf := range clients {
			c.state(cf, tcpEstablished)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.close(cf)
			s.recv(sf, request)
			s.eof(sf)
			s.close(sf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpAttemptFails": 0})
	}}, edgeCase{"non-blocking, abandoned", func(e *scene) {
		w, c, s := e.wired()
		_, addr := s.listen(right6, many)
		w.set(lose)
		var clients []int
		for range many {
			clients = append(clients, c.connecting(addr))
		}
		e.gauge("connecting", many)
		c.close(clients...)
		e.check(many, map[end]int{clientEnd(c, "aborted", 0, 0): many})
		// The kernel counts as failed what an answer or a timer ends.
		e.counted(map[string]uint64{"TcpAttemptFails": 0})
	}}, edgeCase{"abandoned, and answered all the same", func(e *scene) {
		// The server's kernel answers a SYN whose sender is gone, and gets a reset: no connection of the server's.
		w, c, s := e.wired()
		e.strayed = true // what answers a SYN may be sent again on a slow machine, and is of no connection
		_, addr := s.listen(right4, many)
		w.set(hold)
		var clients []int
		for range many {
			clients = append(clients, c.connecting(addr))
		}
		w.waitHeld(flagSYN, many)
		c.close(clients...)
		w.set(pass)
		// A SYN that was sent again meanwhile gets another answer, and that another reset.
		eventually(e.t, "the server's kernel to give up", func() error {
			if resets, fails := e.counter("TcpOutRsts"), e.counter("TcpAttemptFails"); resets < many || fails < many {
				return fmt.Errorf("%d resets, %d failed", resets, fails)
			}
			return nil
		})
		e.check(many, map[end]int{clientEnd(c, "aborted", 0, 0): many})
	}}, edgeCase{"again on the same socket", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.tcp(addr)
			c.fails("ECONNREFUSED", "connect", cf, nobody)
			c.fails("ECONNREFUSED", "connect", cf, nobody)
			c.call("connect", cf, addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.close(cf)
			s.recv(sf, request)
			s.eof(sf)
			s.close(sf)
		}
		lines := e.check(3*many, map[end]int{
			clientEnd(c, "refused", 0, 0):  2 * many,
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpAttemptFails": 2 * many})
		uids := make(map[string]bool)
		for _, l := range lines {
			uids[l.UID] = true
		}
		if len(uids) != 4*many {
			e.t.Errorf("%d uids of %d lines", len(uids), 4*many)
		}
	}}, edgeCase{"disconnected and connected anew", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback6, many)
		for range many {
			cf := c.tcp(addr)
			for round := 1; round <= 2; round++ {
				c.call("connect", cf, addr)
				sf := s.call("accept", l)
				c.send(cf, request*round)
				s.recv(sf, request*round)
				s.send(sf, request)
				c.recv(cf, request)
				if round == 1 {
					c.call("disconnect", cf)
					s.fails("ECONNRESET", "recv", sf, 1)
				} else {
					c.close(cf)
					s.eof(sf)
				}
				s.close(sf)
			}
		}
		e.check(2*many, map[end]int{
			clientEnd(c, "reset_by_local", request, request): many,
			serverEnd(s, "reset_by_peer", request, request):  many,
			clientEnd(c, "ok", 2*request, request):           many,
			serverEnd(s, "ok", request, 2*request):           many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": 2 * many, "TcpOutRsts": many})
	}}, edgeCase{"disconnected while connecting, then connected", func(e *scene) {
		w, c, s := e.wired()
		l, addr := s.listen(right4, many)
		w.set(lose)
		var clients []int
		for range many {
			cf := c.connecting(addr)
			c.call("disconnect", cf)
			clients = append(clients, cf)
		}
		w.set(pass)
		for _, cf := range clients {
			c.call("nonblock", cf, 0)
			c.call("connect", cf, addr)
			sf := s.call("accept", l)
			c.close(cf)
			s.eof(sf)
			s.close(sf)
		}
		e.check(2*many, map[end]int{
			clientEnd(c, "aborted", 0, 0): many,
			clientEnd(c, "ok", 0, 0):      many,
			serverEnd(s, "ok", 0, 0):      many,
		})
	}}, edgeCase{"to itself", func(e *scene) {
		// One socket is both ends. It is a client: nobody listened.
		c := e.caller(e.space(), "client")
		for _, on := range []netip.AddrPort{loopback4, loopback6} {
			for range many {
				cf := c.tcp(on)
				c.call("bind", cf, on)
				c.call("connect", cf, c.name(cf, on))
				c.send(cf, request)
				c.recv(cf, request)
				c.close(cf)
			}
		}
		e.check(2*many, map[end]int{clientEnd(c, "ok", request, request): 2 * many})
		e.counted(map[string]uint64{"TcpOutRsts": 0, "TcpAttemptFails": 0})
	}}, edgeCase{"to each other", func(e *scene) {
		// SYNs cross: both ends have connected, there is no server. Each end takes its own SYN for the first, so each is a trace of its own.
		w, a, b := e.wired()
		w.set(hold)
		var as, bs []int
		for i := range many {
			from := netip.AddrPortFrom(left4.Addr(), uint16(20000+i))
			to := netip.AddrPortFrom(right4.Addr(), uint16(20000+i))
			af, bf := a.tcp(from), b.tcp(to)
			for _, end := range []struct {
				c        *caller
				fd       int
				from, to netip.AddrPort
			}{{a, af, from, to}, {b, bf, to, from}} {
				end.c.call("bind", end.fd, end.from)
				end.c.call("nonblock", end.fd, 1)
				end.c.fails("EINPROGRESS", "connect", end.fd, end.to)
			}
			as, bs = append(as, af), append(bs, bf)
		}
		w.waitHeld(flagSYN, 2*many)
		w.set(pass)
		for i := range many {
			a.state(as[i], tcpEstablished)
			b.state(bs[i], tcpEstablished)
			a.call("nonblock", as[i], 0)
			b.call("nonblock", bs[i], 0)
			a.send(as[i], request)
			b.recv(bs[i], request)
			b.send(bs[i], 2*request)
			a.recv(as[i], 2*request)
			a.close(as[i])
			b.eof(bs[i])
			b.close(bs[i])
		}
		other := clientEnd(b, "ok", 2*request, request)
		other.Cgroup = "server"
		e.check(2*many, map[end]int{clientEnd(a, "ok", request, 2*request): many, other: many})
		e.counted(map[string]uint64{"TcpOutRsts": 0, "TcpAttemptFails": 0})
	}}, edgeCase{"link-local addresses", func(e *scene) {
		w, c, s := e.wired()
		at := netip.AddrPortFrom(rightLocal.WithZone(fmt.Sprint(w.zone[1])), 0)
		l, addr := s.listen(at, many)
		addr = netip.AddrPortFrom(addr.Addr().WithZone(fmt.Sprint(w.zone[0])), addr.Port())
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			c.close(cf)
			s.recv(sf, request)
			s.eof(sf)
			s.close(sf)
		}
		for _, l := range e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		}) {
			want := []string{leftLocal.String(), rightLocal.String()}
			if l.Role == "server" {
				want[0], want[1] = want[1], want[0]
			}
			if l.LocalAddr != want[0] || l.PeerAddr != want[1] || l.NetworkType != "ipv6" {
				e.t.Fatalf("want %v: %+v", want, l)
			}
		}
	}})
}
