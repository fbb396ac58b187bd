package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// program is the one under test, built by TestMain.
var program string

// Of the environment, for runs where there is no Go tool, and where a machine is emulated: "make test-kernels".
const (
	givenProgram = "SIDELIGHT_TEST_PROGRAM"  // a program that is built already
	patience     = "SIDELIGHT_TEST_PATIENCE" // a factor for every deadline of a test
)

// peerRole makes this test binary a client or a server: see peer_test.go.
const peerRole = "SIDELIGHT_TEST_PEER"

func TestMain(m *testing.M) {
	if role := os.Getenv(peerRole); role != "" {
		if err := runPeer(role); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, alone := runApart()
	if alone {
		os.Exit(code)
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	if program = os.Getenv(givenProgram); program != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "sidelight-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "sidelight")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// needRoot skips a test that is not for "go test -short", and fails it without root.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("live test")
	}
	if os.Getuid() != 0 {
		t.Fatal("needs root; use go test -short without")
	}
}

var cgroupNumber atomic.Uint32

// newCgroup makes a cgroup of this test's own, with children, and removes all of it at the end.
func newCgroup(t *testing.T, children ...string) string {
	t.Helper()
	root, err := datapath.OpenCgroup("")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root.Dir, fmt.Sprintf("sidelight-test-%d-%d", os.Getpid(), cgroupNumber.Add(1)))
	dirs := []string{dir}
	for _, child := range children {
		dirs = append(dirs, filepath.Join(dir, child))
	}
	for _, d := range dirs {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := lab.RemoveCgroup(d); err != nil {
				t.Error(err)
			}
		})
	}
	return dir
}

// newNamespace makes a network namespace that ends with the test. Its loopback is up.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	ns, err := lab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := lab.In(ns, loopbackUp); err != nil {
		t.Fatal(err)
	}
	return ns
}

// process is a child of this test.
type process struct {
	*exec.Cmd
	t   *testing.T
	out *bufio.Reader
}

// start starts a command in a namespace and a cgroup; it is killed with the test.
func start(t *testing.T, ns netns.NsHandle, cgroup string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, t: t}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if err := lab.Start(cmd, ns, cgroup); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return p
}

// line waits for the process's next line of output.
func (p *process) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("%v: read output: %v", p.Args, err)
	}
	return strings.TrimSpace(line)
}

// end waits for the process to end well.
func (p *process) end() {
	p.t.Helper()
	_, _ = io.Copy(io.Discard, p.out)
	if err := p.Wait(); err != nil {
		p.t.Fatalf("%v: %v", p.Args, err)
	}
}

// agent is a "sidelight run" under test.
type agent struct {
	t       *testing.T
	cmd     *exec.Cmd
	log     string // its own log, a file
	Access  string // its access log, a file
	Address string // of /metrics
}

// startAgent starts the program on a cgroup, with an access log, and waits until it is attached.
func startAgent(t *testing.T, cgroup string, args ...string) *agent {
	t.Helper()
	return startAgentIn(t, cgroup, nil, args...)
}

// startAgentIn does so with more in the environment.
func startAgentIn(t *testing.T, cgroup string, env []string, args ...string) *agent {
	t.Helper()
	a := newAgent(t)
	a.cmd = exec.Command(program, append([]string{
		"run", "--cgroup", cgroup, "--access-log", a.Access, "--metrics-address", "127.0.0.1:0",
	}, withPlaces(t, withoutBudget(t, args))...)...)
	a.cmd.Env = append(os.Environ(), env...)
	a.start()
	return a
}

// withoutBudget adds a configuration without a budget, if there is none.
func withoutBudget(t *testing.T, args []string) []string {
	if slices.Contains(args, "--config") {
		return args
	}
	file := filepath.Join(t.TempDir(), "sidelight.yaml")
	writeFile(t, file, noBudget)
	return append(args, "--config", file)
}

// places counts pin directories, so that each agent has one of its own.
var places atomic.Int64

// withPlaces adds where an agent pins and keeps what, if nothing is said of it: so that agents can be beside each other, and nothing is left.
func withPlaces(t *testing.T, args []string) []string {
	t.Helper()
	if !slices.Contains(args, "--pin-directory") {
		dir := fmt.Sprintf("%s/sidelight-test-%d-%d", datapath.BPFFS, os.Getpid(), places.Add(1))
		args = append(args, "--pin-directory", dir)
		cleanPins(t, dir)
	}
	if i := slices.Index(args, "--config"); !slices.Contains(args, "--state-directory") && !strings.Contains(readFile(t, args[i+1]), "state_directory") {
		args = append(args, "--state-directory", filepath.Join(t.TempDir(), "state"))
	}
	return args
}

