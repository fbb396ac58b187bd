package budget

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OwnTime is the CPU time of this process, in user space and in the kernel.
func OwnTime() (time.Duration, error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("read resource usage: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

// OwnMemory is what of this process is resident, in bytes: heap, stacks, mapped files and the event ring.
func OwnMemory() (uint64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0, fmt.Errorf("read memory: %q in /proc/self/statm", text)
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read memory: /proc/self/statm: %w", err)
	}
	return pages * uint64(os.Getpagesize()), nil
}

// NodeCPUs is how many CPUs the node has, whichever of them this process may use.
func NodeCPUs() int {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return runtime.NumCPU()
	}
	if n := countList(strings.TrimSpace(string(text))); n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countList counts the numbers of a list such as "0-3,8"; 0 if it is none.
func countList(list string) int {
	count := 0
	for part := range strings.SplitSeq(list, ",") {
		first, last, found := strings.Cut(part, "-")
		if !found {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 31)
		if err != nil {
			return 0
		}
		to, err := strconv.ParseUint(last, 10, 31)
		if err != nil || to < from {
			return 0
		}
		count += int(to - from + 1)
	}
	return count
}

// Sleep waits, or returns the context's error.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
