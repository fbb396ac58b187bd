package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// allPassed is the last word of a machine on which everything passed.
const allPassed = "sidelight-kernels: all passed"

// guest is the whole user space of a virtual machine. It does not return: the machine ends.
//
// The programs under test look for mounts as they start (cilium/ebpf does), so everything is mounted before the first of them.
func guest() {
	err := prepareGuest()
	if err == nil {
		err = runSteps(context.Background(), "/", guestSteps, os.Stdout)
	}
	if err != nil {
		fmt.Println("sidelight-kernels:", err)
	} else {
		fmt.Println(allPassed)
	}
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("power off:", err)
	os.Exit(1) // the kernel panics, which ends QEMU too
}

func prepareGuest() error {
	for _, m := range []struct{ kind, point string }{
		{"devtmpfs", "/dev"},
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"bpf", "/sys/fs/bpf"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
	} {
		if err := os.MkdirAll(m.point, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("none", m.point, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.point, err)
		}
	}
	if err := unix.Sethostname([]byte("sidelight-vm")); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	// A test has a thousand connections open at once.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		return fmt.Errorf("raise limit of open files: %w", err)
	}
	os.Setenv("PATH", "/bin")
	os.Setenv("HOME", "/tmp")
	if err := loadModules(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// loadModules loads them in the order of their names, which is that of their dependencies.
func loadModules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}