// cleanPins takes off what a test left pinned, when all that the test started has ended.
func cleanPins(t *testing.T, dir string) {
	t.Cleanup(func() {
		if out, err := exec.Command(program, "uninstall", "--pin-directory", dir).CombinedOutput(); err != nil {
			t.Errorf("uninstall: %v\n%s", err, out)
		}
	})
}

func newAgent(t *testing.T) *agent {
	dir := t.TempDir()
	return &agent{t: t, log: filepath.Join(dir, "agent.log"), Access: filepath.Join(dir, "access.log")}
}

// start starts the command and waits until it is attached.
func (a *agent) start() {
	a.t.Helper()
	t := a.t
	logFile, err := os.Create(a.log)
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()
	a.cmd.Stderr = logFile
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.cmd.ProcessState == nil {
			if t.Failed() {
				stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid)) // Z if it has ended; the last number says how
				t.Logf("agent's state: %s", stat)
			}
			_ = a.cmd.Process.Kill()
			_ = a.cmd.Wait()
		}
		if t.Failed() {
			text, _ := os.ReadFile(a.log)
			t.Logf("agent's log:\n%s", text)
		}
	})
	eventually(t, "the agent to attach", func() error {
		text, _ := os.ReadFile(a.log)
		_, after, found := strings.Cut(string(text), "metrics=")
		if !found || !strings.Contains(after, "\n") {
			return fmt.Errorf("log so far: %s", text)
		}
		a.Address = strings.TrimSpace(strings.SplitN(after, "\n", 2)[0])
		return a.answers("/readyz")
	})
}

// answers asks for a page and wants 200.
func (a *agent) answers(path string) error {
	response, err := http.Get("http://" + a.Address + path)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// stop ends the agent as an operator would, which flushes everything.
func (a *agent) stop() {
	a.t.Helper()
	a.signal(syscall.SIGTERM)
	a.wait()
}

func (a *agent) wait() {
	a.t.Helper()
	if err := a.cmd.Wait(); err != nil {
		a.t.Fatalf("agent: %v", err)
	}
}

// metrics reads /metrics, again if the agent had no time to read its ring: then the account is not among them.
func (a *agent) metrics() (text string) {
	a.t.Helper()
	eventually(a.t, "metrics with the account", func() (err error) {
		if text, err = a.scrape(); err == nil && !strings.Contains(text, "\nsidelight_accounting_unaccounted") {
			return errors.New("it is not there")
		}
		return err
	})
	return text
}

// scrape may fail while the agent has no time.
func (a *agent) scrape() (string, error) {
	response, err := http.Get("http://" + a.Address + "/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), nil
}

// audit asks for the account, again if the agent had no time to read its ring.
func (a *agent) audit() (report *auditReport) {
	a.t.Helper()
	eventually(a.t, "the account", func() (err error) {
		report, err = fetchAudit(a.t.Context(), a.Address)
		return err
	})
	return report
}

// waitClosed waits until the kernel has told the end of every connection.
func (a *agent) waitClosed() {
	a.t.Helper()
	eventually(a.t, "every connection to end", func() error {
		text, err := a.scrape()
		if err != nil {
			return err
		}
		if !strings.Contains(text, "\nsidelight_self_connections_followed 0\n") {
			return errors.New("some are still followed")
		}
		return nil
	})
}

// eventually polls until f has no complaint.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	eventuallyWithin(t, 30*time.Second, what, f)
}

func eventuallyWithin(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	eventuallyEvery(t, 10*time.Millisecond, limit, what, f)
}

func eventuallyEvery(t *testing.T, pause, limit time.Duration, what string, f func() error) {
	t.Helper()
	limit = patiently(t, limit)
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(pause)
	}
}

// emulatedMachine says that this machine is slower than TCP's timers expect.
func emulatedMachine() bool {
	n, _ := strconv.Atoi(os.Getenv(patience))
	return n > 1
}

// stretched is a time that the product is told and that a test has to be faster than.
func stretched(limit time.Duration) time.Duration {
	if emulatedMachine() {
		return 3 * limit
	}
	return limit
}

// patiently is a deadline on the machine that this runs on.
func patiently(t *testing.T, limit time.Duration) time.Duration {
	t.Helper()
	factor := os.Getenv(patience)
	if factor == "" {
		return limit
	}
	n, err := strconv.Atoi(factor)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a whole number from 1 on", patience, factor)
	}
	return time.Duration(n) * limit
}
