package connection

import "time"

// Clock turns the kernel's CLOCK_MONOTONIC into wall time by an offset that is measured once in a while.
type Clock struct {
	OffsetNS int64 // wall time minus monotonic time
}

// Wall returns the wall time of a monotonic time.
func (c Clock) Wall(monotonicNS uint64) time.Time {
	return time.Unix(0, c.WallNS(monotonicNS)).UTC()
}

// WallNS returns the same as nanoseconds since the Unix epoch.
func (c Clock) WallNS(monotonicNS uint64) int64 { return int64(monotonicNS) + c.OffsetNS }
