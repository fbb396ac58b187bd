package enrich

import (
	"encoding/binary"
	"errors"
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
	path, err := c.path(id)
	w := workloadOf(path)
	// A cgroup that is gone will not come back; any other failure, such as too many open files, may pass.
	if err == nil || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		if len(c.byID) >= cacheLimit {
			clear(c.byID)
		}
		c.byID[id] = w
	}
	return w
}

// fileidKernfs is the handle type of cgroup2's file system (FILEID_KERNFS in the kernel): the handle is the 64-bit
// cgroup id and nothing else, so an id becomes a path without a walk over the tree. Needs CAP_DAC_READ_SEARCH.
const fileidKernfs = 0xfe

// path is empty when the cgroup is gone or out of reach. ESTALE is the kernel's word for an id without a cgroup.
func (c *cgroups) path(id uint64) (string, error) {
	if id == 0 || c.root == nil {
		return "", unix.ESTALE
	}
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(c.root.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	full, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	below, ok := strings.CutPrefix(full, c.mount)
	if !ok || strings.HasSuffix(full, " (deleted)") {
		return "", unix.ESTALE
	}
	return path.Join("/", below), nil
}

var (
	// docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope, the bare <id> of the cgroupfs drivers, and
	// <slice>:cri-containerd:<id> where containerd was told of no systemd driver.
	containerID = regexp.MustCompile(`^(?:[a-z-]+-|.*:cri-containerd:)?([0-9a-f]{64})(?:\.scope)?$`)
	// A container's monitor, not the container: crio-conmon-<id>.scope, libpod-conmon-<id>.scope.
	monitor = regexp.MustCompile(`(?:^|-)conmon-`)
	// kubepods-burstable-pod<uid with underscores>.slice, the same below another slice (kubelet-kubepods-... in kind) and the cgroupfs
	// form pod<uid>. A static pod has a hash of 32 digits for a uid.
	podUID = regexp.MustCompile(`^(?:[a-z-]+-)?pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?$`)
	// What systemd calls a unit that can hold processes.
	unit = regexp.MustCompile(`^.+\.(?:service|scope|socket|mount|swap)$`)
)

// userManager is a user's own systemd, below which the user decides what units are called.
var userManager = regexp.MustCompile(`^user@[0-9]+\.service$`)

// workloadOf reads a workload off a cgroup's path. The innermost container wins (a node of kind is a container itself), then the innermost
// systemd unit, then the path.
func workloadOf(cgroup string) *Workload {
	cgroup = strings.ToValidUTF8(cgroup, "\uFFFD") // see label
	w := &Workload{Cgroup: cgroup}
	manager := ""
	for part := range strings.SplitSeq(cgroup, "/") {
		if m := containerID.FindStringSubmatch(part); m != nil && !monitor.MatchString(part) {
			w.ContainerID = m[1]
		} else if m := podUID.FindStringSubmatch(part); m != nil {
			w.PodUID = strings.ReplaceAll(m[1], "_", "-")
		} else if unit.MatchString(part) {
			w.SystemdUnit = part
			if userManager.MatchString(part) {
				manager = part
			}
		}
	}
	// A user's own units carry the user: anybody can call one nginx.service.
	if manager != "" && w.SystemdUnit != manager {
		w.SystemdUnit = manager + "/" + w.SystemdUnit
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
	w.Name = label(w.Name)
	return w
}
