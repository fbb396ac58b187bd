package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// pins is a directory in bpffs, and in it a set of maps with the links of the programs that work with them:
//
//	DIR/                    locked by the agent that attends to it
//	DIR/HASH/               a set, by the hash of its layout
//	DIR/HASH/map-NAME
//	DIR/HASH/link-NAME
//	DIR/HASH/before         a symbolic link: the set is taking the place of another (carry.go)
//	DIR/mounted             a symbolic link: bpffs was mounted by us
//
// Maps are pinned before links: a set without links is of a start that did not get far, and nobody needs it, but one that another takes the place of.
type pins struct {
	dir  string
	lock *os.File
	set  string // its directory
}

// LockedError says that another agent attends to what is pinned.
type LockedError struct {
	Dir string
	PID uint64 // in its own PID namespace; 0: not known
}

func (e *LockedError) Error() string {
	who := "another agent"
	if e.PID != 0 {
		who += fmt.Sprintf(", process %d,", e.PID)
	}
	return fmt.Sprintf("%s attends to %s; stop it, start this one with --takeover, or give it a pin_directory of its own", who, e.Dir)
}

// PinError says that what is pinned is not what an agent leaves there. Nothing was changed.
type PinError struct {
	Path   string
	Fault  string
	Remedy string
}

func (e *PinError) Error() string { return fmt.Sprintf("%s: %s; %s", e.Path, e.Fault, e.Remedy) }

const (
	uninstallRemedy = "take all of it off with: sidelight uninstall"
	foreignRemedy   = "move it away"
)

var setName = regexp.MustCompile(`^[0-9a-f]{16}$`)

const (
	mapPrefix  = "map-"
	linkPrefix = "link-"
	mountedBy  = "mounted"
	comesAfter = "before"
)

// openPins makes the directory and locks it for as long as this process lives, or until close.
func openPins(dir string) (*pins, error) {
	var fs unix.Statfs_t
	parent := filepath.Dir(dir)
	if err := unix.Statfs(parent, &fs); err != nil {
		return nil, fmt.Errorf("look at %s: %w; mount bpffs there, or choose another pin_directory", parent, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return nil, &PinError{parent, "it is not in a bpffs, where programs can be pinned", "mount one with: mount -t bpf -o mode=700 bpf " + parent + ", or choose another pin_directory"}
	}
	for {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("make pin_directory: %w; is the bpffs mounted read-only?", err)
		}
		p, err := lockPins(dir)
		if err != nil {
			return nil, err
		}
		// Somebody may have removed it, and made it anew, before it was locked.
		if same, err := p.inPlace(); same {
			return p, nil
		} else if err != nil {
			return nil, errors.Join(err, p.close())
		}
		if err := p.close(); err != nil {
			return nil, err
		}
	}
}

// inPlace tells whether what is locked is the directory that the name leads to. One that somebody else may write to is an error: he could take programs off.
func (p *pins) inPlace() (bool, error) {
	locked, err := p.lock.Stat()
	if err != nil {
		return false, fmt.Errorf("look at pin_directory: %w", err)
	}
	stat, ok := locked.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) != os.Geteuid() || locked.Mode().Perm()&0o022 != 0 {
		return false, &PinError{p.dir, fmt.Sprintf("it is user %d's, with mode %v: others could take programs off", stat.Uid, locked.Mode().Perm()), "remove it, or choose another pin_directory"}
	}
	named, err := os.Lstat(p.dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at pin_directory: %w", err)
	}
	return os.SameFile(locked, named), nil
}

func lockPins(dir string) (*pins, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin_directory: %w", err)
	}
	p := &pins{dir: dir, lock: lock}
	switch err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(&LockedError{dir, p.agent()}, lock.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock pin_directory: %w", err), lock.Close())
	}
	return p, nil
}

// agent returns the process that attended to the newest set last; 0: not known.
func (p *pins) agent() uint64 {
	sets, err := p.sets()
	if err != nil || len(sets) == 0 {
		return 0
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.dir, sets[0], mapPrefix+"ledger"), nil)
	if err != nil {
		return 0
	}
	defer m.Close()
	var l bpf.Ledger
	if m.Lookup(uint32(0), &l) != nil {
		return 0
	}
	return l.AgentPid
}

