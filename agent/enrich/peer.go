package enrich

import (
	"cmp"
	"net/netip"
	"slices"
)

// External is the name of a peer that nothing else names.
const External = "external"

// PeerGroup names all peers in some address ranges.
type PeerGroup struct {
	Name      string
	Namespace string
	CIDRs     []netip.Prefix
}

// Peers finds the name of a peer by its address. Not safe for concurrent use.
type Peers struct {
	ranges   []peerRange // longest prefix first
	external *Workload
	cache    map[netip.Addr]*Workload
}

type peerRange struct {
	prefix netip.Prefix
	peer   *Workload
}

// NewPeers returns a finder over groups. The longest prefix that holds an address wins, whatever the order.
func NewPeers(groups []PeerGroup) *Peers {
	p := &Peers{external: &Workload{Name: External}, cache: make(map[netip.Addr]*Workload)}
	for _, group := range groups {
		peer := &Workload{Name: group.Name, Namespace: group.Namespace}
		for _, prefix := range group.CIDRs {
			p.ranges = append(p.ranges, peerRange{prefix.Masked(), peer})
		}
	}
	slices.SortStableFunc(p.ranges, func(a, b peerRange) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return p
}

// Find returns the peer at an address, never nil.
func (p *Peers) Find(addr netip.Addr) *Workload {
	if len(p.ranges) == 0 {
		return p.external
	}
	if peer := p.cache[addr]; peer != nil {
		return peer
	}
	peer := p.external
	for _, r := range p.ranges {
		if r.prefix.Contains(addr) {
			peer = r.peer
			break
		}
	}
	if len(p.cache) >= cacheLimit {
		clear(p.cache)
	}
	p.cache[addr] = peer
	return peer
}
