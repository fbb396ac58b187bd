package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Argument is the first argument of the process that makes connections, which is this program once more.
const Argument = "kernel-connections"

// Main is that process.
func Main() error { return child(os.Stdin, os.Stdout) }

// A script is what both ends of a connection do. One thread does it step by step, so that nothing depends on a scheduler.
type script string

const (
	// churn connects, asks 64 bytes, is answered 64 bytes, and closes; then the server does.
	churn script = "churn"
	// refused connects to nobody.
	refused script = "refused"
	// keepalive asks and is answered 100 times on a connection.
	keepalive script = "keepalive"
	// hold makes connections and leaves them open.
	hold script = "hold"
	// move sends a byte over each of those that hold left open, to the server.
	move script = "move"
)

// Requests of a script, each of requestBytes, and as many answers of as much.
const (
	keepaliveRequests = 100
	requestBytes      = 64
)

// connections is a process in a cgroup and a network namespace of its own.
type connections struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startConnections(cgroup string) (*connections, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	c := &connections{cmd: exec.Command(self, Argument)}
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL, Setpgid: true,
	}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start process that connects: %w", err)
	}
	return c, c.answer()
}

// make has the process make so many connections by a script, and returns when all have ended.
func (c *connections) make(s script, family, count int) error {
	if _, err := fmt.Fprintln(c.in, s, family, count); err != nil {
		return err
	}
	return c.answer()
}

func (c *connections) answer() error {
	line, err := c.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("process that connects: %w", err)
	}
	if line = strings.TrimSpace(line); line != "ok" {
		return errors.New(line)
	}
	return nil
}

func (c *connections) stop() error {
	c.in.Close()
	return c.cmd.Wait()
}

func child(in io.Reader, out io.Writer) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	fmt.Fprintln(out, "ok")
	var held pairs
	for {
		var s script
		var family, count int
		if _, err := fmt.Fscanln(in, &s, &family, &count); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := held.run(s, family, count); err != nil {
			return err
		}
		fmt.Fprintln(out, "ok")
	}
}

// pairs are connections that stay open: client and server.
type pairs [][2]int

func (p *pairs) run(s script, family, count int) error {
	if s == move {
		buf := make([]byte, 1)
		for _, pair := range *p {
			if _, err := unix.Write(pair[0], buf); err != nil {
				return err
			}
			if _, err := unix.Read(pair[1], buf); err != nil {
				return err
			}
		}
		return nil
	}
	domain, any := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if family == 6 {
		domain, any = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	}
	listener, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, any); err != nil {
		return err
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	requests := 1
	switch s {
	case refused:
		// The port is bound and nobody listens: it stays free of others.
		defer unix.Close(listener)
		for range count {
			fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(fd, address); !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("connect to a closed port: %w", unexpected(err))
			}
			unix.Close(fd)
		}
		return nil
	case keepalive:
		requests = keepaliveRequests
	}
	if err := unix.Listen(listener, 16); err != nil {
		return err
	}
	defer unix.Close(listener)
	for range count {
		pair, err := connect(domain, listener, address)
		if err != nil {
			return err
		}
		if s == hold {
			*p = append(*p, pair)
			continue
		}
		if err := exchange(pair[0], pair[1], requests); err != nil {
			return err
		}
	}
	return nil
}

func connect(domain, listener int, address unix.Sockaddr) (pair [2]int, err error) {
	if pair[0], err = unix.Socket(domain, unix.SOCK_STREAM, 0); err != nil {
		return pair, err
	}
	if err := unix.Connect(pair[0], address); err != nil {
		return pair, err
	}
	pair[1], _, err = unix.Accept(listener)
	return pair, err
}

// exchange uses a connection and ends it.
func exchange(client, server, requests int) error {
	buf := make([]byte, requestBytes)
	for range requests {
		for _, way := range [][2]int{{client, server}, {server, client}} {
			if n, err := unix.Write(way[0], buf); n != len(buf) || err != nil {
				return fmt.Errorf("write %d bytes: %w", n, unexpected(err))
			}
			if n, err := unix.Read(way[1], buf); n != len(buf) || err != nil {
				return fmt.Errorf("read %d bytes: %w", n, unexpected(err))
			}
		}
	}
	unix.Close(client)
	if n, err := unix.Read(server, buf); n != 0 || err != nil {
		return fmt.Errorf("read %d bytes at the end: %w", n, unexpected(err))
	}
	return unix.Close(server)
}

// unexpected is an error also where the system call had none.
func unexpected(err error) error {
	if err == nil {
		return errors.New("without error")
	}
	return err
}