// sets returns the sets that there are, and refuses a directory with anything else in it.
func (p *pins) sets() ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("read pin_directory: %w", err)
	}
	var sets []string
	for _, e := range entries {
		switch {
		case e.IsDir() && setName.MatchString(e.Name()):
			sets = append(sets, e.Name())
		case e.Name() == mountedBy && e.Type()&fs.ModeSymlink != 0:
		default:
			return nil, &PinError{filepath.Join(p.dir, e.Name()), "it is nothing that Sidelight pins", foreignRemedy}
		}
	}
	return sets, nil
}

// content returns the names of the maps and of the links in a set.
func (p *pins) content(set string) (maps, links []string, err error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, set))
	if err != nil {
		return nil, nil, fmt.Errorf("read pin_directory: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case len(name) > len(mapPrefix) && name[:len(mapPrefix)] == mapPrefix && e.Type().IsRegular():
			maps = append(maps, name[len(mapPrefix):])
		case len(name) > len(linkPrefix) && name[:len(linkPrefix)] == linkPrefix && e.Type().IsRegular():
			links = append(links, name[len(linkPrefix):])
		case name == comesAfter && e.Type()&fs.ModeSymlink != 0:
		default:
			return nil, nil, &PinError{filepath.Join(p.dir, set, name), "it is nothing that Sidelight pins", foreignRemedy}
		}
	}
	return maps, links, nil
}

// find returns the set that is in force; "" if there is none.
func (p *pins) find() (string, error) {
	sets, err := p.sets()
	if err != nil {
		return "", err
	}
	inForce := ""
	for _, set := range sets {
		_, links, err := p.content(set)
		if err != nil {
			return "", err
		}
		switch {
		case len(links) == 0:
		case inForce == "" || p.after(set) == inForce: // links are moved one by one
			inForce = set
		case p.after(inForce) == set:
		default:
			return "", &PinError{p.dir, "it has more than one set of programs that are attached", uninstallRemedy}
		}
	}
	return inForce, nil
}

