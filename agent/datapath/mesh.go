package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// meshState is what the mesh adds to a Datapath. Without one nothing of it is attached, and the verifier leaves it out of the programs.
type meshState struct {
	on   bool
	pins *pins // nil: nothing is pinned

	mu      sync.Mutex
	lookups map[uint64]*lookup // by the inode of the network namespace; nil while nothing is attached
	spec    *ebpf.CollectionSpec
	maps    map[string]*ebpf.Map // all but constants

	forgotten bool                // what earlier processes left
	committed bool                // there is no way back to it
	listening map[uint32]struct{} // workloads that had listeners at the last look
}

// lookup is the program that judges SYNs, in one network namespace. Its file keeps the namespace's inode from being used again.
type lookup struct {
	namespace *os.File
	program   *ebpf.Program
	link      link.Link
	name      string        // of its pin
	taken     bool          // over from an earlier process
	previous  *ebpf.Program // that was there before; nil: none
}

// share keeps the maps of a collection, those of variables among them.
func (m *meshState) share(collection *ebpf.Collection) error {
	m.maps = make(map[string]*ebpf.Map)
	for name, shared := range collection.Maps {
		if strings.HasPrefix(name, ".rodata") {
			continue
		}
		clone, err := shared.Clone()
		if err != nil {
			return fmt.Errorf("share map %s: %w", name, err)
		}
		m.maps[name] = clone
	}
	return nil
}

const lookupProgram = "mesh_lookup"

// guard attaches a program of its own to a network namespace, which it takes over: the program has no other way to know where it is.
func (m *meshState) guard(ns *os.File) (*lookup, error) {
	cookie, err := netnsCookie(ns)
	if err != nil {
		return nil, err
	}
	spec := m.spec.Copy()
	for name := range spec.Programs {
		if name != lookupProgram {
			delete(spec.Programs, name)
		}
	}
	if err := spec.Variables[bpf.LookupNetns].Set(cookie); err != nil {
		return nil, fmt.Errorf("set %s: %w", bpf.LookupNetns, err)
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: m.maps})
	if err != nil {
		return nil, fmt.Errorf("load program for network namespace %s: %w", ns.Name(), err)
	}
	defer collection.Close()
	l := &lookup{namespace: ns, program: collection.DetachProgram(lookupProgram), name: lookupLink + strconv.FormatUint(cookie, 10)}
	if err := m.attachLookup(l); err != nil {
		return nil, errors.Join(fmt.Errorf("attach to network namespace %s: %w", ns.Name(), err), l.program.Close())
	}
	return l, nil
}

// attachLookup attaches a program, or puts it in the place of the one that an earlier process attached there: a cookie is never used again.
func (m *meshState) attachLookup(l *lookup) (err error) {
	if m.pins != nil {
		if l.link, err = m.pins.link(l.name); err != nil {
			return err
		}
	}
	if l.link != nil {
		l.taken = true
		if !m.committed {
			l.previous, err = programOf(l.link)
		}
		if err == nil {
			err = l.link.Update(l.program)
		}
		if err != nil {
			return errors.Join(err, l.link.Close())
		}
		return nil
	}
	made, err := link.AttachNetNs(int(l.namespace.Fd()), l.program)
	if err != nil {
		return err
	}
	l.link = made
	if m.pins != nil {
		if err := m.pins.pinLink(l.name, made); err != nil {
			return errors.Join(err, made.Close())
		}
	}
	return nil
}

// netnsCookie asks a socket that is made there.
func netnsCookie(ns *os.File) (cookie uint64, err error) {
	err = inNamespace(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return fmt.Errorf("make socket in network namespace %s: %w", ns.Name(), err)
		}
		defer unix.Close(fd)
		if cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
			return fmt.Errorf("read cookie of network namespace %s: %w", ns.Name(), err)
		}
		return nil
	})
	return cookie, err
}

// NetnsOf returns the cookie of a process's network namespace; 0: it is not known.
func NetnsOf(pid uint64) uint64 {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0
	}
	defer ns.Close()
	cookie, err := netnsCookie(ns)
	if err != nil {
		return 0
	}
	return cookie
}

