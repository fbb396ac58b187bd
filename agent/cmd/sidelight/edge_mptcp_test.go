package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
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
		{"both ends", (*caller).mptcp, (*caller).mptcp, "MPTcpExtMPCapableSYNRX"},
		{"client only", (*caller).mptcp, (*caller).tcp, "MPTcpExtMPCapableSYNTX"},
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
			want := map[end]int{clientEnd(c, "ok", request, response): 2 * many, serverEnd(s, "ok", response, request): 2 * many}
			if one.name == "both ends" {
				// MPTCP probes a peer that seems to have no room with one byte, and sends that again, each time its timer ends: TCP has carried it.
				most := uint64(1)
				if emulatedMachine() {
					most = 10
				}
				for _, l := range e.waitLines(4 * many) {
					if l.Role == "client" && l.Received > response && l.Received <= response+most {
						want[clientEnd(c, "ok", request, response)]--
						want[serverEnd(s, "ok", response, request)]--
						want[clientEnd(c, "ok", request, int(l.Received))]++
						want[serverEnd(s, "ok", int(l.Received), request)]++
					}
				}
			}
			e.check(2*many, want)
			if one.counter != "" {
				e.counted(map[string]uint64{one.counter: 2 * many})
			}
		}})
	}
	cases = append(cases, edgeCase{"two subflows", func(e *scene) {
		// The client's kernel opens the second by itself, from its second address: a worker does it, no process.
		const few = 20
		w, c, s := e.wired()
		second := netip.MustParseAddr("192.0.2.3")
		if err := lab.In(w.left, func() error { return addEndpoint(second, w.zone[0]) }); err != nil {
			e.t.Fatal(err)
		}
		if err := lab.In(w.right, func() error {
			if err := mptcpLimits(); err != nil {
				return err
			}
			return netlink.NeighAdd(&netlink.Neigh{LinkIndex: w.zone[1], IP: second.AsSlice(), HardwareAddr: wireAddress(0), State: netlink.NUD_PERMANENT})
		}); err != nil {
			e.t.Fatal(err)
		}
		l := s.mptcp(right4)
		s.call("bind", l, right4)
		s.call("listen", l, many)
		addr := s.name(l, right4)
		for i := range few {
			cf := c.mptcp(addr)
			c.call("connect", cf, addr)
			sf := s.call("accept", l)
			c.send(cf, request)
			s.recv(sf, request)
			s.send(sf, 1)
			c.recv(cf, 1)
			eventually(e.t, "the second subflow", func() error {
				if n := e.counter("MPTcpExtMPJoinAckRx"); n != uint64(i+1) {
					return fmt.Errorf("there are %d", n)
				}
				return nil
			})
			s.send(sf, response-1)
			c.recv(cf, response-1)
			c.close(cf)
			s.eof(sf)
			s.close(sf)
		}
		e.checkSubflows(c, s, second, few, request, response)
	}})
	runEdges(t, cases...)
}

// checkSubflows holds the lines of connections of two subflows each against what went over them. Which subflow carries what is the
// kernel's business: both ends must agree on it, and the sums be right.
func (e *scene) checkSubflows(c, s *caller, second netip.Addr, count int, request, response uint64) {
	e.t.Helper()
	lines := e.waitLines(4 * count)
	var sent, received uint64
	ends := make(map[string]map[string]edgeLine)
	joined := 0
	for _, l := range lines {
		if ends[l.TraceID] == nil {
			ends[l.TraceID] = make(map[string]edgeLine)
		}
		ends[l.TraceID][l.Role] = l
		want := end{l.Role, "ok", l.Sent, l.Received, s.pid, ownName, "server"}
		if l.Role == "client" {
			sent, received = sent+l.Sent, received+l.Received
			want.PID, want.Cgroup = c.pid, "client"
			if l.LocalAddr == second.String() {
				joined++
				want.PID, want.Executable = 0, ""
			}
		}
		if got := endsOf([]edgeLine{l}); got[want] != 1 {
			e.t.Errorf("want %+v: %+v", want, l)
		}
	}
	for id, pair := range ends {
		client, server := pair["client"], pair["server"]
		if client.Sent != server.Received || client.Received != server.Sent || client.LocalAddr != server.PeerAddr {
			e.t.Errorf("the ends of %s differ: %+v %+v", id, client, server)
		}
	}
	if e.counter("MPTcpExtMPTCPRetrans") > 0 {
		// What MPTCP sent again over the other subflow crossed both.
		sent, received = min(sent, uint64(count)*request), min(received, uint64(count)*response)
	}
	if n := uint64(count); sent != n*request || received != n*response || joined != count || len(ends) != 2*count {
		e.t.Errorf("%d bytes and %d back over %d connections, %d of them joined", sent, received, len(ends), joined)
	}
	e.check(2*count, endsOf(lines))
}

// MPTCP's path manager speaks generic netlink: include/uapi/linux/mptcp_pm.h.
const (
	mptcpAddAddr       = 1
	mptcpSetLimits     = 5
	mptcpAttrAddr      = 1
	mptcpAttrAccepted  = 2
	mptcpAttrSubflows  = 3
	mptcpAddrFamily    = 1
	mptcpAddrV4        = 3
	mptcpAddrFlags     = 6
	mptcpAddrInterface = 7
	mptcpFlagSubflow   = 2
)

func mptcpManager(command uint8, attributes ...*nl.RtAttr) error {
	family, err := netlink.GenlFamilyGet("mptcp_pm")
	if err != nil {
		return fmt.Errorf("find MPTCP's path manager: %w", err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	request.AddData(&nl.Genlmsg{Command: command, Version: 1})
	for _, a := range attributes {
		request.AddData(a)
	}
	_, err = request.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

// mptcpLimits allows one subflow more than the first.
func mptcpLimits() error {
	return mptcpManager(mptcpSetLimits, nl.NewRtAttr(mptcpAttrAccepted, nl.Uint32Attr(1)), nl.NewRtAttr(mptcpAttrSubflows, nl.Uint32Attr(1)))
}

// addEndpoint gives a link a second address, from which MPTCP is to make subflows.
func addEndpoint(addr netip.Addr, link int) error {
	if err := mptcpLimits(); err != nil {
		return err
	}
	wire, err := netlink.LinkByIndex(link)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(wire, &netlink.Addr{IPNet: prefix(addr.String() + "/32")}); err != nil {
		return err
	}
	endpoint := nl.NewRtAttr(unix.NLA_F_NESTED|mptcpAttrAddr, nil)
	endpoint.AddRtAttr(mptcpAddrFamily, nl.Uint16Attr(unix.AF_INET))
	endpoint.AddRtAttr(mptcpAddrV4, addr.AsSlice())
	endpoint.AddRtAttr(mptcpAddrFlags, nl.Uint32Attr(mptcpFlagSubflow))
	endpoint.AddRtAttr(mptcpAddrInterface, nl.Uint32Attr(uint32(link)))
	return mptcpManager(mptcpAddAddr, endpoint)
}
