package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// How a connection is to end.
const (
	clientCloses   = "client_closes"
	serverCloses   = "server_closes"
	clientResets   = "client_resets"   // SO_LINGER 0
	serverResets   = "server_resets"   // SO_LINGER 0
	clientUnread   = "client_unread"   // close with the response unread
	clientAbandons = "client_abandons" // close while the handshake is under way
	connectOnly    = "connect_only"    // the connect is to fail
	clientHolds    = "client_holds"    // as clientCloses, once the file Until exists
	serverUnread   = "server_unread"   // close with the request unread
)

// script is what a client is told to do. The socket's family is that of the address: a v4-mapped one makes an IPv6 socket.
type script struct {
	Addr     netip.AddrPort
	Ending   string
	Count    int
	Parallel int
	Request  int // bytes
	Response int // bytes
	// Spread gives each connection an address of its own, from Addr on.
	Spread bool
	Until  string
	Late   int           // bytes that clientHolds sends when it goes on
	Bound  bool          // to a port before the connect
	Think  time.Duration // between the handshake and the request
	// From is the client's own address, unless the kernel is to choose.
	From netip.Addr
	// FastOpen has the SYN leave with the first write.
	FastOpen bool
	// Exhausted uses up the socket's option memory before the connect.
	Exhausted bool

	// Items are connections each of its own kind; Count is the number of those then. The client says first when a third of them has
	// ended, then when none is left but those that it holds.
	Items []script
	// After is a file that has to be there before it begins.
	After string
	// Aside has it wait without one of the Parallel places: it takes long.
	Aside bool

	atRest func() // called by a client that holds
}

// What a client with Items says.
const (
	saysThird = "third"
	saysRest  = "rest"
)

// headerBytes go before each request: ending, sizes.
const headerBytes = 16 + 8 + 8

// clientResult is what the client saw.
type clientResult struct {
	Errno map[string]int // of connect
	// Read is when the first byte of the response was read, CLOCK_MONOTONIC, by the client's port.
	Read map[int]int64
	Done int
}

// noteRead takes note of such a time.
var noteRead func(port int, at int64)

func runPeer(role string) error {
	switch role {
	case "server":
		return runServer()
	case meshServersRole:
		return runMeshServers()
	case meshClientRole:
		return runMeshClient()
	case callerRole:
		return runCaller()
	case nodeRole:
		return runNode()
	}
	if role == "holder" {
		return runHolder()
	}
	if role == "relisten" {
		return runRelisten()
	}
	if role == "burn" {
		for n := 0; ; n++ {
			runtime.KeepAlive(n)
		}
	}
	var s script
	if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil {
		return err
	}
	if s.Items == nil {
		for range s.Count {
			s.Items = append(s.Items, s)
			if s.Spread {
				s.Addr = netip.AddrPortFrom(s.Addr.Addr().Next(), s.Addr.Port())
			}
		}
		return runItems(s, func(string) {})
	}
	return runItems(s, func(word string) { fmt.Println(word) })
}

// runItems makes all connections of a script and says what came of them.
func runItems(s script, say func(string)) error {
	result := clientResult{Errno: make(map[string]int), Read: make(map[int]int64)}
	var mu sync.Mutex
	noteRead = func(port int, at int64) {
		mu.Lock()
		defer mu.Unlock()
		result.Read[port] = at
	}
	var all, busy sync.WaitGroup
	failed := make(chan error, len(s.Items))
	slots := make(chan struct{}, max(s.Parallel, 1))
	for _, one := range s.Items {
		if one.After != "" {
			waitFor(one.After)
		}
		if !one.Aside {
			slots <- struct{}{}
		}
		busy.Add(1)
		one.atRest = sync.OnceFunc(func() {
			busy.Done()
			if !one.Aside {
				<-slots
			}
		})
		all.Go(func() {
			defer one.atRest()
			errno, err := runClient(one)
			if err != nil {
				failed <- fmt.Errorf("%s: %w", one.Ending, err)
			}
			mu.Lock()
			defer mu.Unlock()
			result.Errno[errno]++
			result.Done++
			if result.Done == len(s.Items)/3 {
				say(saysThird)
			}
		})
	}
	busy.Wait()
	say(saysRest)
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// runClient makes one connection by system calls: Go's dialer would unmap addresses.
func runClient(s script) (errno string, err error) {
	family, address := sockaddr(s.Addr)
	kind := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if s.Ending == clientAbandons {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), "connection")
	defer file.Close()
	if s.Bound {
		if err := unix.Bind(fd, boundTo(address)); err != nil {
			return "", fmt.Errorf("bind: %w", err)
		}
	}
	if s.From.IsValid() {
		// The port is chosen by connect, which knows what is free towards this peer.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return "", err
		}
		_, from := sockaddr(netip.AddrPortFrom(s.From, 0))
		if err := unix.Bind(fd, from); err != nil {
			return "", fmt.Errorf("bind %v: %w", s.From, err)
		}
	}
	if s.FastOpen {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
			return "", err
		}
	}
	if s.Exhausted {
		if err := exhaust(fd); err != nil {
			return "", err
		}
	}
	for {
		err = unix.Connect(fd, address)
		if !errors.Is(err, unix.EINTR) { // the runtime's own preemption signal
			break
		}
	}
	if err != nil {
		if s.Ending == connectOnly || s.Ending == clientAbandons {
			var code syscall.Errno
			errors.As(err, &code)
			return unix.ErrnoName(code), nil
		}
		return "", fmt.Errorf("connect %v: %w", s.Addr, err)
	}
	if s.Ending == connectOnly || s.Ending == clientAbandons {
		return "", fmt.Errorf("connect %v: it worked", s.Addr)
	}
	return "", exchange(file, s)
}