// inNamespace runs f on a thread that comes back to its own network namespace. If it cannot, the thread ends with its goroutine, and with it what was
// started from there to end with its parent (PR_SET_PDEATHSIG).
func inNamespace(ns *os.File, f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		errs <- func() error {
			own, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return fmt.Errorf("open own network namespace: %w", err)
			}
			defer own.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
			}
			err = f()
			if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
				return errors.Join(err, fmt.Errorf("go back to own network namespace: %w", back))
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-errs
}

// attachMesh attaches what only a mesh needs. It comes before the connect hooks: what they take is given back by mesh_release, and what they rewrite
// shown by the getpeername hooks.
func (d *Datapath) attachMesh() error {
	if !d.mesh.on {
		return nil
	}
	if err := d.exempt(); err != nil {
		return err
	}
	for _, a := range d.meshHooks() {
		if err := d.attachCgroup(a); err != nil {
			return err
		}
	}
	d.mesh.attached()
	return nil
}

// meshHooks are those that there are only with a mesh.
func (d *Datapath) meshHooks() []hook {
	if !d.mesh.on {
		return nil
	}
	return []hook{
		{"release", ebpf.AttachCgroupInetSockRelease, d.objects.MeshRelease},
		{"create", ebpf.AttachCGroupInetSockCreate, d.objects.MeshCreate},
		{"peername4", ebpf.AttachCgroupInet4GetPeername, d.objects.MeshPeername4},
		{"peername6", ebpf.AttachCgroupInet6GetPeername, d.objects.MeshPeername6},
	}
}

// attached has network namespaces be guarded from now on.
func (m *meshState) attached() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookups = make(map[uint64]*lookup)
}

// exempt makes this process known to the programs, where it can be told from others.
func (d *Datapath) exempt() error {
	pid := initialPID()
	start, err := startTicks()
	if err != nil || pid == 0 {
		return err
	}
	if err := d.objects.AgentStartTicks.Set(start); err != nil {
		return fmt.Errorf("set %s: %w", bpf.AgentStart, err)
	}
	if err := d.objects.AgentPid.Set(pid); err != nil {
		return fmt.Errorf("set %s: %w", bpf.AgentPID, err)
	}
	return nil
}

// startTicks returns when this process started, in ticks since boot: field 22 of proc_pid_stat(5).
func startTicks() (uint64, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, fmt.Errorf("read when this process started: %w", err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // of the name, which may have anything in it but is not ours to choose
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return 0, fmt.Errorf("read when this process started: /proc/self/stat has %d fields after the name", len(fields))
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read when this process started: %w", err)
	}
	return ticks, nil
}

type namedProgram struct {
	name    string
	program *ebpf.Program
}

// meshPrograms are those that run for a mesh only.
func (d *Datapath) meshPrograms() []namedProgram {
	if !d.mesh.on {
		return nil
	}
	return []namedProgram{
		{"mesh_lookup", d.objects.MeshLookup},
		{"mesh_release", d.objects.MeshRelease},
		{"mesh_create", d.objects.MeshCreate},
		{"mesh_peername4", d.objects.MeshPeername4},
		{"mesh_peername6", d.objects.MeshPeername6},
	}
}

// Objects are the programs and maps, for agent/maps.
func (d *Datapath) Objects() *bpf.Objects { return &d.objects }

// SetLevels says at which depths below the root of cgroup v2 there are workloads, as bits. More than eight are an error. Safe for concurrent use.
func (d *Datapath) SetLevels(levels uint64) error {
	if n := bits.OnesCount64(levels); n > bpf.IdentityLevels {
		return fmt.Errorf("set %s: workloads have cgroups at %d depths, and there may be %d; give them cgroups of more equal depth", bpf.CgroupLevels, n, bpf.IdentityLevels)
	}
	if err := d.objects.CgroupLevels.Set(levels); err != nil {
		return fmt.Errorf("set %s: %w", bpf.CgroupLevels, err)
	}
	return nil
}

// SetHas says what the programs have to look for: bpf.HasPolicies and the others as bits. Safe for concurrent use.
func (d *Datapath) SetHas(has uint32) error {
	if err := d.objects.MeshHas.Set(has); err != nil {
		return fmt.Errorf("set %s: %w", bpf.MeshHas, err)
	}
	return nil
}