// after returns the set that one takes the place of; "" if there is none.
func (p *pins) after(set string) string {
	to, err := os.Readlink(filepath.Join(p.dir, set, comesAfter))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// clear removes what a start left that did not get far.
func (p *pins) clear() error {
	inForce, err := p.find()
	if err != nil {
		return err
	}
	sets, err := p.sets()
	if err != nil {
		return err
	}
	for _, set := range sets {
		if set == inForce || set == p.after(inForce) {
			continue
		}
		if err := p.removeSet(set); err != nil {
			return err
		}
	}
	return nil
}

// use makes a set the one that pins go to.
func (p *pins) use(set string) { p.set = filepath.Join(p.dir, set) }

// maps opens the maps of the set, which are to be those of a layout, as the specs have them.
func (p *pins) maps(specs map[string]*ebpf.MapSpec) (found map[string]*ebpf.Map, err error) {
	found = make(map[string]*ebpf.Map)
	defer func() {
		if err != nil {
			closeMaps(found)
			found = nil
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		if !lasting(name) {
			continue
		}
		path := filepath.Join(p.set, mapPrefix+name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			return found, &PinError{
				path, "the map is missing, and programs that are attached work with it",
				"they go on without an agent; take them off with: sidelight uninstall",
			}
		}
		if err != nil {
			return found, fmt.Errorf("open pinned map %s: %w; if it is damaged, take all off with: sidelight uninstall", path, err)
		}
		found[name] = m
		if err := specs[name].Compatible(m); err != nil {
			return found, &PinError{path, "it is another map than programs that are attached work with: " + err.Error(), uninstallRemedy}
		}
	}
	return found, nil
}

func closeMaps(all map[string]*ebpf.Map) {
	for _, m := range all {
		m.Close()
	}
}

// pinMaps makes the set's directory and pins all maps of it.
func (p *pins) pinMaps(all map[string]*ebpf.Map) error {
	if err := os.Mkdir(p.set, 0o700); err != nil {
		return fmt.Errorf("make directory of pins: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !lasting(name) {
			continue
		}
		if err := all[name].Pin(filepath.Join(p.set, mapPrefix+name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

func (p *pins) linkPath(name string) string { return filepath.Join(p.set, linkPrefix+name) }

// link opens one that is pinned; nil if it is not there.
func (p *pins) link(name string) (link.Link, error) {
	l, err := link.LoadPinnedLink(p.linkPath(name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link %s: %w; if it is damaged, take all off with: sidelight uninstall", p.linkPath(name), err)
	}
	return l, nil
}

func (p *pins) pinLink(name string, l link.Link) error {
	if err := l.Pin(p.linkPath(name)); err != nil {
		return fmt.Errorf("pin link %s: %w", name, err)
	}
	return nil
}

// sockopsHook is there in every data path.
const sockopsHook = "sockops"

// since is when the first agent pinned its programs; zero: not known. Those after it replace the programs in this link, and move it to other sets of maps,
// which leaves the time as it is.
func (p *pins) since() time.Time {
	info, err := os.Lstat(p.linkPath(sockopsHook))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// removeLink takes a link off, if nobody else holds it.
func (p *pins) removeLink(name string) error {
	if err := os.Remove(p.linkPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("take off link %s: %w", name, err)
	}
	return nil
}

// linkOrder is that in which links are taken off: what takes of limits before what gives back.
func linkOrder(links []string) []string {
	rank := func(name string) int {
		switch name {
		case "connect4", "connect6":
			return 0
		case sockopsHook, "release":
			return 2
		}
		return 1
	}
	slices.SortStableFunc(links, func(a, b string) int { return rank(a) - rank(b) })
	return links
}

func (p *pins) removeSet(set string) error {
	dir := filepath.Join(p.dir, set)
	all, links, err := p.content(set)
	if err != nil {
		return err
	}
	for _, name := range linkOrder(links) {
		if err := os.Remove(filepath.Join(dir, linkPrefix+name)); err != nil {
			return fmt.Errorf("take off link %s: %w", name, err)
		}
	}
	for _, name := range all {
		if err := os.Remove(filepath.Join(dir, mapPrefix+name)); err != nil {
			return fmt.Errorf("unpin map %s: %w", name, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, comesAfter)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove directory of pins: %w", err)
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove directory of pins: %w", err)
	}
	return nil
}

func (p *pins) removeSetIfThere(set string) error {
	if !exists(filepath.Join(p.dir, set)) {
		return nil
	}
	return p.removeSet(set)
}

// leave removes a directory in which nothing is pinned.
func (p *pins) leave() error {
	if sets, err := p.sets(); err != nil || len(sets) > 0 {
		return nil
	}
	return p.remove()
}

// remove unpins everything, and removes the directory.
func (p *pins) remove() error {
	sets, err := p.sets()
	if err != nil {
		return err
	}
	for _, set := range sets {
		if err := p.removeSet(set); err != nil {
			return err
		}
	}
	ours := false
	if err := os.Remove(filepath.Join(p.dir, mountedBy)); err == nil {
		ours = true
	}
	if err := os.Remove(p.dir); err != nil {
		return fmt.Errorf("remove pin_directory: %w", err)
	}
	if !ours {
		return nil
	}
	// What is open keeps it busy.
	return errors.Join(p.close(), unmountBPFFS(filepath.Dir(p.dir)))
}

// markMounted notes that the bpffs was mounted by us.
func (p *pins) markMounted() error {
	err := os.Symlink(filepath.Dir(p.dir), filepath.Join(p.dir, mountedBy))
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// unmountBPFFS does so unless somebody has pinned something there since. What the kernel itself puts into each (CONFIG_BPF_PRELOAD) does not count.
func unmountBPFFS(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() != "maps.debug" && e.Name() != "progs.debug" {
			return nil
		}
	}
	if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// Pinned tells whether programs are attached that are pinned in a directory.
func Pinned(dir string) bool {
	if dir == "" {
		return false
	}
	set, err := (&pins{dir: dir}).find()
	return err == nil && set != ""
}

// Free tells whether no agent attends to a directory: else it is a *LockedError. A directory that is not there is free.
func Free(dir string) error {
	p, err := lockPins(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.close()
}

func (p *pins) close() error {
	if p == nil || p.lock == nil {
		return nil
	}
	err := p.lock.Close()
	p.lock = nil
	return err
}

// Uninstall takes off and unpins everything that agents left in a directory, and unmounts the bpffs if they mounted it. It says whether there was
// anything. An agent that runs is a *LockedError.
func Uninstall(dir string) (bool, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	p, err := lockPins(dir)
	if err != nil {
		return false, err
	}
	defer p.close()
	return true, p.remove()
}
