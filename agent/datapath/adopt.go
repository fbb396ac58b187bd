package datapath

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Adopt makes the kernel side follow what was there before Attach: who owns the sockets that listen, so that what they accept from now
// on has a process, and the connections that are open or connecting, in every network namespace that a process or a mount leads to.
// Call it after Attach: in the other order what happens between the two would be missed. The error may be joined of many; what could
// be adopted is adopted all the same.
func (d *Datapath) Adopt() error {
	if err := d.trace.attach(d.tracePrograms()...); err != nil {
		return err
	}
	return errors.Join(d.adoptOwners(), d.adoptConnections(), d.trace.release(d))
}

func (d *Datapath) tracePrograms() []namedProgram {
	return []namedProgram{{"mesh_state", d.objects.MeshState}, {"mesh_state_nested", d.objects.MeshStateNested}}
}

func (d *Datapath) adoptOwners() error {
	iterator, err := link.AttachIter(link.IterOptions{Program: d.objects.MeshAdoptOwners})
	if err != nil {
		return fmt.Errorf("attach iterator over files: %w", err)
	}
	defer iterator.Close()
	if err := walk(iterator); err != nil {
		return fmt.Errorf("walk over files: %w", err)
	}
	return nil
}

// adoptConnections needs CAP_SYS_ADMIN for namespaces other than its own.
func (d *Datapath) adoptConnections() error {
	iterator, err := link.AttachIter(link.IterOptions{Program: d.objects.MeshAdopt})
	if err != nil {
		return fmt.Errorf("attach iterator over TCP sockets: %w", err)
	}
	defer iterator.Close()
	return inNamespaces(iterator, openNamespaces())
}

// inNamespaces walks in this process's network namespace and in those given, which it closes.
func inNamespaces(iterator *link.Iter, all map[uint64]*os.File) error {
	defer func() {
		for _, ns := range all {
			ns.Close()
		}
	}()
	errs := make(chan error, 1)
	go func() { errs <- walkNamespaces(iterator, all) }()
	return <-errs
}

// walkNamespaces changes the network namespace of its thread, which ends with its goroutine unless it is the process's first: that one
// has to be in its own namespace again.
func walkNamespaces(iterator *link.Iter, all map[uint64]*os.File) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	var failed []error
	// The own one first: without CAP_SYS_ADMIN it is the only one.
	if err := walk(iterator); err != nil {
		failed = append(failed, fmt.Errorf("walk over TCP sockets: %w", err))
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(own.Fd()), &stat); err != nil {
		return fmt.Errorf("read own network namespace: %w", err)
	}
	for inode, ns := range all {
		if inode == stat.Ino {
			continue
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			failed = append(failed, fmt.Errorf("enter network namespace %s: %w", ns.Name(), err))
		} else if err := walk(iterator); err != nil {
			failed = append(failed, fmt.Errorf("walk over TCP sockets of %s: %w", ns.Name(), err))
		}
	}
	switch err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); {
	case err == nil:
		runtime.UnlockOSThread() // with the thread would end what was started from it to end with its parent
	case len(failed) == 0 && len(all) > 1:
		failed = append(failed, fmt.Errorf("go back to own network namespace: %w", err))
	}
	return errors.Join(failed...)
}

// walk runs an iterator's program to the end. Opening it binds it to the network namespace of this thread, and reading runs it; the
// programs here write nothing.
func walk(iterator *link.Iter) error {
	run, err := iterator.Open()
	if err != nil {
		return err
	}
	defer run.Close()
	for {
		// One that shows nothing lets go of the CPU after a million of sockets, and says so.
		if _, err = io.Copy(io.Discard, run); !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
}

// openNamespaces opens the network namespaces of all threads and of all mounts, by inode. One that nobody is in and that is mounted
// nowhere is not found: its sockets are held by a process that left it.
func openNamespaces() map[uint64]*os.File {
	found := make(map[uint64]*os.File)
	add := func(path string) {
		var stat unix.Stat_t
		// What ended meanwhile is no loss.
		if unix.Stat(path, &stat) != nil || found[stat.Ino] != nil {
			return
		}
		if f, err := os.Open(path); err == nil {
			found[stat.Ino] = f
		}
	}
	threads, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net") // the pattern is a good one
	for _, path := range threads {
		add(path)
	}
	mounts, _ := Mounts() // without them the threads remain
	for _, m := range mounts {
		if m.Type == "nsfs" && strings.HasPrefix(m.Root, "net:") {
			add(m.Point)
		}
	}
	return found
}

// trace is the programs that see the end of adopted connections where sockops cannot be asked to. They cost at each change of state of
// every TCP socket of the machine, so they stay only as long as there are any. Safe for concurrent use.
type trace struct {
	mu    sync.Mutex
	pins  *pins // nil: nothing is pinned
	links []traceLink
}

type traceLink struct {
	name string
	link link.Link
}

func (t *trace) attach(programs ...namedProgram) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range programs {
		if err := t.attachLocked(p); err != nil {
			return errors.Join(err, t.detachLocked(false))
		}
	}
	return nil
}

func (t *trace) attachLocked(p namedProgram) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: p.program})
	if err != nil {
		return fmt.Errorf("attach %s to inet_sock_set_state: %w", p.name, err)
	}
	name := strings.TrimPrefix(p.name, "mesh_")
	t.links = append(t.links, traceLink{name, l})
	if t.pins == nil {
		return nil
	}
	// Such a link cannot get another program. While both are attached whichever comes first tells the end of a connection.
	if err := t.pins.removeLink(name); err != nil {
		return err
	}
	return t.pins.pinLink(name, l)
}

// release detaches when there is nothing left to see.
func (t *trace) release(d *Datapath) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.links == nil {
		return nil
	}
	account, err := d.Account()
	if err != nil || account.Traced != account.TracedClosed {
		return err
	}
	return t.detachLocked(false)
}

func (t *trace) detach(keep bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.detachLocked(keep)
}

func (t *trace) detachLocked(keep bool) error {
	var errs []error
	for _, l := range t.links {
		if t.pins != nil && !keep {
			errs = append(errs, t.pins.removeLink(l.name))
		}
		errs = append(errs, l.link.Close())
	}
	t.links = nil
	return errors.Join(errs...)
}

// Tracing says whether they are attached.
func (d *Datapath) Tracing() bool {
	d.trace.mu.Lock()
	defer d.trace.mu.Unlock()
	return d.trace.links != nil
}
