package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// callerRole makes this test binary a process that does one system call after the other as it is told, so that a test reads as
// the order of events, on both ends.
const callerRole = "caller"

// call is one system call, or a few that belong together.
type call struct {
	Name string
	FD   int
	Args []int
	Addr netip.AddrPort // with the zone of a link-local one
	Path string
}

type answer struct {
	N     int // what the call returned: a file descriptor, a count, a value
	Errno string
	Addr  netip.AddrPort
}

// calls by name. What has no entry is one of the process itself: see runCaller.
var calls = map[string]func(call) (answer, error){
	"socket": func(c call) (answer, error) {
		return number(unix.Socket(c.Args[0], c.Args[1]|unix.SOCK_CLOEXEC, c.Args[2]))
	},
	"close":  func(c call) (answer, error) { return answer{}, unix.Close(c.FD) },
	"bind":   func(c call) (answer, error) { return answer{}, unix.Bind(c.FD, c.sockaddr()) },
	"listen": func(c call) (answer, error) { return answer{}, unix.Listen(c.FD, c.Args[0]) },
	"connect": func(c call) (answer, error) {
		return answer{}, unix.Connect(c.FD, c.sockaddr())
	},
	"disconnect": func(c call) (answer, error) { return answer{}, connectUnspecified(c.FD) },
	"accept": func(c call) (answer, error) {
		fd, _, err := unix.Accept4(c.FD, unix.SOCK_CLOEXEC)
		return answer{N: fd}, err
	},
	"exhaust":  func(c call) (answer, error) { return answer{}, exhaust(c.FD) },
	"shutdown": func(c call) (answer, error) { return answer{}, unix.Shutdown(c.FD, c.Args[0]) },
	"setsockopt": func(c call) (answer, error) {
		return answer{}, unix.SetsockoptInt(c.FD, c.Args[0], c.Args[1], c.Args[2])
	},
	"getsockopt": func(c call) (answer, error) { return number(unix.GetsockoptInt(c.FD, c.Args[0], c.Args[1])) },
	"linger": func(c call) (answer, error) {
		return answer{}, unix.SetsockoptLinger(c.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	},
	"nonblock": func(c call) (answer, error) { return answer{}, unix.SetNonblock(c.FD, c.Args[0] != 0) },
	"state": func(c call) (answer, error) {
		info, err := unix.GetsockoptTCPInfo(c.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return answer{}, err
		}
		return answer{N: int(info.State)}, nil
	},
	// queued is how much waits to be read.
	"queued": func(c call) (answer, error) { return number(unix.IoctlGetInt(c.FD, unix.TIOCINQ)) },
	// unacknowledged is how much of what was sent has not arrived, or its acknowledgement has not.
	"unacknowledged": func(c call) (answer, error) { return number(unix.IoctlGetInt(c.FD, unix.TIOCOUTQ)) },
	// keep lets exec have the file descriptor.
	"keep": func(c call) (answer, error) { return number(unix.FcntlInt(uintptr(c.FD), unix.F_SETFD, 0)) },
	"name": func(c call) (answer, error) {
		sa, err := unix.Getsockname(c.FD)
		return answer{Addr: addrPort(sa)}, err
	},
	"peer": func(c call) (answer, error) {
		sa, err := unix.Getpeername(c.FD)
		return answer{Addr: addrPort(sa)}, err
	},
	"send":     send,
	"recv":     recv,
	"sendfile": sendfile,
	"sendfd": func(c call) (answer, error) {
		return answer{}, unix.Sendmsg(c.FD, []byte{0}, unix.UnixRights(c.Args[0]), nil, 0)
	},
	"recvfd": func(c call) (answer, error) { return number(recvfd(c.FD)) },
	"setns": func(c call) (answer, error) {
		f, err := os.Open(c.Path)
		if err != nil {
			return answer{}, err
		}
		defer f.Close()
		return answer{}, unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
	},
}

func number(n int, err error) (answer, error) { return answer{N: n}, err }

// runCaller serves calls until its input ends.
func runCaller() error {
	runtime.LockOSThread() // for setns
	requests, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	if err := answers.Encode(answer{N: os.Getpid()}); err != nil {
		return err
	}
	for {
		var c call
		if err := requests.Decode(&c); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var a answer
		var err error
		switch c.Name {
		case "exec":
			if err = unix.Exec(c.Path, []string{c.Path}, os.Environ()); err == nil {
				panic("exec came back")
			}
		case "fork":
			// The child serves the calls that come next, until it is told to exit. It has the same file descriptors.
			if err = forkCaller(c.Args); err == nil {
				a.N = os.Getpid()
			}
		case "exit":
			os.Exit(c.Args[0])
		default:
			a, err = calls[c.Name](c)
		}
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			a.Errno = unix.ErrnoName(errno)
		case err != nil:
			return fmt.Errorf("%+v: %w", c, err)
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

func forkCaller(fds []int) error {
	files := []uintptr{0, 1, 2}
	for _, fd := range fds {
		for len(files) < fd {
			files = append(files, ^uintptr(0))
		}
		files = append(files, uintptr(fd))
	}
	path, err := os.Executable() // not /proc/self/exe: the kernel would call the process "exe"
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(path, os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: files})
	if err != nil {
		return err
	}
	_, err = syscall.Wait4(pid, nil, 0, nil)
	return err
}

// sockaddr is the call's address, or the unix socket at its path.
func (c call) sockaddr() unix.Sockaddr {
	switch a := c.Addr; {
	case c.Path != "":
		return &unix.SockaddrUnix{Name: c.Path}
	case a.Addr().Is4():
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	default:
		zone, _ := strconv.Atoi(a.Addr().Zone())
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(zone)}
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// connectUnspecified takes a socket's connection away from it.
func connectUnspecified(fd int) error {
	var raw [unix.SizeofSockaddrInet4]byte // AF_UNSPEC is 0
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw)), uintptr(len(raw))); errno != 0 {
		return errno
	}
	return nil
}

