package promview

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

// native undoes the spans and deltas: the counts of a native histogram by bucket.
func native(h *dto.Histogram) map[int]uint64 {
	buckets := make(map[int]uint64)
	index, next, count := 0, 0, int64(0)
	for _, span := range h.GetPositiveSpan() {
		index += int(span.GetOffset())
		for range span.GetLength() {
			count += h.GetPositiveDelta()[next]
			buckets[index] = uint64(count)
			index++
			next++
		}
	}
	if next != len(h.GetPositiveDelta()) {
		buckets[math.MinInt] = uint64(len(h.GetPositiveDelta()) - next) // deltas outside of the spans
	}
	return buckets
}

func sum(buckets map[int]uint64) uint64 {
	total := uint64(0)
	for _, n := range buckets {
		total += n
	}
	return total
}

// scrapeProtobuf sends families the way that carries native histograms, and reads them as Prometheus does.
func scrapeProtobuf(t *testing.T, families []*dto.MetricFamily) []*dto.MetricFamily {
	t.Helper()
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	decoder := expfmt.NewDecoder(bytes.NewReader(text(t, families, format)), format)
	var read []*dto.MetricFamily
	for {
		f := new(dto.MetricFamily)
		if err := decoder.Decode(f); errors.Is(err, io.EOF) {
			return read
		} else if err != nil {
			t.Fatal(err)
		}
		read = append(read, f)
	}
}

func TestNativeAndClassicBucketsCountTheSame(t *testing.T) {
	histograms := 0
	for _, name := range []string{"edges", "overflow"} {
		for _, f := range scrapeProtobuf(t, gatherCase(t, name)) {
			for _, m := range f.GetMetric() {
				h := m.GetHistogram()
				if h == nil {
					continue
				}
				histograms++
				if h.GetSchema() != edge.Schema || h.GetZeroThreshold() != 0 || len(h.GetPositiveSpan()) == 0 {
					t.Errorf("%s: schema %d, zero threshold %v, %d spans", f.GetName(), h.GetSchema(), h.GetZeroThreshold(), len(h.GetPositiveSpan()))
				}
				if got, want := sum(native(h)), h.GetSampleCount()-h.GetZeroCount(); got != want {
					t.Errorf("%s %v: native buckets hold %d, want %d", f.GetName(), m.GetLabel(), got, want)
				}
				below := uint64(0)
				for _, b := range h.GetBucket() {
					if b.GetCumulativeCount() < below || b.GetCumulativeCount() > h.GetSampleCount() {
						t.Errorf("%s %v: bucket %v holds %d, the one below %d, of %d", f.GetName(), m.GetLabel(), b.GetUpperBound(),
							b.GetCumulativeCount(), below, h.GetSampleCount())
					}
					below = b.GetCumulativeCount()
				}
			}
		}
	}
	if histograms == 0 {
		t.Error("no histograms")
	}
}

// values are durations of all sizes, such as the kernel's clock makes.
func values() []float64 {
	random := rand.New(rand.NewPCG(5, 6))
	all := []float64{0, 0, 1, 2, 0.5, 25e-6, 130, 86400, 1e9, 1e-9}
	for range 5000 {
		all = append(all, math.Floor(math.Exp2(random.Float64()*45))/1e9)
	}
	return all
}

func histogramOf(values []float64) *edge.Histogram {
	h := edge.NewHistogram(edge.LatencyBounds)
	for i, v := range values {
		h.Observe(v, &connection.Event{Role: connection.Client, EventNS: 1 + uint64(i)*1e9, ClientISN: uint32(i)})
	}
	return &h
}

func TestNativeHistogramIsWhatTheLibraryMakes(t *testing.T) {
	reference := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "reference", Buckets: edge.LatencyBounds,
		// The largest factor below which the library takes schema 3: 2^(1/8) is 1.0905.
		NativeHistogramBucketFactor: 1.1, NativeHistogramZeroThreshold: prometheus.NativeHistogramZeroThresholdZero,
	})
	all := values()
	for _, v := range all {
		reference.Observe(v)
	}
	var written dto.Metric
	if err := reference.Write(&written); err != nil {
		t.Fatal(err)
	}
	want := written.GetHistogram()
	got := histogramProto(histogramOf(all), fixture.Clock, fixture.Now)
	if got.GetSchema() != want.GetSchema() || got.GetZeroCount() != want.GetZeroCount() || got.GetZeroThreshold() != want.GetZeroThreshold() ||
		got.GetSampleCount() != want.GetSampleCount() || math.Abs(got.GetSampleSum()-want.GetSampleSum()) > 1e-6*want.GetSampleSum() {
		t.Errorf("got schema %d, zero %d up to %v, count %d, sum %v; want %d, %d up to %v, %d, %v", got.GetSchema(), got.GetZeroCount(),
			got.GetZeroThreshold(), got.GetSampleCount(), got.GetSampleSum(), want.GetSchema(), want.GetZeroCount(), want.GetZeroThreshold(),
			want.GetSampleCount(), want.GetSampleSum())
	}
	filled := func(h *dto.Histogram) map[int]uint64 {
		buckets := native(h)
		maps.DeleteFunc(buckets, func(_ int, n uint64) bool { return n == 0 }) // the library bridges small gaps
		return buckets
	}
	if got, want := filled(got), filled(want); !maps.Equal(got, want) {
		t.Errorf("native buckets %v\nwant %v", got, want)
	}
	for i, b := range want.GetBucket() {
		if g := got.GetBucket()[i]; g.GetUpperBound() != b.GetUpperBound() || g.GetCumulativeCount() != b.GetCumulativeCount() {
			t.Errorf("bucket %v holds %d, want %v to hold %d", g.GetUpperBound(), g.GetCumulativeCount(), b.GetUpperBound(), b.GetCumulativeCount())
		}
	}
}

