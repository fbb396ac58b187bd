// Package lab puts processes into cgroups and network namespaces of their own, for the demo, tests and benchmarks. What it makes goes away
// with the processes, but for the directories of cgroups.
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NewNamespace makes a network namespace without a name: it lives as long as this handle and the processes in it.
func NewNamespace() (netns.NsHandle, error) {
	made := netns.None()
	err := OnThread(func() (err error) {
		made, err = netns.New()
		return err
	})
	if err != nil {
		return netns.None(), fmt.Errorf("make network namespace: %w", err)
	}
	return made, nil
}

// In runs f in a network namespace.
func In(ns netns.NsHandle, f func() error) error {
	return OnThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// LoopbackUp sets the loopback device of this thread's network namespace up.
func LoopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	loopback, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// OnThread runs f on a thread that comes back to its network namespace afterwards.
func OnThread(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	err = f()
	if back := netns.Set(home); back != nil {
		// Without its unlock the runtime throws this thread away together with the goroutine.
		runtime.LockOSThread()
		return errors.Join(err, back)
	}
	return err
}

// Start starts a command in a namespace and a cgroup directory, from its first instruction on. It is killed when this process
// ends, and has a process group of its own, so that Ctrl-C leaves it to this process.
func Start(cmd *exec.Cmd, ns netns.NsHandle, cgroup string) error {
	dir, err := os.Open(cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return In(ns, cmd.Start)
}

// RemoveCgroup removes an empty cgroup. It waits out the moment between the end of a process and the kernel's notice of it.
func RemoveCgroup(dir string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := os.Remove(dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
