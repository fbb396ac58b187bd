package kernel

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/gate"
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

// live skips what needs root.
func live(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("loads programs: needs root")
	}
}

// TestGate: the same programs twice cost the same to the instruction, and slower ones break a budget of what these cost.
func TestGate(t *testing.T) {
	live(t)
	const burn = 20
	stop, err := datapath.Measure()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	measure := func(o options) map[string]float64 {
		figures, err := countsWith(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, f := range figures {
			values[f.Name] = f.Value
		}
		return values
	}
	first, second := measure(options{counted: true}), measure(options{counted: true})
	slow := measure(options{counted: true, burn: burn})
	for name, value := range first {
		if second[name] != value {
			t.Errorf("%s is %v, and then %v", name, value, second[name])
		}
		want, verdict := value, gate.Kept
		if workload, ok := strings.CutSuffix(name, ".instructions"); ok {
			// All runs but that of the connect hook are of the program that was made slower.
			want, verdict = value+burn*(first[workload+".runs"]-1), gate.Broken
		}
		if slow[name] != want {
			t.Errorf("%s of the slower program is %v, want %v", name, slow[name], want)
		}
		results, err := gate.Judge([]figure.Figure{{Name: name, Value: slow[name]}}, []gate.Budget{{Figure: name, AtMost: &value, Why: "reached"}}, nil, 1)
		if err != nil || (results[0].Verdict == gate.Broken) != (verdict == gate.Broken) {
			t.Errorf("%s: %v, %v; want %s", name, results, err, verdict)
		}
	}
}

// TestMeasure: the whole source works, leaves no cgroup behind, and every figure is one.
func TestMeasure(t *testing.T) {
	live(t)
	figures, err := Source{}.Measure(t.Context(), figure.Options{Quick: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range figures {
		if err := f.Check(); err != nil {
			t.Error(err)
		}
	}
	if len(figures) == 0 {
		t.Error("no figures")
	}
}
