package mesh

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls without the runtime's notice: it has nothing else to run meanwhile, and its notice costs time and noise.

func call(name string, number, a, b, c uintptr) (int, error) {
	r, _, errno := unix.RawSyscall(number, a, b, c)
	if errno != 0 {
		return 0, fmt.Errorf("%s: %w", name, errno)
	}
	return int(r), nil
}

func socket() (int, error) {
	return call("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

func connect(fd int, to *unix.RawSockaddrInet4) error {
	_, err := call("connect", unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	return err
}

func accept(listener int) (int, error) {
	return call("accept", unix.SYS_ACCEPT4, uintptr(listener), 0, 0)
}

func read(fd int, p []byte) (int, error) {
	return call("read", unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
}

func write(fd int, p []byte) (int, error) {
	return call("write", unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
}

func closeSocket(fd int) error {
	_, err := call("close", unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return err
}

// reset closes a socket by a reset.
func reset(fd int) error {
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	return closeSocket(fd)
}

// reachOnce returns how long connect() took, and how long until the server's first byte was here.
func reachOnce(to *unix.RawSockaddrInet4, listener int, burn time.Duration) (connected, reached time.Duration, err error) {
	var buf [1]byte
	client, err := socket()
	if err != nil {
		return 0, 0, err
	}
	if err := unix.SetsockoptTimeval(client, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return 0, 0, fmt.Errorf("setsockopt: %w", err)
	}
	start := time.Now()
	for burn > 0 && time.Since(start) < burn {
	}
	if err := connect(client, to); err != nil {
		return 0, 0, errors.Join(err, closeSocket(client))
	}
	connected = time.Since(start)
	server, err := accept(listener)
	if err != nil {
		return 0, 0, errors.Join(err, closeSocket(client))
	}
	if _, err := write(server, buf[:]); err != nil {
		return 0, 0, err
	}
	if n, err := read(client, buf[:]); n != 1 || err != nil {
		return 0, 0, fmt.Errorf("read %d bytes: %w", n, unexpected(err))
	}
	reached = time.Since(start)
	if err := reset(client); err != nil {
		return 0, 0, err
	}
	// By now whoever stands between them has done with the connection: the next one does not wait for that.
	if n, err := read(server, buf[:]); n != 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
		return 0, 0, fmt.Errorf("read %d bytes at the end: %w", n, unexpected(err))
	}
	return connected, reached, reset(server)
}

const requestBytes = 64

func churnOnce(to *unix.RawSockaddrInet4, listener int) error {
	buf := make([]byte, requestBytes)
	client, err := socket()
	if err != nil {
		return err
	}
	if err := connect(client, to); err != nil {
		return errors.Join(err, closeSocket(client))
	}
	server, err := accept(listener)
	if err != nil {
		return err
	}
	for _, direction := range [][2]int{{client, server}, {server, client}} {
		if n, err := write(direction[0], buf); n != len(buf) || err != nil {
			return fmt.Errorf("write %d bytes: %w", n, unexpected(err))
		}
		if n, err := read(direction[1], buf); n != len(buf) || err != nil {
			return fmt.Errorf("read %d bytes: %w", n, unexpected(err))
		}
	}
	if err := closeSocket(client); err != nil {
		return err
	}
	if n, err := read(server, buf); n != 0 || err != nil {
		return fmt.Errorf("read %d bytes at the end: %w", n, unexpected(err))
	}
	return closeSocket(server)
}

func lookOnce(to *unix.RawSockaddrInet4, listener int) (at [4]byte, err error) {
	client, err := socket()
	if err != nil {
		return at, err
	}
	defer unix.Close(client)
	if err := connect(client, to); err != nil {
		return at, err
	}
	server, err := accept(listener)
	if err != nil {
		return at, err
	}
	defer unix.Close(server)
	name, err := unix.Getsockname(server)
	if err != nil {
		return at, fmt.Errorf("getsockname: %w", err)
	}
	return name.(*unix.SockaddrInet4).Addr, nil
}

func deniedOnce(to *unix.RawSockaddrInet4) error {
	fd, err := socket()
	if err != nil {
		return err
	}
	if err := connect(fd, to); !errors.Is(err, unix.EPERM) {
		return errors.Join(fmt.Errorf("want it denied: %w", unexpected(err)), closeSocket(fd))
	}
	return closeSocket(fd)
}

// unexpected is an error also where the system call had none.
func unexpected(err error) error {
	if err == nil {
		return errors.New("without error")
	}
	return err
}
