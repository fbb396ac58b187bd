package workload

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls without the runtime's notice: it has nothing else to run meanwhile, and its notice costs time and noise.

func call(name string, number, a, b, c uintptr) (int, error) {
	for {
		r, _, errno := unix.RawSyscall(number, a, b, c)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("%s: %w", name, errno)
		}
	}
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

// writeAll writes all of p to a blocking socket.
func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := write(fd, p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// readAll fills p.
func readAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := read(fd, p)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("read: the other end closed with %d bytes missing", len(p))
		}
		p = p[n:]
	}
	return nil
}

func sockaddr(to netip.AddrPort) unix.RawSockaddrInet4 {
	address := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&address.Port))
	port[0], port[1] = byte(to.Port()>>8), byte(to.Port())
	return address
}

// connect returns a connected blocking socket.
func connect(address *unix.RawSockaddrInet4) (int, error) {
	fd, err := call("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if _, err := call("connect", unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(address)), unix.SizeofSockaddrInet4); err != nil {
		_ = closeSocket(fd)
		return -1, err
	}
	return fd, nil
}

// listen listens on all addresses and returns the port.
func listen() (fd, port int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		return -1, 0, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return -1, 0, fmt.Errorf("listen: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return -1, 0, fmt.Errorf("getsockname: %w", err)
	}
	return fd, name.(*unix.SockaddrInet4).Port, nil
}

func accept(listener int) (int, error) {
	return call("accept", unix.SYS_ACCEPT, uintptr(listener), 0, 0)
}
