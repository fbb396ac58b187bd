package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// rivalEndpoints is how many endpoints each service has where rivals are: with one they would have nothing to choose.
const rivalEndpoints = 2

// rival is another way from a service's address to its endpoints.
type rival struct {
	kind     string
	services int
}

// The rivals.
const (
	nftables = "nftables" // one DNAT rule with a map by service and random number
	iptables = "iptables" // the chains of kube-proxy
	haproxy  = "haproxy"  // TCP mode, a listener for each service
)

// absentError says that a rival is not on this machine.
type absentError struct{ reason string }

func (e *absentError) Error() string { return e.reason }

// start sets a rival up in a network namespace. It is an absentError when its program or the kernel's part of it is missing.
func (r *rival) start(ns netns.NsHandle) (stop func() error, err error) {
	switch r.kind {
	case nftables:
		return nil, rules(ns, r.nft(), "nft", "-f", "-")
	case iptables:
		return nil, rules(ns, r.chains(), "iptables-legacy-restore")
	case haproxy:
		return startProxy(ns, r.configuration())
	}
	return nil, fmt.Errorf("no rival %q", r.kind)
}

// rules has a program read rules.
func rules(ns netns.NsHandle, text string, program ...string) error {
	if _, err := exec.LookPath(program[0]); err != nil {
		return &absentError{program[0] + " is not installed"}
	}
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Stdin = strings.NewReader(text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := lab.In(ns, cmd.Run); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
		return &absentError{fmt.Sprintf("%s: %v: %s", program[0], err, first)}
	}
	// What was reset is forgotten soon: fewer entries to look through is what is best for it.
	return lab.In(ns, func() error {
		if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", []byte("1"), 0); err != nil {
			return &absentError{"connection tracking: " + err.Error()}
		}
		return nil
	})
}

// nft is one rule and one map, the least that nftables can do with.
func (r *rival) nft() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table ip sidelight_bench {\n\tmap endpoints {\n\t\ttypeof numgen random mod %d . ip daddr . tcp dport : ip daddr . tcp dport\n"+
		"\t\telements = {\n", rivalEndpoints)
	r.each(func(service, n int) {
		fmt.Fprintf(&b, "\t\t\t%d . %v . %d : %v . %d,\n", n, address(firstService+service), servicePort, endpointOf(service, n), listenPort)
	})
	fmt.Fprintf(&b, "\t\t}\n\t}\n\tchain output {\n\t\ttype nat hook output priority -100\n"+
		"\t\tmeta l4proto tcp dnat ip to numgen random mod %d . ip daddr . tcp dport map @endpoints\n\t}\n}\n", rivalEndpoints)
	return b.String()
}

// chains are as kube-proxy writes them: a rule for each service, a chain for each service and for each endpoint.
func (r *rival) chains() string {
	var heads, services, b strings.Builder
	r.each(func(service, n int) {
		comment := fmt.Sprintf(`-m comment --comment "bench/service-%05d:tcp`, service)
		at, to := address(firstService+service), endpointOf(service, n)
		svc, sep := fmt.Sprintf("KUBE-SVC-%05d", service), fmt.Sprintf("KUBE-SEP-%05d-%d", service, n)
		probability := fmt.Sprintf(" -m statistic --mode random --probability %.10f", 1/float64(rivalEndpoints-n))
		if n == rivalEndpoints-1 {
			probability = ""
		}
		if n == 0 {
			fmt.Fprintf(&heads, ":%s - [0:0]\n", svc)
			fmt.Fprintf(&services, "-A KUBE-SERVICES -d %v/32 -p tcp %s\" -m tcp --dport %d -j %s\n", at, comment, servicePort, svc)
			fmt.Fprintf(&b, "-A %s ! -s 127.0.0.0/8 -d %v/32 -p tcp %s\" -m tcp --dport %d -j KUBE-MARK-MASQ\n", svc, at, comment, servicePort)
		}
		fmt.Fprintf(&heads, ":%s - [0:0]\n", sep)
		fmt.Fprintf(&b, "-A %s %s -> %v:%d\"%s -j %s\n", svc, comment, to, listenPort, probability, sep)
		fmt.Fprintf(&b, "-A %s -s %v/32 %s\" -j KUBE-MARK-MASQ\n", sep, to, comment)
		fmt.Fprintf(&b, "-A %s -p tcp %s\" -m tcp -j DNAT --to-destination %v:%d\n", sep, comment, to, listenPort)
	})
	return "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n" + heads.String() +
		"-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n" +
		"-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n" +
		"-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n" +
		"-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n" +
		"-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n" +
		"-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n" +
		"-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n" +
		services.String() + b.String() + "COMMIT\n"
}

// each calls back for each endpoint of each service.
func (r *rival) each(f func(service, n int)) {
	for service := range r.services {
		for n := range rivalEndpoints {
			f(service, n)
		}
	}
}

func endpointOf(service, n int) fmt.Stringer {
	return address(firstEndpoint + service*rivalEndpoints + n)
}

// configuration is of one thread, which is on the same CPU as the connections: so a connection is a fixed path, as with the others, and wakes no other
// CPU.
func (r *rival) configuration() string {
	var b strings.Builder
	b.WriteString("global\n\tnbthread 1\n\tmaxconn 4096\ndefaults\n\tmode tcp\n\tbalance roundrobin\n" +
		"\ttimeout connect 5s\n\ttimeout client 60s\n\ttimeout server 60s\n")
	r.each(func(service, n int) {
		if n == 0 {
			fmt.Fprintf(&b, "listen service-%05d\n\tbind %v:%d\n", service, address(firstService+service), servicePort)
		}
		fmt.Fprintf(&b, "\tserver endpoint-%d %v:%d\n", n, endpointOf(service, n), listenPort)
	})
	return b.String()
}

// proxyDeadline is for reading its configuration and listening.
const proxyDeadline = 20 * time.Second

func startProxy(ns netns.NsHandle, configuration string) (stop func() error, err error) {
	if _, err := exec.LookPath(haproxy); err != nil {
		return nil, &absentError{haproxy + " is not installed"}
	}
	cmd := exec.Command(haproxy, "-db", "-q", "-f", "/dev/stdin")
	cmd.Stdin = strings.NewReader(configuration)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := lab.In(ns, func() error { return startFirst(cmd) }); err != nil {
		return nil, fmt.Errorf("start haproxy: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() error {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), proxyDeadline)
	defer cancel()
	for {
		select {
		case err := <-ended:
			ended <- err
			return nil, errors.Join(fmt.Errorf("haproxy ended: %w: %s", unexpected(err), strings.TrimSpace(out.String())), stop())
		case <-ctx.Done():
			return nil, errors.Join(errors.New("haproxy does not listen"), stop())
		case <-time.After(20 * time.Millisecond):
		}
		if lab.In(ns, dialService) == nil {
			break
		}
	}
	if err := pin(cmd.Process.Pid, workCPU()); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// dialService connects to the first service and says nothing.
func dialService() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Addr: address(firstService).As4(), Port: servicePort})
}
