package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// The two ends of a wire.
var (
	left4  = netip.MustParseAddrPort("192.0.2.1:0")
	right4 = netip.MustParseAddrPort("192.0.2.2:0")
	left6  = netip.MustParseAddrPort("[2001:db8::1]:0")
	right6 = netip.MustParseAddrPort("[2001:db8::2]:0")
	// By which the other end knows them, where a middlebox translates.
	leftOutside4, rightOutside4 = netip.MustParseAddr("192.0.2.101"), netip.MustParseAddr("192.0.2.102")
	leftOutside6, rightOutside6 = netip.MustParseAddr("2001:db8::101"), netip.MustParseAddr("2001:db8::102")
	// The zone is the interface's index, that of the veth's end in its namespace.
	leftLocal, rightLocal = netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
)

// wire joins two namespaces. Each frame passes through this process, which can hold it back or throw it away: so packets cross, are
// late, or are lost, at will and on every kernel.
type wire struct {
	t           *testing.T
	left, right netns.NsHandle
	zone        [2]int // of the ends, for link-local addresses
	taps        [2]int // packet sockets: what is written to one arrives at that end

	mu      sync.Mutex
	buf     [128 << 10]byte
	mode    wireMode
	alter   func(from int, data []byte) bool // changes a frame before anything else, or says that it is lost; nil: nothing does
	held    []frame
	stopped bool
}

type wireMode int

const (
	pass wireMode = iota
	hold
	lose
)

type frame struct {
	to   int // a packet socket
	data []byte
}

// newWire joins two new namespaces of the case.
func (e *scene) newWire(sysctls ...string) *wire {
	e.t.Helper()
	w := &wire{t: e.t, left: e.space(sysctls...), right: e.space(sysctls...)}
	middle := newNamespace(e.t)
	for i, side := range []struct {
		ns        netns.NsHandle
		addresses []netip.Prefix
		far       []netip.Addr
	}{
		{w.left, []netip.Prefix{netip.PrefixFrom(left4.Addr(), 24), netip.PrefixFrom(left6.Addr(), 64), netip.PrefixFrom(leftLocal, 64)}, []netip.Addr{right4.Addr(), right6.Addr(), rightLocal, rightOutside4, rightOutside6}},
		{w.right, []netip.Prefix{netip.PrefixFrom(right4.Addr(), 24), netip.PrefixFrom(right6.Addr(), 64), netip.PrefixFrom(rightLocal, 64)}, []netip.Addr{left4.Addr(), left6.Addr(), leftLocal, leftOutside4, leftOutside6}},
	} {
		// No address but those given, and no question of whose they are.
		e.sysctl(middle, "ipv6/conf/default/disable_ipv6=1")
		e.sysctl(side.ns, "ipv6/conf/default/addr_gen_mode=1")
		near := fmt.Sprintf("wire%d", i)
		if err := lab.In(middle, func() error { return layWire(near, side.ns) }); err != nil {
			e.t.Fatal(err)
		}
		if err := lab.In(side.ns, func() (err error) {
			w.zone[i], err = addressWire(byte(i), side.addresses, side.far)
			return err
		}); err != nil {
			e.t.Fatal(err)
		}
		if err := lab.In(middle, func() (err error) {
			w.taps[i], err = tapWire(near)
			return err
		}); err != nil {
			e.t.Fatal(err)
		}
	}
	var relays sync.WaitGroup
	for i := range w.taps {
		relays.Go(func() { w.relay(i) })
	}
	e.t.Cleanup(func() {
		w.mu.Lock()
		w.stopped = true
		w.mu.Unlock()
		relays.Wait()
		for _, fd := range w.taps {
			unix.Close(fd)
		}
	})
	return w
}

// layWire makes a veth from here to a namespace, where its end is called "wire".
func layWire(near string, far netns.NsHandle) error {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: near}, PeerName: "wire", PeerNamespace: netlink.NsFd(far)}); err != nil {
		return fmt.Errorf("make veth: %w", err)
	}
	link, err := netlink.LinkByName(near)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func wireAddress(side byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, side} }

// addressWire gives the end its addresses and tells it where the other end's are.
func addressWire(side byte, addresses []netip.Prefix, far []netip.Addr) (index int, err error) {
	link, err := netlink.LinkByName("wire")
	if err != nil {
		return 0, err
	}
	index = link.Attrs().Index
	if err := netlink.LinkSetHardwareAddr(link, wireAddress(side)); err != nil {
		return 0, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, err
	}
	for _, a := range addresses {
		address := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, address); err != nil {
			return 0, fmt.Errorf("add %v: %w", a, err)
		}
	}
	for _, a := range far {
		neighbour := &netlink.Neigh{LinkIndex: index, IP: a.AsSlice(), HardwareAddr: wireAddress(1 - side), State: netlink.NUD_PERMANENT}
		if err := netlink.NeighAdd(neighbour); err != nil {
			return 0, fmt.Errorf("add neighbour %v: %w", a, err)
		}
	}
	return index, nil
}

