package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

func TestMain(m *testing.M) {
	// What is lost is told once in the program's own log; here it is expected.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// connections has n finished connections, told apart by their cookies, which count up from first.
func connections(first, n int) []enrich.Record {
	batch := make([]enrich.Record, n)
	for i := range batch {
		batch[i] = enrich.Record{
			Event:    connection.Event{Kind: connection.Close, Role: connection.Client, Key: connection.Key{Cookie: uint64(first + i), StartNS: 1e9}, EventNS: 2e9},
			Identity: enrich.Identity{Local: &enrich.Workload{Name: "w"}, Peer: &enrich.Workload{Name: "p"}},
			Clock:    fixture.Clock,
		}
	}
	return batch
}

// uids are the ids of such connections.
func uids(first, n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fixture.Boot.UID(connection.Key{Cookie: uint64(first + i), StartNS: 1e9}))
	}
	return ids
}

// read returns the ids of the lines in a text, each of which must be whole.
func read(t *testing.T, text []byte) []string {
	t.Helper()
	var ids []string
	for line := range bytes.Lines(text) {
		_, values := parse(t, line)
		ids = append(ids, values["log.record.uid"].(string))
	}
	return ids
}

func readFile(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, text)
}

// running runs a log until the function that it returns is called.
func running(l *Log) (finish func()) {
	var wg sync.WaitGroup
	wg.Go(l.Run)
	return func() {
		l.Close()
		wg.Wait()
	}
}

func open(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path, fixture.Boot)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// writer keeps each write apart.
type writer struct {
	mu     sync.Mutex
	writes [][]byte
	fail   func(n int, p []byte) (int, error) // of the n-th write; nil for none
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := len(p), error(nil)
	if w.fail != nil {
		n, err = w.fail(len(w.writes), p)
	}
	w.writes = append(w.writes, slices.Clone(p[:n]))
	return n, err
}

func TestRunWritesAllThatWasQueuedBeforeClose(t *testing.T) {
	const batches, size = 30, 50 // more than one write takes
	w := new(writer)
	l := NewWriter(w, fixture.Boot)
	for i := range batches / 2 {
		l.Consume(connections(i*size, size))
	}
	finish := running(l)
	for i := range batches / 2 {
		l.Consume(connections((batches/2+i)*size, size))
	}
	finish()
	if got := read(t, bytes.Join(w.writes, nil)); !slices.Equal(got, uids(0, batches*size)) {
		t.Errorf("%d lines, want %d, each once and in order", len(got), batches*size)
	}
	if l.Lines() != batches*size || l.Dropped() != 0 {
		t.Errorf("%d lines and %d dropped, want %d and none", l.Lines(), l.Dropped(), batches*size)
	}
	for i, write := range w.writes {
		if len(write) == 0 || write[len(write)-1] != '\n' || len(write) > writeBytes+4096 {
			t.Errorf("write %d of %d bytes does not end with a line", i, len(write))
		}
	}
	l.Close()
	l.Consume(connections(0, 3))
	if l.Dropped() != 3 {
		t.Errorf("%d dropped after Close, want 3", l.Dropped())
	}
}

func TestTheBatchIsLeftAlone(t *testing.T) {
	batch := connections(0, 4)
	kept := slices.Clone(batch)
	w := new(writer)
	l := NewWriter(w, fixture.Boot)
	l.Consume(batch)
	running(l)()
	if got := read(t, bytes.Join(w.writes, nil)); !slices.Equal(got, uids(0, 4)) {
		t.Errorf("lines of %v", got)
	}
	if !slices.Equal(batch, kept) {
		t.Error("the batch was changed; it belongs to all sinks")
	}
}

func TestAFullQueueDropsAndCounts(t *testing.T) {
	w := new(writer)
	l := NewWriter(w, fixture.Boot)
	l.Consume(connections(0, QueueRecords-1))
	l.Consume(connections(0, 2))
	l.Consume(connections(0, 1))
	running(l)()
	if l.Dropped() != 2 || l.Lines() != QueueRecords {
		t.Errorf("%d dropped and %d written, want 2 and %d", l.Dropped(), l.Lines(), QueueRecords)
	}
}

