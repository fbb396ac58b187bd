package main

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListen is about connections that the kernel makes and no process accepts, or that it does not make for want of room.
func TestListen(t *testing.T) {
	const request = 100
	runEdges(t, edgeCase{"never accepted, client gone", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			c.send(cf, request)
			c.close(cf)
		}
		e.waitLines(many) // the clients'
		s.close(l)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0):             many,
			serverEnd(s, "reset_by_local", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many, "TcpOutRsts": many})
	}}, edgeCase{"never accepted, client there", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback6, many)
		for range many {
			cf := c.connect(addr)
			c.send(cf, request)
			c.acknowledged(cf)
		}
		s.close(l)
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_peer", request, 0):  many,
			serverEnd(s, "reset_by_local", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": 2 * many, "TcpOutRsts": many})
	}}, edgeCase{"full backlog, listener closed", func(e *scene) {
		// One more than the backlog gets in. The kernel drops the others' SYN without a word, and refuses the next.
		const room = 10
		c, s := e.pair()
		l, addr := s.listen(loopback4, room-1)
		for range room {
			c.connect(addr)
		}
		e.waitCounter("TcpPassiveOpens", room)
		var waiting []int
		for range many {
			waiting = append(waiting, c.connecting(addr))
		}
		e.gauge("connecting", many)
		e.gauge("open", room)
		s.close(l)
		for _, cf := range waiting {
			c.state(cf, tcpClose)
			if errno := c.socketError(cf); errno != unix.ECONNREFUSED {
				e.t.Fatalf("a client that had to wait gets %v", errno)
			}
		}
		e.check(room+many, map[end]int{
			clientEnd(c, "refused", 0, 0):        many,
			clientEnd(c, "reset_by_peer", 0, 0):  room,
			serverEnd(s, "reset_by_local", 0, 0): room,
		})
		e.counted(map[string]uint64{"TcpAttemptFails": many, "TcpEstabResets": 2 * room})
	}}, edgeCase{"full backlog, room later", func(e *scene) {
		const room = 10
		c, s := e.pair()
		l, addr := s.listen(loopback4, room-1)
		var clients []int
		for range room {
			clients = append(clients, c.connect(addr))
		}
		e.waitCounter("TcpPassiveOpens", room)
		for range room {
			clients = append(clients, c.connecting(addr))
		}
		e.waitCounter("TcpExtListenOverflows", room)
		var servers []int
		for range room {
			servers = append(servers, s.call("accept", l))
		}
		for _, cf := range clients {
			c.state(cf, tcpEstablished)
			c.send(cf, request)
			c.close(cf)
		}
		for range room {
			servers = append(servers, s.call("accept", l)) // in whatever order they came
		}
		for _, sf := range servers {
			s.recv(sf, request)
			s.eof(sf)
			s.close(sf)
		}
		late := 0
		for _, l := range e.check(2*room, map[end]int{
			clientEnd(c, "ok", request, 0): 2 * room,
			serverEnd(s, "ok", 0, request): 2 * room,
		}) {
			if l.Role == "client" && l.ConnectNS > 500e6 && l.Retransmits > 0 {
				late++
			}
		}
		if late != room {
			e.t.Errorf("%d connects took a second SYN, want %d", late, room)
		}
	}}, edgeCase{"full backlog for ever", func(e *scene) {
		const room = 10
		c, s := e.pair("ipv4/tcp_syn_retries=1")
		l, addr := s.listen(loopback6, room-1)
		for range room {
			c.connect(addr)
		}
		e.waitCounter("TcpPassiveOpens", room)
		for range many {
			c.connecting(addr)
		}
		e.waitLines(many)
		s.close(l)
		e.check(room+many, map[end]int{
			clientEnd(c, "timeout", 0, 0):        many,
			clientEnd(c, "reset_by_peer", 0, 0):  room,
			serverEnd(s, "reset_by_local", 0, 0): room,
		})
		e.counted(map[string]uint64{"TcpAttemptFails": many})
	}}, edgeCase{"open at one end only", func(e *scene) {
		// The last step of the handshake finds no room: these clients are connected, and no server is. They learn it when they send,
		// to a listener that is gone.
		const room = 10
		if emulatedMachine() {
			e.t.Skip("a SYN is answered once more before the listener is gone, and whoever answers that is reset")
		}
		e.strayed = true
		w, c, s := e.wired()
		l, addr := s.listen(right4, many)
		w.set(hold)
		var clients []int
		for range many {
			clients = append(clients, c.connecting(addr))
		}
		w.waitHeld(flagSYN, many)
		w.set(hold) // the SYNs go, their answers are held
		w.waitHeld(flagSYN|flagACK, many)
		w.set(hold) // the answers go, what the clients say to them is held
		for _, cf := range clients {
			c.state(cf, tcpEstablished)
		}
		s.call("listen", l, room-1)
		w.set(pass)
		e.gauge("open", many)
		eventually(e.t, "the backlog to overflow", func() error {
			if in, out := e.counter("TcpPassiveOpens"), e.counter("TcpExtListenOverflows"); in != room || out < many-room {
				return fmt.Errorf("%d are in, %d are not", in, out)
			}
			return nil
		})
		s.close(l)
		if e.counter("TcpExtTCPSynRetrans") > 0 {
			e.t.Skip("a SYN was answered once more before the listener was gone, and whoever answered that was reset")
		}
		e.gauge("open", many-room) // those that were in have been reset
		var orphans []int
		for _, cf := range clients {
			if c.try("send", cf, request).Errno == "" {
				orphans = append(orphans, cf)
			}
		}
		if len(orphans) != many-room {
			e.t.Errorf("%d clients could send, want %d", len(orphans), many-room)
		}
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_peer", 0, 0):       room,
			serverEnd(s, "reset_by_local", 0, 0):      room,
			clientEnd(c, "reset_by_peer", request, 0): many - room,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many + room})
	}}, edgeCase{"SYN cookies", func(e *scene) {
		// The server's kernel keeps nothing of a SYN, and makes the connection of the client's ACK alone.
		c, s := e.pair("ipv4/tcp_syncookies=2")
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			c.close(cf)
			s.eof(sf)
			s.close(sf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpExtSyncookiesRecv": many, "TcpExtSyncookiesSent": many})
	}}, edgeCase{"deferred accept, reset", func(e *scene) {
		// With TCP_DEFER_ACCEPT the client is connected and the server waits for its first data. Here a reset comes instead.
		e.strayed = true
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		s.call("setsockopt", l, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5)
		for range many {
			cf := c.connect(addr)
			c.call("linger", cf)
			c.close(cf)
		}
		e.check(many, map[end]int{clientEnd(c, "reset_by_local", 0, 0): many})
		e.counted(map[string]uint64{"TcpEstabResets": many, "TcpAttemptFails": many})
	}}, edgeCase{"several listeners on one port", func(e *scene) {
		// SO_REUSEPORT: the kernel chooses the listener, and the line must name its process.
		const processes = 4
		ns := e.space()
		c := e.caller(ns, "client")
		addr := loopback4
		var servers []*caller
		var listeners []int
		for range processes {
			s := e.caller(ns, "server")
			l := s.tcp(addr)
			s.call("setsockopt", l, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			s.call("bind", l, addr)
			s.call("listen", l, 4*many)
			s.call("nonblock", l, 1)
			addr = s.name(l, addr)
			servers, listeners = append(servers, s), append(listeners, l)
		}
		for range 4 * many {
			cf := c.connect(addr)
			c.send(cf, request)
			c.close(cf)
		}
		e.waitCounter("TcpPassiveOpens", 4*many)
		want := map[end]int{clientEnd(c, "ok", request, 0): 4 * many}
		for i, s := range servers {
			for {
				a := s.try("accept", listeners[i])
				if a.Errno == "EAGAIN" {
					break
				}
				s.recv(a.N, request)
				s.eof(a.N)
				s.close(a.N)
				want[serverEnd(s, "ok", 0, request)]++
			}
		}
		e.check(4*many, want)
	}})
}
