package restart

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Argument is the first argument of the process that is the load, which is this program once more.
const Argument = "restart-load"

// The load: clients that connect one after the other, each with a pause after every connection.
const (
	clients = 32
	pause   = 20 * time.Millisecond
	timeout = 5 * time.Second
)

// Where it connects to, and where it is answered. All is within 127/8.
const service = "127.100.0.1:80"

var endpoints = []string{"127.1.0.1", "127.1.0.2"}

const endpointPort = 8080

// report is what the load says of the time between begin and end.
type report struct {
	Connections []connection   `json:"connections"`
	Failed      map[string]int `json:"failed"` // by error
}

// connection is one, in ns: when it began (CLOCK_MONOTONIC), and how long it took until the first byte of the endpoint's was here.
type connection struct {
	At   int64 `json:"at"`
	Took int64 `json:"took"`
}

// Main is that process. Lines of its input are begin and end; end is answered by a report. It says ready when it listens, and ends with its input.
func Main() error {
	for _, address := range endpoints {
		listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", address, endpointPort))
		if err != nil {
			return err
		}
		go serve(listener)
	}
	var l load
	for range clients {
		go l.run()
	}
	fmt.Println("ready")
	lines := bufio.NewReader(os.Stdin)
	encoder := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch line {
		case "begin\n":
			l.on.Store(true)
		case "end\n":
			l.on.Store(false)
			if err := encoder.Encode(l.taken()); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: no command %q", Argument, line)
		}
	}
}

func serve(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte{1}) // who is gone is the client's matter
		_ = c.Close()
	}
}

type load struct {
	on   atomic.Bool
	busy sync.RWMutex // held for reading by who connects

	mu sync.Mutex
	r  report
}

// taken waits for what is under way, and returns what there is since the last time.
func (l *load) taken() report {
	l.busy.Lock()
	defer l.busy.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.r
	l.r = report{}
	return r
}

func (l *load) run() {
	for {
		time.Sleep(pause)
		l.busy.RLock()
		if l.on.Load() {
			l.one()
		}
		l.busy.RUnlock()
	}
}

func (l *load) one() {
	at := monotonic()
	err := reach()
	took := monotonic() - at
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.r.Connections = append(l.r.Connections, connection{at, took})
		return
	}
	if l.r.Failed == nil {
		l.r.Failed = make(map[string]int)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	l.r.Failed[err.Error()]++
}

// reach connects and waits for the endpoint's first byte. It ends by a reset: no TIME_WAIT, so ports never run out.
func reach() error {
	c, err := net.DialTimeout("tcp4", service, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := errors.Join(c.SetReadDeadline(time.Now().Add(timeout)), c.(*net.TCPConn).SetLinger(0)); err != nil {
		return err
	}
	var first [1]byte
	_, err = io.ReadFull(c, first[:])
	return err
}

func monotonic() int64 {
	return int64(bpf.Monotonic())
}