// send sends N bytes of nothing: Args are how many, and flags. With an address it is sendto(), for TCP Fast Open.
func send(c call) (answer, error) {
	want, flags := c.Args[0], unix.MSG_NOSIGNAL
	if len(c.Args) > 1 {
		flags |= c.Args[1]
	}
	var to unix.Sockaddr
	if c.Addr.IsValid() {
		to = c.sockaddr()
	}
	buf := make([]byte, min(want, 1<<20))
	sent := 0
	for sent < want {
		n, err := unix.SendmsgN(c.FD, buf[:min(len(buf), want-sent)], nil, to, flags)
		if err != nil {
			return answer{N: sent}, err
		}
		sent += n
	}
	return answer{N: sent}, nil
}

// recv receives until it has Args[0] bytes or the stream ends. The kernel throws them away instead of copying them.
func recv(c call) (answer, error) {
	got := 0
	for got < c.Args[0] {
		n, _, err := unix.Recvfrom(c.FD, discard[:min(len(discard), c.Args[0]-got)], unix.MSG_TRUNC)
		if err != nil {
			return answer{N: got}, err
		}
		if n == 0 {
			break
		}
		got += n
	}
	return answer{N: got}, nil
}

// discard is written to by nobody.
var discard = make([]byte, 64<<20)

// sendfile sends Args[0] bytes without copying them.
func sendfile(c call) (answer, error) {
	const size = 16 << 20
	file, err := unix.MemfdCreate("zeros", unix.MFD_CLOEXEC)
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(file)
	if err := unix.Ftruncate(file, size); err != nil {
		return answer{}, err
	}
	sent := 0
	for sent < c.Args[0] {
		offset := int64(sent % size)
		n, err := unix.Sendfile(c.FD, file, &offset, min(size-int(offset), c.Args[0]-sent))
		if err != nil {
			return answer{N: sent}, err
		}
		sent += n
	}
	return answer{N: sent}, nil
}

