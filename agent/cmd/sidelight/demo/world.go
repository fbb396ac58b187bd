// Package demo is the little world that "sidelight demo" observes: a client and a few services, each in a cgroup of its own, on two
// sides of a virtual cable between two network namespaces.
package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// Service is something that the client talks to.
type Service struct {
	Kind    string // the argument of the hidden demo-service command, "" for an address where nothing listens
	Name    string // of its cgroup, and so of its workload
	Address netip.AddrPort
	Every   time.Duration // between two connections of the client
}

// Addresses are of the ranges for documentation (RFC 5737, RFC 3849), and exist in namespaces of our own only.
var (
	clientV4 = netip.MustParsePrefix("192.0.2.1/24")
	clientV6 = netip.MustParsePrefix("2001:db8::1/64")
)

// ClientName is the name of the client's cgroup.
const ClientName = "client.service"

// goneName is the service whose host does not exist.
const goneName = "gone.service"

// Services are what there is: the good, the slow, the refusing, the resetting, one over IPv6, and one whose host is gone.
func Services() []Service {
	at := netip.MustParseAddrPort
	return []Service{
		{Kind: "good", Name: "good.service", Address: at("192.0.2.10:8080"), Every: 20 * time.Millisecond},
		{Kind: "slow", Name: "slow.service", Address: at("192.0.2.11:8080"), Every: 100 * time.Millisecond},
		{Kind: "reset", Name: "resets.service", Address: at("192.0.2.12:8080"), Every: 200 * time.Millisecond},
		{Kind: "good", Name: "six.service", Address: at("[2001:db8::13]:8080"), Every: 50 * time.Millisecond},
		{Name: "refuses.service", Address: at("192.0.2.14:8080"), Every: 250 * time.Millisecond},
		{Name: goneName, Address: at("192.0.2.99:8080"), Every: 500 * time.Millisecond},
	}
}

// actor is a process in a cgroup of its own, which is called like it.
type actor struct {
	name string
	args []string
}

// scene is what a world is made of.
type scene struct {
	addresses []netip.Addr // on the services' side of the cable
	services  []actor
	clients   []actor
}

// World is the cgroups, namespaces and processes.
type World struct {
	// Cgroup is the directory that holds them all.
	Cgroup string

	scene            scene
	client, services netns.NsHandle
	starts           chan func()
	processes        []*process
	said             map[string][]byte
}

const cgroupPrefix = "sidelight-demo-"

// New makes cgroups and namespaces below a cgroup2 mount, without any process in them.
func New(cgroup2 string) (*World, error) {
	w := newWorld(cgroup2)
	w.scene.clients = []actor{{ClientName, []string{ClientCommand}}}
	for _, s := range Services() {
		if s.Kind != "" {
			w.scene.services = append(w.scene.services, actor{s.Name, []string{ServiceCommand, s.Kind, s.Address.String()}})
		}
		if s.Name != goneName {
			w.scene.addresses = append(w.scene.addresses, s.Address.Addr())
		}
	}
	return w, w.make(cgroup2)
}

func newWorld(cgroup2 string) *World {
	return &World{
		Cgroup: filepath.Join(cgroup2, cgroupPrefix+strconv.Itoa(os.Getpid())), client: netns.None(), services: netns.None(),
		said: make(map[string][]byte),
	}
}

// start starts a command on a thread that lives as long as the world: with the thread that started it a process is killed, and others of this
// program end with goroutines that were locked to them.
func (w *World) start(cmd *exec.Cmd, ns netns.NsHandle, cgroup string) error {
	if w.starts == nil {
		w.starts = make(chan func())
		go func(starts <-chan func()) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for f := range starts {
				f()
			}
		}(w.starts)
	}
	started := make(chan error)
	w.starts <- func() { started <- lab.Start(cmd, ns, cgroup) }
	return <-started
}

// make leaves nothing behind when it fails.
func (w *World) make(cgroup2 string) error {
	removeStale(cgroup2)
	if err := w.makeAll(); err != nil {
		return errors.Join(err, w.Close())
	}
	return nil
}

func (w *World) makeAll() error {
	for _, dir := range w.cgroups() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	var err error
	if w.client, err = lab.NewNamespace(); err != nil {
		return err
	}
	if w.services, err = lab.NewNamespace(); err != nil {
		return err
	}
	return w.connect()
}

// cgroups lists every directory, parents first.
func (w *World) cgroups() []string {
	dirs := []string{w.Cgroup}
	for _, actors := range [][]actor{w.scene.services, w.scene.clients} {
		for _, a := range actors {
			dirs = append(dirs, filepath.Join(w.Cgroup, a.name))
		}
	}
	return dirs
}

