package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// boot runs a machine to its end.
func boot(ctx context.Context, vmlinuz, initramfs string, log *console, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := []string{
		// 6.12 does not come up on the older machine type. Without cx16, because after a cmpxchg16b of the kernel's allocator the
		// flags were garbage under QEMU 7.2, and 6.12 ended in a double fault; without the feature the kernel does it otherwise.
		"-accel", "tcg", "-M", "q35", "-cpu", "max,-cx16", "-smp", "2", "-m", "1536",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", vmlinuz, "-initrd", initramfs,
		// A panic reboots, and a reboot ends QEMU. The emulated clock is too slow for the watchdog's taste.
		"-append", "console=ttyS0 quiet panic=-1 nowatchdog",
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
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
