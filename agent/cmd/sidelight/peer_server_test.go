package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
)

// runServer listens on a dual-stack socket, says its port, and serves until its input ends.
func runServer() error {
	// Go listens by MPTCP unless it is told otherwise, where the kernel has it: both kinds of listener are worth a test.
	var config net.ListenConfig
	config.SetMultipathTCP(os.Getenv(peerMPTCP) == "")
	if os.Getenv(peerExhausted) != "" {
		config.Control = func(_, _ string, conn syscall.RawConn) (err error) {
			return errors.Join(conn.Control(func(fd uintptr) { err = exhaust(int(fd)) }), err)
		}
	}
	listener, err := config.Listen(context.Background(), "tcp", "[::]:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		listener.Close()
	}()
	var serving sync.WaitGroup
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			serving.Wait()
			return nil
		}
		if err != nil {
			return err
		}
		serving.Go(func() { serveOne(conn.(*net.TCPConn)) })
	}
}

// serveOne does as the header says. The client judges the outcome.
func serveOne(conn *net.TCPConn) {
	defer conn.Close()
	header := make([]byte, headerBytes)
	if _, err := io.ReadFull(conn, header); err != nil {
		return
	}
	ending := string(header[:16])
	is := func(want string) bool { return ending == fmt.Sprintf("%.16s", want+string(make([]byte, 16))) }
	if is(serverUnread) {
		return
	}
	if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint64(header[16:]))); err != nil {
		return
	}
	if is(serverResets) {
		_ = conn.SetLinger(0)
		return
	}
	if _, err := conn.Write(make([]byte, binary.BigEndian.Uint64(header[24:]))); err != nil {
		return
	}
	if !is(serverCloses) {
		_, _ = io.Copy(io.Discard, conn) // the client's end, or its reset
	}
}

// peerMPTCP makes a server listen by plain TCP, as most programs do, when it is set to "off".
const peerMPTCP = "SIDELIGHT_TEST_MPTCP"

// peerExhausted has a server use up the option memory of its listener, which those that it accepts inherit, when it is set.
const peerExhausted = "SIDELIGHT_TEST_EXHAUSTED"

// startServer starts a server and returns it with its port.
func startServer(t *testing.T, ns netns.NsHandle, cgroup string, env ...string) (*process, uint16) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), peerRole+"=server"), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	p := start(t, ns, cgroup, cmd)
	var port uint16
	if _, err := fmt.Sscan(p.line(), &port); err != nil {
		t.Fatal(err)
	}
	return p, port
}
