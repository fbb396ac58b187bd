// Package workload is the clients and servers of the live measurement: processes that the harness starts from its own program, that wait for a
// command, do a fixed amount of work with raw system calls, and answer with what it took.
package workload

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Argument is the first argument of the program when it is one of these processes.
const Argument = "workload-process"

// BurnVariable of the environment makes clients of the conditions named by the harness spend that many nanoseconds in each unit of work: the
// slowdown that the gate's test injects.
const BurnVariable = "SIDELIGHT_BENCH_BURN"

// Kind is what the work is.
type Kind string

// The kinds.
const (
	Churn     Kind = "churn"
	Web       Kind = "web"
	Keepalive Kind = "keepalive"
	Bulk      Kind = "bulk"
	Fanout    Kind = "fanout"
)

// Command is one slice of work for a client.
type Command struct {
	// To is where its server listens.
	To netip.AddrPort `json:"to"`
	// Units of work: connections, requests, or MiB.
	Units int `json:"units"`
	// Open is how many connections stay open from slice to slice; what is too few or too many is opened or closed first. None of a churn.
	Open int `json:"open,omitempty"`
	// Pace is the time from the start of one burst of requests of a fanout to the next, in nanoseconds.
	Pace time.Duration `json:"pace,omitempty"`
}

// Answer is what a slice took. Times are of the client's clock, in nanoseconds.
type Answer struct {
	Wall int64 `json:"wall"`
	P50  int64 `json:"p50"`
	P99  int64 `json:"p99"`
	// Connections that were made and ended in this slice.
	Connections int    `json:"connections"`
	Error       string `json:"error,omitempty"`
}

const server = "server"

// NewServer returns the process that answers, which writes its port as a line, to be started. It runs on one CPU.
func NewServer(self string, kind Kind, cpu int) *exec.Cmd {
	return newProcess(self, server, kind, cpu, 0)
}

// NewClient returns the process that obeys commands, to be started. It runs on one CPU. It burns time in each unit of work.
func NewClient(self string, kind Kind, cpu int, burn time.Duration) *exec.Cmd {
	return newProcess(self, "client", kind, cpu, burn)
}

func newProcess(self, role string, kind Kind, cpu int, burn time.Duration) *exec.Cmd {
	cmd := exec.Command(self, Argument, role, string(kind), strconv.Itoa(cpu))
	// A signal to preempt would break into system calls of which the runtime knows nothing, and nothing is to be collected: all is allocated before.
	cmd.Env = []string{"GOMAXPROCS=1"}
	if kind != Web {
		cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	}
	cmd.Env = append(cmd.Env, BurnVariable+"="+strconv.FormatInt(int64(burn), 10))
	return cmd
}

// Main is the process. It ends with its standard input.
func Main(arguments []string) error {
	if len(arguments) != 3 {
		return fmt.Errorf("%s: want ROLE KIND CPU, have %q", Argument, arguments)
	}
	kind := Kind(arguments[1])
	if kind != Web { // which is like any other program
		runtime.LockOSThread()
		debug.SetGCPercent(-1)
	}
	cpu, err := strconv.Atoi(arguments[2])
	if err != nil {
		return fmt.Errorf("%s: CPU: %w", Argument, err)
	}
	if err := pin(cpu); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: files, Max: files}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("allow %d open files: %w", files, err)
	}
	if arguments[0] == server {
		return serve(kind, os.Stdout)
	}
	burn, _ := strconv.ParseInt(os.Getenv(BurnVariable), 10, 64)
	c := client{kind: kind, burn: time.Duration(burn)}
	return c.obey(os.Stdin, os.Stdout)
}

// files is the limit of open files: connections of a fanout and some.
const files = 12_000

// pin keeps all threads of this process on one CPU; those that the runtime makes later inherit it.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil {
			return fmt.Errorf("pin to CPU %d: %w", cpu, err)
		}
	}
	return nil
}

func (c *client) obey(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	encoder := json.NewEncoder(out)
	for lines.Scan() {
		var command Command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			return fmt.Errorf("command: %w", err)
		}
		answer, err := c.do(command)
		if err != nil {
			answer.Error = err.Error()
		}
		if err := encoder.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}
