package gate

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/stat"
)

// TestForAnyMachine gives room to absolute times, and to nothing else.
func TestForAnyMachine(t *testing.T) {
	limit := 100.0
	figures := []figure.Figure{
		{Name: "time", Unit: "us", Samples: []float64{150}},
		{Name: "ratio", Unit: "us", Samples: []float64{150}, Base: []float64{1}},
		{Name: "count", Unit: "1", Samples: []float64{150}},
	}
	var budgets []Budget
	for _, f := range figures {
		budgets = append(budgets, Budget{Figure: f.Name, AtMost: &limit})
	}
	for i, b := range ForAnyMachine(budgets, figures) {
		if want := map[bool]float64{true: 200, false: 100}[i == 0]; *b.AtMost != want {
			t.Errorf("%s: %v, want %v", b.Figure, *b.AtMost, want)
		}
	}
	if limit != 100 {
		t.Error("the budgets themselves have changed")
	}
}

func TestLoad(t *testing.T) {
	const good = "budgets: [{figure: a.b, at_most: 1.05, why: x}, {figure: a.c, at_least: 0.99, why: x}, {figure: a.d, within: 1.01, why: x}, {figure: a.e, at_most: 0, why: x}]"
	for _, c := range []struct{ name, text, want string }{
		{"good", good, ""},
		{"unknown key", "budgets: [{figure: a, at_most: 1, why: x, limit: 3}]", "field limit not found"},
		{"no budgets", "limits: []", "field limits not found"},
		{"empty", "", "EOF"},
		{"no limit", "budgets: [{figure: a, why: x}]", "budgets[0] (a): set one of at_most, at_least and within"},
		{"two limits", "budgets: [{figure: a, at_most: 1, at_least: 1, why: x}]", "budgets[0] (a): set one of at_most, at_least and within"},
		{"within nothing", "budgets: [{figure: a, within: 0.99, why: x}]", "budgets[0] (a): within is a ratio above 1, such as 1.01"},
		{"no figure", "budgets: [{at_most: 1, why: x}]", "budgets[0] (): figure: empty; name what is measured"},
		{"no reason", "budgets: [{figure: a, at_most: 1}]", "budgets[0] (a): why: empty; say where the limit comes from"},
		{"twice", "budgets: [{figure: a, at_most: 1, why: x}, {figure: a, at_most: 2, why: x}]", "budgets[1] (a): a second budget of this figure; remove one"},
	} {
		_, err := Load(strings.NewReader(c.text))
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

func TestOurBudgets(t *testing.T) {
	f, err := os.Open("../budgets.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	budgets, err := Load(f)
	if err != nil || len(budgets) == 0 {
		t.Errorf("%d budgets, error %v", len(budgets), err)
	}
}

func ref(v float64) *float64 { return &v }

func TestVerdict(t *testing.T) {
	paired := figure.Figure{Samples: []float64{1}, Base: []float64{1}}
	sampled := figure.Figure{Samples: []float64{1}}
	exact := figure.Figure{}
	atMost := func(v float64) Budget { return Budget{AtMost: ref(v)} }
	atLeast := func(v float64) Budget { return Budget{AtLeast: ref(v)} }
	within := func(v float64) Budget { return Budget{Within: ref(v)} }
	for _, c := range []struct {
		name      string
		figure    figure.Figure
		budget    Budget
		low, high float64
		want      Verdict
	}{
		{"wholly above", paired, atMost(1.05), 1.051, 1.2, Broken},
		{"the limit is in it", paired, atMost(1.05), 1.049, 1.2, Open},
		{"the limit is its end", paired, atMost(1.05), 1.05, 1.2, Open},
		{"within", paired, atMost(1.05), 0.98, 1.05, Kept},
		{"with room of a tenth of the cost", paired, atMost(1.11), 1.05, 1.099, Better},
		{"without that room", paired, atMost(1.11), 1.05, 1.101, Kept},
		{"no cost at all", paired, atMost(1.01), 0.9, 0.99, Better},
		{"throughput wholly below", paired, atLeast(0.99), 0.8, 0.989, Broken},
		{"throughput with the limit in it", paired, atLeast(0.99), 0.8, 0.991, Open},
		{"throughput within", paired, atLeast(0.89), 0.8999, 1.1, Kept},
		{"throughput with room", paired, atLeast(0.89), 0.91, 1.1, Better},
		{"share above", sampled, atMost(0.1), 0.11, 0.2, Broken},
		{"share within", sampled, atMost(0.1), 0.05, 0.095, Kept},
		{"share with room", sampled, atMost(0.1), 0.05, 0.09, Better},
		{"exactly nothing", exact, atMost(0), 0, 0, Kept},
		{"one too many", exact, atMost(0), 1, 1, Broken},
		{"as many as may be", exact, atMost(128), 128, 128, Kept},
		{"fewer", exact, atMost(128), 100, 100, Better},
		{"the same", paired, within(1.01), 0.995, 1.005, Kept},
		{"the same as far as one can tell", paired, within(1.01), 0.9, 1.005, Open},
		{"nearly the same", paired, within(1.01), 1.001, 1.009, Kept},
		{"slower than itself", paired, within(1.01), 1.011, 1.02, Broken},
		{"faster than itself", paired, within(1.01), 0.97, 0.989, Broken},
	} {
		if c.budget.AtLeast != nil {
			c.figure.Better = figure.Higher
		}
		if got := c.budget.verdict(&c.figure, stat.Estimate{Point: c.low, Low: c.low, High: c.high}); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	one := figure.Figure{Name: "live.x", Samples: []float64{2, 2}, Base: []float64{1, 1}}
	for _, c := range []struct {
		name    string
		figures []figure.Figure
		budget  Budget
		want    string
	}{
		{"judged", []figure.Figure{one}, Budget{Figure: "live.x", AtMost: ref(3)}, ""},
		{"not measured", []figure.Figure{one}, Budget{Figure: "live.y", AtMost: ref(3)}, "budget of live.y: the source live did not measure it"},
		{"of another source", []figure.Figure{one}, Budget{Figure: "kernel.y", AtMost: ref(3)}, ""},
		{"turned around", []figure.Figure{one}, Budget{Figure: "live.x", AtLeast: ref(3)}, "but lower is better; turn the comparison around"},
		{"twice", []figure.Figure{one, one}, Budget{Figure: "live.x", AtMost: ref(3)}, "figure live.x is there twice"},
		{
			"uneven",
			[]figure.Figure{{Name: "live.x", Samples: []float64{1, 2}, Base: []float64{1}}},
			Budget{Figure: "live.x", AtMost: ref(3)},
			"2 samples and 1 of its base",
		},
		{"nothing below", []figure.Figure{{Name: "live.x", Samples: []float64{1}, Base: []float64{0}}}, Budget{Figure: "live.x", AtMost: ref(3)}, "there is no ratio"},
	} {
		_, err := Judge(c.figures, []Budget{c.budget}, []string{"live"}, 1)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// recorded are samples of real runs of the same thing twice, with other work on the machine: TestSameTwice in bench/live makes them.
func recorded(t *testing.T) []figure.Figure {
	t.Helper()
	text, err := os.ReadFile("testdata/same.json")
	if err != nil {
		t.Fatal(err)
	}
	var runs []figure.Figure
	if err := json.Unmarshal(text, &runs); err != nil {
		t.Fatal(err)
	}
	return runs
}

// The same code twice stays green, in each of 20 runs and with the tightest limits there are.
func TestSameCodeStaysGreen(t *testing.T) {
	runs := recorded(t)
	if len(runs) < 20 {
		t.Fatalf("%d runs, want 20", len(runs))
	}
	for i, f := range runs {
		for _, b := range []Budget{{AtMost: ref(1.01)}, {Within: ref(1.01)}} {
			e := Estimate(&f, 1)
			if b.verdict(&f, e) == Broken {
				t.Errorf("run %d: %s: %v breaks %s", i, f.Name, e, b.Limit())
			}
		}
	}
}

// The same runs with a fifth more in each sample are red where 4 % are allowed.
func TestSlowdownTurnsRed(t *testing.T) {
	for i, f := range recorded(t) {
		for j := range f.Samples {
			f.Samples[j] *= 1.2
		}
		b := Budget{AtMost: ref(1.04)}
		if e := Estimate(&f, 1); b.verdict(&f, e) != Broken {
			t.Errorf("run %d: %s: %v does not break %s", i, f.Name, e, b.Limit())
		}
	}
}

func TestDoubtful(t *testing.T) {
	for _, c := range []struct {
		name      string
		low, high float64
		want      bool
	}{
		{"just beyond", 1.06, 1.10, true},
		{"far beyond", 1.30, 1.34, false},
		{"kept", 1.00, 1.04, false},
	} {
		f := figure.Figure{Name: "a.b", Samples: []float64{1}, Base: []float64{1}}
		b := Budget{Figure: "a.b", AtMost: ref(1.05)}
		e := stat.Estimate{Point: (c.low + c.high) / 2, Low: c.low, High: c.high}
		r := Result{Figure: f, Estimate: e, Budget: &b, Verdict: b.verdict(&f, e)}
		if got := r.Doubtful(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
