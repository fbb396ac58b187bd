// Package stat turns samples into numbers with an interval. Everything is pure: the same samples and seed give the same result.
package stat

import (
	"math/rand/v2"
	"slices"
)

// Resamples is of a bootstrap: with it an interval's ends move by less than a tenth of its width from seed to seed.
const Resamples = 4000

// confidence of all intervals.
const confidence = 0.95

// Estimate is a number with its 95 % interval.
type Estimate struct {
	Point float64 `json:"point"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// Exactly is an estimate without doubt.
func Exactly(v float64) Estimate { return Estimate{v, v, v} }

// Median returns the middle of the samples, of which there must be one at least. Their order is left as it is.
func Median(samples []float64) float64 { return medianOf(slices.Clone(samples)) }

// medianOf changes the order of what it is given.
func medianOf(samples []float64) float64 {
	slices.Sort(samples)
	n := len(samples)
	if n%2 == 1 {
		return samples[n/2]
	}
	return (samples[n/2-1] + samples[n/2]) / 2
}

// Quantile returns the smallest of sorted samples that at least the share q of them does not exceed.
func Quantile[T any](sorted []T, q float64) T {
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[max(0, min(i, len(sorted)-1))]
}

// OfMedian estimates the median of samples. Each block of so many samples that follow each other has something in common, by which it differs
// from other blocks: so blocks are drawn. It is 1 where samples have nothing to do with each other.
func OfMedian(samples []float64, block int, seed uint64) Estimate {
	drawn := make([]float64, len(samples))
	return bootstrap(Median(samples), len(samples), block, seed, func(rounds []int) float64 {
		for i, r := range rounds {
			drawn[i] = samples[r]
		}
		return medianOf(drawn[:len(rounds)])
	})
}

// OfRatio estimates the median of the ratios of samples to base, which are pairs: samples[i] and base[i] are of one round. The base must
// be positive. It is not the ratio of the medians: on a machine that is now fast, now slow, for seconds at a time, a median jumps from one
// to the other, for samples and base apart, while the ratio within a round stays what it is.
func OfRatio(samples, base []float64, block int, seed uint64) Estimate {
	ratios := make([]float64, len(samples))
	for i := range samples {
		ratios[i] = samples[i] / base[i]
	}
	return OfMedian(ratios, block, seed)
}

// bootstrap draws n rounds with replacement, a block at a time, again and again, and takes the middle 95 % of what statistic says of them.
func bootstrap(point float64, n, block int, seed uint64, statistic func(rounds []int) float64) Estimate {
	block = max(1, block)
	blocks := (n + block - 1) / block
	random := rand.New(rand.NewPCG(seed, uint64(n)))
	rounds, values := make([]int, 0, n), make([]float64, Resamples)
	for i := range values {
		rounds = rounds[:0]
		for range blocks {
			first := random.IntN(blocks) * block
			for r := first; r < min(first+block, n) && len(rounds) < n; r++ {
				rounds = append(rounds, r)
			}
		}
		values[i] = statistic(rounds)
	}
	slices.Sort(values)
	return Estimate{Point: point, Low: Quantile(values, (1-confidence)/2), High: Quantile(values, (1+confidence)/2)}
}
