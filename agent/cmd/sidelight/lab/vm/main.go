// Command vm runs the live tests on other kernels: on those of Debian, each in a virtual machine that QEMU emulates without KVM, and
// on the running one. It also holds what the verifier has to do on each of them against bpf/verifier.yaml. It installs no kernel; what
// it downloads stays in a cache outside the work tree.
//
// The same program is the machine's init: guest.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guestInit is this program's name inside a virtual machine.
const guestInit = "/init"

type options struct {
	update  bool
	only    string
	timeout time.Duration
}

func main() {
	if os.Args[0] == guestInit && os.Getpid() == 1 {
		guest()
	}
	var o options
	flag.BoolVar(&o.update, "update", false, "rewrite "+verifierFile+" instead of holding the counts against it")
	flag.StringVar(&o.only, "only", "", "comma-separated rows instead of all, such as 6.1 or running")
	flag.DurationVar(&o.timeout, "timeout", 55*time.Minute, "for one kernel")
	flag.Parse()
	// The death signal of a child is sent when the thread that started it ends, so that thread has to be one that stays.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "test-kernels:", err)
		stop()
		os.Exit(1)
	}
}

// row is the outcome on one kernel.
type row struct {
	name, release string
	duration      time.Duration
	log           string
	result
	faults []string
	note   string
}

func run(ctx context.Context, o options) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the virtual machines are x86-64, this is %s", runtime.GOARCH)
	}
	cache, err := cacheDirectory()
	if err != nil {
		return err
	}
	root, err := os.MkdirTemp("", "sidelight-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := build(ctx, root); err != nil {
		return err
	}
	counts, err := readCounts(verifierFile)
	if err != nil {
		return err
	}
	var rows []row
	for _, k := range debian {
		if wanted(o.only, k.name) {
			rows = append(rows, onDebian(ctx, k, cache, root, o.timeout))
		}
	}
	if wanted(o.only, "running") {
		rows = append(rows, onRunning(ctx, cache, root, o.timeout))
	}
	if len(rows) == 0 {
		return fmt.Errorf("no row is named %q", o.only)
	}
	for i := range rows {
		r := &rows[i]
		_, known := counts[r.name]
		_, promised := debianKernel(r.name)
		switch {
		case o.update && len(r.counts) > 0:
			counts[r.name] = r.counts
		case o.update:
		case known || promised:
			r.faults = append(r.faults, counts.compare(r.name, r.counts)...)
		default:
			r.note = verifierFile + " has no figures for this kernel"
		}
	}
	failed := printRows(rows)
	if o.update {
		if err := counts.write(verifierFile); err != nil {
			return err
		}
		fmt.Println("wrote", verifierFile)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d kernels failed", failed, len(rows))
	}
	return nil
}

func wanted(only, name string) bool {
	return only == "" || slices.Contains(strings.Split(only, ","), name)
}

func printRows(rows []row) (failed int) {
	for _, r := range rows {
		fmt.Printf("\n%s (%s), %v, log %s\n", r.name, r.release, r.duration.Round(time.Second), r.log)
		for _, program := range r.counts.programs() {
			fmt.Printf("  verifier: %-24s %7d instructions processed\n", program, r.counts[program])
		}
		if r.note != "" {
			fmt.Println("  note:", r.note)
		}
		for _, test := range r.passed {
			fmt.Println("  PASS", test)
		}
		for _, fault := range r.faults {
			fmt.Println("  FAIL", fault)
		}
		verdict := "PASS"
		if len(r.faults) > 0 {
			failed++
			verdict = "FAIL"
		}
		fmt.Printf("%s on %s\n", verdict, r.release)
	}
	return failed
}

// onDebian runs everything in a virtual machine.
func onDebian(ctx context.Context, k kernel, cache, root string, timeout time.Duration) row {
	r := row{name: k.name, release: "Debian's " + k.name}
	fault := func(err error) row {
		r.faults = append(r.faults, err.Error())
		return r
	}
	image, err := k.fetch(ctx, cache)
	if err != nil {
		return fault(err)
	}
	r.release = image.release
	initramfs := filepath.Join(root, k.name+".cpio")
	defer os.Remove(initramfs)
	if err := image.writeInitramfs(initramfs, root); err != nil {
		return fault(err)
	}
	start := time.Now()
	r.log, err = logged(cache, r.name, func(log *console) error {
		defer func() { r.result = log.result() }()
		return boot(ctx, image.vmlinuz, initramfs, log, timeout)
	})
	r.duration = time.Since(start)
	r.faults = append(r.faults, r.missing(guestSteps)...)
	if err != nil {
		return fault(err)
	}
	return r
}

// onRunning runs everything on this machine, in cgroups and namespaces that the tests make.
func onRunning(ctx context.Context, cache, root string, timeout time.Duration) row {
	r := row{name: "running", release: "unknown"}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		r.release = unix.ByteSliceToString(name.Release[:])
		r.name = series(r.release)
	}
	start := time.Now()
	var err error
	r.log, err = logged(cache, "running", func(log *console) error {
		defer func() { r.result = log.result() }()
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return runSteps(ctx, root, steps(1), log)
	})
	r.duration = time.Since(start)
	r.faults = append(r.faults, r.missing(steps(1))...)
	if err != nil {
		r.faults = append(r.faults, err.Error())
	}
	return r
}

// series is what the rows of the file are named by: two numbers of a release.
func series(release string) string {
	numbers := strings.SplitN(release, ".", 3)
	if len(numbers) < 2 {
		return release
	}
	return numbers[0] + "." + numbers[1]
}

// build makes what goes into the machine, without a C library: there is none.
func build(ctx context.Context, root string) error {
	for _, args := range [][]string{
		{"build", "-o", filepath.Join(root, guestInit), "./agent/cmd/sidelight/lab/vm"},
		{"build", "-ldflags=-s -w", "-o", filepath.Join(root, testProgram), "./agent/cmd/sidelight"},
		{"build", "-ldflags=-s -w", "-tags", "sidelight_other_layout", "-o", filepath.Join(root, otherLayout), "./agent/cmd/sidelight"},
		{"test", "-c", "-ldflags=-s -w", "-o", filepath.Join(root, liveTests), "./agent/cmd/sidelight"},
		{"test", "-c", "-ldflags=-s -w", "-o", filepath.Join(root, datapathTests), "./agent/datapath"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

// logged runs f with a console that is written to a file.
func logged(cache, name string, f func(*console) error) (string, error) {
	dir := filepath.Join(cache, "log")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(dir, name+".log")
	out, err := os.Create(file)
	if err != nil {
		return "", err
	}
	fmt.Printf("%s: running, log %s\n", name, file)
	return file, errors.Join(f(&console{file: out}), out.Close())
}
