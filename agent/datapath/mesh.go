package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// meshState is what the mesh adds to a Datapath. Without one nothing of it is attached, and the verifier leaves it out of the programs.
type meshState struct {
	on bool

	mu      sync.Mutex
	lookups map[uint64]*lookup // by the inode of the network namespace
}

// lookup is the program that judges SYNs, in one network namespace. Its file keeps the namespace's inode from being used again.
type lookup struct {
	namespace *os.File
	link      *link.NetNsLink
}

// attachMesh attaches what only a mesh needs. It comes before the connect hooks: what they take is given back by mesh_release, and what they rewrite
// shown by the getpeername hooks.
func (d *Datapath) attachMesh() error {
	if !d.mesh.on {
		return nil
	}
	if err := d.objects.AgentPid.Set(initialPID()); err != nil {
		return fmt.Errorf("set %s: %w", bpf.AgentPID, err)
	}
	for _, a := range []struct {
		attach  ebpf.AttachType
		program *ebpf.Program
	}{
		{ebpf.AttachCgroupInetSockRelease, d.objects.MeshRelease},
		{ebpf.AttachCGroupInetSockCreate, d.objects.MeshCreate},
		{ebpf.AttachCgroupInet4GetPeername, d.objects.MeshPeername4},
		{ebpf.AttachCgroupInet6GetPeername, d.objects.MeshPeername6},
	} {
		if err := d.attachCgroup(a.attach, a.program); err != nil {
			return err
		}
	}
	return nil
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

// GuardNamespaces attaches the program that judges inbound connections to the network namespace of each process in the cgroup that has it not yet, and
// takes it off those that no process is in any more. It returns how many have it. Safe for concurrent use.
func (d *Datapath) GuardNamespaces() (int, error) {
	d.mesh.mu.Lock()
	defer d.mesh.mu.Unlock()
	if !d.mesh.on || d.mesh.lookups == nil {
		return 0, nil
	}
	all := namespacesOf(d.cgroup.Dir)
	var errs []error
	for inode, ns := range all {
		if d.mesh.lookups[inode] != nil {
			ns.Close()
			continue
		}
		l, err := link.AttachNetNs(int(ns.Fd()), d.objects.MeshLookup)
		if err != nil {
			errs = append(errs, fmt.Errorf("attach to network namespace %s: %w", ns.Name(), err), ns.Close())
			continue
		}
		d.mesh.lookups[inode] = &lookup{ns, l}
	}
	for inode, l := range d.mesh.lookups {
		if all[inode] == nil {
			errs = append(errs, l.close())
			delete(d.mesh.lookups, inode)
		}
	}
	return len(d.mesh.lookups), errors.Join(errs...)
}

// namespacesOf opens the network namespaces of the processes in a cgroup and below it, by inode. Threads that are elsewhere than their process are
// not looked for.
func namespacesOf(cgroup string) map[uint64]*os.File {
	found := make(map[uint64]*os.File)
	// What ends meanwhile is no loss.
	_ = filepath.WalkDir(cgroup, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil //nolint:nilerr // see above
		}
		processes, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(processes)) {
			ns := "/proc/" + pid + "/ns/net"
			var stat unix.Stat_t
			if unix.Stat(ns, &stat) != nil || found[stat.Ino] != nil {
				continue
			}
			if f, err := os.Open(ns); err == nil {
				found[stat.Ino] = f
			}
		}
		return nil
	})
	return found
}

func (l *lookup) close() error { return errors.Join(l.link.Close(), l.namespace.Close()) }

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

func (m *meshState) detach() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, l := range m.lookups {
		errs = append(errs, l.close())
	}
	m.lookups = nil
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
