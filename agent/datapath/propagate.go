package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

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

// wantedTraceBlocks are the map's entries. A block of IPv6 that has all of IPv4 in it, by the kernel's way to look for it, is not meant to.
func wantedTraceBlocks(blocks []netip.Prefix) map[bpf.TraceBlock]uint32 {
	all := make(map[bpf.TraceBlock]uint32, len(blocks))
	mapped := netip.MustParsePrefix("::ffff:0:0/96")
	for _, b := range blocks {
		if b.Bits() <= mapped.Bits() && b.Contains(mapped.Addr()) {
			all[traceBlock(mapped)] = 0
		}
	}
	for _, b := range blocks {
		all[traceBlock(b)] = 1
	}
	return all
}

func traceBlocks(m *ebpf.Map) (map[bpf.TraceBlock]uint32, error) {
	found := make(map[bpf.TraceBlock]uint32)
	var key bpf.TraceBlock
	var value uint32
	all := m.Iterate()
	for all.Next(&key, &value) {
		found[key] = value
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read blocks of peers to exchange trace ids with: %w", err)
	}
	return found, nil
}

// useTraceBlocks puts Options.TraceWith into the map, and remembers what was there.
func (d *Datapath) useTraceBlocks() (err error) {
	if d.traceBefore, err = traceBlocks(d.objects.TraceBlocks); err != nil {
		return err
	}
	return setTraceBlocks(d.objects.TraceBlocks, wantedTraceBlocks(d.traceWith))
}

// restoreTraceBlocks is for a way back: the programs before look into the same map.
func (d *Datapath) restoreTraceBlocks() error {
	if d.traceBefore == nil {
		return nil
	}
	return setTraceBlocks(d.objects.TraceBlocks, d.traceBefore)
}

// setTraceBlocks makes the map hold these entries and no other. What is not wanted goes first: a program that looks meanwhile finds less, never more.
func setTraceBlocks(m *ebpf.Map, wanted map[bpf.TraceBlock]uint32) error {
	all, err := traceBlocks(m)
	if err != nil {
		return err
	}
	for key := range all {
		if _, stays := wanted[key]; stays {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take away a block of peers to exchange trace ids with: %w", err)
		}
	}
	for key, value := range wanted {
		if err := m.Put(key, value); err != nil {
			return fmt.Errorf("set a block of peers to exchange trace ids with: %w", err)
		}
	}
	return nil
}
