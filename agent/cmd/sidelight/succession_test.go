package main

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestReadLines reads the end of a log whose agent was killed: what it wrote whole counts, what it could not end is cut off, and what is none of its lines
// stays.
func TestReadLines(t *testing.T) {
	const first, second = `{"log.record.uid":"1"}` + "\n", `{"log.record.uid":"2"}` + "\n"
	for _, c := range []struct {
		name, text string
		from       int64
		uids       []string
		left       string
	}{
		{"whole", first + second, 0, []string{"1", "2"}, first + second},
		{"from the second on", first + second, int64(len(first)), []string{"2"}, first + second},
		{"within the first", first + second, 5, []string{"2"}, first + second},
		{"torn", first + second[:len(second)-1], 0, []string{"1"}, first},
		{"torn at its beginning", first + second[:3], 0, []string{"1"}, first},
		{"not ours", first + "# a remark", 0, []string{"1"}, first + "# a remark"},
		{"empty", "", 0, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "access.log")
			writeFile(t, path, c.text)
			f, err := openLog(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s := &succession{n: &node{logger: slog.New(slog.DiscardHandler)}, written: make(map[string]struct{})}
			if err := s.readLines(f, c.from); err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(s.written)); !slices.Equal(got, c.uids) {
				t.Errorf("lines of %v, want %v", got, c.uids)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != c.left {
				t.Errorf("it has %q (%v), want %q", got, err, c.left)
			}
		})
	}
}
