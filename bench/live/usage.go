package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage returns the CPU time that a cgroup has used, in microseconds.
func usage(cgroup string) (int64, error) {
	path := filepath.Join(cgroup, "cpu.stat")
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	name, number, _ := strings.Cut(line, " ")
	if name != "usage_usec" {
		return 0, fmt.Errorf("%s: begins with %q, not with usage_usec", path, line)
	}
	return strconv.ParseInt(number, 10, 64)
}

// patience bounds every wait for something that must come.
const patience = 20 * time.Second

// A cgroup stands still when in a window it uses less than quiet: some wake-ups to look, no work.
const (
	window = 60 * time.Millisecond
	quiet  = 400 // microseconds
)

// still waits until a cgroup hardly uses CPU time any more, and returns what it has used by then.
func still(ctx context.Context, cgroup string) (int64, error) {
	before, err := usage(cgroup)
	if err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(patience); ; {
		if err := pause(ctx, window); err != nil {
			return 0, err
		}
		now, err := usage(cgroup)
		if err != nil {
			return 0, err
		}
		if now-before < quiet {
			return now, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s is busy for %v without work; last it used %d us in %v", filepath.Base(cgroup), patience, now-before, window)
		}
		before = now
	}
}

// pause waits, as part of a poll or for a time that is itself the measure.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// poll asks until the answer is yes.
func poll(ctx context.Context, what string, every time.Duration, ready func() (bool, error)) error {
	for deadline := time.Now().Add(patience); ; {
		ok, err := ready()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v", what, patience)
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

// resident returns a process's resident memory in bytes.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(string(bytes.TrimSpace(rest)), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS in the process's status; it has ended")
}

// softirqTicks returns the machine's time in softirq, in ticks of 10 ms.
func softirqTicks() (int64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	const column = 7 // cpu user nice system idle iowait irq softirq
	fields := strings.Fields(string(text))
	if len(fields) <= column {
		return 0, errors.New("/proc/stat: too short")
	}
	return strconv.ParseInt(fields[column], 10, 64)
}
