package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is the service manager's end of NOTIFY_SOCKET.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

// newManager listens at a path, or with a leading @ at a name without a file, and is who this process notifies.
func newManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	t.Setenv("WATCHDOG_USEC", "")
	t.Setenv("WATCHDOG_PID", "")
	return &manager{t, conn}
}

// next waits for a message.
func (m *manager) next() string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(patiently(m.t, 10*time.Second))); err != nil {
		m.t.Fatal(err)
	}
	message := make([]byte, 4096)
	n, err := m.conn.Read(message)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(message[:n])
}

func (m *manager) want(message string) {
	m.t.Helper()
	if got := m.next(); got != message {
		m.t.Errorf("told %q, want %q", got, message)
	}
}

// nothing wants that all was read. A datagram is there when who sent it has returned.
func (m *manager) nothing() {
	m.t.Helper()
	raw, err := m.conn.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	message := make([]byte, 4096)
	var n int
	if controlErr := raw.Control(func(fd uintptr) { n, _, err = syscall.Recvfrom(int(fd), message, syscall.MSG_DONTWAIT) }); controlErr != nil {
		m.t.Fatal(controlErr)
	}
	if !errors.Is(err, syscall.EAGAIN) {
		m.t.Errorf("told %q and error %v, want nothing", message[:max(n, 0)], err)
	}
}

// watched is a supervisor with a clock and a reader of the test's.
type watched struct {
	*supervisor
	ticks     chan time.Time
	intervals []time.Duration // of the tickers it took
	stopped   int
	reader    chan bool // what the reader answers, one a tick
	log       bytes.Buffer
}

func newWatched() *watched {
	w := &watched{ticks: make(chan time.Time), reader: make(chan bool, 1)}
	w.supervisor = &supervisor{
		logger: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{ReplaceAttr: withoutTime})), status: "attached",
		alive: func(context.Context) bool { return <-w.reader },
		tick: func(interval time.Duration) (<-chan time.Time, func()) {
			w.intervals = append(w.intervals, interval)
			return w.ticks, func() { w.stopped++ }
		},
	}
	return w
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func (w *watched) at(alive bool) {
	w.reader <- alive
	w.ticks <- time.Time{}
}

func TestNotify(t *testing.T) {
	const (
		ready = "READY=1\nSTATUS=attached"
		ends  = "STOPPING=1\nSTATUS=what is pending is handed on"
	)
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@sidelight-test-%d", os.Getpid())} {
		t.Run(name[:1], func(t *testing.T) {
			m := newManager(t, name)
			t.Setenv("WATCHDOG_USEC", "30000000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			w := newWatched()
			w.ready()
			m.want(ready)
			m.nothing()
			w.at(true)
			m.want("WATCHDOG=1")
			w.at(false)
			w.at(true) // is taken when the one before was dealt with
			m.want("WATCHDOG=1")
			w.stopping(nil)
			m.want(ends)
			m.nothing()
			if want := []time.Duration{15 * time.Second}; !slices.Equal(w.intervals, want) || w.stopped != 1 {
				t.Errorf("tickers of %v, %d of them stopped, want %v", w.intervals, w.stopped, want)
			}
			if want := "level=ERROR msg=\"the event reader does not get on: the watchdog is not fed, and ends this agent if that lasts\" waited=7.5s\n"; w.log.String() != want {
				t.Errorf("log is %q, want %q", w.log.String(), want)
			}
		})
	}
}

// Who asks for no watchdog, or not this process, gets none.
func TestNotifyWithoutWatchdog(t *testing.T) {
	tests := []struct {
		name, usec, pid, wantLog string
	}{
		{name: "none"},
		{name: "of another process", usec: "30000000", pid: "1"},
		{name: "of a bad time", usec: "soon", wantLog: "level=WARN msg=\"the watchdog is not fed\" error=\"error converting WATCHDOG_USEC: strconv.Atoi: parsing \\\"soon\\\": invalid syntax\"\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := newManager(t, filepath.Join(t.TempDir(), "notify"))
			t.Setenv("WATCHDOG_USEC", test.usec)
			t.Setenv("WATCHDOG_PID", test.pid)
			w := newWatched()
			w.ready()
			m.want("READY=1\nSTATUS=attached")
			w.stopping(errors.Join(errors.New("one"), errors.New("two")))
			m.want("STOPPING=1\nSTATUS=one; two")
			m.nothing()
			if len(w.intervals) > 0 || w.log.String() != test.wantLog {
				t.Errorf("tickers of %v, log %q, want none and %q", w.intervals, w.log.String(), test.wantLog)
			}
		})
	}
}

