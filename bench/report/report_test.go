package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/gate"
)

func results(t *testing.T) []gate.Result {
	t.Helper()
	limit, none := 1.04, 0.0
	all, err := gate.Judge([]figure.Figure{
		{Name: "live.churn.metrics.p50", Unit: "ns", Samples: []float64{110, 111, 110}, Base: []float64{100, 100, 100}},
		{Name: "live.churn.log.p50", Unit: "ns", Samples: []float64{100, 100}, Base: []float64{100, 100}},
		{Name: "live.idle.metrics.cpu", Unit: "% of a core", Samples: []float64{0.0512, 0.0512}},
		{Name: "userspace.allocations", Unit: "1", Value: 0},
	}, []gate.Budget{{Figure: "live.churn.metrics.p50", AtMost: &limit}, {Figure: "userspace.allocations", AtMost: &none}}, []string{"live", "userspace"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTable(t *testing.T) {
	const want = `
| figure | measured | 95 % interval | budget | verdict |
| --- | ---: | ---: | ---: | --- |
| live.churn.metrics.p50 | 1.100 | 1.100 – 1.110 | ≤ 1.04 | broken |
| userspace.allocations | 0 | exact | ≤ 0 | kept |

Without a budget:

| figure | measured | 95 % interval |
| --- | ---: | ---: |
| live.churn.log.p50 | 1.000 | 1.000 – 1.000 |
| live.idle.metrics.cpu | 0.0512 % of a core | 0.0512 – 0.0512 |
`
	got := Table(About{}, results(t))
	if _, after, _ := strings.Cut(got, "\n"); after != want {
		t.Errorf("table is\n%s\nwant\n%s", after, want)
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "run")
	if err := Write(dir, About{Name: "run"}, results(t)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"results.json", "table.md", "live-churn.svg"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "live-churn.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for decoder := xml.NewDecoder(strings.NewReader(string(text))); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(string(text), "NaN") || strings.Count(string(text), "<circle") != 2 {
		t.Errorf("the plot of two ratios is\n%s", text)
	}
}
