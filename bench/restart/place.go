package restart

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// placePrefix begins the names of the runs' cgroups and directories; the harness's pid and a number follow.
const placePrefix = "sidelight-bench-restart-"

// place is a cgroup, a network namespace and a directory of its own, and in the directory a bpffs. Used by one goroutine.
type place struct {
	root      datapath.Cgroup
	cgroup    string
	cgroups   []string
	directory string
	ns        netns.NsHandle
	processes []*exec.Cmd
	mounted   bool
}

// newPlace makes a place; the caller closes it, whatever it returned.
func newPlace() (*place, error) {
	p := &place{ns: netns.None()}
	var err error
	if p.root, err = datapath.OpenCgroup(""); err != nil {
		return p, err
	}
	if os.Geteuid() != 0 {
		return p, errors.New("cgroups and network namespaces cannot be made: run as root")
	}
	removeLeftovers(p.root.Dir)
	name := placePrefix + strconv.Itoa(os.Getpid()) + "-*"
	if p.cgroup, err = os.MkdirTemp(p.root.Dir, name); err != nil {
		return p, fmt.Errorf("make cgroup: %w", err)
	}
	if p.directory, err = os.MkdirTemp("", name); err != nil {
		return p, err
	}
	if err := os.Mkdir(p.bpffs(), 0o700); err != nil {
		return p, err
	}
	if err := unix.Mount("bpf", p.bpffs(), "bpf", 0, ""); err != nil {
		return p, fmt.Errorf("mount bpffs: %w", err)
	}
	p.mounted = true
	if p.ns, err = lab.NewNamespace(); err != nil {
		return p, err
	}
	return p, lab.In(p.ns, lab.LoopbackUp)
}

func (p *place) bpffs() string { return filepath.Join(p.directory, "bpf") }

func (p *place) file(name, text string) (string, error) {
	path := filepath.Join(p.directory, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// start starts a process in a cgroup of its own in the place.
func (p *place) start(name string, cmd *exec.Cmd) error {
	dir := filepath.Join(p.cgroup, name)
	if err := os.Mkdir(dir, 0o755); err == nil {
		p.cgroups = append(p.cgroups, dir)
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := lab.Start(cmd, p.ns, dir); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p.processes = append(p.processes, cmd)
	return nil
}

// driver is the load's process.
type driver struct {
	in  io.Writer
	out *bufio.Reader
}

func (p *place) startLoad() (*driver, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, Argument)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.start("load", cmd); err != nil {
		return nil, err
	}
	d := &driver{in, bufio.NewReader(out)}
	if line, err := d.out.ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("start load: it says %q: %w", line, err)
	}
	return d, nil
}

func (d *driver) begin() error {
	_, err := io.WriteString(d.in, "begin\n")
	return err
}

func (d *driver) end() (r report, err error) {
	if _, err := io.WriteString(d.in, "end\n"); err != nil {
		return r, err
	}
	line, err := d.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("load: %w", err)
	}
	return r, json.Unmarshal(line, &r)
}

// wait lets time pass.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// deadline is for anything that is waited for.
const deadline = 30 * time.Second

func poll(ctx context.Context, what string, f func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	for !f() {
		if err := wait(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
	return nil
}

// close removes everything. Safe on a place that was not made completely.
func (p *place) close() error {
	for _, c := range p.processes {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
	}
	var errs []error
	if p.ns.IsOpen() {
		errs = append(errs, p.ns.Close())
	}
	for _, dir := range p.cgroups {
		errs = append(errs, lab.RemoveCgroup(dir))
	}
	if p.mounted { // and with it all that is pinned
		errs = append(errs, unix.Unmount(p.bpffs(), 0))
	}
	if p.directory != "" {
		errs = append(errs, os.RemoveAll(p.directory))
	}
	if p.cgroup != "" {
		errs = append(errs, lab.RemoveCgroup(p.cgroup))
	}
	return errors.Join(errs...)
}

// removeLeftovers removes what runs made that were killed. Their processes went with them.
func removeLeftovers(root string) {
	for _, parent := range []string{root, os.TempDir()} {
		dirs, _ := filepath.Glob(filepath.Join(parent, placePrefix+"*"))
		for _, dir := range dirs {
			text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), placePrefix), "-")
			if pid, err := strconv.Atoi(text); err != nil || unix.Kill(pid, 0) == nil {
				continue
			}
			if parent != root {
				_ = unix.Unmount(filepath.Join(dir, "bpf"), unix.MNT_DETACH)
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
