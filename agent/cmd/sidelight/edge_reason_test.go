package main

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReasonOfOrderlyEnds is about what the kernel leaves in a socket's sk_err although it does not end the connection, or ends it in
// another way than the error says.
func TestReasonOfOrderlyEnds(t *testing.T) {
	const request, response = 100, 200
	var cases []edgeCase
	for _, asked := range []bool{false, true} {
		name := "ICMP for an open connection"
		if asked {
			name += ", with IP_RECVERR"
		}
		cases = append(cases, edgeCase{name, func(e *scene) {
			// One router's word about one segment. The next way is good, and the connection goes on to its orderly end.
			w, c, s := e.wired()
			l, addr := s.listen(right4, many)
			var clients, servers []int
			for range many {
				cf := c.connect(addr)
				if asked {
					c.call("setsockopt", cf, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
				}
				clients, servers = append(clients, cf), append(servers, s.call("accept", l))
			}
			w.set(hold)
			for _, cf := range clients {
				c.send(cf, request)
			}
			w.waitHeld(flagACK, many)
			w.refuse()
			e.waitICMP(many)
			w.set(pass)
			for i, cf := range clients {
				s.recv(servers[i], request)
				s.send(servers[i], response)
				s.close(servers[i])
				c.state(cf, tcpCloseWait)
				c.recv(cf, response)
				c.eof(cf)
				c.close(cf)
			}
			e.check(many, map[end]int{
				clientEnd(c, "ok", request, response): many,
				serverEnd(s, "ok", response, request): many,
			})
			e.counted(map[string]uint64{"TcpEstabResets": 0})
		}})
	}
	cases = append(cases, edgeCase{"both directions shut, then data", func(e *scene) {
		// shutdown(SHUT_RDWR) keeps the socket in FIN_WAIT2. Data that comes then is answered with a reset by the client's own kernel.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			c.call("shutdown", cf, unix.SHUT_RDWR)
			s.eof(sf)
			c.state(cf, tcpFinWait2)
			s.send(sf, 10)
			c.state(cf, tcpClose)
			s.state(sf, tcpClose) // the reset is there
			s.close(sf)
			c.close(cf)
		}
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_local", request, 0): many,
			serverEnd(s, "reset_by_peer", 10, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many, "TcpExtTCPAbortOnData": many})
		e.resets(many)
	}}, edgeCase{"closed while data is on its way", func(e *scene) {
		// A download that the client gives up: its FIN and the server's data cross. The client's kernel answers the data with a reset.
		w, c, s := e.wired()
		l, addr := s.listen(right4, many)
		var clients, servers []int
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			clients, servers = append(clients, cf), append(servers, sf)
		}
		w.set(hold)
		for _, sf := range servers {
			s.send(sf, response)
		}
		w.waitHeld(flagACK, many)
		c.close(clients...)
		w.waitHeld(flagFIN|flagACK, many)
		w.set(pass)
		for _, sf := range servers {
			s.state(sf, tcpClose)
		}
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_local", request, 0):       many,
			serverEnd(s, "reset_by_peer", response, request): many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many, "TcpExtTCPAbortOnData": many})
		e.resets(many)
	}}, edgeCase{"no patience after the FIN", func(e *scene) {
		// With TCP_LINGER2 below 0 the kernel does not wait for the peer's FIN: when its own is acknowledged it resets the connection.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		var servers []int
		for range many {
			cf := c.connect(addr)
			c.call("setsockopt", cf, unix.IPPROTO_TCP, unix.TCP_LINGER2, -1)
			c.send(cf, request)
			servers = append(servers, s.call("accept", l))
			c.close(cf)
		}
		for _, sf := range servers {
			s.state(sf, tcpClose)
		}
		s.close(servers...)
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_local", request, 0): many,
			serverEnd(s, "reset_by_peer", 0, request):  many,
		})
		e.counted(map[string]uint64{"TcpEstabResets": many})
		e.resets(many)
	}}, edgeCase{"no round trip of the connection before", func(e *scene) {
		// A socket keeps the shortest round trip of its last connection. One that is refused has none.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			sf := s.call("accept", l)
			c.call("disconnect", cf)
			c.fails("ECONNREFUSED", "connect", cf, nobody)
			c.close(cf)
			s.fails("ECONNRESET", "recv", sf, 1)
			s.close(sf)
		}
		for _, l := range e.check(2*many, map[end]int{
			clientEnd(c, "refused", 0, 0):        many,
			clientEnd(c, "reset_by_local", 0, 0): many,
			serverEnd(s, "reset_by_peer", 0, 0):  many,
		}) {
			if l.Reason == "refused" && l.MinRTTUS != 0 {
				e.t.Fatalf("a refused connect took %d µs there and back", l.MinRTTUS)
			}
		}
	}})
	runEdges(t, cases...)
}

// resets wants at least n of them: a segment that is sent again, or that another one has overtaken, can arrive at a socket that is gone,
// and is answered by one more.
func (e *scene) resets(n uint64) {
	e.t.Helper()
	e.waitCounter("TcpOutRsts", n)
}

func (e *scene) waitICMP(n uint64) {
	e.t.Helper()
	eventually(e.t, "ICMP", func() error {
		if got := e.counter("IcmpInDestUnreachs"); got < n {
			return fmt.Errorf("%d have come", got)
		}
		return nil
	})
}

// refuse answers each segment that the left end sent and that is held back, as a router does that knows no way.
func (w *wire) refuse() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.held {
		frame := f.data[virtioHeader:]
		if f.to != w.taps[1] || tcpSegment(frame) == nil {
			continue
		}
		w.forward(w.taps[0], append(make([]byte, virtioHeader), hostUnreachable(frame)...))
	}
}

// hostUnreachable is ICMP's answer to an IPv4 frame.
func hostUnreachable(frame []byte) []byte {
	const ethernet, header, quoted = 14, 20, 28
	out := make([]byte, ethernet+header+8+quoted)
	copy(out, frame[6:12])
	copy(out[6:], frame[:6])
	binary.BigEndian.PutUint16(out[12:], unix.ETH_P_IP)
	ip := out[ethernet:]
	ip[0] = 4<<4 | header/4
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	ip[8], ip[9] = 64, unix.IPPROTO_ICMP
	copy(ip[12:], frame[ethernet+16:ethernet+20])
	copy(ip[16:], frame[ethernet+12:ethernet+16])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:header]))
	icmp := ip[header:]
	icmp[0], icmp[1] = 3, 1 // destination unreachable: host
	copy(icmp[8:], frame[ethernet:ethernet+quoted])
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return out
}

// checksum is RFC 1071's.
func checksum(data []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