// virtioHeader goes before each frame: what is left for hardware to do, checksums and cutting up, is so left to the other end.
const virtioHeader = 10

func tapWire(name string) (int, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) },
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
		},
	} {
		if err := set(); err != nil {
			unix.Close(fd)
			return 0, fmt.Errorf("tap %s: %w", name, err)
		}
	}
	return fd, nil
}

// relay carries frames from one end to the other.
func (w *wire) relay(from int) {
	for {
		ready := []unix.PollFd{{Fd: int32(w.taps[from]), Events: unix.POLLIN}}
		_, err := unix.Poll(ready, 20)
		w.mu.Lock()
		if err != nil && !errors.Is(err, syscall.EINTR) {
			w.fail("poll", err)
		}
		w.carry(from)
		stopped := w.stopped
		w.mu.Unlock()
		if stopped {
			return
		}
	}
}

// carry does with all frames that have come from one end what the mode says. The lock is held.
func (w *wire) carry(from int) {
	to := w.taps[1-from]
	for !w.stopped {
		n, sender, err := unix.Recvfrom(w.taps[from], w.buf[:], unix.MSG_DONTWAIT)
		if errors.Is(err, syscall.EAGAIN) {
			return
		}
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			w.fail("receive", err)
			return
		}
		if link, ok := sender.(*unix.SockaddrLinklayer); !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if w.alter != nil && !w.alter(from, w.buf[:n]) {
			continue
		}
		switch w.mode {
		case pass:
			w.forward(to, w.buf[:n])
		case hold:
			w.held = append(w.held, frame{to, append([]byte(nil), w.buf[:n]...)})
		}
	}
}

func (w *wire) fail(what string, err error) {
	w.t.Errorf("wire: %s: %v", what, err)
	w.stopped = true
}

func (w *wire) forward(to int, data []byte) {
	if _, err := unix.Write(to, data); err != nil {
		w.fail("send", err)
	}
}

// set changes what becomes of frames that are sent from now on. What was held goes on its way, unless frames are to be lost. A wire
// that holds goes on holding what comes in answer.
func (w *wire) set(mode wireMode) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.carry(0)
	w.carry(1)
	if mode != lose {
		for _, f := range w.held {
			w.forward(f.to, f.data)
		}
	}
	w.held = nil
	w.mode = mode
}

// waitHeld waits until segments with exactly these of FIN, SYN and ACK are held back, of so many connections and ways. One that is sent
// again counts once.
func (w *wire) waitHeld(flags byte, want int) {
	w.t.Helper()
	eventually(w.t, "segments on the wire", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		ways := make(map[[2]int]bool)
		for _, f := range w.held {
			if segment := tcpSegment(f.data[virtioHeader:]); segment != nil && segment[13]&(flagFIN|flagSYN|flagACK) == flags {
				ways[[2]int{f.to, int(binary.BigEndian.Uint32(segment))}] = true // the ports
			}
		}
		if len(ways) < want {
			return fmt.Errorf("%d of %d with flags %d are there", len(ways), want, flags)
		}
		return nil
	})
}

// Flags of a segment.
const (
	flagFIN = 1
	flagSYN = 2
	flagACK = 16
)

// tcpSegment is what an Ethernet frame carries, nil if that is no TCP.
func tcpSegment(data []byte) []byte {
	const ethernet, header = 14, 20
	if len(data) < ethernet+2*header {
		return nil
	}
	start := 0
	switch kind := binary.BigEndian.Uint16(data[12:]); {
	case kind == unix.ETH_P_IP && data[ethernet+9] == unix.IPPROTO_TCP:
		start = ethernet + int(data[ethernet]&15)*4
	case kind == unix.ETH_P_IPV6 && data[ethernet+6] == unix.IPPROTO_TCP:
		start = ethernet + 40
	}
	if start == 0 || len(data) < start+header {
		return nil
	}
	return data[start:]
}

// wired starts a client and a server on the two ends of a wire.
func (e *scene) wired(sysctls ...string) (w *wire, client, server *caller) {
	e.t.Helper()
	w = e.newWire(sysctls...)
	return w, e.caller(w.left, "client"), e.caller(w.right, "server")
}
