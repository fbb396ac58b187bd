package bpf

import "golang.org/x/sys/unix"

// Monotonic returns CLOCK_MONOTONIC in nanoseconds, the clock of the programs (bpf_ktime_get_ns) and so of their events.
func Monotonic() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail with a clock that exists
	return uint64(now.Nano())
}
