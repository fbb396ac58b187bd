package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

var _ Source = (*File)(nil)

// running is a File at work, whose changes are seen in no other way than the kernel tells of them, and fast.
type running struct {
	*File
	t       *testing.T
	next    *model.Snapshot      // given to apply, of the goroutine of Run
	applied chan *model.Snapshot // and in force
	refused chan struct{}        // one for each rejection
	refuse  atomic.Bool          // what apply says
	done    chan error
}

var errRefused = errors.New("too large")

// start runs a File and waits until its first snapshot is in force. Options change it before.
func start(t *testing.T, path string, options ...func(*running)) *running {
	t.Helper()
	r := &running{t: t, applied: make(chan *model.Snapshot, 100), refused: make(chan struct{}, 100), done: make(chan error, 1)}
	file, err := NewFile(path, model.Locality{Node: "n1"}, slog.New(follower{slog.NewTextHandler(io.Discard, nil), r}))
	if err != nil {
		t.Fatal(err)
	}
	r.File, file.Debounce, file.Recheck = file, time.Millisecond, time.Hour
	for _, option := range options {
		option(r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		r.done <- file.Run(ctx, func(s *model.Snapshot) error {
			if r.refuse.Load() {
				return errRefused
			}
			r.next = s
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Errorf("run ended with %v", err)
		}
		goleak.VerifyNone(t)
	})
	if !r.refuse.Load() {
		r.wantApplied(1, "first")
	}
	return r
}

// follower sees from the log when the status is that of the next snapshot.
type follower struct {
	slog.Handler
	*running
}

func (f follower) Handle(_ context.Context, record slog.Record) error {
	switch {
	case record.Level == slog.LevelError:
		f.refused <- struct{}{}
	case record.Message == "mesh in force":
		f.applied <- f.next
	}
	return nil
}

// wantApplied waits for the next snapshot: of a generation, and of workloads with these names.
func (r *running) wantApplied(generation uint64, names ...string) {
	r.t.Helper()
	select {
	case s := <-r.applied:
		var got []string
		for _, w := range s.Workloads {
			got = append(got, w.Name.Name)
		}
		if s.Generation != generation || fmt.Sprint(got) != fmt.Sprint(names) || s.Node != (model.Locality{Node: "n1"}) {
			r.t.Fatalf("generation %d of %v on %v, want %d of %v on n1", s.Generation, got, s.Node, generation, names)
		}
	case <-r.refused:
		r.t.Fatalf("refused: %s", r.Status().LastError)
	case <-time.After(10 * time.Second):
		r.t.Fatal("no new snapshot")
	}
}

func (r *running) wantRefused(generation uint64, part string) {
	r.t.Helper()
	select {
	case s := <-r.applied:
		r.t.Fatalf("generation %d is in force, want a refusal", s.Generation)
	case <-r.refused:
	case <-time.After(10 * time.Second):
		r.t.Fatal("nothing was refused")
	}
	if s := r.Status(); !strings.Contains(s.LastError, part) || s.Generation != generation || s.LastRejected.IsZero() {
		r.t.Fatalf("status %+v, want generation %d and an error with %q", s, generation, part)
	}
	if r.Snapshot().Generation != max(generation, 1) {
		r.t.Fatalf("generation %d is in force, want %d", r.Snapshot().Generation, generation)
	}
}

func mesh(names ...string) string {
	var text strings.Builder
	for _, name := range names {
		fmt.Fprintf(&text, "---\napiVersion: %s\nkind: Workload\nmetadata: {name: %s}\nspec: {}\n", APIVersion, name)
	}
	return text.String()
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

// replace renames over the file, as editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	put(t, path+".new", text)
	must(t, os.Rename(path+".new", path))
}

func TestRenameOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	r := start(t, path)
	for i := range uint64(3) { // the watch outlives the file that was there
		replace(t, path, mesh("first", fmt.Sprint("x", i)))
		r.wantApplied(2+i, "first", fmt.Sprint("x", i))
	}
	want := Status{Accepted: 4, Generation: 4}
	got := r.Status()
	if got.LastAccepted.IsZero() {
		t.Error("no time of the last acceptance")
	}
	got.LastAccepted = time.Time{}
	if got != want {
		t.Errorf("status %+v, want %+v", got, want)
	}
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	put(t, "mesh.yaml", mesh("first"))
	r := start(t, "mesh.yaml")
	replace(t, "mesh.yaml", mesh("second"))
	r.wantApplied(2, "second")
}

