package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// errNoDestroy says that this kernel cannot destroy sockets on request, or has not loaded what does.
var errNoDestroy = errors.New("no SOCK_DESTROY")

// destroySocket has the kernel abort a socket, as "ss -K" does.
func destroySocket(local, peer netip.AddrPort) error {
	err := netlink.SocketDestroy(net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(peer))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", errNoDestroy, err)
	}
	return err
}

// TestCut is about connections that neither process ends.
func TestCut(t *testing.T) {
	const request = 100
	open := func(c, s *caller) (addr netip.AddrPort, clients, servers []int) {
		l, addr := s.listen(right4, many)
		for range many {
			clients = append(clients, c.connect(addr))
			servers = append(servers, s.call("accept", l))
		}
		return addr, clients, servers
	}
	runEdges(t, edgeCase{"TCP_USER_TIMEOUT", func(e *scene) {
		w, c, s := e.wired()
		_, clients, servers := open(c, s)
		w.set(lose)
		for _, cf := range clients {
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 500)
			c.send(cf, request)
		}
		e.waitLines(many)
		// The client's end is gone. The server's learns it when it says something.
		w.set(pass)
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "timeout", request, 0): many,
			serverEnd(s, "reset_by_peer", 0, 0): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many})
	}}, edgeCase{"keepalive", func(e *scene) {
		w, c, s := e.wired()
		_, clients, servers := open(c, s)
		for _, cf := range clients {
			c.send(cf, request)
		}
		for _, sf := range servers {
			s.recv(sf, request)
		}
		c.acknowledged(clients...) // or it would be sent again, for longer than there is patience, and not kept alive
		w.set(lose)
		for _, cf := range clients {
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1)
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 1)
			c.call("setsockopt", cf, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		}
		e.waitLines(many)
		w.set(pass)
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "timeout", request, 0):       many,
			serverEnd(s, "reset_by_peer", 0, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many})
	}}, edgeCase{"SOCK_DESTROY", func(e *scene) {
		w, c, s := e.wired()
		addr, clients, servers := open(c, s)
		destroy := func(fds []int) {
			var locals []netip.AddrPort
			for _, cf := range fds {
				locals = append(locals, c.name(cf, addr))
			}
			err := lab.In(w.left, func() error {
				for _, local := range locals {
					if err := destroySocket(local, addr); err != nil {
						return err
					}
				}
				return nil
			})
			if errors.Is(err, errNoDestroy) {
				c.kill()
				s.kill()
				e.checked = len(e.waitLines(2 * many))
				e.t.Skip(err)
			}
			if err != nil {
				e.t.Fatal(err)
			}
		}
		for i, cf := range clients {
			c.send(cf, request)
			s.recv(servers[i], request)
		}
		destroy(clients)
		e.waitLines(2 * many) // the resets have arrived
		w.set(lose)
		var connecting []int
		for range many {
			connecting = append(connecting, c.connecting(addr))
		}
		destroy(connecting)
		e.check(2*many, map[end]int{
			clientEnd(c, "reset_by_local", request, 0): many,
			serverEnd(s, "reset_by_peer", 0, request):  many,
			clientEnd(c, "reset_by_local", 0, 0):       many, // these had not been answered yet
		})
		e.counted(map[string]uint64{"TcpEstabResets": 2 * many, "TcpAttemptFails": many})
	}}, edgeCase{"host gone", func(e *scene) {
		// The server's process is killed and its FIN lost. Each end sends into the void until its kernel gives up.
		w, c, s := e.wired("ipv4/tcp_retries2=2", "ipv4/tcp_orphan_retries=2")
		_, clients, _ := open(c, s)
		w.set(lose)
		s.kill()
		for _, cf := range clients {
			c.send(cf, request)
		}
		e.check(many, map[end]int{
			clientEnd(c, "timeout", request, 0): many,
			serverEnd(s, "timeout", 0, 0):       many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many})
	}})
}
