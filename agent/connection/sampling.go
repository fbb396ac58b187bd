package connection

import "math"

// Sampling is the probability with which a record was kept; zero while all are.
type Sampling uint8

// SampledAt returns the sampling that keeps 1 in 2^halvings.
func SampledAt(halvings uint8) Sampling { return Sampling(1 + halvings) }

// Probability returns it, and whether there was any sampling.
func (s Sampling) Probability() (float64, bool) {
	if s == 0 {
		return 1, false
	}
	return math.Ldexp(1, 1-int(s)), true
}
