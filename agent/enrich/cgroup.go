package enrich

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cacheLimit bounds a cache that processes on the machine can grow by what they do. Over it the cache starts anew, which costs
// look-ups and nothing else.
const cacheLimit = 65536

// cgroups turns the kernel's cgroup ids into workloads.
type cgroups struct {
	mount string
	root  *os.File
	byID  map[uint64]*Workload
}

func newCgroups(mount string) (*cgroups, error) {
	root, err := os.Open(mount)
	if err != nil {
		return nil, fmt.Errorf("open cgroup2 mount: %w", err)
	}
	return &cgroups{mount: filepath.Clean(mount), root: root, byID: make(map[uint64]*Workload)}, nil
}

func (c *cgroups) close() error {
	if c.root == nil {
		return nil
	}
	err := c.root.Close()
	c.root = nil
	return err
}

func (c *cgroups) workload(id uint64) *Workload {
	if w := c.byID[id]; w != nil {
		return w
	}
	w := workloadOf(c.path(id))
	if len(c.byID) >= cacheLimit {
		clear(c.byID)
	}
	c.byID[id] = w
	return w
}

// fileidKernfs is the handle type of cgroup2's file system (FILEID_KERNFS in include/linux/exportfs.h): the handle is the 64-bit
// cgroup id and nothing else, so an id becomes a path without a walk over the tree. Needs CAP_DAC_READ_SEARCH.
const fileidKernfs = 0xfe

// path is empty when the cgroup is gone or out of reach.
func (c *cgroups) path(id uint64) string {
	if id == 0 || c.root == nil {
		return ""
	}
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(c.root.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil || strings.HasSuffix(full, " (deleted)") {
		return ""
	}
	below, ok := strings.CutPrefix(full, c.mount)
	if !ok {
		return ""
	}
	return path.Join("/", below)
}

var (
	// docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope and the bare <id> of the cgroupfs drivers.
	containerID = regexp.MustCompile(`^(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?$`)
	// kubepods-burstable-pod<uid with underscores>.slice, the same below another slice (kubelet-kubepods-... in kind) and the cgroupfs
	// form pod<uid>.
	podUID = regexp.MustCompile(`^(?:[a-z-]+-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})(?:\.slice)?$`)
	// What systemd calls a unit that can hold processes.
	unit = regexp.MustCompile(`^.+\.(?:service|scope|socket|mount|swap)$`)
)

// workloadOf reads a workload off a cgroup's path. The innermost container wins, then the innermost systemd unit, then the path.
func workloadOf(cgroup string) *Workload {
	w := &Workload{Cgroup: cgroup}
	for part := range strings.SplitSeq(cgroup, "/") {
		if m := containerID.FindStringSubmatch(part); m != nil {
			w.ContainerID = m[1]
		} else if m := podUID.FindStringSubmatch(part); m != nil {
			w.PodUID = strings.ReplaceAll(m[1], "_", "-")
		} else if unit.MatchString(part) {
			w.SystemdUnit = part
		}
	}
	switch {
	case w.ContainerID != "":
		w.Name = w.ContainerID[:12]
	case w.SystemdUnit != "":
		w.Name = w.SystemdUnit
	case cgroup != "":
		w.Name = cgroup
	default:
		w.Name = "unknown"
	}
	return w
}
