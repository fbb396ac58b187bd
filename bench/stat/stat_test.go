package stat

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		want    float64
	}{
		{[]float64{7}, 7},
		{[]float64{3, 1}, 2},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
		{[]float64{1, 1, 1, 1000}, 1},
	} {
		before := slices.Clone(c.samples)
		if got := Median(c.samples); got != c.want {
			t.Errorf("median of %v is %v, want %v", before, got, c.want)
		}
		if !slices.Equal(before, c.samples) {
			t.Errorf("%v became %v", before, c.samples)
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, c := range []struct {
		sorted []int
		q      float64
		want   int
	}{
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.991, 100},
		{hundred, 1, 100},
		{hundred, 0, 1},
		{[]int{5}, 0.5, 5},
		{[]int{1, 2, 3}, 0.5, 2},
	} {
		if got := Quantile(c.sorted, c.q); got != c.want {
			t.Errorf("quantile %v of %d numbers is %d, want %d", c.q, len(c.sorted), got, c.want)
		}
	}
}

// noisy makes pairs of a machine that is now fast, now slow, for some rounds at a time, with some of its own noise in each sample.
func noisy(random *rand.Rand, n int, ratio float64) (samples, base []float64) {
	speed := 1.0
	for range n {
		if random.IntN(5) == 0 {
			speed = []float64{1, 1.45}[random.IntN(2)]
		}
		noise := func() float64 { return 30 * speed * math.Exp(0.05*random.NormFloat64()) }
		samples, base = append(samples, ratio*noise()), append(base, noise())
	}
	return samples, base
}

// An interval of 95 % has the truth in it 95 times in a hundred, give or take what 100 tries can tell.
func TestIntervalsHoldTheTruth(t *testing.T) {
	const tries, truth = 100, 1.05
	held := 0
	for seed := range uint64(tries) {
		samples, base := noisy(rand.New(rand.NewPCG(seed, 1)), 30, truth)
		if e := OfRatio(samples, base, 1, seed); e.Low <= truth && truth <= e.High {
			held++
		}
	}
	if held < tries*88/100 {
		t.Errorf("the truth is in %d of %d intervals", held, tries)
	}
}

// ratioOfMedians is the other way to put samples and base together.
func ratioOfMedians(samples, base []float64, seed uint64) Estimate {
	above, below := make([]float64, len(samples)), make([]float64, len(samples))
	return bootstrap(Median(samples)/Median(base), len(samples), 1, seed, func(rounds []int) float64 {
		for i, r := range rounds {
			above[i], below[i] = samples[r], base[r]
		}
		return medianOf(above[:len(rounds)]) / medianOf(below[:len(rounds)])
	})
}

// On such a machine pairs are worth much: this is why a ratio is the median of ratios.
func TestPairsAreNarrower(t *testing.T) {
	samples, base := noisy(rand.New(rand.NewPCG(7, 7)), 40, 1)
	pairs, medians := OfRatio(samples, base, 1, 1), ratioOfMedians(samples, base, 1)
	if width, other := pairs.High-pairs.Low, medians.High-medians.Low; width*2 > other {
		t.Errorf("the interval of the median of ratios %v is not half as wide as that of the ratio of medians, %v", width, other)
	}
}

func TestConstantRatio(t *testing.T) {
	base := []float64{10, 20, 40, 10, 30}
	samples := make([]float64, len(base))
	for i := range base {
		samples[i] = 1.5 * base[i]
	}
	if got := OfRatio(samples, base, 1, 3); got != Exactly(1.5) {
		t.Errorf("estimate is %v, want 1.5 without doubt", got)
	}
}

func TestSameSeedSameInterval(t *testing.T) {
	samples, base := noisy(rand.New(rand.NewPCG(1, 2)), 25, 1.1)
	if a, b := OfRatio(samples, base, 1, 9), OfRatio(samples, base, 1, 9); a != b {
		t.Errorf("%v, then %v", a, b)
	}
	if e := OfMedian(samples, 1, 1); e.Low > e.Point || e.Point > e.High {
		t.Errorf("%v is not in order", e)
	}
}

// Where a block has its own bias, an interval from blocks has the truth in it, and one from rounds too seldom.
func TestBlocks(t *testing.T) {
	const tries, blocks, block = 60, 20, 5
	held := map[int]int{}
	for seed := range uint64(tries) {
		random := rand.New(rand.NewPCG(seed, 2))
		var samples []float64
		for range blocks {
			bias := 0.03 * random.NormFloat64()
			for range block {
				samples = append(samples, 1+bias+0.02*random.NormFloat64())
			}
		}
		for _, b := range []int{1, block} {
			if e := OfMedian(samples, b, seed); e.Low <= 1 && 1 <= e.High {
				held[b]++
			}
		}
	}
	if held[block] < tries*85/100 || held[1] > tries*80/100 {
		t.Errorf("of %d intervals from blocks %d have the truth in them, of those from rounds %d", tries, held[block], held[1])
	}
}