func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", "")
	w := newWatched()
	w.ready()
	w.stopping(nil)
	if len(w.intervals) > 0 || w.log.Len() > 0 {
		t.Errorf("tickers of %v, log %q, want none", w.intervals, w.log.String())
	}
}

// A manager that is gone is no reason to end.
func TestNotifyGone(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	t.Setenv("NOTIFY_SOCKET", gone)
	t.Setenv("WATCHDOG_USEC", "")
	w := newWatched()
	w.stopping(nil)
	want := `level=WARN msg="the service manager was not told; is NOTIFY_SOCKET right?" state="STOPPING=1\nSTATUS=what is pending is handed on" ` +
		`error="dial unixgram ` + gone + ": connect: no such file or directory\"\n"
	if w.log.String() != want {
		t.Errorf("log is %q, want %q", w.log.String(), want)
	}
}

// A manager that does not read holds nobody up for long.
func TestNotifyFull(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for { // until its queue is full
		if err := conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("WATCHDOG=1")); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	w := newWatched()
	w.stopping(nil)
	if log := w.log.String(); !strings.Contains(log, "the service manager was not told") || !strings.Contains(log, "i/o timeout") {
		t.Errorf("log is %q, want that it took too long", log)
	}
	m.want("WATCHDOG=1")
}

// A reader that the stop finds waiting does not hold it up.
func TestNotifyStopWhileAsking(t *testing.T) {
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "3600000000")
	w := newWatched()
	asked := make(chan struct{})
	w.alive = func(ctx context.Context) bool {
		close(asked)
		<-ctx.Done()
		return false
	}
	w.ready()
	m.want("READY=1\nSTATUS=attached")
	w.ticks <- time.Time{}
	<-asked
	w.stopping(nil)
	m.want("STOPPING=1\nSTATUS=what is pending is handed on")
	if w.log.Len() > 0 {
		t.Errorf("log is %q, want none", w.log.String())
	}
}

func TestReaderWorks(t *testing.T) {
	tests := []struct {
		name  string
		drain error
		reads uint64 // meanwhile
		want  bool
	}{
		{"the ring was found empty", nil, 0, true},
		{"and events were read", nil, 3, true},
		{"it is never empty, and is read", context.DeadlineExceeded, 3, true},
		{"nobody reads", context.DeadlineExceeded, 0, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			received := uint64(7)
			drain := func(context.Context) error {
				received += test.reads
				return test.drain
			}
			if got := readerWorks(t.Context(), drain, func() uint64 { return received }); got != test.want {
				t.Errorf("it works: %v, want %v", got, test.want)
			}
		})
	}
}

// TestNotifyLive has an agent tell of its whole life.
func TestNotifyLive(t *testing.T) {
	needRoot(t)
	m := newManager(t, filepath.Join(t.TempDir(), "notify"))
	cgroup := newCgroup(t)
	a := startAgentIn(t, cgroup, []string{"WATCHDOG_USEC=200000"})
	m.want("READY=1\nSTATUS=attached to " + cgroup + ", metrics on " + a.Address)
	m.want("WATCHDOG=1")
	m.want("WATCHDOG=1")
	a.signal(syscall.SIGTERM)
	message := m.next()
	for message == "WATCHDOG=1" {
		message = m.next()
	}
	if !strings.HasPrefix(message, "STOPPING=1\n") {
		t.Errorf("told %q, want that it stops", message)
	}
	a.wait()
	m.nothing()
}
