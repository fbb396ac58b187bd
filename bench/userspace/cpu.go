package userspace

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is what this process has used, in user and in kernel mode, on all its threads: the garbage collector's too.
func cpuTime() time.Duration {
	var usage unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage) // cannot fail with these arguments
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// gauge is fixed work, by which one can tell how fast the machine is at the moment.
type gauge struct{ memory [1 << 16]uint64 }

// run does it and returns the CPU time that it took: about half of it looks at memory, in a way that cannot be foreseen.
func (g *gauge) run() time.Duration {
	begin := cpuTime()
	x := uint64(88172645463325252)
	for range 1_000_000 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		at := &g.memory[(x+g.memory[x>>48])>>48]
		if *at += x; *at&1 == 0 {
			x++
		}
	}
	return cpuTime() - begin
}
