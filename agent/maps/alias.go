package maps

import "math/bits"

// always is the threshold of a choice that has no alternative.
const always = 0xffffffff

// aliasSlots makes an alias table (Vose's method) of weights, none of them 0: a pair of slots each, {threshold << 32 | first}, {second}. Of a random
// choice the first is taken when a random number of 32 bits is below the threshold. In whole numbers, so that the only inexact thing is the rounding
// of thresholds, to 2^-32.
func aliasSlots(weights []uint32) []uint64 {
	n := uint64(len(weights))
	var total uint64
	for _, w := range weights {
		total += uint64(w)
	}
	// Each choice has room for total; each backend brings n times its weight. n times total is what both are in sum.
	left := make([]uint64, n)
	var small, large []int
	for i, w := range weights {
		left[i] = uint64(w) * n
		if left[i] < total {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	slots := make([]uint64, 2*n)
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		slots[2*s], slots[2*s+1] = threshold(left[s], total)<<32|uint64(s), uint64(l)
		left[l] -= total - left[s]
		if left[l] < total {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) { // only large ones, with exactly total left: sums are exact
		slots[2*i], slots[2*i+1] = always<<32|uint64(i), uint64(i)
	}
	return slots
}

// threshold is the part of the whole that is part, of 2^32, rounded. part is below whole, which is below 2^63.
func threshold(part, whole uint64) uint64 {
	hi, lo := bits.Mul64(part, 1<<32)
	q, r := bits.Div64(hi, lo, whole)
	if r >= whole-r {
		q++
	}
	return min(q, always)
}