// Kubernetes renames a link to the directory that a file's link leads through.
func TestSymlinkSwap(t *testing.T) {
	for _, test := range []struct{ name, path string }{{"file", "mesh.yaml"}, {"directory", ""}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			version := func(name, text string) {
				must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
				put(t, filepath.Join(dir, name, "mesh.yaml"), text)
				must(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")), os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
			}
			version("..1", mesh("first"))
			must(t, os.Symlink("..data/mesh.yaml", filepath.Join(dir, "mesh.yaml")))
			r := start(t, filepath.Join(dir, test.path))
			version("..2", mesh("second"))
			r.wantApplied(2, "second")
			must(t, os.RemoveAll(filepath.Join(dir, "..1")))
			version("..3", mesh("third"))
			r.wantApplied(3, "third")
		})
	}
}

// What a link leads to changes in its place.
func TestLinkedElsewhere(t *testing.T) {
	for _, test := range []struct{ name, link, to string }{{"file", "link.yaml", "real/mesh.yaml"}, {"directory", "link", "real"}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "real"), 0o755), os.Symlink(test.to, filepath.Join(dir, test.link)))
			path := filepath.Join(dir, "real/mesh.yaml")
			put(t, path, mesh("first"))
			r := start(t, filepath.Join(dir, test.link))
			replace(t, path, mesh("second"))
			r.wantApplied(2, "second")
		})
	}
}

func TestInvalidThenValid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	r := start(t, path)
	replace(t, path, "kind: Workload")
	r.wantRefused(1, "mesh.yaml:1: apiVersion: missing")
	replace(t, path, "") // as a file that is just being written
	r.wantRefused(1, "mesh.yaml:1: no document")
	replace(t, path, mesh("second"))
	r.wantApplied(2, "second")
	must(t, os.Remove(path))
	r.wantRefused(2, "no such file")
	put(t, path+".new", mesh("third"))
	must(t, os.Rename(path+".new", path))
	r.wantApplied(3, "third")
	if s := r.Status(); s.Accepted != 3 || s.Rejected != 3 || s.LastError != "" {
		t.Errorf("status %+v, want 3 accepted, 3 rejected and no error", s)
	}
}

func TestApplyRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	r := start(t, path)
	r.refuse.Store(true)
	replace(t, path, mesh("second"))
	r.wantRefused(1, "apply mesh: too large")
	if err := r.Reload(t.Context()); !errors.Is(err, errRefused) { // it is tried again
		t.Errorf("error %v, want %v", err, errRefused)
	}
	r.wantRefused(1, "apply mesh: too large")
	r.refuse.Store(false)
	must(t, r.Reload(t.Context()))
	r.wantApplied(2, "second")
}

func TestApplyRefusesFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	r := start(t, path, func(r *running) { r.refuse.Store(true) })
	r.wantRefused(0, "apply mesh: too large")
	r.refuse.Store(false)
	must(t, r.Reload(t.Context()))
	r.wantApplied(1, "first")
	if s := r.Status(); s.Accepted != 1 || s.Rejected != 1 || s.Generation != 1 {
		t.Errorf("status %+v, want 1 accepted, 1 rejected and generation 1", s)
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.yaml"), mesh("first"))
	r := start(t, dir+"/")
	replace(t, filepath.Join(dir, "b.yml"), mesh("second"))
	r.wantApplied(2, "first", "second")
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	r.wantApplied(3, "second")
	must(t, os.Remove(filepath.Join(dir, "b.yml")))
	r.wantRefused(3, "no file *.yaml or *.yml")
}

