package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// MostTraceBlocks is how many blocks of addresses Options.TraceWith may have: the size of the map.
const MostTraceBlocks = 256

// TraceOutcomes names what is counted in Account.TraceOptions: of a client's SYN, that its trace id was sent with it or found no room beside other options; of an accepted
// socket, that it was received or missing.
var TraceOutcomes = [...]string{bpf.TraceSent: "sent", bpf.TraceNoRoom: "no_room", bpf.TraceReceived: "received", bpf.TraceMissing: "missing"}

// traceBlock is a block as the kernel looks for it: an IPv4 address is one in IPv6 there.
func traceBlock(of netip.Prefix) bpf.TraceBlock {
	of = of.Masked()
	bits := of.Bits()
	if of.Addr().Is4() {
		bits += 96
	}
	return bpf.TraceBlock{PrefixBits: uint32(bits), Addr: of.Addr().As16()}
}

// setTraceBlocks makes the map hold these blocks and no other. What is not wanted goes first: a program that looks meanwhile finds less, never more.
func setTraceBlocks(m *ebpf.Map, blocks []netip.Prefix) error {
	wanted := make(map[bpf.TraceBlock]bool, len(blocks))
	for _, b := range blocks {
		wanted[traceBlock(b)] = true
	}
	var key bpf.TraceBlock
	var value uint32
	var gone []bpf.TraceBlock
	all := m.Iterate()
	for all.Next(&key, &value) {
		if !wanted[key] {
			gone = append(gone, key)
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read blocks of peers to exchange trace ids with: %w", err)
	}
	for _, key := range gone {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take away a block of peers to exchange trace ids with: %w", err)
		}
	}
	for key := range wanted {
		if err := m.Put(key, uint32(1)); err != nil {
			return fmt.Errorf("set a block of peers to exchange trace ids with: %w", err)
		}
	}
	return nil
}