func TestHistogramWithoutObservationsIsStillNative(t *testing.T) {
	h := histogramProto(histogramOf(nil), fixture.Clock, fixture.Now)
	if len(h.GetPositiveSpan()) != 1 || h.GetPositiveSpan()[0].GetLength() != 0 || h.GetPositiveSpan()[0].GetOffset() != 0 || len(h.GetPositiveDelta()) != 0 {
		t.Errorf("spans %v, deltas %v; want one span of no length", h.GetPositiveSpan(), h.GetPositiveDelta())
	}
	if len(h.GetBucket()) != len(edge.LatencyBounds) {
		t.Errorf("%d classic buckets, want %d", len(h.GetBucket()), len(edge.LatencyBounds))
	}
}

func TestEachBucketHasAnExemplarOfItself(t *testing.T) {
	all := []float64{10e-6, 60e-6, 1, 1000} // the last one is above all bounds
	h := histogramProto(histogramOf(all), fixture.Clock, fixture.Now)
	var got []float64
	below := math.Inf(-1)
	for _, b := range h.GetBucket() {
		if x := b.GetExemplar(); x != nil {
			if x.GetValue() <= below || x.GetValue() > b.GetUpperBound() {
				t.Errorf("the bucket (%v, %v] has the exemplar %v", below, b.GetUpperBound(), x.GetValue())
			}
			got = append(got, x.GetValue())
		}
		below = b.GetUpperBound()
	}
	if !slices.Equal(got, all) {
		t.Errorf("exemplars of classic buckets: %v, want %v", got, all)
	}
	if last := h.GetBucket()[len(h.GetBucket())-1]; !math.IsInf(last.GetUpperBound(), 1) || last.GetCumulativeCount() != 4 {
		t.Errorf("the last bucket holds %d up to %v, want 4 up to infinity", last.GetCumulativeCount(), last.GetUpperBound())
	}
	var natives []float64
	for _, x := range h.GetExemplars() {
		natives = append(natives, x.GetValue())
	}
	if !slices.Equal(natives, all) {
		t.Errorf("exemplars of the native histogram: %v, want %v", natives, all)
	}
}

func TestExemplarPointsAtItsConnection(t *testing.T) {
	e := connection.Event{Role: connection.Server, EventNS: 5e9, ClientISN: 9}
	h := edge.NewHistogram(edge.LatencyBounds)
	h.Observe(0.25, &e)
	x := histogramProto(&h, fixture.Clock, fixture.Now).GetExemplars()[0]
	trace := e.Trace()
	labels := make(map[string]string)
	for _, l := range x.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	want := map[string]string{"trace_id": hexOf(trace.ID[:]), "span_id": hexOf(trace.ServerSpan[:])}
	if !maps.Equal(labels, want) || x.GetValue() != 0.25 || !x.GetTimestamp().AsTime().Equal(time.Unix(1_700_000_005, 0)) {
		t.Errorf("exemplar %v, want the labels %v, 0.25, at the connection's end", x, want)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var out strings.Builder
	for _, c := range b {
		out.WriteByte(digits[c>>4])
		out.WriteByte(digits[c&15])
	}
	return out.String()
}

func TestExemplarsAreInOpenMetrics(t *testing.T) {
	lines := strings.Split(string(text(t, gatherCase(t, "edges"), expfmt.NewFormat(expfmt.TypeOpenMetrics))), "\n")
	exemplars := slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, ` # {trace_id="`) })
	for _, family := range []string{
		"sidelight_tcp_connect_duration_seconds_bucket", "sidelight_tcp_connection_duration_seconds_bucket", "sidelight_tcp_rtt_seconds_bucket",
	} {
		if !slices.ContainsFunc(exemplars, func(line string) bool { return strings.HasPrefix(line, family+"{") }) {
			t.Errorf("no exemplar of %s in\n%s", family, strings.Join(exemplars, "\n"))
		}
	}
	// The connection that lasted longer than any bound: whoever looks for the slowest looks there.
	if !slices.ContainsFunc(exemplars, func(line string) bool { return strings.Contains(line, `le="+Inf"`) }) {
		t.Errorf("no exemplar of the last bucket in\n%s", strings.Join(exemplars, "\n"))
	}
}
