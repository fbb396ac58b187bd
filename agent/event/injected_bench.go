//go:build bench_alloc

package event

var garbage *[64]byte

// injected allocates, so that one can see whether the gates of allocations see it.
func injected() { garbage = new([64]byte) }