// GuardNamespaces attaches the program that judges inbound connections to the network namespace of each process in the cgroup that has it not yet, and
// takes it off those that no process is in any more. It returns how many have it, and does nothing before Attach. Safe for concurrent use.
func (d *Datapath) GuardNamespaces() (int, error) {
	d.mesh.mu.Lock()
	defer d.mesh.mu.Unlock()
	if !d.mesh.on || d.mesh.lookups == nil {
		return 0, nil
	}
	all, err := namespacesOf(d.cgroup.Dir, func(inode uint64) bool { return d.mesh.lookups[inode] != nil })
	errs := []error{err}
	for inode, ns := range all {
		if ns == nil {
			continue
		}
		l, err := d.mesh.guard(ns)
		if err != nil {
			errs = append(errs, err, ns.Close())
			continue
		}
		d.mesh.lookups[inode] = l
	}
	if err := errors.Join(errs...); err != nil { // what was not found may be there all the same, and have a program of an earlier agent's
		return len(d.mesh.lookups), err
	}
	for inode, l := range d.mesh.lookups {
		if _, found := all[inode]; !found {
			errs = append(errs, d.mesh.unguard(l))
			delete(d.mesh.lookups, inode)
		}
	}
	errs = append(errs, d.mesh.forgetLookups())
	return len(d.mesh.lookups), errors.Join(errs...)
}

// unguard takes a program off.
func (m *meshState) unguard(l *lookup) error {
	var err error
	if m.pins != nil {
		err = m.pins.removeLink(l.name)
	}
	return errors.Join(err, l.close())
}

// forgetLookups takes off, once, what earlier processes left in network namespaces that nobody of the mesh is in any more.
func (m *meshState) forgetLookups() error {
	if m.pins == nil || m.forgotten || !m.committed {
		return nil
	}
	m.forgotten = true
	_, links, err := m.pins.content(filepath.Base(m.pins.set))
	if err != nil {
		return err
	}
	known := make(map[string]bool)
	for _, l := range m.lookups {
		known[l.name] = true
	}
	var errs []error
	for _, name := range links {
		if strings.HasPrefix(name, lookupLink) && !known[name] {
			errs = append(errs, m.pins.removeLink(name))
		}
	}
	return errors.Join(errs...)
}

// Unguard takes that program off everywhere, until GuardNamespaces is called again. It does nothing before Attach. Safe for concurrent use.
func (d *Datapath) Unguard() error {
	d.mesh.mu.Lock()
	defer d.mesh.mu.Unlock()
	if d.mesh.lookups == nil {
		return nil
	}
	var errs []error
	for inode, l := range d.mesh.lookups {
		errs = append(errs, d.mesh.unguard(l))
		delete(d.mesh.lookups, inode)
	}
	errs = append(errs, d.mesh.forgetLookups())
	return errors.Join(errs...)
}

// namespacesOf opens the network namespaces of the processes in a cgroup and below it, by inode; those that are known are nil. Threads that are elsewhere
// than their process are not looked for. The error is the first of a process or a cgroup that does exist; the others are found all the same.
func namespacesOf(cgroup string, known func(inode uint64) bool) (map[uint64]*os.File, error) {
	found := make(map[uint64]*os.File)
	var failed error
	fail := func(what string, err error) {
		// What ends meanwhile is no loss; and a threaded cgroup has its processes in the domain above.
		gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP)
		if err != nil && !gone && failed == nil {
			failed = fmt.Errorf("find network namespaces of %s: %w; nobody judges who connects to what is in them", what, err)
		}
	}
	walkErr := filepath.WalkDir(cgroup, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			fail(path, err)
			return nil
		}
		if !entry.IsDir() {
			return nil
		}
		processes, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		fail(path, err)
		for pid := range strings.FieldsSeq(string(processes)) {
			ns := "/proc/" + pid + "/ns/net"
			var stat unix.Stat_t
			if err := unix.Stat(ns, &stat); err != nil {
				fail("process "+pid, err)
				continue
			}
			if _, have := found[stat.Ino]; have {
				continue
			}
			if known(stat.Ino) {
				found[stat.Ino] = nil
				continue
			}
			f, err := os.Open(ns)
			if err != nil {
				fail("process "+pid, err)
				continue
			}
			found[stat.Ino] = f
		}
		return nil
	})
	return found, errors.Join(failed, walkErr)
}

func (l *lookup) close() error {
	if l.previous != nil {
		_ = l.previous.Close()
	}
	return errors.Join(l.link.Close(), l.program.Close(), l.namespace.Close())
}

