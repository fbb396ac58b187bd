package main

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTruthBare leaves many sockets without room for state: what the kernel knows without is in the sums all the same, and each
// such end has its line, without what only state could tell.
func TestTruthBare(t *testing.T) {
	needRoot(t)
	m := newMix(t, 20, truthCount)
	m.exhaust()
	k := startKeeper(t)
	a := startAgent(t, m.cgroup, "--config", m.config("otlp: {protocol: grpc}"), "--otlp-endpoint", k.endpoint)
	m.startServers()
	m.startClients()
	m.wait(saysThird)
	m.wait(saysRest)
	m.release()
	m.verify(a, k)
	bare := 0
	for _, attributes := range a.attributes() {
		if _, adopted := attributes["sidelight.adopted"]; adopted {
			t.Fatalf("it was open before, it says: %v", attributes)
		}
		if _, known := attributes["process.pid"]; !known {
			bare++
		}
	}
	if bare != m.bare {
		t.Errorf("%d lines have no process, want %d", bare, m.bare)
	}
}

// exhaust uses up the option memory of a socket (net.core.optmem_max) but for some bytes, so that a program cannot keep state
// with it. A filter that lets everything pass is charged to it, as long as the filter is.
func exhaust(fd int) error {
	largest, err := largestFilter()
	if err != nil {
		return err
	}
	return attachFilter(fd, largest)
}

// filterSize is how a filter is made: of instructions that the kernel translates into many of its own, and into one.
type filterSize struct{ long, short int }

// largestFilter finds it by trying: how long a translation is depends on the kernel. What is left is less than the shortest
// instruction, or, where even the longest filter leaves more, an error.
var largestFilter = sync.OnceValues(func() (filterSize, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return filterSize{}, err
	}
	defer unix.Close(fd)
	fits := func(s filterSize) bool {
		err = attachFilter(fd, s)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			return true
		}
		return false
	}
	const most = 4096 - 2 // BPF_MAXINSNS, and two returns
	var size filterSize
	size.long = largest(most, func(n int) bool { return fits(filterSize{long: n}) })
	size.short = largest(most-size.long, func(n int) bool { return fits(filterSize{size.long, n}) })
	if fits(filterSize{size.long, size.short + 1}); !errors.Is(err, unix.ENOMEM) {
		return size, fmt.Errorf("a filter of %+v does not use up the socket's option memory: %w", size, err)
	}
	return size, nil
})

// largest finds the largest n up to most for which fits is true; it is for 0.
func largest(most int, fits func(int) bool) int {
	least := 0
	for least < most {
		if n := (least + most + 1) / 2; fits(n) {
			least = n
		} else {
			most = n - 1
		}
	}
	return least
}

func attachFilter(fd int, size filterSize) error {
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}}
	for range size.long {
		program = append(program, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS})
	}
	for range size.short {
		program = append(program, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_IMM})
	}
	// The kernel wants a return for the last one.
	program = append(program, program[0])
	if size.long+size.short == 0 {
		program = program[:1]
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