// removeStale removes the empty cgroups of a demo that was killed. Everything else of it went with its processes.
func removeStale(cgroup2 string) {
	found, _ := filepath.Glob(filepath.Join(cgroup2, cgroupPrefix+"*"))
	for _, dir := range found {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix))
		if err != nil || unix.Kill(pid, 0) == nil {
			continue
		}
		inner, _ := filepath.Glob(filepath.Join(dir, "*.service"))
		for _, d := range append(inner, dir) {
			_ = os.Remove(d) // rmdir: refuses what is not empty
		}
	}
}

// connect lays the cable and gives out the addresses.
func (w *World) connect() error {
	// Only the family that is needed: without one named, a kernel that lacks XFRM or netfilter is refused.
	client, err := netlink.NewHandleAt(w.client, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer client.Close()
	services, err := netlink.NewHandleAt(w.services, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer services.Close()
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable"}, PeerName: "cable", PeerNamespace: netlink.NsFd(w.services)}
	if err := client.LinkAdd(cable); err != nil {
		return fmt.Errorf("make veth: %w", err)
	}
	// Both ends up before any address: IPv6 answers for an address that came before the link only after a second.
	for _, h := range []*netlink.Handle{client, services} {
		if err := linksUp(h); err != nil {
			return err
		}
	}
	if err := addAddresses(client, clientV4, clientV6); err != nil {
		return err
	}
	var addresses []netip.Prefix
	for _, a := range w.scene.addresses {
		bits := clientV4.Bits()
		if a.Is6() {
			bits = clientV6.Bits()
		}
		addresses = append(addresses, netip.PrefixFrom(a, bits))
	}
	return addAddresses(services, addresses...)
}

func linksUp(h *netlink.Handle) error {
	for _, name := range []string{"lo", "cable"} {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

func addAddresses(h *netlink.Handle, addresses ...netip.Prefix) error {
	link, err := h.LinkByName("cable")
	if err != nil {
		return fmt.Errorf("find cable: %w", err)
	}
	for _, a := range addresses {
		address := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD // else the address cannot be used for a second
		}
		if err := h.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add address %v: %w", a, err)
		}
	}
	return nil
}

// Start starts the services, waits until they listen, then starts the clients. self is this program.
func (w *World) Start(ctx context.Context, self string) error {
	for _, a := range w.scene.services {
		if err := w.spawn(ctx, w.services, a, self); err != nil {
			return err
		}
	}
	for _, a := range w.scene.clients {
		if err := w.spawn(ctx, w.client, a, self); err != nil {
			return err
		}
	}
	return nil
}

// process is one that runs.
type process struct {
	*exec.Cmd
	name  string
	rest  chan []byte // what it said after its first line
	ready bool
}

// spawn starts a process in a namespace and its cgroup, from its first instruction on, and waits for its first line of output.
func (w *World) spawn(ctx context.Context, ns netns.NsHandle, a actor, self string) error {
	p := &process{Cmd: exec.Command(self, a.args...), name: a.name, rest: make(chan []byte, 1)}
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	if err != nil {
		return err
	}
	if err := w.start(p.Cmd, ns, filepath.Join(w.Cgroup, a.name)); err != nil {
		return fmt.Errorf("start %s: %w", a.name, err)
	}
	w.processes = append(w.processes, p)
	ready := make(chan error, 1)
	go func() {
		lines := bufio.NewReader(out)
		_, err := lines.ReadString('\n')
		ready <- err
		rest, _ := io.ReadAll(lines) // of what is cut short there is no use, and Wait has the reason
		p.rest <- rest
	}()
	select {
	case err := <-ready:
		if err != nil {
			return fmt.Errorf("start %s: it ended: %w", a.name, err)
		}
		p.ready = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop ends the clients, then the services, each after what it is at.
func (w *World) Stop() error {
	var errs []error
	for _, p := range slices.Backward(w.processes) {
		errs = append(errs, w.end(p))
	}
	w.processes = nil
	return errors.Join(errs...)
}

func (w *World) end(p *process) error {
	_ = p.Process.Signal(syscall.SIGTERM) // it may have ended
	killer := time.AfterFunc(5*time.Second, func() { _ = p.Process.Kill() })
	defer killer.Stop()
	rest, err := <-p.rest, p.Wait()
	if !p.ready { // nobody waits for it any more, and it may not have heard of signals yet
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	w.said[p.name] = rest
	return nil
}

// Close stops what runs and removes everything. Safe twice.
func (w *World) Close() error {
	errs := []error{w.Stop()}
	if w.starts != nil {
		close(w.starts)
		w.starts = nil
	}
	for _, ns := range []*netns.NsHandle{&w.client, &w.services} {
		if ns.IsOpen() {
			errs = append(errs, ns.Close())
		}
	}
	dirs := w.cgroups()
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := lab.RemoveCgroup(dirs[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ClientAddresses are those that the services see.
func ClientAddresses() []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(clientV4.Addr(), clientV4.Addr().BitLen()), netip.PrefixFrom(clientV6.Addr(), clientV6.Addr().BitLen()),
	}
}
