package mesh

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Argument is the first argument of the process that makes connections, which is this program once more.
const Argument = "mesh-connections"

// A script is what becomes of a connection.
type script string

const (
	// reach connects, is answered one byte, and resets: no TIME_WAIT, so ports never run out. It is what is timed.
	reach script = "reach"
	// churn connects, asks 64 bytes, is answered 64 bytes, and closes; then the server does. As in bench/kernel.
	churn script = "churn"
	// denied connects and is told EPERM.
	denied script = "denied"
	// look connects and looks which endpoint it got: for tests of what brings it there.
	look script = "look"
)

// way is one way to connect, as the process knows it: in a cgroup and a network namespace of its own, with a listener in them.
type way struct {
	Cgroup    string         `json:"cgroup"`
	Namespace int            `json:"namespace"` // file descriptor
	Listen    uint16         `json:"listen"`
	First     netip.AddrPort `json:"first"`
	Burn      time.Duration  `json:"burn"` // wasted in each connect(): what the gate's own test injects
}

// order is so many connections by one way.
type order struct {
	Way     int    `json:"way"`
	Script  script `json:"script"`
	Targets int    `json:"targets"` // addresses from First on, which are dialled in turn
	Warm    int    `json:"warm"`    // of them at the beginning that do not count in times
	Count   int    `json:"count"`
}

// answer has times in nanoseconds, medians over the connections of an order. Other scripts than reach have none.
type answer struct {
	Connect   int64  `json:"connect"`   // connect() alone
	Reached   int64  `json:"reached"`   // from before connect() until there was the first byte of the endpoint's
	Endpoints int    `json:"endpoints"` // different ones that look saw
	Error     string `json:"error,omitempty"`
}

// Main is that process: the only one of a measurement, so that where it has its memory is the same for all that is compared. One thread is both
// ends, on one CPU, the argument. Its first line of input is the ways, each further one an order. It ends with its input.
func Main(arguments []string) error {
	if len(arguments) != 1 {
		return fmt.Errorf("%s: want CPU, have %q", Argument, arguments)
	}
	cpu, err := strconv.Atoi(arguments[0])
	if err != nil {
		return fmt.Errorf("%s: CPU: %w", Argument, err)
	}
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	if err := pin(os.Getpid(), cpu); err != nil {
		return err
	}
	lines := bufio.NewReader(os.Stdin)
	var w worker
	if err := receive(lines, &w.ways); err != nil {
		return err
	}
	encoder := json.NewEncoder(os.Stdout)
	if err := encoder.Encode(says(answer{}, w.prepare())); err != nil {
		return err
	}
	for {
		var o order
		if err := receive(lines, &o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := encoder.Encode(says(w.obey(o))); err != nil {
			return err
		}
	}
}

func receive(lines *bufio.Reader, into any) error {
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, into)
}

func says(a answer, err error) answer {
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// pin keeps all threads of a process on one CPU; those that it makes later inherit it.
func pin(pid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil {
			return fmt.Errorf("pin to CPU %d: %w", cpu, err)
		}
	}
	return nil
}

type worker struct {
	ways      []way
	listeners []int
	next      []uint32 // turn of each way
	in        int      // the way that it is in
}

func (w *worker) prepare() error {
	w.next = make([]uint32, len(w.ways))
	for i := range w.ways {
		if err := w.enter(i); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		// What is lost on its way must not be waited for.
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return fmt.Errorf("setsockopt: %w", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(w.ways[i].Listen)}); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		w.listeners = append(w.listeners, fd)
	}
	return nil
}

// enter moves the process to where a way is. Sockets that it has stay where they were made.
func (w *worker) enter(i int) error {
	if err := os.WriteFile(filepath.Join(w.ways[i].Cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	if err := unix.Setns(w.ways[i].Namespace, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	w.in = i
	return nil
}

func (w *worker) obey(o order) (answer, error) {
	if w.in != o.Way {
		if err := w.enter(o.Way); err != nil {
			return answer{}, err
		}
	}
	connects, reached := make([]int64, 0, o.Count), make([]int64, 0, o.Count)
	seen := make(map[[4]byte]struct{})
	for i := range o.Warm + o.Count {
		var connect, whole time.Duration
		var err error
		to := w.target(o.Way, uint32(o.Targets))
		switch o.Script {
		case reach:
			connect, whole, err = reachOnce(&to, w.listeners[o.Way], w.ways[o.Way].Burn)
		case churn:
			err = churnOnce(&to, w.listeners[o.Way])
		case look:
			var at [4]byte
			at, err = lookOnce(&to, w.listeners[o.Way])
			seen[at] = struct{}{}
		case denied:
			err = deniedOnce(&to)
		default:
			err = fmt.Errorf("no script %q", o.Script)
		}
		if err != nil {
			return answer{}, fmt.Errorf("%s %v: %w", o.Script, to.Addr, err)
		}
		if i >= o.Warm {
			connects, reached = append(connects, int64(connect)), append(reached, int64(whole))
		}
	}
	slices.Sort(connects)
	slices.Sort(reached)
	return answer{Connect: connects[len(connects)/2], Reached: reached[len(reached)/2], Endpoints: len(seen)}, nil
}

// stride is from one target to the next: a prime, so that all have their turn, and none is near the last.
const stride = 7919

func (w *worker) target(i int, targets uint32) unix.RawSockaddrInet4 {
	at := &w.ways[i]
	to := at.First.Addr().As4()
	n := uint32(to[0])<<24 | uint32(to[1])<<16 | uint32(to[2])<<8 | uint32(to[3])
	n += uint32(uint64(w.next[i]) * stride % uint64(targets))
	w.next[i]++
	address := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}}
	port := (*[2]byte)(unsafe.Pointer(&address.Port))
	port[0], port[1] = byte(at.First.Port()>>8), byte(at.First.Port())
	return address
}
