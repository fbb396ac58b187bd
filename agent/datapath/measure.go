package datapath

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Measure makes the kernel measure programs until stop is called, which ProgramStats then shows. It measures every program of the machine,
// and needs CAP_SYS_ADMIN.
func Measure() (stop func() error, err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("enable statistics of programs: %w", err)
	}
	return stats.Close, nil
}

// Measuring says whether the kernel measures programs all the time, by kernel.bpf_stats_enabled.
func Measuring() bool {
	text, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled")
	return err == nil && len(bytes.TrimSpace(text)) > 0 && bytes.TrimSpace(text)[0] != '0'
}

// HookTime is the time in those programs that others run: hooks and tracepoints. The iterators' is in this process's own time.
func (d *Datapath) HookTime() (time.Duration, error) {
	programs, err := d.ProgramStats()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range programs {
		if p.Name != sweepProgram {
			sum += p.Time
		}
	}
	return sum, nil
}

// Work counts the steps of connections that the programs have told, or have counted for what they could not tell: what their time goes into.
func (d *Datapath) Work() (uint64, error) {
	a, err := d.Account()
	if err != nil {
		return 0, err
	}
	var sum uint64
	for i := range a.Submitted {
		sum += a.Submitted[i] + a.ReserveFailed[i] + a.SampledOut[i]
	}
	return sum, nil
}
