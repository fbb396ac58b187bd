package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPlaces(t *testing.T) {
	p := newPlaces(5, 3, 2)
	taken := func(guest uint32) bool { return p.take(guest) == nil }
	for i, c := range []struct {
		guest uint32
		want  bool
	}{{1, true}, {1, true}, {1, false}, {2, true}, {2, false}, {3, false}, {0, true}, {0, true}, {0, false}} {
		if got := taken(c.guest); got != c.want {
			t.Errorf("%d: a place for %d: %v", i, c.guest, got)
		}
	}
	waited := make(chan error, 1)
	go func() { waited <- p.wait(t.Context(), 1) }()
	p.give(0) // which is no guest's
	select {
	case err := <-waited:
		t.Errorf("a guest has the owner's place: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	p.give(1)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.wait(ended, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("who is gone: %v", err)
	}
	p.give(1)
	p.give(1)
	p.give(2)
	p.give(0)
	if p.taken != 0 || p.guests != 0 || len(p.of) != 0 {
		t.Errorf("%d taken, %d by guests, %v", p.taken, p.guests, p.of)
	}
}

// asked is what a user gets.
func asked(ctx context.Context, handler http.Handler, uid uint32) int {
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(context.WithValue(ctx, callerKey{}, uid), http.MethodGet, "/what", nil))
	return w.Code
}

// TestBoundAnswers: there are so many at once, of each user and of all, and the owner has his own.
func TestBoundAnswers(t *testing.T) {
	answers, goOn := NewAnswers(), make(chan struct{})
	answers.within = 10 * time.Second
	var now atomic.Int32
	handler := answers.Bound(func(http.ResponseWriter, *http.Request) {
		now.Add(1)
		<-goOn
		now.Add(-1)
	})
	var asking sync.WaitGroup
	defer asking.Wait()
	ask := func(uid uint32, times int) {
		for range times {
			asking.Go(func() {
				if code := asked(t.Context(), handler, uid); code != http.StatusOK {
					t.Errorf("%d gets %d", uid, code)
				}
			})
		}
	}
	expect := func(what string, want int32) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); now.Load() != want && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // no more than that
		if got := now.Load(); got != want {
			t.Errorf("%s: %d are answered, want %d", what, got, want)
		}
	}
	ask(1000, 5)
	expect("one user", mostAnswersOfGuest)
	ask(1001, 5)
	ask(1002, 5)
	expect("three users", mostGuestAnswers)
	ask(0, 1)
	expect("and the owner", mostGuestAnswers+1)
	gone, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if code := asked(gone, handler, 1003); code != http.StatusServiceUnavailable {
		t.Errorf("who does not wait gets %d", code)
	}
	close(goOn)
}

// TestReaderOfAnAnswerWhoDoesNotRead is cut, and the place is free again.
func TestReaderOfAnAnswerWhoDoesNotRead(t *testing.T) {
	answers := NewAnswers()
	answers.within = 200 * time.Millisecond
	written := make(chan error, 100)
	path := filepath.Join(t.TempDir(), "state", "control.sock")
	control(t, path, NoGroup, answers.Bound(func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, 32<<20))
		written <- err
	}))
	for range mostAnswers {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /what HTTP/1.1\r\nHost: agent\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	for range mostAnswers {
		select {
		case err := <-written:
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
				t.Errorf("who does not read: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("an agent waits for who does not read")
		}
	}
	for end := time.Now().Add(5 * time.Second); answers.places.take(0) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the places are not free again")
		}
	}
}

// dialAs connects as another user. The thread that is that user ends with the goroutine.
func dialAs(t *testing.T, uid int, path string) net.Conn {
	t.Helper()
	type dialled struct {
		net.Conn
		err error
	}
	done := make(chan dialled)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- dialled{err: errno}
			return
		}
		c, err := net.Dial("unix", path)
		done <- dialled{c, err}
	}()
	d := <-done
	if d.err != nil {
		t.Fatal(d.err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// hungUp tells whether the agent closes a connection without having been asked anything.
func hungUp(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestGuestsLeaveRoom: however many connections members of the group have, there is room for others and for the owner.
func TestGuestsLeaveRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it takes root to be others")
	}
	dir, err := os.MkdirTemp("", "sidelight-control-") // others can get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "state", "control.sock")
	// The threads keep this process's group.
	control(t, path, os.Getegid(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, Guest(r.Context())) }))
	var first []net.Conn
	for range mostConnectionsOfGuest {
		first = append(first, dialAs(t, 65533, path))
	}
	if !hungUp(dialAs(t, 65533, path)) {
		t.Error("a user has more than he may")
	}
	second := dialAs(t, 65534, path)
	if hungUp(first[0]) || hungUp(second) {
		t.Error("who has a place is hung up on")
	}
	if _, err := io.WriteString(second, "GET /who HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = second.SetReadDeadline(time.Now().Add(5 * time.Second))
	if text, err := io.ReadAll(second); err != nil || !bytes.HasSuffix(text, []byte("65534")) {
		t.Errorf("who that is: %q, %v", text, err)
	}
	if text, err := AskControl(t.Context(), path, "/who"); err != nil || string(text) != "0" {
		t.Errorf("the owner: %q, %v", text, err)
	}
	first[0].Close()
	for end := time.Now().Add(5 * time.Second); ; {
		if !hungUp(dialAs(t, 65533, path)) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a place does not get free")
		}
	}
	for _, uid := range []int{65531, 65532, 65534} {
		for range mostConnectionsOfGuest {
			dialAs(t, uid, path)
		}
	}
	if text, err := AskControl(t.Context(), path, "/who"); err != nil || string(text) != "0" {
		t.Errorf("the owner among many guests: %q, %v", text, err)
	}
}

// TestHungUp: who is hung up on is told why that may be.
func TestHungUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if _, err := AskControl(t.Context(), path, "/what"); err == nil || !strings.Contains(err.Error(), "it hung up") {
		t.Errorf("got %v", err)
	}
}
