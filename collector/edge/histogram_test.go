package edge

import (
	"math"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// observe adds values as if each came from the same event.
func observe(h *Histogram, values ...float64) {
	for _, v := range values {
		h.Observe(v, &connection.Event{Role: connection.Client, EventNS: 1})
	}
}

func TestClassicBucketsIncludeTheirUpperBound(t *testing.T) {
	for _, bounds := range [][]float64{LatencyBounds, DurationBounds, DecisionBounds} {
		if !slices.IsSorted(bounds) {
			t.Errorf("bounds are not sorted: %v", bounds)
		}
		for i, bound := range bounds {
			h := NewHistogram(bounds)
			observe(&h, bound, math.Nextafter(bound, 0), math.Nextafter(bound, math.Inf(1)))
			want := make([]uint64, len(bounds)+1)
			want[i], want[i+1] = 2, 1
			if !slices.Equal(h.Classic, want) {
				t.Errorf("around the bound %v: %v, want %v", bound, h.Classic, want)
			}
		}
	}
}

// definition is the i of (2^(i/8), 2^((i+1)/8)], by the eighth power, which is exact: 53 bits eight times fit into 424.
func definition(value float64) int {
	power := new(big.Float).SetPrec(424).SetFloat64(value)
	for range Schema {
		power.Mul(power, power)
	}
	mantissa := new(big.Float)
	exponent := power.MantExp(mantissa)
	if mantissa.Cmp(big.NewFloat(0.5)) == 0 {
		exponent-- // exactly a power of two is the upper end of its bucket
	}
	return exponent - 1
}

func TestBucketIndexIsByDefinition(t *testing.T) {
	values := []float64{math.SmallestNonzeroFloat64, math.MaxFloat64, 1e-9, 1e9}
	around := func(v float64) { values = append(values, math.Nextafter(v, 0), v, math.Nextafter(v, math.Inf(1))) }
	for exponent := -40; exponent <= 40; exponent++ {
		around(math.Ldexp(1, exponent))
		for eighth := 1; eighth < bucketsPerDoubling; eighth++ {
			around(math.Exp2(float64(exponent) + float64(eighth)/bucketsPerDoubling))
		}
	}
	for _, bound := range append(slices.Clone(LatencyBounds), DurationBounds...) {
		around(bound)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		values = append(values, math.Exp2(random.Float64()*80-40), float64(random.Uint64N(1<<40))/1e9+1e-9)
	}
	wrong := 0
	for _, v := range values {
		if got, want := bucketIndex(v), definition(v); got != want {
			if wrong++; wrong <= 5 {
				t.Errorf("bucketIndex(%v) = %d, want %d", v, got, want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d values are in a wrong bucket", wrong, len(values))
	}
}

func TestEveryObservationIsCountedInBothForms(t *testing.T) {
	h := NewHistogram(LatencyBounds)
	observe(&h, 1e-3, 2e-3, 200, 0, -1, math.NaN())
	if h.Count != 6 || h.Zero != 3 || h.Sum != 1e-3+2e-3+200 {
		t.Errorf("count %d, zero %d, sum %v; want 6, 3 and 200.003", h.Count, h.Zero, h.Sum)
	}
	classic := make([]uint64, len(LatencyBounds)+1)
	classic[0] = 3                                 // what is not above zero
	classic[slices.Index(LatencyBounds, 1e-3)] = 1 // inclusive
	classic[slices.Index(LatencyBounds, 2.5e-3)] = 1
	classic[len(LatencyBounds)] = 1 // above the last bound
	if !slices.Equal(h.Classic, classic) {
		t.Errorf("classic %v, want %v", h.Classic, classic)
	}
	if got := exponential(&h); len(got) != 3 || got[definition(1e-3)] != 1 || got[definition(2e-3)] != 1 || got[definition(200)] != 1 {
		t.Errorf("exponential %v, want one each in %d, %d and %d", got, definition(1e-3), definition(2e-3), definition(200))
	}
}

// exponential returns the buckets that are not empty.
func exponential(h *Histogram) map[int]uint64 {
	buckets := make(map[int]uint64)
	for i, n := range h.Exponential {
		if n > 0 {
			buckets[h.Offset+i] = n
		}
	}
	return buckets
}

func TestExponentialWindowGrows(t *testing.T) {
	// Values are 2^(n/8), the upper end of bucket n-1.
	for name, test := range map[string]struct {
		eighths []int
		offset  int
		want    []uint64
	}{
		"one":              {[]int{8}, 7, []uint64{1}},
		"the same again":   {[]int{8, 8}, 7, []uint64{2}},
		"next":             {[]int{8, 9}, 7, []uint64{1, 1}},
		"higher":           {[]int{8, 11}, 7, []uint64{1, 0, 0, 1}},
		"lower":            {[]int{8, 5}, 4, []uint64{1, 0, 0, 1}},
		"below one second": {[]int{1, -2}, -3, []uint64{1, 0, 0, 1}},
		"both, then again": {[]int{0, 2, -2, 0, -2, 2, 2}, -3, []uint64{2, 0, 2, 0, 3}},
		"past capacity":    {[]int{0, 12, -1}, -2, []uint64{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}},
	} {
		h := NewHistogram(LatencyBounds)
		for _, n := range test.eighths {
			// The middle of the bucket, away from rounding.
			observe(&h, math.Exp2((float64(n)-0.5)/bucketsPerDoubling))
		}
		if h.Offset != test.offset || !slices.Equal(h.Exponential, test.want) {
			t.Errorf("%s: offset %d, buckets %v; want %d, %v", name, h.Offset, h.Exponential, test.offset, test.want)
		}
	}
}

func TestQuantileIsWithinItsBound(t *testing.T) {
	const bound = 0.044
	random := rand.New(rand.NewPCG(3, 4))
	for name, draw := range map[string]func() float64{
		"log-uniform": func() float64 { return math.Exp2(random.Float64()*30 - 20) },
		"exponential": func() float64 { return random.ExpFloat64() * 1e-3 },
		"normal":      func() float64 { return math.Abs(random.NormFloat64()*1e-4 + 1e-2) },
		"constant":    func() float64 { return 0.123 },
	} {
		for _, count := range []int{1, 2, 7, 1000} {
			h := NewHistogram(LatencyBounds)
			values := make([]float64, count)
			for i := range values {
				values[i] = draw()
			}
			observe(&h, values...)
			slices.Sort(values)
			for _, q := range []float64{0.001, 0.01, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1} {
				exact := values[int(math.Ceil(q*float64(count)))-1]
				if got := h.Quantile(q); math.Abs(got-exact) > bound*exact {
					t.Errorf("%s: quantile %v of %d values is %v, exact is %v: off by %.1f %%",
						name, q, count, got, exact, 100*math.Abs(got-exact)/exact)
				}
			}
		}
	}
}

func TestQuantileOfNothingAndOfZeros(t *testing.T) {
	h := NewHistogram(LatencyBounds)
	if got := h.Quantile(0.5); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v, want NaN", got)
	}
	observe(&h, 0, 0, 1)
	if low, high := h.Quantile(0.5), h.Quantile(1); low != 0 || math.Abs(high-1) > 0.044 {
		t.Errorf("quantiles of 0, 0, 1: median %v, maximum %v; want 0 and about 1", low, high)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	made := func() *Histogram {
		h := NewHistogram(LatencyBounds)
		observe(&h, 1e-3, 5e-3)
		return &h
	}
	changed := made()
	kept := changed.clone()
	spoil(changed)
	if want := made(); !reflect.DeepEqual(&kept, want) {
		t.Errorf("a clone changed with its original:\n got %+v\nwant %+v", &kept, want)
	}
	original := made()
	clone := original.clone()
	spoil(&clone)
	if want := made(); !reflect.DeepEqual(original, want) {
		t.Errorf("the original changed with its clone:\n got %+v\nwant %+v", original, want)
	}
}

// spoil writes to everything that a histogram points at, but for the bounds, which are shared.
func spoil(h *Histogram) {
	for i := range h.Exemplars {
		h.Exemplars[i].Value = 42
	}
	for i := range h.Classic {
		h.Classic[i] = 42
	}
	for i := range h.Exponential {
		h.Exponential[i] = 42
	}
}

func TestExemplarIsOfItsBucketAndAtMostOneSecondOld(t *testing.T) {
	const bucket = 5 // (500 us, 1 ms]
	h := NewHistogram(LatencyBounds)
	at := func(ns uint64, isn uint32, value float64) connection.Event {
		e := connection.Event{Role: connection.Client, EventNS: ns, ClientISN: isn}
		h.Observe(value, &e)
		return e
	}
	check := func(what string, from connection.Event, value float64) {
		t.Helper()
		trace := from.Trace()
		if want := (Exemplar{TraceID: trace.ID, SpanID: trace.ClientSpan, AtNS: from.EventNS, Value: value}); h.Exemplars[bucket] != want {
			t.Errorf("%s: exemplar %+v, want %+v", what, h.Exemplars[bucket], want)
		}
	}
	first := at(5e9, 1, 0.0006)
	check("the first", first, 0.0006)
	at(5e9+999_999_999, 2, 0.0007)
	check("younger than a second", first, 0.0006)
	at(6e9, 3, 0.1)
	check("another bucket", first, 0.0006)
	third := at(6e9, 4, 0.0008)
	check("a second old", third, 0.0008)
	if set := slices.DeleteFunc(slices.Clone(h.Exemplars), func(x Exemplar) bool { return x.AtNS == 0 }); len(set) != 2 {
		t.Errorf("%d buckets have exemplars, want 2: %+v", len(set), set)
	}
}

func TestServerExemplarNamesTheServersSpan(t *testing.T) {
	h := NewHistogram(LatencyBounds)
	e := connection.Event{Role: connection.Server, EventNS: 1}
	h.Observe(1, &e)
	trace := e.Trace()
	if got := h.Exemplars[slices.Index(LatencyBounds, 1)]; got.SpanID != trace.ServerSpan {
		t.Errorf("span %x, want %x", got.SpanID, trace.ServerSpan)
	}
}
