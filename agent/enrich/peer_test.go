package enrich

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestPeers(t *testing.T) {
	groups := []PeerGroup{
		{Name: "private", CIDRs: prefixes("10.0.0.0/8", "fd00::/8")},
		{Name: "database", Namespace: "prod", CIDRs: prefixes("10.1.0.0/16", "fd00:1::/32")},
		{Name: "primary", Namespace: "prod", CIDRs: prefixes("10.1.2.3/32", "fd00:1::3/128")},
		// Bits below the mask do not count.
		{Name: "office", CIDRs: prefixes("192.168.7.99/24")},
		{Name: "office too", CIDRs: prefixes("192.168.7.0/24")},
		{Name: "all of IPv6", CIDRs: prefixes("::/0")},
	}
	tests := []struct {
		name string
		addr string
		want Workload
	}{
		{"widest", "10.200.0.1", Workload{Name: "private"}},
		{"longer", "10.1.9.9", Workload{Name: "database", Namespace: "prod"}},
		{"longest", "10.1.2.3", Workload{Name: "primary", Namespace: "prod"}},
		{"next to the longest", "10.1.2.4", Workload{Name: "database", Namespace: "prod"}},
		{"last of a range", "10.255.255.255", Workload{Name: "private"}},
		{"first after a range", "11.0.0.0", Workload{Name: External}},
		{"IPv6 widest", "fd00:2::1", Workload{Name: "private"}},
		{"IPv6 longer", "fd00:1::1", Workload{Name: "database", Namespace: "prod"}},
		{"IPv6 longest", "fd00:1::3", Workload{Name: "primary", Namespace: "prod"}},
		{"IPv6 elsewhere", "2001:db8::1", Workload{Name: "all of IPv6"}},
		{"of equal ranges the first", "192.168.7.1", Workload{Name: "office"}},
		{"all of IPv6 is none of IPv4", "1.1.1.1", Workload{Name: External}},
	}
	// The order of groups of unequal length has no say.
	backwards := slices.Clone(groups)
	slices.Reverse(backwards[:3])
	for order, finder := range map[string]*Peers{"in order": NewPeers(groups), "backwards": NewPeers(backwards)} {
		for _, test := range tests {
			t.Run(order+"/"+test.name, func(t *testing.T) {
				addr := netip.MustParseAddr(test.addr)
				first := finder.Find(addr)
				if *first != test.want {
					t.Errorf("peer is %+v, want %+v", *first, test.want)
				}
				if second := finder.Find(addr); second != first {
					t.Errorf("found %+v the second time", *second)
				}
			})
		}
	}
}

func TestPeersWithoutGroups(t *testing.T) {
	p := NewPeers(nil)
	for _, addr := range []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::1"), {}} {
		if got := p.Find(addr); *got != (Workload{Name: "external"}) {
			t.Errorf("peer %v is %+v, want external", addr, *got)
		}
	}
	// Anyone can connect from any address: where there is nothing to find there is nothing to keep.
	if len(p.cache) != 0 {
		t.Errorf("%d addresses are kept", len(p.cache))
	}
}

func TestPeerCache(t *testing.T) {
	p := NewPeers([]PeerGroup{{Name: "private", CIDRs: prefixes("10.0.0.0/8")}})
	addr := func(i uint32) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+i)))
	}
	for i := range uint32(cacheLimit) {
		p.Find(addr(i))
	}
	if len(p.cache) != cacheLimit {
		t.Fatalf("%d addresses are kept, want %d", len(p.cache), cacheLimit)
	}
	if p.Find(addr(0)); len(p.cache) != cacheLimit {
		t.Errorf("finding a known one leaves %d", len(p.cache))
	}
	if got := p.Find(addr(cacheLimit)); got.Name != "private" || len(p.cache) != 1 {
		t.Errorf("one too many is %q and leaves %d, want it alone", got.Name, len(p.cache))
	}
}
