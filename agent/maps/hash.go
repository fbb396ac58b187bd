package maps

import (
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// hash is FNV-1a and a last mix (that of MurmurHash3), because choices are made by the upper bits: the same on every node and in every process.
type hash uint64

func newHash(seed byte) hash { return hash(14695981039346656037).byte(seed) }

func (h hash) byte(b byte) hash { return (h ^ hash(b)) * 1099511628211 }

func (h hash) string(s string) hash {
	for i := range len(s) {
		h = h.byte(s[i])
	}
	return h
}

func (h hash) sum() uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return uint64(h ^ h>>33)
}

func hashName(seed byte, n model.Name) uint64 {
	return newHash(seed).string(n.Namespace).byte('/').string(n.Name).sum()
}

// Seeds of hashes that stand in the kernel's maps for a name: agents of other versions look for the same. They are not maglev's.
const (
	seedService byte = iota + 16
	seedEndpoint
	seedWorkload
	seedBypass
	seedClass
)

func (k workloadKey) hash() uint64 {
	if k.alone {
		return hashName(seedBypass, k.name)
	}
	return hashName(seedWorkload, k.name)
}

// hash is 0 for the class of those that nobody knows only.
func (c Class) hash() uint64 {
	if c == (Class{}) {
		return 0
	}
	return max(newHash(seedClass).string(c.Namespace).byte(0).string(c.Identity).sum(), 1)
}

// affinity is of an address in 32 bits, never 0.
func affinity(a netip.Addr) uint32 {
	h := newHash(0)
	for _, b := range a.As16() {
		h = h.byte(b)
	}
	return max(uint32(h.sum()>>32), 1)
}
