package userspace

import (
	"runtime"
	"testing"
	"time"
)

func BenchmarkEnds(b *testing.B) {
	for _, test := range []struct {
		name    string
		outputs Outputs
	}{
		{"edges", Outputs{}},
		{"json", Outputs{JSON: true}},
		{"logs", Outputs{Logs: true}},
		{"spans", Outputs{Logs: true, Spans: true}},
	} {
		b.Run(test.name, func(b *testing.B) {
			agent, err := NewAgent(Typical, test.outputs)
			if err != nil {
				b.Fatal(err)
			}
			stream := NewStream(Typical)
			ends := 0
			var spent time.Duration
			play := func() {
				start := cpuTime()
				if err := agent.Play(stream.Records); err != nil {
					b.Fatal(err)
				}
				agent.Wait()
				spent += cpuTime() - start
				ends += stream.Ends
				b.StopTimer()
				stream.Advance()
				b.StartTimer()
			}
			if err := agent.Play(stream.Before); err != nil {
				b.Fatal(err)
			}
			play()
			ends, spent = 0, 0
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.ResetTimer()
			for ends < b.N {
				play()
			}
			runtime.ReadMemStats(&after)
			per := func(v float64) float64 { return v / float64(ends) }
			b.ReportMetric(per(float64(spent)), "cpu-ns/end")
			b.ReportMetric(per(float64(after.Mallocs-before.Mallocs)), "allocs/end")
			b.ReportMetric(per(float64(after.TotalAlloc-before.TotalAlloc)), "B/end")
			if err := agent.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
