package restart

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Argument {
		if err := Main(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSplit(t *testing.T) {
	var r report
	for i := range int64(100) { // 1 to 100 us, of which the last ends after it
		r.Connections = append(r.Connections, connection{At: i * 1000, Took: (i + 1) * 1000})
	}
	if _, _, err := r.split(150_000); err == nil {
		t.Error("no error of 75 connections")
	}
	for range 100 {
		r.Connections = append(r.Connections, connection{At: 0, Took: 10_000})
	}
	normal, longest, err := r.split(150_000)
	if err != nil || normal != 74 || longest != 100 {
		t.Errorf("99th percentile %v us, longest %v us, %v", normal, longest, err)
	}
}

// TestFailuresCount connects to a service that nobody has: a run in which connections fail says so.
func TestFailuresCount(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("makes cgroups and network namespaces: needs root")
	}
	p, err := newPlace()
	defer func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
		root, err := datapath.OpenCgroup("")
		if err != nil {
			t.Fatal(err)
		}
		for _, parent := range []string{root.Dir, os.TempDir()} {
			if left, _ := filepath.Glob(filepath.Join(parent, fmt.Sprintf("%s%d-*", placePrefix, os.Getpid()))); len(left) > 0 {
				t.Errorf("%v stayed", left)
			}
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.startLoad()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(deadline); ; {
		if err := errors.Join(l.begin(), wait(t.Context(), 2*pause)); err != nil {
			t.Fatal(err)
		}
		r, err := l.end()
		if err != nil || len(r.Connections) > 0 {
			t.Fatalf("%d connections, %v", len(r.Connections), err)
		}
		if r.Failed["connection refused"] > 0 && len(r.Failed) == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("failed: %v", r.Failed)
		}
	}
}