// A directory that is made anew is not the one that was watched.
func TestRecheck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mesh")
	must(t, os.Mkdir(dir, 0o755))
	put(t, filepath.Join(dir, "a.yaml"), mesh("first"))
	r := start(t, dir, func(r *running) { r.Recheck = time.Millisecond })
	next := dir + ".new"
	must(t, os.Mkdir(next, 0o755))
	put(t, filepath.Join(next, "a.yaml"), mesh("second"))
	must(t, os.Rename(dir, dir+".old"), os.Rename(next, dir))
	for r.Status().Generation != 2 { // it may be seen in between, and refused
		select {
		case <-r.refused:
		case s := <-r.applied:
			if s.Generation != 2 {
				t.Fatalf("generation %d, want 2", s.Generation)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no new snapshot")
		}
	}
}

func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	r := start(t, path, func(r *running) { r.Debounce = time.Hour })
	put(t, path, mesh("first")) // is no change
	must(t, r.Reload(t.Context()))
	for range 3 {
		put(t, path, "kind: Workload")
		if err := r.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "apiVersion: missing") {
			t.Errorf("error %v, want one of what is missing", err)
		}
	}
	r.wantRefused(1, "apiVersion: missing")
	put(t, path, mesh("first")) // the fault is taken back
	must(t, r.Reload(t.Context()))
	if s := r.Status(); s.Accepted != 1 || s.Rejected != 1 || s.LastError != "" {
		t.Errorf("status %+v, want 1 accepted, 1 rejected and no error", s)
	}
	put(t, path, mesh("second"))
	must(t, r.Reload(t.Context()))
	r.wantApplied(2, "second")
}

// What changes without end is read all the same.
func TestDebounceEnds(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.yaml"), mesh("first"))
	r := start(t, dir, func(r *running) { r.Debounce = 50 * time.Millisecond })
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := os.WriteFile(filepath.Join(dir, "noise"), nil, 0o644); err != nil {
				stopped <- err
				return
			}
		}
	}()
	replace(t, filepath.Join(dir, "a.yaml"), mesh("second"))
	r.wantApplied(2, "second")
	close(stop)
	must(t, <-stopped)
}

// What changed between NewFile and Run is seen.
func TestChangedBeforeRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	r := start(t, path, func(*running) { put(t, path, mesh("second")) })
	r.wantApplied(2, "second")
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	put(t, path, mesh("first"))
	f, err := NewFile(path, model.Locality{Region: "r1"}, slog.New(slog.DiscardHandler))
	must(t, err)
	if s := f.Snapshot(); s.Generation != 1 || s.Node.Region != "r1" || len(s.Workloads) != 1 {
		t.Errorf("snapshot %+v, want generation 1 in r1 with a workload", s)
	}
	if s := f.Status(); s != (Status{}) {
		t.Errorf("status %+v, want none", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Reload(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	must(t, os.RemoveAll(filepath.Dir(path)))
	if err := f.Run(t.Context(), nil); err == nil || !strings.HasPrefix(err.Error(), "watch mesh: ") {
		t.Errorf("error %v, want one of the watch", err)
	}
}

func TestUnreadable(t *testing.T) {
	t.Chdir(t.TempDir())
	must(t, os.Mkdir("empty", 0o755), os.Mkdir("broken", 0o755), os.Symlink("nowhere", "broken/a.yaml"), os.Symlink("/dev/null", "broken/b.yaml"))
	put(t, "broken/c.yaml", "not read: [")
	for _, test := range []struct{ path, want string }{
		{"missing", "read mesh: stat missing: no such file or directory"},
		{"empty", "read mesh: no file *.yaml or *.yml in empty; add one, or name another directory"},
		{"/dev/null", "read mesh: /dev/null is neither a file nor a directory; use one that is"},
		{"broken", "read mesh: stat broken/a.yaml: no such file or directory\n" +
			"read mesh: broken/b.yaml is neither a file nor a directory; use one that is"},
	} {
		_, err := NewFile(test.path, model.Locality{}, slog.New(slog.DiscardHandler))
		if err == nil || err.Error() != test.want {
			t.Errorf("%s: error %v, want %s", test.path, err, test.want)
		}
	}
	put(t, "mesh.yaml", "kind: Workload")
	if _, err := NewFile("mesh.yaml", model.Locality{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a faulty file makes a File")
	}
}
