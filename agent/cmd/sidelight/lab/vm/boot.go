package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// boot runs a machine to its end.
func boot(ctx context.Context, vmlinuz, initramfs string, log *console, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	threads, err := emulatorThreads(ctx)
	if err != nil {
		return err
	}
	args := []string{
		// 6.12 does not come up on the older machine type. Without cx16, because after a cmpxchg16b of the kernel's allocator the
		// flags were garbage under QEMU 7.2, and 6.12 ended in a double fault; without the feature the kernel does it otherwise.
		"-accel", "tcg,thread=" + threads, "-M", "q35", "-cpu", "max,-cx16", "-smp", "2", "-m", "1536",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", vmlinuz, "-initrd", initramfs,
		// A panic reboots, and a reboot ends QEMU. The emulated clock is too slow for the watchdog's taste.
		"-append", "console=ttyS0 quiet panic=-1 nowatchdog",
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("it did not end within %v", timeout)
	case err != nil:
		return fmt.Errorf("qemu: %w", err)
	case !log.says(allPassed):
		return errors.New("it ended without saying that all passed")
	}
	return nil
}

func (c *console) says(line string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.text.Bytes(), []byte(line))
}

var emulatorVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// emulatorThreads says whether the processors of a machine may have a thread each. Before QEMU 8.1 they may not: a processor could keep a translation of
// code that another one was writing, so a breakpoint that the kernel sets while it patches itself could outlive the patch ("Oops: int3" in whatever
// function holds a tracepoint that an agent has just let go of). One thread for both is free of it, and takes half as long again.
func emulatorThreads(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("qemu: %w", err)
	}
	return threadsOf(string(out)), nil
}

func threadsOf(version string) string {
	found := emulatorVersion.FindStringSubmatch(version)
	if found == nil {
		return "single"
	}
	major, _ := strconv.Atoi(found[1])
	minor, _ := strconv.Atoi(found[2])
	if major > 8 || major == 8 && minor >= 1 {
		return "multi"
	}
	return "single"
}
