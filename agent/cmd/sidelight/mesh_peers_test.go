package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The roles of this test binary in a mesh: servers that say who they are, and clients that count who answered.
const (
	meshServersRole = "mesh-servers"
	meshClientRole  = "mesh-client"
)

// runMeshServers listens on each address of a line of input. Whoever connects is told the address, and kept until he closes.
func runMeshServers() error {
	input := bufio.NewScanner(os.Stdin)
	listeners := make(map[string]net.Listener)
	for input.Scan() {
		verb, address, _ := strings.Cut(input.Text(), " ")
		switch verb {
		case "listen":
			config := net.ListenConfig{Control: reuseAddress}
			config.SetMultipathTCP(false)
			l, err := config.Listen(context.Background(), "tcp", address)
			if err != nil {
				return err
			}
			listeners[address] = l
			go serveName(l, address)
		case "close":
			if err := listeners[address].Close(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown verb %q", verb)
		}
		fmt.Println("done")
	}
	return input.Err()
}

func reuseAddress(_, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(controlErr, err)
}

func serveName(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := io.WriteString(c, name+"\n"); err == nil {
				_, _ = io.Copy(io.Discard, c)
			}
		}()
	}
}

// meshOrder tells a client what to do.
type meshOrder struct {
	To      netip.AddrPort
	Count   int // connections
	Workers int // at a time
	Hold    bool
	Release bool   // closes what is held
	Bind    string // an address to connect from
	For     time.Duration
	Until   string        // a file that ends it once it is there
	Pause   time.Duration // of each worker, after each connection
}

// meshTally is what came of it: how many by the name of who answered, or by errno.
type meshTally struct {
	Answers map[string]int
	Errors  map[string]int
	Peers   map[string]int // what getpeername said
	Cut     int            // of what is held: ended by somebody else
}

func runMeshClient() error {
	orders, tallies := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	client := &meshClient{}
	for {
		var o meshOrder
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := tallies.Encode(client.do(&o)); err != nil {
			return err
		}
	}
}

type meshClient struct {
	mu   sync.Mutex
	held []net.Conn
}

func (m *meshClient) do(o *meshOrder) meshTally {
	tally := meshTally{Answers: map[string]int{}, Errors: map[string]int{}, Peers: map[string]int{}}
	if o.Release {
		for _, c := range m.held {
			if isCut(c) {
				tally.Cut++
			}
			c.Close()
		}
		m.held = nil
		return tally
	}
	var left atomic.Int64
	left.Store(int64(o.Count))
	end := time.Now().Add(o.For)
	var workers sync.WaitGroup
	for range o.Workers {
		workers.Go(func() {
			for left.Add(-1) >= 0 || o.goesOn(end) {
				m.one(o, &tally)
				time.Sleep(o.Pause)
			}
		})
	}
	workers.Wait()
	return tally
}

func (o *meshOrder) goesOn(end time.Time) bool {
	if o.Until != "" {
		_, err := os.Stat(o.Until)
		return err != nil
	}
	return o.For > 0 && time.Now().Before(end)
}

// isCut looks whether a connection was ended by somebody else, without waiting.
func isCut(c net.Conn) bool {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		alive = errors.Is(err, unix.EAGAIN)
	})
	return err != nil || !alive
}

func (m *meshClient) one(o *meshOrder, tally *meshTally) {
	c, name, err := dialName(o)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		tally.Errors[errnoOf(err)]++
		return
	}
	tally.Answers[name]++
	tally.Peers[c.RemoteAddr().String()]++
	if o.Hold {
		m.held = append(m.held, c)
	} else {
		c.Close()
	}
}

func dialName(o *meshOrder) (net.Conn, string, error) {
	dialer := net.Dialer{Timeout: stretched(10 * time.Second)}
	dialer.SetMultipathTCP(false)
	if o.Bind != "" {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(o.Bind), 0))
	}
	c, err := dialer.Dial("tcp", o.To.String())
	if err != nil {
		return nil, "", err
	}
	name, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		c.Close()
		return nil, "", fmt.Errorf("read name: %w", err)
	}
	return c, strings.TrimSpace(name), nil
}

func errnoOf(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if errors.Is(err, io.EOF) {
		return "EOF"
	}
	return err.Error()
}

// meshServers is such a process, as the test sees it.
type meshServers struct {
	*process
	in io.Writer
}

func startMeshServers(t *testing.T, ns netns.NsHandle, cgroup string, addresses ...string) *meshServers {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerRole+"="+meshServersRole)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	s := &meshServers{start(t, ns, cgroup, cmd), in}
	for _, a := range addresses {
		s.say("listen " + a)
	}
	return s
}

func (s *meshServers) say(order string) {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, order); err != nil {
		s.t.Fatal(err)
	}
	if got := s.line(); got != "done" {
		s.t.Fatalf("servers say %q", got)
	}
}

// meshCaller is a client as the test sees it.
type meshCaller struct {
	*process
	in *json.Encoder
}

func startMeshClient(t *testing.T, ns netns.NsHandle, cgroup string) *meshCaller {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerRole+"="+meshClientRole)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return &meshCaller{start(t, ns, cgroup, cmd), json.NewEncoder(in)}
}

func (c *meshCaller) do(o meshOrder) meshTally {
	c.t.Helper()
	c.begin(o)
	return c.end()
}

// begin and end let others happen meanwhile.
func (c *meshCaller) begin(o meshOrder) {
	c.t.Helper()
	o.Workers = max(1, o.Workers)
	if err := c.in.Encode(o); err != nil {
		c.t.Fatal(err)
	}
}

func (c *meshCaller) end() meshTally {
	c.t.Helper()
	var tally meshTally
	if line := c.line(); json.Unmarshal([]byte(line), &tally) != nil {
		c.t.Fatalf("client says %q", line)
	}
	return tally
}
