package main

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// middlebox is what stands between two hosts and changes what goes by, as NATs and firewalls do. Its alter is a wire's.
type middlebox struct {
	addresses bool   // those of both ends, and the client's port, are others on the other side
	sequence  uint32 // is added to the client's sequence numbers
	options   bool   // experimental options are overwritten with NOPs
	drops     bool   // what has such options is thrown away

	mu      sync.Mutex
	option  map[[16]byte]int // SYNs with our option, as the client sent them, by the id that it has
	strange int              // segments that have one and are no SYN of a client, or whose option has another length
}

// stand puts it on a wire.
func (m *middlebox) stand(w *wire) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alter = m.alter
}

// saw wants so many SYNs with an id of their own to have gone by, and nothing else with an option of ours.
func (m *middlebox) saw(t *testing.T, want int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.option) != want || m.strange != 0 {
		t.Errorf("%d SYNs have an id, and %d other segments; want %d and 0", len(m.option), m.strange, want)
	}
}

// insideOutside has the two names of each end.
var insideOutside = map[netip.Addr]netip.Addr{
	left4.Addr(): leftOutside4, left6.Addr(): leftOutside6, right4.Addr(): rightOutside4, right6.Addr(): rightOutside6,
	leftOutside4: left4.Addr(), leftOutside6: left6.Addr(), rightOutside4: right4.Addr(), rightOutside6: right6.Addr(),
}

// alter changes a frame from one end of the wire, or says that it is lost; 0 is the client's.
func (m *middlebox) alter(from int, data []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	header, packet := data[:virtioHeader], data[virtioHeader:]
	segment := tcpSegment(packet)
	if segment == nil {
		return true
	}
	if m.look(from, segment) && m.drops {
		return false
	}
	addresses, length := addressesOf(packet)
	segment = segment[:length-(len(packet)-14-len(segment))] // without an Ethernet frame's padding
	const needsChecksum = 1                                  // VIRTIO_NET_HDR_F_NEEDS_CSUM: what is there is the pseudo header's
	partial := header[0]&needsChecksum != 0
	if m.addresses {
		for i := 0; i < 2; i++ {
			a, _ := netip.AddrFromSlice(addresses[i])
			if translated, ok := insideOutside[a]; ok {
				copy(addresses[i], translated.AsSlice())
			}
		}
		port := segment[0:2] // the client's
		if from == 1 {
			port = segment[2:4]
		}
		port[1] ^= 1
	}
	if from == 0 {
		binary.BigEndian.PutUint32(segment[4:], binary.BigEndian.Uint32(segment[4:])+m.sequence)
	} else if segment[13]&flagACK != 0 {
		binary.BigEndian.PutUint32(segment[8:], binary.BigEndian.Uint32(segment[8:])-m.sequence)
	}
	if m.options {
		for _, option := range optionsOf(segment) {
			if option[0] == 254 {
				for i := range option {
					option[i] = 1
				}
			}
		}
	}
	checksums(packet, segment, addresses, partial)
	return true
}

// look tells whether there is an option of ours.
func (m *middlebox) look(from int, segment []byte) (found bool) {
	for _, option := range optionsOf(segment) {
		// Another is the kernel's own: Fast Open's, from before that had a number of its own.
		if option[0] != 254 || len(option) < 4 || option[2] != 'S' || option[3] != 'L' {
			continue
		}
		found = true
		if from != 0 || segment[13]&(flagSYN|flagACK) != flagSYN || len(option) != 20 {
			m.strange++
			continue
		}
		if m.option == nil {
			m.option = make(map[[16]byte]int)
		}
		m.option[[16]byte(option[4:])]++
	}
	return found
}

// optionsOf divides the options of a segment.
func optionsOf(segment []byte) (all [][]byte) {
	options := segment[20 : int(segment[12]>>4)*4]
	for len(options) > 0 && options[0] != 0 {
		length := 1
		if options[0] != 1 {
			length = int(options[1])
		}
		all = append(all, options[:length])
		options = options[length:]
	}
	return all
}

// addressesOf returns source and destination, in place, and how long the packet is without what Ethernet adds.
func addressesOf(packet []byte) (addresses [2][]byte, length int) {
	ip := packet[14:]
	if binary.BigEndian.Uint16(packet[12:]) == unix.ETH_P_IP {
		return [2][]byte{ip[12:16], ip[16:20]}, int(binary.BigEndian.Uint16(ip[2:]))
	}
	return [2][]byte{ip[8:24], ip[24:40]}, 40 + int(binary.BigEndian.Uint16(ip[4:]))
}

// checksums makes them right again. partial: TCP's is for hardware to finish, and has the sum of the pseudo header.
func checksums(packet, segment []byte, addresses [2][]byte, partial bool) {
	if ip := packet[14:]; binary.BigEndian.Uint16(packet[12:]) == unix.ETH_P_IP {
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^sum16(0, ip[:int(ip[0]&15)*4]))
	}
	pseudo := sum16(uint32(unix.IPPROTO_TCP)+uint32(len(segment)), addresses[0])
	pseudo = sum16(uint32(pseudo), addresses[1])
	if partial {
		binary.BigEndian.PutUint16(segment[16:], pseudo)
		return
	}
	segment[16], segment[17] = 0, 0
	binary.BigEndian.PutUint16(segment[16:], ^sum16(uint32(pseudo), segment))
}

// sum16 is the Internet's checksum, not yet complemented.
func sum16(sum uint32, data []byte) uint16 {
	for ; len(data) > 1; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		sum += uint32(data[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