func TestAWriterThatFailsIsCounted(t *testing.T) {
	w := &writer{fail: func(n int, p []byte) (int, error) {
		if n == 0 {
			return 0, errors.New("disk full")
		}
		return len(p), nil
	}}
	l := NewWriter(w, fixture.Boot)
	finish := running(l)
	l.Consume(connections(0, 3))
	fixture.Eventually(t, "three lines are lost", func() bool { return l.Dropped() == 3 })
	l.Consume(connections(3, 2))
	finish()
	if got := read(t, bytes.Join(w.writes, nil)); !slices.Equal(got, uids(3, 2)) || l.Lines() != 2 || l.Dropped() != 3 {
		t.Errorf("lines of %v; %d counted, %d dropped; want 2 and 3", got, l.Lines(), l.Dropped())
	}
}

func TestALineThatWasBrokenOffTakesNoOtherWithIt(t *testing.T) {
	var fragment string
	w := &writer{fail: func(n int, p []byte) (int, error) {
		if n > 0 {
			return len(p), nil
		}
		lines := bytes.SplitAfter(p, []byte("\n"))
		fragment = string(lines[2][:30])
		return len(lines[0]) + len(lines[1]) + len(fragment), io.ErrShortWrite
	}}
	l := NewWriter(w, fixture.Boot)
	l.Consume(connections(0, 5))
	finish := running(l)
	fixture.Eventually(t, "the first write is done", func() bool { return l.Dropped() > 0 })
	l.Consume(connections(5, 2))
	finish()
	text, found := strings.CutPrefix(string(bytes.Join(w.writes, nil)), string(bytes.Join(w.writes[:1], nil)))
	if !found || !strings.HasPrefix(text, "\n") {
		t.Fatalf("after the fragment %q: %q, want a new line", fragment, text)
	}
	if got := read(t, []byte(text[1:])); !slices.Equal(got, uids(5, 2)) {
		t.Errorf("lines of %v after the fragment, want 2", got)
	}
	if l.Lines() != 4 || l.Dropped() != 3 {
		t.Errorf("%d lines counted and %d dropped; want 4 whole ones and 3", l.Lines(), l.Dropped())
	}
}

func TestOpenAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	for i := range 2 {
		l := open(t, path)
		l.Consume(connections(i, 1))
		running(l)()
		for range 2 {
			if err := l.CloseFile(); err != nil {
				t.Error(err)
			}
		}
	}
	if got := readFile(t, path); !slices.Equal(got, uids(0, 2)) {
		t.Errorf("lines of %v, want 2", got)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		t.Errorf("mode %v: others can read it, or the group can write it", mode)
	}
}

// TestTornEnd opens a file whose last line has no end, as after a loss of power: it takes no line of ours with it.
func TestTornEnd(t *testing.T) {
	const torn = `{"timestamp":"2026-`
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, before, mended, want string
	}{
		{"whole", "{}\n", "", "{}\n"},
		{"torn", "{}\n" + torn, "", "{}\n" + torn + "\n"},
		{"nothing but a fragment", torn, "", torn + "\n"},
		{"mended before the first line", "{}\n" + torn, "{}\n", "{}\n"},
		{"empty", "", "", ""},
	} {
		for _, reopened := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reopened %t", c.name, reopened), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "access.log")
				if !reopened {
					write(path, c.before)
				}
				l := open(t, path)
				if reopened {
					if err := os.Rename(path, path+".1"); err != nil {
						t.Fatal(err)
					}
					write(path, c.before)
					if err := l.Reopen(); err != nil {
						t.Fatal(err)
					}
				}
				if c.mended != "" {
					write(path, c.mended)
				}
				finish := running(l)
				l.Consume(connections(0, 1))
				fixture.Eventually(t, "a line is written", func() bool { return l.Lines() == 1 })
				l.Consume(connections(1, 1))
				finish()
				if err := l.CloseFile(); err != nil {
					t.Error(err)
				}
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				rest, found := strings.CutPrefix(string(text), c.want)
				if !found {
					t.Fatalf("it begins %q, want %q", text, c.want)
				}
				if got := read(t, []byte(rest)); !slices.Equal(got, uids(0, 2)) {
					t.Errorf("lines of %v after it, want 2", got)
				}
			})
		}
	}
}

func TestReopenAfterRenameGoesOnInANewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := open(t, path)
	finish := running(l)
	l.Consume(connections(0, 10))
	fixture.Eventually(t, "10 lines are written", func() bool { return l.Lines() == 10 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Consume(connections(10, 10))
	fixture.Eventually(t, "20 lines are written", func() bool { return l.Lines() == 20 })
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Consume(connections(20, 10))
	finish()
	if err := l.CloseFile(); err != nil {
		t.Error(err)
	}
	if old := readFile(t, path+".1"); !slices.Equal(old, uids(0, 20)) {
		t.Errorf("%d lines in the old file, want those before Reopen", len(old))
	}
	if got := readFile(t, path); !slices.Equal(got, uids(20, 10)) {
		t.Errorf("%d lines in the new file, want those after Reopen", len(got))
	}
}

func TestRotationUnderLoadLosesNothing(t *testing.T) {
	const rotations, batches, size = 20, 200, 20
	path := filepath.Join(t.TempDir(), "access.log")
	l := open(t, path)
	finish := running(l)
	var feeding sync.WaitGroup
	feeding.Go(func() {
		for i := range batches {
			l.Consume(connections(i*size, size))
		}
	})
	for i := range rotations {
		if err := os.Rename(path, fmt.Sprintf("%s.%02d", path, i)); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	feeding.Wait()
	finish()
	if err := l.CloseFile(); err != nil {
		t.Error(err)
	}
	var all []string
	for i := range rotations {
		all = append(all, readFile(t, fmt.Sprintf("%s.%02d", path, i))...)
	}
	all = append(all, readFile(t, path)...)
	if !slices.Equal(all, uids(0, batches*size)) {
		t.Errorf("%d lines over all files, want %d, each once and in order", len(all), batches*size)
	}
	if l.Dropped() != 0 {
		t.Errorf("%d dropped", l.Dropped())
	}
}

func TestReopenThatFailsGoesOnInTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := open(t, path)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	// In the way of a new file, also for root.
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "open access log: ") || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names the file", err)
	}
	l.Consume(connections(0, 2))
	running(l)()
	if err := l.CloseFile(); err != nil {
		t.Error(err)
	}
	if got := readFile(t, path+".1"); !slices.Equal(got, uids(0, 2)) {
		t.Errorf("lines of %v in the old file, want 2", got)
	}
}

func TestOpenNamesWhatItCannotOpen(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "access.log"), filepath.Join(dir, "nul\x00")} {
		l, err := Open(path, fixture.Boot)
		if l != nil || err == nil || !strings.HasPrefix(err.Error(), "open access log: ") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%q: %v, %v; want an error that names it", path, l, err)
		}
	}
}

func TestStreamsAreNotOursToClose(t *testing.T) {
	for target, stream := range map[string]*os.File{"stdout": os.Stdout, "stderr": os.Stderr} {
		l := open(t, target)
		if l.out != stream {
			t.Errorf("%s opened something else", target)
		}
		if err := errors.Join(l.Reopen(), l.CloseFile(), l.CloseFile()); err != nil {
			t.Error(err)
		}
		if l.out != stream {
			t.Errorf("%s was given away", target)
		}
		if _, err := stream.Stat(); err != nil {
			t.Errorf("%s was closed: %v", target, err)
		}
	}
}
