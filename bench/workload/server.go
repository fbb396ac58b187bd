package workload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// exchangeBytes is the size of a request and of an answer where the size is all there is to them.
const exchangeBytes = 64

var (
	request  = []byte("GET /index.html HTTP/1.1\r\nHost: server.bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	response = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", exchangeBytes, bytes.Repeat([]byte("x"), exchangeBytes))
)

// serve writes its port as a line to out, and serves until it is killed.
func serve(kind Kind, out io.Writer) error {
	if kind == Web {
		return serveWeb(out)
	}
	listener, port, err := listen()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, port); err != nil {
		return err
	}
	if kind == Fanout {
		return serveMany(listener)
	}
	handle := map[Kind]func(int, []byte) error{
		Churn:     func(fd int, buffer []byte) error { return exchange(fd, buffer[:exchangeBytes]) },
		Keepalive: answer,
		Bulk:      swallow,
	}[kind]
	if handle == nil {
		return fmt.Errorf("no server of kind %q", kind)
	}
	buffer := make([]byte, bulkBytes)
	for {
		fd, err := accept(listener)
		if err != nil {
			return err
		}
		if err := handle(fd, buffer); err != nil {
			return err
		}
		if err := closeSocket(fd); err != nil {
			return err
		}
	}
}

// exchange answers one request with as many bytes, and waits for the other end to close.
func exchange(fd int, buffer []byte) error {
	if err := readAll(fd, buffer); err != nil {
		return err
	}
	if err := writeAll(fd, buffer); err != nil {
		return err
	}
	if n, err := read(fd, buffer); n != 0 || err != nil {
		return errors.Join(err, fmt.Errorf("%d bytes after the request", n))
	}
	return nil
}

// answer answers HTTP requests, of which the next comes after the answer to the one before, until the other end closes.
func answer(fd int, buffer []byte) error {
	have := 0
	for {
		n, err := read(fd, buffer[have:])
		if n == 0 || err != nil {
			return err
		}
		have += n
		if !bytes.HasSuffix(buffer[:have], []byte("\r\n\r\n")) {
			continue
		}
		have = 0
		if err := writeAll(fd, response); err != nil {
			return err
		}
	}
}

// lengthBytes is the size of the number that goes before the bytes of a stream.
const lengthBytes = 8

// swallow reads a length and as many bytes and says so with a byte, until the other end closes.
func swallow(fd int, buffer []byte) error {
	for {
		// It comes alone: what follows waits in the socket.
		if n, err := read(fd, buffer[:lengthBytes]); n == 0 || err != nil {
			return err
		} else if n < lengthBytes {
			return fmt.Errorf("%d bytes of a length", n)
		}
		for left := binary.BigEndian.Uint64(buffer); left > 0; {
			n, err := read(fd, buffer[:min(left, uint64(len(buffer)))])
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("the other end closed with %d bytes missing", left)
			}
			left -= uint64(n)
		}
		if err := writeAll(fd, buffer[:1]); err != nil {
			return err
		}
	}
}

// serveMany answers requests on any number of connections at a time.
func serveMany(listener int) error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	watch := func(fd int) error {
		return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err := watch(listener); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	events := make([]unix.EpollEvent, 256)
	buffer := make([]byte, exchangeBytes)
	for {
		n, err := unix.EpollWait(poll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:n] {
			fd := int(e.Fd)
			if fd == listener {
				made, err := accept(listener)
				if err != nil {
					return err
				}
				if err := watch(made); err != nil {
					return fmt.Errorf("epoll: %w", err)
				}
				continue
			}
			got, err := read(fd, buffer)
			if err != nil {
				return err
			}
			if got == 0 {
				if err := closeSocket(fd); err != nil {
					return err
				}
				continue
			}
			if err := writeAll(fd, buffer[:got]); err != nil {
				return err
			}
		}
	}
}
