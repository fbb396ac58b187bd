package maps

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// TestAliasSlots sums up the table in whole numbers: each share is within 2^-32 of its weight's, which is what a threshold can say.
func TestAliasSlots(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	cases := [][]uint32{{1}, {1, 1}, {1, 2}, {1, 2, 3}, {1, 65535}, {math.MaxUint32}, {1, math.MaxUint32}, {math.MaxUint32, math.MaxUint32, 1}}
	for range 300 {
		weights := make([]uint32, 1+random.IntN(300))
		for i := range weights {
			weights[i] = 1 + random.Uint32N(1<<(1+random.IntN(31)))
		}
		cases = append(cases, weights)
	}
	for _, weights := range cases {
		slots := aliasSlots(weights)
		if len(slots) != 2*len(weights) {
			t.Fatalf("%d weights have %d slots", len(weights), len(slots))
		}
		// Of 2^32 for each choice.
		parts := make([]uint64, len(weights))
		var total uint64
		for _, w := range weights {
			total += uint64(w)
		}
		for i := 0; i < len(slots); i += 2 {
			first, second, threshold := slots[i]&always, slots[i+1], slots[i]>>32
			if threshold == always {
				threshold = 1 << 32
			}
			parts[first] += threshold
			parts[second] += 1<<32 - threshold
		}
		for i, w := range weights {
			// |parts/(n 2^32) - w/total| < 2^-32, multiplied by n total 2^32.
			have := new(big.Int).Mul(new(big.Int).SetUint64(parts[i]), new(big.Int).SetUint64(total))
			want := new(big.Int).Mul(big.NewInt(int64(w)), new(big.Int).Lsh(big.NewInt(int64(len(weights))), 32))
			off := new(big.Int).Abs(have.Sub(have, want))
			if off.Cmp(new(big.Int).Mul(big.NewInt(int64(len(weights))), new(big.Int).SetUint64(total))) >= 0 {
				t.Fatalf("weight %d of %d among %d has %d of %d", w, total, len(weights), parts[i], uint64(len(weights))<<32)
			}
		}
	}
}

