// Package demo is the little world that "sidelight demo" observes: a client and a few services, each in a cgroup of its own, on two
// sides of a virtual cable between two network namespaces.
package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
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

// World is the cgroups, namespaces and processes.
type World struct {
	// Cgroup is the directory that holds them all.
	Cgroup string

	client, services netns.NsHandle
	processes        []*exec.Cmd
}

const cgroupPrefix = "sidelight-demo-"

// New makes cgroups and namespaces below a cgroup2 mount, without any process in them.
func New(cgroup2 string) (*World, error) {
	removeStale(cgroup2)
	w := &World{Cgroup: filepath.Join(cgroup2, cgroupPrefix+strconv.Itoa(os.Getpid())), client: netns.None(), services: netns.None()}
	if err := w.make(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *World) make() error {
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
	dirs := []string{w.Cgroup, filepath.Join(w.Cgroup, ClientName)}
	for _, s := range Services() {
		if s.Kind != "" {
			dirs = append(dirs, filepath.Join(w.Cgroup, s.Name))
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
	for _, s := range Services() {
		if s.Name == goneName {
			continue
		}
		bits := clientV4.Bits()
		if s.Address.Addr().Is6() {
			bits = clientV6.Bits()
		}
		addresses = append(addresses, netip.PrefixFrom(s.Address.Addr(), bits))
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

// Start starts the services, waits until they listen, then starts the client. self is this program.
func (w *World) Start(ctx context.Context, self string) error {
	for _, s := range Services() {
		if s.Kind == "" {
			continue
		}
		if err := w.spawn(ctx, w.services, s.Name, self, ServiceCommand, s.Kind, s.Address.String()); err != nil {
			return err
		}
	}
	return w.spawn(ctx, w.client, ClientName, self, ClientCommand)
}

// spawn starts a process in a namespace and a cgroup, from its first instruction on, and waits for its first line of output.
func (w *World) spawn(ctx context.Context, ns netns.NsHandle, cgroup, self string, args ...string) error {
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := lab.Start(cmd, ns, filepath.Join(w.Cgroup, cgroup)); err != nil {
		return fmt.Errorf("start %s: %w", cgroup, err)
	}
	w.processes = append(w.processes, cmd)
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		ready <- err
	}()
	select {
	case err := <-ready:
		if err != nil {
			return fmt.Errorf("start %s: it ended: %w", cgroup, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop ends the client, then the services, each after what it is at.
func (w *World) Stop() error {
	var errs []error
	for i := len(w.processes) - 1; i >= 0; i-- {
		p := w.processes[i]
		_ = p.Process.Signal(syscall.SIGTERM) // it may have ended
		killer := time.AfterFunc(5*time.Second, func() { _ = p.Process.Kill() })
		if err := p.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", p.Args[1], err))
		}
		killer.Stop()
	}
	w.processes = nil
	return errors.Join(errs...)
}

// Close stops what runs and removes everything. Safe twice.
func (w *World) Close() error {
	errs := []error{w.Stop()}
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
