package live

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/gate"
	"github.com/sidelight-mesh/sidelight/bench/workload"
)

var keep = flag.String("keep", "", "`FILE` to add the samples of TestSameTwice to, as gate/testdata/same.json has them")

// The workload's processes are this test program, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case workload.Argument:
			err = workload.Main(os.Args[2:])
		case ReceiverArgument:
			err = ReceiverMain()
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// small is a churn of nothing but the base and itself: it needs no agent.
var small = work{name: "churn", kind: workload.Churn, conditions: []condition{bare, aa}, units: 300, rounds: 2, epochs: 30}

func newTestRun(t *testing.T) *run {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("makes cgroups and network namespaces: needs root, and not -short")
	}
	r, err := newRun(figure.Options{Seed: uint64(time.Now().UnixNano()), Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.place.close(); err != nil {
			t.Error(err)
		}
		for _, made := range []string{r.place.cgroup, r.place.directory} {
			if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left behind (%v)", made, err)
			}
		}
	})
	return r
}

// judged runs w and returns a figure and what the gate says of it.
func (r *run) judged(t *testing.T, w work, name string, b gate.Budget) gate.Result {
	t.Helper()
	s, err := r.session(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	b.Figure = name
	results, err := gate.Judge(s.figures(), []gate.Budget{b}, []string{"live"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range results {
		if result.Budget != nil {
			return result
		}
	}
	t.Fatalf("no figure %s", name)
	return gate.Result{}
}

// The same code twice stays green.
func TestSameTwice(t *testing.T) {
	limit := 1.01
	result := newTestRun(t).judged(t, small, "live.churn.aa.p50", gate.Budget{Within: &limit})
	if result.Verdict == gate.Broken {
		t.Errorf("the same twice: %v", result.Estimate)
	}
	t.Logf("%v", result.Estimate)
	if *keep == "" {
		return
	}
	var runs []figure.Figure
	if text, err := os.ReadFile(*keep); err == nil {
		if err := json.Unmarshal(text, &runs); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.Marshal(append(runs, result.Figure))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*keep, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A slowdown of some microseconds a connection turns the gate red, whether it shows in latency or in CPU time.
func TestInjectedSlowdown(t *testing.T) {
	for _, name := range []string{"live.churn.aa.p50", "live.churn.aa.cpu"} {
		r := newTestRun(t)
		r.burn = map[string]time.Duration{aa.name: 8 * time.Microsecond}
		limit := 1.05
		if result := r.judged(t, small, name, gate.Budget{AtMost: &limit}); result.Verdict != gate.Broken {
			t.Errorf("%s: %v is %s of at most %v", name, result.Estimate, result.Verdict, limit)
		}
	}
}

// What is interrupted cleans up as well; newTestRun looks.
func TestInterrupted(t *testing.T) {
	r := newTestRun(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("interrupted"))
	defer cancel()
	if _, err := r.session(ctx, small); err == nil || err.Error() != "interrupted" {
		t.Errorf("error %v, want that it was interrupted", err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.place.cgroup, "*", "cgroup.procs")); len(left) > 0 {
		t.Errorf("%v are left after the session", left)
	}
}

func TestSum(t *testing.T) {
	text := []byte("# HELP a b\na{role=\"client\",x=\"1\"} 3\na{role=\"client\",x=\"2\"} 4\na{role=\"server\"} 9\nab{role=\"client\"} 100\nc 5\n")
	for _, c := range []struct {
		metric, label string
		want          int
		found         bool
	}{
		{"a", `role="client"`, 7, true},
		{"a", "", 16, true},
		{"c", "", 5, true},
		{"d", "", 0, false},
	} {
		if got, found := sum(text, c.metric, c.label); got != c.want || found != c.found {
			t.Errorf("sum of %s with %q is %d, %v; want %d, %v", c.metric, c.label, got, found, c.want, c.found)
		}
	}
}