func TestOrderSlots(t *testing.T) {
	for _, c := range []struct {
		weights []uint32
		want    []uint64
	}{
		{[]uint32{3}, []uint64{0}},
		{[]uint32{2, 2, 2}, []uint64{0, 1, 2}},
		{[]uint32{5, 1, 1}, []uint64{0, 0, 1, 0, 2, 0, 0}}, // nginx's own example
		{[]uint32{10, 2, 2}, []uint64{0, 0, 1, 0, 2, 0, 0}},
		{[]uint32{4, 2}, []uint64{0, 1, 0}},
	} {
		if have := orderSlots(c.weights); !slices.Equal(have, c.want) {
			t.Errorf("%v: %v, want %v", c.weights, have, c.want)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{2, 100, 4000, 4096, 20000} {
		weights := make([]uint32, n)
		var total uint64
		for i := range weights {
			weights[i] = 1 + random.Uint32N(65535)
			total += uint64(weights[i])
		}
		slots := orderSlots(weights)
		if len(slots) > max(maxOrder, n) {
			t.Errorf("%d weights have an order of %d", n, len(slots))
		}
		turns := make([]int, n)
		for _, s := range slots {
			turns[s]++
		}
		for i, w := range weights {
			want := float64(w) / float64(total) * float64(len(slots))
			if turns[i] == 0 || n <= 100 && math.Abs(float64(turns[i])-want) > 1+want/20 {
				t.Fatalf("%d weights: weight %d of %d has %d turns of %d", n, w, total, turns[i], len(slots))
			}
		}
	}
	// The one that is not quadratic is as even as the other.
	for i, at := range spread([]uint64{5, 1, 1}, nil) {
		if want := []uint64{0, 0, 0, 1, 2, 0, 0}[i]; at != want {
			t.Errorf("spread: turn %d is of %d, want %d", i, at, want)
		}
	}
}

func maglevNames(n int) (names []model.Name, weights []uint32) {
	for i := range n {
		names = append(names, model.Name{Namespace: "ns", Name: fmt.Sprintf("e%05d", i)})
		weights = append(weights, 1)
	}
	return names, weights
}

func TestMaglevSize(t *testing.T) {
	for n, want := range map[int]uint64{1: 251, 2: 251, 3: 1021, 10: 1021, 11: 4099, 40: 4099, 41: 16381, 163: 16381, 164: 65537, 655: 65537, 5000: 65537} {
		if have := maglevSize(n); have != want {
			t.Errorf("%d: %d, want %d", n, have, want)
		}
	}
}

func TestMaglevSlots(t *testing.T) {
	for _, n := range []int{1, 2, 5, 10, 41, 200} {
		names, weights := maglevNames(n)
		for i := range weights {
			weights[i] = uint32(1 + i%3)
		}
		slots := maglevSlots(names, weights)
		if !slices.Equal(slots, maglevSlots(names, weights)) {
			t.Errorf("%d: not the same each time", n)
		}
		turns, total := make([]int, n), uint32(0)
		for _, s := range slots {
			turns[s]++
		}
		for _, w := range weights {
			total += w
		}
		for i, w := range weights {
			want := float64(len(slots)) * float64(w) / float64(total)
			if math.Abs(float64(turns[i])-want) > 2 {
				t.Errorf("%d: weight %d has %d of %d slots, want %.1f", n, w, turns[i], len(slots), want)
			}
		}
	}
}

// TestMaglevKeepsClients takes away one of n endpoints: of the slots of the others less than 2/n go to another, and with 1 % of reserve for small tables.
func TestMaglevKeepsClients(t *testing.T) {
	for _, n := range []int{3, 5, 10, 25, 40, 100, 300} {
		names, weights := maglevNames(n)
		before := maglevSlots(names, weights)
		for _, gone := range []int{0, n / 2, n - 1} {
			after := maglevSlots(slices.Delete(slices.Clone(names), gone, gone+1), weights[1:])
			if len(after) != len(before) {
				continue // of another size: all is new
			}
			kept, moved := 0, 0
			for i, b := range before {
				a := int(after[i])
				if a >= gone {
					a++
				}
				switch {
				case int(b) == gone:
				case a == int(b):
					kept++
				default:
					moved++
				}
			}
			if share := float64(moved) / float64(kept+moved); share > 2/float64(n)+0.01 {
				t.Errorf("%d without %d: %.3f of the others moved", n, gone, share)
			}
		}
	}
}

// TestMaglevIsFixed holds what other nodes make: a change here moves clients while a mesh is upgraded.
func TestMaglevIsFixed(t *testing.T) {
	names, weights := maglevNames(3)
	h := newHash(0)
	for _, s := range maglevSlots(names, weights) {
		h = h.byte(byte(s))
	}
	if have := h.sum(); have != maglevFixed {
		t.Errorf("%#x, want %#x", have, uint64(maglevFixed))
	}
}

const maglevFixed = 0x331c550753d28136

func TestSpans(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	s := newSpans(10000)
	var taken []span
	used := make([]bool, 10000)
	for range 20000 {
		if random.IntN(2) == 0 || len(taken) == 0 {
			size := 1 + random.Uint32N(1<<random.IntN(10))
			p, ok := s.take(size)
			if !ok {
				continue
			}
			for i := p.start; i < p.start+size; i++ {
				if used[i] {
					t.Fatalf("slot %d was taken twice", i)
				}
				used[i] = true
			}
			taken = append(taken, p)
			continue
		}
		i := random.IntN(len(taken))
		p := taken[i]
		taken = slices.Delete(taken, i, i+1)
		for i := p.start; i < p.start+p.size; i++ {
			used[i] = false
		}
		s.give(p)
		if s.listed > 4*len(s.sizes)+1025 {
			t.Fatalf("%d are listed of %d", s.listed, len(s.sizes))
		}
	}
	for _, p := range taken {
		s.give(p)
	}
	if s.free != 10000 || len(s.sizes) != 1 {
		t.Errorf("%d are free in %d pieces", s.free, len(s.sizes))
	}
	if _, ok := s.take(10000); !ok {
		t.Error("all together cannot be taken")
	}
}

func TestIndices(t *testing.T) {
	a := newIndices(3)
	for want := uint32(1); want <= 3; want++ {
		if i, fresh := a.take(); i != want || !fresh {
			t.Errorf("%d, %t; want %d", i, fresh, want)
		}
	}
	if i, _ := a.take(); i != 0 {
		t.Errorf("a fourth of three: %d", i)
	}
	a.give(2)
	a.give(1)
	if i, fresh := a.take(); i != 2 || fresh {
		t.Errorf("%d, %t; want the one that is free the longest", i, fresh)
	}
	if used := a.used(); used != 2 {
		t.Errorf("%d are used, not 2", used)
	}
}
