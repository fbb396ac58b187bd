//go:build !bench_alloc

package event

// injected is where a test of the gates puts a fault: see injected_bench.go.
func injected() {}