func recvfd(fd int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return 0, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// caller is such a process, as the test sees it.
type caller struct {
	*process
	in  *json.Encoder
	pid int
}

func startCaller(t *testing.T, ns netns.NsHandle, cgroup string) *caller {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	// Without the runtime's own signals no system call is interrupted.
	cmd.Env = append(os.Environ(), peerRole+"="+callerRole, "GODEBUG=asyncpreemptoff=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	c := &caller{process: start(t, ns, cgroup, cmd), in: json.NewEncoder(stdin)}
	c.pid = c.hear().N
	return c
}

// hear waits for an answer. A call that does not return is a failure, not a test that hangs.
func (c *caller) hear() answer {
	c.t.Helper()
	late := time.AfterFunc(patiently(c.t, 30*time.Second), func() { _ = c.Process.Kill() })
	defer late.Stop()
	var a answer
	if line := c.line(); json.Unmarshal([]byte(line), &a) != nil {
		c.t.Fatalf("caller says %q", line)
	}
	return a
}

// try makes a call that may fail.
func (c *caller) try(name string, fd int, args ...any) answer {
	c.t.Helper()
	one := call{Name: name, FD: fd}
	for _, arg := range args {
		switch arg := arg.(type) {
		case int:
			one.Args = append(one.Args, arg)
		case netip.AddrPort:
			one.Addr = arg
		case string:
			one.Path = arg
		default:
			c.t.Fatalf("%T is no argument of a call", arg)
		}
	}
	if err := c.in.Encode(one); err != nil {
		c.t.Fatal(err)
	}
	return c.hear()
}

// call makes a call that must not fail.
func (c *caller) call(name string, fd int, args ...any) int {
	c.t.Helper()
	a := c.try(name, fd, args...)
	if a.Errno != "" {
		c.t.Fatalf("%s%v: %s", name, args, a.Errno)
	}
	return a.N
}

// fails makes a call that must fail as given.
func (c *caller) fails(errno, name string, fd int, args ...any) {
	c.t.Helper()
	if a := c.try(name, fd, args...); a.Errno != errno {
		c.t.Fatalf("%s%v: got %q, want %s", name, args, a.Errno, errno)
	}
}

// transfer makes a call whose number of bytes must come true.
func (c *caller) transfer(name string, fd, n int) {
	c.t.Helper()
	if got := c.call(name, fd, n); got != n {
		c.t.Fatalf("%s of %d bytes: %d", name, n, got)
	}
}

func (c *caller) send(fd, n int) { c.t.Helper(); c.transfer("send", fd, n) }
func (c *caller) recv(fd, n int) { c.t.Helper(); c.transfer("recv", fd, n) }

// eof expects the peer's FIN, and nothing before it.
func (c *caller) eof(fd int) {
	c.t.Helper()
	if n := c.call("recv", fd, 1); n != 0 {
		c.t.Fatal("got data instead of the end")
	}
}

func (c *caller) close(fds ...int) {
	c.t.Helper()
	for _, fd := range fds {
		c.call("close", fd)
	}
}

// tcp makes a socket for an address.
func (c *caller) tcp(addr netip.AddrPort) int {
	c.t.Helper()
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	return c.call("socket", 0, family, unix.SOCK_STREAM, 0)
}

// listen listens on an address, the port of which may be 0.
func (c *caller) listen(addr netip.AddrPort, backlog int) (fd int, at netip.AddrPort) {
	c.t.Helper()
	fd = c.tcp(addr)
	c.call("setsockopt", fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	c.call("bind", fd, addr)
	c.call("listen", fd, backlog)
	return fd, c.name(fd, addr)
}

// name asks for a socket's address, which gets the zone of like.
func (c *caller) name(fd int, like netip.AddrPort) netip.AddrPort {
	c.t.Helper()
	at := c.try("name", fd).Addr
	return netip.AddrPortFrom(at.Addr().WithZone(like.Addr().Zone()), at.Port())
}

func (c *caller) connect(addr netip.AddrPort) int {
	c.t.Helper()
	fd := c.tcp(addr)
	c.call("connect", fd, addr)
	return fd
}

// state waits until a socket is in a TCP state.
func (c *caller) state(fd, want int) {
	c.t.Helper()
	eventually(c.t, "a socket's state", func() error {
		if got := c.call("state", fd); got != want {
			return fmt.Errorf("it is in %d, want %d", got, want)
		}
		return nil
	})
}

// acknowledged waits until all that a socket sent has been acknowledged. That it was sent, or even received, says nothing of segments that a CPU has
// still to look at: net_rx_action() leaves to ksoftirqd what it has no time for.
func (c *caller) acknowledged(fds ...int) {
	c.t.Helper()
	for _, fd := range fds {
		eventually(c.t, "acknowledgements", func() error {
			if n := c.call("unacknowledged", fd); n != 0 {
				return fmt.Errorf("%d bytes have none", n)
			}
			return nil
		})
	}
}

// TCP states, as TCP_INFO has them.
const (
	tcpEstablished = 1
	tcpSynSent     = 2
	tcpSynRecv     = 3
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpClose       = 7
	tcpCloseWait   = 8
	tcpLastAck     = 9
	tcpClosing     = 11
)

// kill ends the process as nothing else would: it has no say in what becomes of its sockets.
func (c *caller) kill() {
	c.t.Helper()
	_ = c.Process.Kill()
	_ = c.Wait()
}

// say is a call without an answer: the process ends over it.
func (c *caller) say(name string, args ...int) {
	c.t.Helper()
	if err := c.in.Encode(call{Name: name, Args: args}); err != nil {
		c.t.Fatal(err)
	}
}
