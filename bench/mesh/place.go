package mesh

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// placePrefix begins the names of the runs' cgroups; the harness's pid and a number follow.
const placePrefix = "sidelight-bench-mesh-"

// place is where the ways of one measurement are: a cgroup with one for each way in it, and as many network namespaces. Used by one goroutine.
type place struct {
	root       datapath.Cgroup
	cgroup     string
	cgroups    []string
	namespaces []netns.NsHandle
	ways       []way
	process    *exec.Cmd
	in         io.WriteCloser
	out        *bufio.Reader
}

// newPlace makes a place; the caller closes it, whatever it returned.
func newPlace() (*place, error) {
	p := new(place)
	var err error
	if p.root, err = datapath.OpenCgroup(""); err != nil {
		return p, err
	}
	if os.Geteuid() != 0 {
		return p, errors.New("cgroups and network namespaces cannot be made: run as root")
	}
	removeLeftovers(p.root.Dir)
	p.cgroup, err = os.MkdirTemp(p.root.Dir, placePrefix+strconv.Itoa(os.Getpid())+"-*")
	if err != nil {
		return p, fmt.Errorf("make cgroup: %w", err)
	}
	return p, nil
}

// add makes a way's cgroup and namespace.
func (p *place) add(w way) (datapath.Cgroup, netns.NsHandle, error) {
	dir := filepath.Join(p.cgroup, strconv.Itoa(len(p.ways)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return datapath.Cgroup{}, netns.None(), fmt.Errorf("make cgroup: %w", err)
	}
	p.cgroups = append(p.cgroups, dir)
	ns, err := lab.NewNamespace()
	if err != nil {
		return datapath.Cgroup{}, netns.None(), err
	}
	p.namespaces = append(p.namespaces, ns)
	w.Cgroup, w.Listen = dir, listenPort
	p.ways = append(p.ways, w)
	return datapath.Cgroup{Dir: dir, Mount: p.root.Mount}, ns, lab.In(ns, lab.LoopbackUp)
}

// drop takes the last way back.
func (p *place) drop() error {
	last := len(p.ways) - 1
	err := errors.Join(p.namespaces[last].Close(), lab.RemoveCgroup(p.cgroups[last]))
	p.ways, p.namespaces, p.cgroups = p.ways[:last], p.namespaces[:last], p.cgroups[:last]
	return err
}

// start starts the process that connects, when all ways are there.
func (p *place) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, Argument, strconv.Itoa(workCPU()))
	// A signal to preempt would break into system calls of which the runtime knows nothing.
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOGC=off"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	for i, ns := range p.namespaces {
		fd, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("duplicate namespace: %w", err)
		}
		f := os.NewFile(uintptr(fd), "namespace")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		p.ways[i].Namespace = 3 + i
	}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	p.out = bufio.NewReader(out)
	if err := startFirst(cmd); err != nil {
		return fmt.Errorf("start process that connects: %w", err)
	}
	p.process = cmd
	_, err = p.ask(p.ways)
	return err
}

// startFirst starts a process with priority.
func startFirst(cmd *exec.Cmd) error {
	return lab.OnThread(func() error {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, priority); err != nil {
			return fmt.Errorf("raise priority: %w", err)
		}
		defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0) }()
		return cmd.Start()
	})
}

// workCPU is the one on which connections are made.
func workCPU() int { return runtime.NumCPU() - 1 }

// ask gives the process an order and returns what it says.
func (p *place) ask(order any) (a answer, err error) {
	text, err := json.Marshal(order)
	if err != nil {
		return a, err
	}
	if _, err := p.in.Write(append(text, '\n')); err != nil {
		return a, fmt.Errorf("process that connects: %w", err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("process that connects: %w", err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// close removes everything. Safe on a place that was not made completely.
func (p *place) close() error {
	var errs []error
	if p.process != nil {
		_ = p.process.Process.Kill() // it may have ended
		_ = p.process.Wait()
	}
	for _, ns := range p.namespaces {
		errs = append(errs, ns.Close())
	}
	for _, dir := range p.cgroups {
		errs = append(errs, lab.RemoveCgroup(dir))
	}
	if p.cgroup != "" {
		errs = append(errs, lab.RemoveCgroup(p.cgroup))
	}
	return errors.Join(errs...)
}

// removeLeftovers removes the cgroups of runs that were killed. Their processes went with them.
func removeLeftovers(root string) {
	dirs, _ := filepath.Glob(filepath.Join(root, placePrefix+"*"))
	for _, dir := range dirs {
		text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), placePrefix), "-")
		pid, err := strconv.Atoi(text)
		if err != nil || unix.Kill(pid, 0) == nil {
			continue
		}
		inner, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, d := range append(inner, dir) {
			_ = unix.Rmdir(d) // refuses what is not empty, and files
		}
	}
}
