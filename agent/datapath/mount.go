package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one mounted file system.
type Mount struct {
	Point string
	Root  string // what of the file system is mounted there; "/" is all of it
	Type  string
}

// Mounts reads the mount table of this process.
func Mounts() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	defer f.Close()
	return readMounts(f)
}

// maxMountLine is far above what the kernel prints of one mount: an overlay names each of its layers.
const maxMountLine = 1 << 20

func readMounts(table io.Reader) ([]Mount, error) {
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, maxMountLine)
	var mounts []Mount
	for lines.Scan() {
		if m, ok := parseMount(lines.Text()); ok {
			mounts = append(mounts, m)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return mounts, nil
}

// parseMount reads one line of mountinfo (proc_pid_mountinfo(5)): "36 35 98:0 /root /point opts [optional...] - type source opts".
func parseMount(line string) (Mount, bool) {
	before, after, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 6 || len(rest) < 1 {
		return Mount{}, false
	}
	return Mount{Root: unescapeMount.Replace(fields[3]), Point: unescapeMount.Replace(fields[4]), Type: rest[0]}, true
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// FindCgroup2 returns where the root of cgroup v2 is mounted: the whole hierarchy if it is, wherever that may be.
func FindCgroup2(mounts []Mount) (string, error) {
	point := ""
	for _, m := range mounts {
		if m.Type != "cgroup2" {
			continue
		}
		if m.Root == "/" {
			return m.Point, nil
		}
		if point == "" {
			point = m.Point
		}
	}
	if point == "" {
		return "", errors.New("find cgroup2: it is not mounted; mount it with: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return point, nil
}

// cgroup2Holding returns the cgroup2 mount point that a directory lies below.
func cgroup2Holding(mounts []Mount, dir string) string {
	holding := ""
	for _, m := range mounts {
		if m.Type != "cgroup2" {
			continue
		}
		if rel, err := filepath.Rel(m.Point, dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") && len(m.Point) > len(holding) {
			holding = m.Point
		}
	}
	return holding
}

// Cgroup is a directory to attach to.
type Cgroup struct {
	Dir   string // absolute, without links
	Mount string // the cgroup2 mount point that it lies below
}

// id is the cgroup's number: the inode of its directory, as kn->id is on 64-bit machines.
func (c Cgroup) id() (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(c.Dir, &stat); err != nil {
		return 0, fmt.Errorf("read id of cgroup: %w", &os.PathError{Op: "stat", Path: c.Dir, Err: err})
	}
	return stat.Ino, nil
}

// OpenCgroup checks a directory to attach to; an empty one means the root of cgroup v2.
func OpenCgroup(dir string) (Cgroup, error) {
	mounts, err := Mounts()
	if err != nil {
		return Cgroup{}, err
	}
	if dir == "" {
		if dir, err = FindCgroup2(mounts); err != nil {
			return Cgroup{}, err
		}
	}
	absolute, err := filepath.Abs(dir)
	if err == nil {
		absolute, err = filepath.EvalSymlinks(absolute)
	}
	if err != nil {
		return Cgroup{}, fmt.Errorf("open cgroup %s: %w; name an existing cgroup2 directory", dir, err)
	}
	if info, err := os.Stat(absolute); err != nil || !info.IsDir() {
		return Cgroup{}, fmt.Errorf("open cgroup %s: not a directory; name a cgroup2 directory", dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(absolute, &fs); err != nil {
		return Cgroup{}, fmt.Errorf("open cgroup %s: %w", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		hint := "no cgroup2 is mounted on this machine"
		if root, err := FindCgroup2(mounts); err == nil {
			hint = "name a directory below " + root
		}
		return Cgroup{}, fmt.Errorf("open cgroup %s: not in a cgroup2 file system; %s", dir, hint)
	}
	return Cgroup{Dir: absolute, Mount: cgroup2Holding(mounts, absolute)}, nil
}

// BPFFS is where bpffs belongs.
const BPFFS = "/sys/fs/bpf"

// MountBPFFS mounts bpffs at its usual place unless some bpffs is mounted there, and says whether it did. The mount stays: what
// is pinned there, by us or others, would go with it. A fresh bpffs is not empty where the kernel has CONFIG_BPF_PRELOAD: maps.debug and
// progs.debug are the kernel's own.
func MountBPFFS() (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(BPFFS, &fs); err != nil {
		return false, fmt.Errorf("look at %s: %w", BPFFS, err)
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := unix.Mount("bpf", BPFFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
		return false, fmt.Errorf("mount bpffs at %s: %w", BPFFS, err)
	}
	return true, nil
}
