package status

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// control serves a socket until the test ends.
func control(t *testing.T, path string, group int, handler http.Handler) *Control {
	t.Helper()
	c, err := ListenControl(path, group)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- c.Serve(handler) }()
	t.Cleanup(func() {
		_ = c.Shutdown(t.Context()) // it is over: what still goes on is cut
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestControl(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /what", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.FormValue("q")) })
	mux.HandleFunc("GET /wrong", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such filter", http.StatusBadRequest) })
	mux.Handle("GET /own", OwnerOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "yours") })))
	mux.HandleFunc("GET /on", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first\n")
		_ = http.NewResponseController(w).Flush() // or the test sees it
		<-r.Context().Done()
	})
	path := filepath.Join(t.TempDir(), "state", "control.sock")
	control(t, path, NoGroup, mux)
	if text, err := AskControl(t.Context(), path, "/what?q=x"); err != nil || string(text) != "x" {
		t.Errorf("got %q, %v", text, err)
	}
	if text, err := AskControl(t.Context(), path, "/own"); err != nil || string(text) != "yours" {
		t.Errorf("its owner: %q, %v", text, err)
	}
	if _, err := AskControl(t.Context(), path, "/wrong"); err == nil || err.Error() != "ask the agent: 400 Bad Request: no such filter" {
		t.Errorf("got %v", err)
	}
	stream, err := FollowControl(t.Context(), path, "/on")
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("first\n"))
	if _, err := io.ReadFull(stream, line); err != nil || string(line) != "first\n" {
		t.Errorf("got %q, %v", line, err)
	}
	stream.Close()
	var used *InUseError
	if _, err := ListenControl(path, NoGroup); !errors.As(err, &used) {
		t.Errorf("a second agent: %v", err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600 | os.ModeSocket, filepath.Dir(path): 0o700 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	_, err = AskControl(t.Context(), path+".not", "/what")
	if err == nil || !strings.HasSuffix(err.Error(), "; name its state directory with --state-directory") {
		t.Errorf("no agent: %v", err)
	}
}

// TestControlGroup gives the socket to a group of this process's.
func TestControlGroup(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(dir, "control.sock")
	control(t, path, os.Getegid(), http.NotFoundHandler())
	for name, want := range map[string]os.FileMode{path: 0o660 | os.ModeSocket, dir: 0o710 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

// TestControlGroupTakenBack: what a group was given of the directory it loses, and what it has otherwise it keeps.
func TestControlGroupTakenBack(t *testing.T) {
	for name, c := range map[string]struct {
		mode, want os.FileMode
		group      int
	}{
		"given":          {0o700, 0o700, os.Getegid()},
		"given, as well": {0o755, 0o705, os.Getegid()},
		"not given":      {0o750, 0o750, NoGroup},
	} {
		dir := t.TempDir()
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		for _, group := range []int{c.group, NoGroup} {
			socket, err := ListenControl(filepath.Join(dir, "control.sock"), group)
			if err != nil {
				t.Fatal(err)
			}
			if err := socket.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != c.want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, c.want)
		}
	}
}

// TestOwnerOnly: who is not known is nobody's owner.
func TestOwnerOnly(t *testing.T) {
	s := start(t, OwnerOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "yours") })))
	if status, body, _ := ask(t, s, "GET", "/metrics"); status != http.StatusForbidden {
		t.Errorf("%d %q", status, body)
	}
}