// boundTo is any free port of the same address.
func boundTo(address unix.Sockaddr) unix.Sockaddr {
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		return &unix.SockaddrInet4{Addr: a.Addr}
	case *unix.SockaddrInet6:
		return &unix.SockaddrInet6{Addr: a.Addr}
	}
	return nil
}

// waitFor waits until a file is there.
func waitFor(file string) {
	for {
		if _, err := os.Stat(file); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func sockaddr(a netip.AddrPort) (family int, address unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	zone, _ := strconv.Atoi(a.Addr().Zone())
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(zone)}
}

func exchange(file *os.File, s script) error {
	request := make([]byte, headerBytes+s.Request)
	time.Sleep(s.Think)
	copy(request, s.Ending)
	binary.BigEndian.PutUint64(request[16:], uint64(s.Request))
	binary.BigEndian.PutUint64(request[24:], uint64(s.Response))
	if _, err := file.Write(request); err != nil {
		return err
	}
	switch s.Ending {
	case clientUnread:
		// One byte of the response proves that it is there; the rest stays in the socket.
		_, err := io.ReadFull(file, make([]byte, 1))
		return err
	case serverResets, serverUnread:
		if n, err := io.Copy(io.Discard, file); !errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("want a reset, got %d bytes and %w", n, err)
		}
		return nil
	}
	if s.Response > 0 {
		if _, err := io.ReadFull(file, make([]byte, 1)); err != nil {
			return fmt.Errorf("read response: %w", err)
		}
		if err := readAt(file); err != nil {
			return err
		}
		s.Response--
	}
	if _, err := io.ReadFull(file, make([]byte, s.Response)); err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	switch s.Ending {
	case clientHolds:
		s.atRest()
		waitFor(s.Until)
		_, err := file.Write(make([]byte, s.Late))
		return err
	case clientResets:
		return unix.SetsockoptLinger(int(file.Fd()), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	case serverCloses:
		if n, err := file.Read(make([]byte, 1)); err != io.EOF {
			return fmt.Errorf("want the end, got %d bytes and %w", n, err)
		}
	}
	return nil
}

func readAt(file *os.File) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	local, err := unix.Getsockname(int(file.Fd()))
	if err != nil {
		return err
	}
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		noteRead(a.Port, now.Nano())
	case *unix.SockaddrInet6:
		noteRead(a.Port, now.Nano())
	}
	return nil
}

// startScript starts a client.
func startScript(t *testing.T, ns netns.NsHandle, cgroup string, s script) *process {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerRole+"=client")
	cmd.Stdin = bytes.NewReader(text)
	return start(t, ns, cgroup, cmd)
}

// startHolding starts a client that holds its connections, and waits until it has all of them and their responses.
func startHolding(t *testing.T, ns netns.NsHandle, cgroup string, s script) *process {
	t.Helper()
	for range s.Count {
		s.Items = append(s.Items, s)
	}
	for i := range s.Items {
		s.Items[i].Items = nil
	}
	p := startScript(t, ns, cgroup, s)
	if said := p.line(); said != saysRest {
		t.Fatalf("a client says %q, want %q", said, saysRest)
	}
	return p
}

// runScript runs a client to its end.
func runScript(t *testing.T, ns netns.NsHandle, cgroup string, s script) (pid int, result clientResult) {
	t.Helper()
	p := startScript(t, ns, cgroup, s)
	if err := json.Unmarshal([]byte(p.line()), &result); err != nil {
		t.Fatal(err)
	}
	p.end()
	return p.Process.Pid, result
}

// loopbackUp sets lo up in the namespace of this thread.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// prefix is netlink's form of a CIDR.
func prefix(cidr string) *net.IPNet {
	_, n, err := net.ParseCIDR(cidr)
	if err != nil {
		panic(err)
	}
	return n
}
