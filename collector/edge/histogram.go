package edge

import (
	"math"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// LatencyBounds are the upper bounds, in seconds, of the classic buckets of connect time and RTT: loopback is some ten
// microseconds, a lost SYN costs a second, tcp_syn_retries ends after two minutes.
var LatencyBounds = []float64{
	25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 5, 10, 30, 130,
}

// DurationBounds are those of the length of connections, in seconds.
var DurationBounds = []float64{
	100e-6, 1e-3, 5e-3, 10e-3, 50e-3, 100e-3, 500e-3, 1, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600,
}

// Schema is the resolution of the exponential buckets: eight to a doubling, so that a quantile is off by at most 4.4 %. It is the
// schema of Prometheus native histograms and the scale of OTLP exponential ones.
const Schema = 3

const bucketsPerDoubling = 1 << Schema

// Exemplar points at the connection that an observation came from.
type Exemplar struct {
	TraceID [16]byte
	SpanID  [8]byte
	AtNS    uint64 // CLOCK_MONOTONIC; 0 where there is none
	Value   float64
}

// exemplarAge is how old an exemplar gets before the next observation takes its place: its ids cost a hash.
const exemplarAge = uint64(time.Second)

// Histogram counts observations twice: in classic buckets for whoever needs fixed bounds, and in exponential ones.
type Histogram struct {
	Bounds []float64 // shared, upper bounds of Classic but the last
	// Classic counts observations per bucket, not cumulative; the last bucket has no bound.
	Classic []uint64
	// Exponential[i] counts observations in (2^((Offset+i)/8), 2^((Offset+i+1)/8)].
	Exponential []uint64
	Offset      int
	Zero        uint64 // observations of zero
	Count       uint64
	Sum         float64
	Exemplars   []Exemplar // one for each classic bucket
}

// NewHistogram returns an empty histogram.
func NewHistogram(bounds []float64) Histogram {
	return Histogram{Bounds: bounds, Classic: make([]uint64, len(bounds)+1), Exemplars: make([]Exemplar, len(bounds)+1)}
}

func (h *Histogram) clone() Histogram {
	copied := *h
	copied.Classic = slices.Clone(h.Classic)
	copied.Exponential = slices.Clone(h.Exponential)
	copied.Exemplars = slices.Clone(h.Exemplars)
	return copied
}

// hasBounds tells whether another histogram with these bounds can be added to it.
func (h *Histogram) hasBounds(bounds []float64) bool {
	return slices.Equal(h.Bounds, bounds) && len(h.Classic) == len(bounds)+1 && len(h.Exemplars) == len(bounds)+1
}

// Observe counts one value. Negative values count as zero: they come from nowhere but a clock error.
func (h *Histogram) Observe(value float64, from *connection.Event) {
	h.Count++
	if value <= 0 || math.IsNaN(value) {
		h.Zero++
		h.Classic[0]++
		return
	}
	h.Sum += value
	classic := search(h.Bounds, value)
	h.Classic[classic]++
	if e := &h.Exemplars[classic]; e.AtNS == 0 || from.EventNS-e.AtNS >= exemplarAge {
		trace := from.Trace()
		*e = Exemplar{TraceID: trace.ID, SpanID: trace.Span(from.Role), AtNS: from.EventNS, Value: value}
	}
	*h.exponential(bucketIndex(value))++
}

// search returns the first bound that is not below a value, or their number. What slices.BinarySearch does beside that, for NaN and for a
// generic comparison, is most of its time.
func search(bounds []float64, value float64) int {
	low, high := 0, len(bounds)
	for low < high {
		if middle := int(uint(low+high) / 2); bounds[middle] < value {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// fractions are the lower bounds of a doubling's buckets, 2^(i/8) for values in [0.5, 1), rounded down: then no value compares to
// them otherwise than to the true bounds, which no float64 hits but the first.
var fractions = [bucketsPerDoubling]float64{
	0x1p-1, 0x1.172b83c7d517ap-1, 0x1.306fe0a31b715p-1, 0x1.4bfdad5362a27p-1,
	0x1.6a09e667f3bccp-1, 0x1.8ace5422aa0dbp-1, 0x1.ae89f995ad3adp-1, 0x1.d5818dcfba487p-1,
}

// bucketIndex is the i of (2^(i/8), 2^((i+1)/8)]. Not by a logarithm: its rounding puts values near a bound on the wrong side.
func bucketIndex(value float64) int {
	fraction, exponent := math.Frexp(value)
	return (exponent-1)*bucketsPerDoubling + search(fractions[:], fraction) - 1
}

// exponential grows the window of buckets to hold index.
func (h *Histogram) exponential(index int) *uint64 {
	switch {
	case len(h.Exponential) == 0:
		h.Offset = index
		h.Exponential = make([]uint64, 1, bucketsPerDoubling)
	case index < h.Offset:
		h.Exponential = slices.Insert(h.Exponential, 0, make([]uint64, h.Offset-index)...)
		h.Offset = index
	case index >= h.Offset+len(h.Exponential):
		h.Exponential = append(h.Exponential, make([]uint64, index-h.Offset-len(h.Exponential)+1)...)
	}
	return &h.Exponential[index-h.Offset]
}

// Quantile estimates the value that a share q of observations does not exceed, or NaN for an empty histogram. Between 0 and 1.
func (h *Histogram) Quantile(q float64) float64 {
	if h.Count == 0 {
		return math.NaN()
	}
	rank := q * float64(h.Count)
	seen := float64(h.Zero)
	if rank <= seen {
		return 0
	}
	for i, n := range h.Exponential {
		if seen += float64(n); rank <= seen && n > 0 {
			// The middle of the bucket on its own, exponential scale.
			return math.Exp2((float64(h.Offset+i) + 0.5) / bucketsPerDoubling)
		}
	}
	return math.Exp2(float64(h.Offset+len(h.Exponential)) / bucketsPerDoubling)
}
