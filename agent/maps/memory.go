package maps

import (
	"errors"
	"maps"
	"sync"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// NewMemory returns maps of these sizes that are memory of the process, for tests. Hashes are safe for concurrent use; Grace waits for nothing, and
// may be replaced.
func NewMemory(sizes Sizes) *Maps {
	n := sizes.MaxEntries()
	return &Maps{
		Workloads:     make([]bpf.Workload, n["workloads"]),
		Pools:         make([]Reference, n["pools"]),
		Tables:        make([]bpf.Table, n["tables"]),
		Slots:         make([]uint64, n["slots"]),
		Backends:      make([]bpf.Backend, n["backends"]),
		Loads:         make([]bpf.Load, n["loads"]),
		Turns:         make([]uint64, n["turns"]),
		Limits:        make([]bpf.Limit, n["limits"]),
		PolicySets:    make([]bpf.PolicySet, n["policy_sets"]),
		Cgroups:       newMemoryHash[uint64, uint32](n["cgroups"]),
		Addresses:     newMemoryHash[bpf.Address, uint32](n["addresses"]),
		Frontends:     newMemoryHash[bpf.Frontend, uint32](n["frontends"]),
		PolicySources: newMemoryHash[bpf.PolicySource, bpf.Rules](n["policy_sources"]),
		PolicyBlocks:  memoryTrie{newMemoryHash[bpf.PolicyBlock, bpf.Rules](n["policy_blocks"])},
		PolicyPorts:   newMemoryHash[bpf.PolicyPort, bpf.Rules](n["policy_ports"]),
		Verdicts:      newMemoryHash[bpf.VerdictKey, uint64](n["verdicts"]),
		LimitStates:   newMemoryHash[uint32, bpf.LimitState](n["limit_states"]),
		Listeners:     newMemoryHash[bpf.Listen, bpf.Listener](n["workloads"]),
		Grace:         func() error { return nil },
	}
}

// memoryTrie finds the longest prefix, as a trie of the kernel does.
type memoryTrie struct {
	*memoryHash[bpf.PolicyBlock, bpf.Rules]
}

func (t memoryTrie) Get(key bpf.PolicyBlock) (rules bpf.Rules, ok bool, err error) {
	for ; ; key.PrefixBits-- {
		if rules, ok, err = t.memoryHash.Get(key); ok || err != nil || key.PrefixBits == 0 {
			return rules, ok, err
		}
		if bit := int(key.PrefixBits) - 32 - 1; bit >= 0 {
			key.Addr[bit/8] &^= 0x80 >> (bit % 8)
		}
	}
}

var errFull = errors.New("write map: it is full")

type memoryHash[K comparable, V any] struct {
	mu  sync.RWMutex
	max int
	all map[K]V
}

func newMemoryHash[K comparable, V any](size uint32) *memoryHash[K, V] {
	return &memoryHash[K, V]{max: int(size), all: make(map[K]V)}
}

func (h *memoryHash[K, V]) Get(key K) (V, bool, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	v, ok := h.all[key]
	return v, ok, nil
}

func (h *memoryHash[K, V]) Put(keys []K, values []V) error {
	for i, key := range keys {
		if err := h.put(key, values[i]); err != nil {
			return err
		}
	}
	return nil
}

func (h *memoryHash[K, V]) put(key K, value V) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.all[key]; !ok && len(h.all) == h.max {
		return errFull
	}
	h.all[key] = value
	return nil
}

func (h *memoryHash[K, V]) Delete(keys []K) error {
	for _, key := range keys {
		h.mu.Lock()
		delete(h.all, key)
		h.mu.Unlock()
	}
	return nil
}

func (h *memoryHash[K, V]) All() (map[K]V, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return maps.Clone(h.all), nil
}
