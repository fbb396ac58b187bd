package maps

import "github.com/sidelight-mesh/sidelight/agent/model"

// maglevSizes are primes, so that each skip of a permutation goes through the whole table.
var maglevSizes = []uint64{251, 1021, 4099, 16381, 65537}

// maglevSize is the smallest that gives each of n backends 100 choices, with which shares are within some percent of the weights, or the largest.
func maglevSize(n int) uint64 {
	for _, size := range maglevSizes {
		if size >= 100*uint64(n) {
			return size
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// maglevSlots makes a Maglev table (Eisenbud et al., NSDI 2016). It depends on names and weights only, so that all nodes that choose from the same
// endpoints make the same table. Names are sorted, and at most as many as the largest size; weights are not 0.
func maglevSlots(names []model.Name, weights []uint32) []uint64 {
	size := maglevSize(len(names))
	const none = ^uint64(0)
	slots := make([]uint64, size)
	for i := range slots {
		slots[i] = none
	}
	var heaviest uint64
	at, skip, target := make([]uint64, len(names)), make([]uint64, len(names)), make([]uint64, len(names))
	for i, n := range names {
		at[i] = hashName(1, n) % size
		skip[i] = hashName(2, n)%(size-1) + 1
		heaviest = max(heaviest, uint64(weights[i]))
	}
	for i := range target {
		target[i] = heaviest
	}
	// In each round a backend takes a turn when its weight has grown by the heaviest one since its last, as Envoy has it.
	taken := uint64(0)
	for round := uint64(1); ; round++ {
		for i := range names {
			if round*uint64(weights[i]) < target[i] {
				continue
			}
			target[i] += heaviest
			for slots[at[i]] != none {
				at[i] = (at[i] + skip[i]) % size
			}
			slots[at[i]] = uint64(i)
			if taken++; taken == size {
				return slots
			}
		}
	}
}
