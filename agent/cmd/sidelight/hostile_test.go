package main

import (
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// TestShaped sends through a queue that drops: what was sent again for that was one byte of the application's all the same.
func TestShaped(t *testing.T) {
	needRoot(t)
	const size = 200_000
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	if err := lab.In(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Segments of one MTU, so that the bucket can hold them.
		if err := netlink.LinkSetMTU(lo, 1500); err != nil {
			return err
		}
		return netlink.QdiscAdd(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: lo.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       1_000_000, Limit: 9_000, Buffer: 4_000_000,
		})
	}); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, cgroup)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: 1, Request: size, Response: 1,
	})
	a.waitClosed()
	a.stop()
	if drops := qdiscDrops(t, ns); drops == 0 {
		t.Error("the queue dropped nothing: the test proves nothing")
	}
	for _, l := range a.lines() {
		if l.Role == "client" && (l.Sent != headerBytes+size || l.Received != 1) || l.Role == "server" && (l.Received != headerBytes+size || l.Sent != 1) {
			t.Errorf("want %d and 1 bytes: %+v", headerBytes+size, l)
		}
	}
}

func qdiscDrops(t *testing.T, ns netns.NsHandle) uint32 {
	t.Helper()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	qdiscs, err := handle.QdiscList(lo)
	if err != nil || len(qdiscs) != 1 {
		t.Fatalf("%d qdiscs, %v", len(qdiscs), err)
	}
	return qdiscs[0].Attrs().Statistics.Queue.Drops
}

// TestStopIsNotHeldUp ends an agent whose access log nobody reads and of whom somebody wants an endless trace.
func TestStopIsNotHeldUp(t *testing.T) {
	needRoot(t)
	const count = 2000 // more lines than a pipe holds
	cgroup := newCgroup(t, "client")
	ns := newNamespace(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // holds it open, and reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	a := startAgent(t, cgroup, "--access-log", pipe)
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.MustParseAddrPort("127.0.0.1:1"), Ending: connectOnly, Count: count, Parallel: 10,
	})
	a.waitClosed()
	go func() {
		response, err := http.Get("http://" + a.Address + "/debug/pprof/trace?seconds=1000")
		if err == nil {
			response.Body.Close()
		}
	}()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- a.cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it says that all went well, with lines unwritten")
		}
	case <-time.After(patiently(t, 20*time.Second)):
		t.Fatal("it does not end")
	}
}

// TestHostileName runs a program whose name is no UTF-8, in a cgroup whose name is none: nobody else's data suffers.
func TestHostileName(t *testing.T) {
	needRoot(t)
	const bad = "bad\xff"
	cgroup := newCgroup(t, bad)
	ns := newNamespace(t)
	name := filepath.Join(t.TempDir(), bad)
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(curl)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o700); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, cgroup)
	p := start(t, ns, filepath.Join(cgroup, bad), exec.Command(name, "-s", "http://127.0.0.1:1/"))
	_ = p.Wait() // it is refused
	a.waitClosed()
	metrics := a.metrics()
	a.stop()
	if want := `local_workload="/` + filepath.Base(cgroup) + `/bad` + "\uFFFD" + `"`; !strings.Contains(metrics, want) {
		t.Errorf("/metrics lacks %s", want)
	}
	lines := a.lines()
	if len(lines) != 1 || lines[0].Executable != "bad\uFFFD" {
		t.Errorf("got %+v", lines)
	}
}