// close lets go of the maps. Safe twice.
func (m *meshState) close() error {
	var errs []error
	for _, shared := range m.maps {
		errs = append(errs, shared.Close())
	}
	m.maps = nil
	return errors.Join(errs...)
}

// AdoptListeners notes who listens in the cgroups of workloads, where that was not noted when they began to: because the workload, or its cgroup, came
// later. Call it when who is a workload has changed.
func (d *Datapath) AdoptListeners() error {
	if !d.mesh.on {
		return nil
	}
	return d.adoptOwners()
}

// stickyRefs keep an entry for good: ADOPTED_REFS of bpf/lib/adopt.h.
const stickyRefs = 1 << 30

// ReapListeners deletes what nobody listens at any more, and counts what each workload has. Not safe for concurrent use.
func (d *Datapath) ReapListeners() error {
	if !d.mesh.on {
		return nil
	}
	var key bpf.Listen
	var value bpf.Listener
	var gone []bpf.Listen
	counts := make(map[uint32]uint32)
	entries := d.objects.Listeners.Iterate()
	for entries.Next(&key, &value) {
		if value.Refs == 0 {
			gone = append(gone, key)
		} else {
			counts[value.Workload]++
		}
	}
	if err := entries.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read listeners: %w", err)
	}
	live := uint64(0)
	for _, n := range counts {
		live += uint64(n)
	}
	d.listeners.Store(live)
	for _, key := range gone {
		err := d.objects.Listeners.LookupAndDelete(&key, &value)
		if err == nil && value.Refs != 0 { // taken up again meanwhile: see bpf/lib/listener.h
			if err = d.objects.Listeners.Update(&key, &value, ebpf.UpdateNoExist); errors.Is(err, ebpf.ErrKeyExist) {
				// And made anew besides: whose refs these are cannot be told apart any more, so it stays.
				value.Refs = stickyRefs
				err = d.objects.Listeners.Update(&key, &value, ebpf.UpdateExist)
			}
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("delete a listener: %w", err)
		}
	}
	// What begins to listen meanwhile may be left out, until the next look.
	for workload := range d.mesh.listening {
		if counts[workload] == 0 {
			counts[workload] = 0
		}
	}
	d.mesh.listening = make(map[uint32]struct{})
	for workload, n := range counts {
		if err := d.objects.Listens.Put(workload, n); err != nil {
			return fmt.Errorf("count listeners: %w", err)
		}
		if n > 0 {
			d.mesh.listening[workload] = struct{}{}
		}
	}
	return nil
}

// initialPIDNamespace is the inode of the first one: PROC_PID_INIT_INO of include/linux/proc_ns.h.
const initialPIDNamespace = 0xEFFFFFFC

// initialPID returns this process's id in the initial PID namespace, and 0 where it does not know it.
func initialPID() uint32 {
	var stat unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &stat) != nil || stat.Ino != initialPIDNamespace {
		return 0
	}
	return uint32(os.Getpid())
}

// detach takes everything off, or if it is to be kept lets go of it.
func (m *meshState) detach(keep bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, l := range m.lookups {
		if keep {
			errs = append(errs, l.close())
		} else {
			errs = append(errs, m.unguard(l))
		}
	}
	m.lookups = nil
	return errors.Join(errs...)
}

// rollback puts back what was there before, and takes off what had no predecessor.
func (m *meshState) rollback() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, l := range m.lookups {
		if !l.taken {
			errs = append(errs, m.unguard(l))
			continue
		}
		errs = append(errs, putBack(l.link, l.name, l.previous))
		l.previous = nil
		errs = append(errs, l.close())
	}
	m.lookups = nil
	return errors.Join(errs...)
}

// commit lets go of what was there before.
func (m *meshState) commit() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.committed = true
	var errs []error
	for _, l := range m.lookups {
		if l.previous != nil {
			errs = append(errs, l.previous.Close())
			l.previous = nil
		}
	}
	return errors.Join(errs...)
}

// Resolve returns the id and the depth of a cgroup, by its path below the root of cgroup v2. One that does not exist is an fs.ErrNotExist.
func (c Cgroup) Resolve(path string) (id uint64, level int, err error) {
	below := Cgroup{Dir: filepath.Join(c.Mount, path)}
	if id, err = below.id(); err != nil {
		return 0, 0, err
	}
	return id, strings.Count(filepath.Clean(path), "/"), nil
}
