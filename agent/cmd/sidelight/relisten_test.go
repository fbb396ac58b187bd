package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBareListener has a socket without room for state connect in vain and then listen, with accepted sockets that have no room either: what
// the listener was before must not make clients of them.
func TestBareListener(t *testing.T) {
	needRoot(t)
	const count = 20
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	a := startAgent(t, cgroup)
	cmd := exec.Command(os.Args[0], strconv.Itoa(count))
	cmd.Env = append(os.Environ(), peerRole+"=relisten")
	server := start(t, ns, filepath.Join(cgroup, "server"), cmd)
	port, err := strconv.ParseUint(server.line(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)), Ending: clientCloses, Count: count, Request: 10,
	})
	server.end()
	a.waitClosed()
	if err := a.wants(map[string]uint64{
		`sidelight_dropped_total{kind="connection",stage="storage"}`:                1 + count,
		`sidelight_tcp_connection_attempts_total{role="client"}`:                    1 + count,
		`sidelight_tcp_connection_failures_total{reason="refused",role="client"}`:   1,
		`sidelight_tcp_connection_established_total{role="client"}`:                 count,
		`sidelight_tcp_connection_established_total{role="server"}`:                 count,
		`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`:          count,
		`sidelight_self_kernel_connections_total{role="client",step="established"}`: count,
		`sidelight_self_kernel_connections_total{role="server",step="established"}`: count,
		`sidelight_tcp_received_bytes_total{role="server"}`:                         count * (headerBytes + 10),
	})(); err != nil {
		t.Error(err)
	}
	if u := a.audit().Unaccounted; u != 0 {
		t.Errorf("%d are unaccounted", u)
	}
	a.stop()
	if lines := len(a.lines()); lines != 1+2*count {
		t.Errorf("%d lines, want %d", lines, 1+2*count)
	}
}

// runRelisten uses up a socket's option memory, connects it to nobody, and then accepts from it.
func runRelisten() error {
	count, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	loopback := [4]byte{127, 0, 0, 1}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback}); err != nil {
		return err
	}
	if err := exhaust(fd); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: loopback, Port: 1}); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("connect to nobody: %w", err)
	}
	if err := unix.Listen(fd, count); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	fmt.Println(name.(*unix.SockaddrInet4).Port)
	buf := make([]byte, 1024)
	for range count {
		accepted, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		for {
			n, err := unix.Read(accepted, buf)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
		if err := unix.Close(accepted); err != nil {
			return err
		}
	}
	return nil
}
