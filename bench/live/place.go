package live

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// priority (nice) of what is measured: above what else this machine does.
const priority = -10

// placePrefix begins the names of the runs' cgroups and directories; the harness's pid and a number follow.
const placePrefix = "sidelight-bench-"

// timeWaits is how many sockets in TIME_WAIT the namespace may have: beyond that, ends of connections take another way.
const timeWaits = 4 << 20

// place is where everything of a run lives: a cgroup, a network namespace and a directory of its own. Used by one goroutine.
type place struct {
	cgroup    string
	directory string
	ns        netns.NsHandle
	processes []*exec.Cmd
	cgroups   []string
}

// newPlace makes a place; the caller closes it, whatever it returned.
func newPlace() (*place, error) {
	p := &place{ns: netns.None()}
	root, err := datapath.OpenCgroup("")
	if err != nil {
		return p, err
	}
	if os.Geteuid() != 0 {
		return p, errors.New("cgroups and network namespaces cannot be made: run as root")
	}
	removeLeftovers(root.Dir)
	name := placePrefix + strconv.Itoa(os.Getpid()) + "-*"
	if p.cgroup, err = os.MkdirTemp(root.Dir, name); err != nil {
		return p, fmt.Errorf("make cgroup: %w", err)
	}
	if p.directory, err = os.MkdirTemp("", name); err != nil {
		return p, err
	}
	if p.ns, err = lab.NewNamespace(); err != nil {
		return p, err
	}
	err = p.inside(func() error {
		if err := lab.LoopbackUp(); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte(strconv.Itoa(timeWaits)), 0)
	})
	return p, err
}

// makeCgroup makes a cgroup of the run and returns its directory.
func (p *place) makeCgroup(name string) (string, error) {
	dir := filepath.Join(p.cgroup, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	p.cgroups = append(p.cgroups, dir)
	return dir, nil
}

// start starts a process in the run's network namespace and in one of its cgroups, with priority, in a mount namespace of its own: what it
// mounts goes away with it. It is killed when the harness ends, and has a process group of its own, so that Ctrl-C leaves it to the harness.
func (p *place) start(cmd *exec.Cmd, cgroup string) error {
	dir, err := os.Open(cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL, Setpgid: true, Unshareflags: syscall.CLONE_NEWNS,
	}
	err = p.inside(func() error {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, priority); err != nil {
			return fmt.Errorf("raise priority: %w", err)
		}
		defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0) }()
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p.processes = append(p.processes, cmd)
	return nil
}

// startAndRead starts a process like start and returns its first line of output.
func (p *place) startAndRead(cmd *exec.Cmd, cgroup string) (string, error) {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := p.start(cmd, cgroup); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("start %v: it ended without a word: %w", cmd.Args[1:], err)
	}
	return strings.TrimSpace(line), nil
}

// inside runs f in the run's network namespace.
func (p *place) inside(f func() error) error { return lab.In(p.ns, f) }

// end kills a process that was started here.
func (p *place) end(cmd *exec.Cmd) {
	p.processes = slices.DeleteFunc(p.processes, func(c *exec.Cmd) bool { return c == cmd })
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()
}

// clear kills what runs and removes the cgroups in which it did. The place can be used again.
func (p *place) clear() error {
	for _, c := range p.processes {
		_ = c.Process.Kill() // it may have ended
	}
	for _, c := range p.processes {
		_ = c.Wait()
	}
	var errs []error
	for i := len(p.cgroups) - 1; i >= 0; i-- {
		errs = append(errs, lab.RemoveCgroup(p.cgroups[i]))
	}
	p.processes, p.cgroups = nil, nil
	return errors.Join(errs...)
}

// close removes everything. Safe on a place that was not made completely.
func (p *place) close() error {
	err := p.clear()
	if p.ns.IsOpen() {
		err = errors.Join(err, p.ns.Close())
	}
	if p.directory != "" {
		err = errors.Join(err, os.RemoveAll(p.directory))
	}
	if p.cgroup != "" {
		err = errors.Join(err, lab.RemoveCgroup(p.cgroup))
	}
	return err
}

// removeLeftovers removes what runs made that were killed. Their processes went with them.
func removeLeftovers(root string) {
	for _, parent := range []string{root, os.TempDir()} {
		dirs, _ := filepath.Glob(filepath.Join(parent, placePrefix+"*"))
		for _, dir := range dirs {
			text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), placePrefix), "-")
			pid, err := strconv.Atoi(text)
			if err != nil || unix.Kill(pid, 0) == nil {
				continue
			}
			if parent != root {
				_ = os.RemoveAll(dir)
				continue
			}
			inner, _ := filepath.Glob(filepath.Join(dir, "*"))
			for _, d := range append(inner, dir) {
				_ = unix.Rmdir(d) // refuses what is not empty, and files
			}
		}
	}
}
