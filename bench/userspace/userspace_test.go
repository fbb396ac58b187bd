package userspace

import (
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bench/figure"
)

// BenchmarkEnd is for benchstat: one operation is one end of a connection.
func BenchmarkEnd(b *testing.B) {
	for _, o := range outputs {
		b.Run(o.name, func(b *testing.B) {
			s, err := newSubject(Typical, o.outputs)
			if err != nil {
				b.Fatal(err)
			}
			defer s.agent.Close()
			runtime.GC()
			b.ResetTimer()
			c, err := s.play(b.N)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op") // the stream is moved on meanwhile
			b.ReportMetric(float64(c.cpu)/float64(c.ends), "cpu-ns/end")
			b.ReportMetric(float64(c.allocations)/float64(c.ends), "allocs/end")
			b.ReportMetric(float64(c.bytes)/float64(c.ends), "B/end")
		})
	}
}

// TestNoAllocationPerEvent is the gate of the way from the ring to the edge table; the tag bench_alloc of agent/event turns it red.
func TestNoAllocationPerEvent(t *testing.T) {
	s, err := newSubject(Typical, Outputs{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.agent.Close()
	if got := testing.AllocsPerRun(5, func() {
		if err := s.agent.Play(s.stream.Records); err != nil {
			t.Fatal(err)
		}
		s.stream.Advance()
	}); got != 0 {
		t.Errorf("%v allocations for %d events", got, len(s.stream.Records))
	}
}

// TestOpenConnectionsTakeLittle bounds the memory of an open connection, just after the table has grown.
func TestOpenConnectionsTakeLittle(t *testing.T) {
	s, err := newSubject(Typical, Outputs{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.agent.Close()
	before := heap()
	if err := opened(Typical, heldConnections, s.agent.Play); err != nil {
		t.Fatal(err)
	}
	each := (heap() - before) / heldConnections
	t.Logf("%.0f bytes", each)
	if each > 120 {
		t.Errorf("%.0f bytes for an open end, want at most 120", each)
	}
	if got := s.agent.Connections(); got != heldConnections+2*int64(Typical.Open) {
		t.Errorf("%d ends are followed", got)
	}
	runtime.KeepAlive(s)
}

// TestStreamIsWhatTheKernelSends holds the sums of a played stream against what it is made of.
func TestStreamIsWhatTheKernelSends(t *testing.T) {
	s, err := newSubject(Typical, Outputs{JSON: true, Logs: true, Spans: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.agent.Close()
	const plays = 2
	failed := uint64(Typical.Connections / Typical.FailEvery)
	open := Typical.Connections - int(failed)
	var attempts, closed, established, failures uint64
	var gauges int64
	for _, e := range s.agent.Edges.Snapshot().Edges {
		attempts += e.Sums.Attempts
		established += e.Sums.Established
		closed += e.Sums.Closed[connection.OK]
		failures += e.Sums.Failures[connection.Refused]
		if gauges += e.Sums.Open; e.Sums.Open < 0 || e.Sums.Connecting != 0 {
			t.Errorf("%+v: %d open, %d connecting", e.Key, e.Sums.Open, e.Sums.Connecting)
		}
	}
	want := []uint64{uint64(plays*Typical.Connections + Typical.Open), uint64(2 * (plays*open + Typical.Open)), uint64(2 * plays * open), plays * failed}
	if got := []uint64{attempts, established, closed, failures}; !slices.Equal(got, want) {
		t.Errorf("attempts, established, closed, failed are %d, want %d", got, want)
	}
	if gauges != 2*int64(Typical.Open) || s.agent.Connections() != gauges {
		t.Errorf("%d ends are open, %d followed, want %d", gauges, s.agent.Connections(), 2*Typical.Open)
	}
	if got, want := s.agent.Edges.Counts().Edges, Typical.Edges; got != want {
		t.Errorf("%d edges, want %d", got, want)
	}
	if got, want := s.agent.log.Lines(), uint64(s.stream.Ends*plays); got != want || s.agent.Dropped() != 0 {
		t.Errorf("%d lines, %d dropped, want %d and none", got, s.agent.Dropped(), want)
	}
}

// TestMeasure looks at the form of the figures, not at what they are. BENCH_USERSPACE=quick or full measures in earnest and prints them.
func TestMeasure(t *testing.T) {
	mode := os.Getenv("BENCH_USERSPACE")
	if mode == "" {
		known := quick
		quick = extent{rounds: 1, ends: 1, connections: []int{1000}, edges: []int{10}}
		defer func() { quick = known }()
	}
	figures, err := Source{}.Measure(t.Context(), figure.Options{Quick: mode != "full", Seed: 1, Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, f := range figures {
		if err := f.Check(); err != nil || names[f.Name] {
			t.Errorf("%s: %v; twice: %v", f.Name, err, names[f.Name])
		}
		names[f.Name] = true
		if mode != "" {
			slices.Sort(f.Samples)
			shown := map[string]any{"figure": f.Name, "unit": f.Unit, "value": f.Value}
			if n := len(f.Samples); n > 0 {
				shown["value"], shown["least"] = f.Samples[n/2], f.Samples[0]
			}
			line, _ := json.Marshal(shown)
			t.Log(string(line))
		}
	}
}
