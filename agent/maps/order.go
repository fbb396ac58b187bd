package maps

import (
	"cmp"
	"slices"
)

// maxOrder is how long an order of turns is at most, unless there are more backends than that.
const maxOrder = 4096

// orderSlots makes an order of turns of weights, none of them 0, in which each backend has as many as its weight divided by what all weights have in
// common, spread as nginx does (smooth weighted round robin). Where these are more than maxOrder, weights are scaled down, and the shares are
// nearly, not exactly, as wanted: each backend has at least one turn.
func orderSlots(weights []uint32) []uint64 {
	turns := scale(reduce(weights), max(maxOrder, uint64(len(weights))))
	var total uint64
	equal := true
	for _, t := range turns {
		total += t
		equal = equal && t == turns[0]
	}
	slots := make([]uint64, 0, total)
	switch {
	case equal:
		for i := range turns {
			slots = append(slots, uint64(i))
		}
		return slots
	case total*uint64(len(turns)) > 64<<20:
		return spread(turns, slots)
	}
	current := make([]int64, len(turns))
	for range total {
		best := 0
		for i, t := range turns {
			current[i] += int64(t)
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= int64(total)
		slots = append(slots, uint64(best))
	}
	return slots
}

// spread puts each turn in the middle of its part of the round: as smooth, if not the same order, and not quadratic.
func spread(turns, slots []uint64) []uint64 {
	type turn struct {
		at      float64
		backend int
	}
	var all []turn
	for i, t := range turns {
		for k := range t {
			all = append(all, turn{(float64(k) + 0.5) / float64(t), i})
		}
	}
	slices.SortFunc(all, func(a, b turn) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.backend, b.backend)) })
	for _, t := range all {
		slots = append(slots, uint64(t.backend))
	}
	return slots
}

// reduce divides weights by their greatest common divisor.
func reduce(weights []uint32) []uint64 {
	var divisor uint64
	for _, w := range weights {
		divisor = gcd(divisor, uint64(w))
	}
	reduced := make([]uint64, len(weights))
	for i, w := range weights {
		reduced[i] = uint64(w) / divisor
	}
	return reduced
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// scale makes the sum of weights at most most, which is at least their number, and each at least 1.
func scale(weights []uint64, most uint64) []uint64 {
	sum := func(ws []uint64) (s uint64) {
		for _, w := range ws {
			s += w
		}
		return s
	}
	total := sum(weights)
	if total <= most {
		return weights
	}
	scaled := make([]uint64, len(weights))
	to := func(target uint64) uint64 {
		for i, w := range weights {
			scaled[i] = max(1, (w*target+total/2)/total)
		}
		return sum(scaled)
	}
	// The largest target that fits: those below 1 are raised to it, so that the sum may be more than the target.
	low, high := uint64(0), most
	for low < high {
		middle := (low + high + 1) / 2
		if to(middle) <= most {
			low = middle
		} else {
			high = middle - 1
		}
	}
	to(low)
	return scaled
}
