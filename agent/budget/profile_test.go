package budget

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// TestProfiles captures more than may be kept.
func TestProfiles(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	dir := filepath.Join(t.TempDir(), "state", "profiles")
	p := NewProfiles(dir)
	p.Keep, p.Last, p.Now = 3, time.Millisecond, func() time.Time { return now }
	capture := func(cause Cause, want int) []string {
		t.Helper()
		files, err := p.Capture(t.Context(), cause)
		if err != nil || len(files) != want {
			t.Fatalf("%d files, %v; want %d", len(files), err, want)
		}
		return files
	}
	first := capture(CPU, 1)
	if err := os.WriteFile(filepath.Join(dir, "mine.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour - 1)
	capture(CPU, 0) // too soon
	now = now.Add(1)
	capture(Memory, 2)
	now = now.Add(time.Hour)
	last := capture(CPU, 1)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(e.Name(), prefix) && info.Mode() != 0o600 {
			t.Errorf("%s has the mode %v", e.Name(), info.Mode())
		}
	}
	if len(names) != 4 || strings.Contains(strings.Join(names, " "), filepath.Base(first[0])) {
		t.Errorf("files %v: want the newest 3 and the one that is not ours", names)
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has the mode %v", info.Mode())
	}
	f, err := os.Open(last[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, z); err != nil || n == 0 {
		t.Errorf("a profile of %d bytes: %v", n, err)
	}
}

// TestProfilesGiveWay leaves a profile under way alone.
func TestProfilesGiveWay(t *testing.T) {
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer pprof.StopCPUProfile()
	if _, err := NewProfiles(t.TempDir()).Capture(t.Context(), CPU); err == nil || !strings.Contains(err.Error(), "profile CPU: ") {
		t.Errorf("error %v", err)
	}
}

func TestProfilesWithoutRoom(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewProfiles(file).Capture(t.Context(), CPU); err == nil || !strings.Contains(err.Error(), "make directory for profiles: ") {
		t.Errorf("error %v", err)
	}
}
