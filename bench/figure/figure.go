// Package figure is what the sources of measurements hand to the gate and to the report.
package figure

import (
	"context"
	"fmt"
	"io"
	"math"
)

// Direction is which way is better.
type Direction int

// The directions. The zero value is the commoner one: costs.
const (
	Lower Direction = iota
	Higher
)

func (d Direction) String() string {
	if d == Higher {
		return "higher"
	}
	return "lower"
}

// MarshalText is for JSON.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (d *Direction) UnmarshalText(text []byte) error {
	switch string(text) {
	case "lower":
		*d = Lower
	case "higher":
		*d = Higher
	default:
		return fmt.Errorf("direction %q is neither lower nor higher", text)
	}
	return nil
}

// Figure is one measured number. It is of one of three kinds, told apart by what is set:
//   - exact: Value alone. Deterministic; the same code gives the same number, and the gate compares it as it is.
//   - sampled: Samples. The median is what counts, with a bootstrap interval.
//   - paired: Samples and Base, one of each a round. The median of the rounds' ratios is what counts, with a bootstrap interval.
type Figure struct {
	// Name is SOURCE.WHAT.., in lower case with dots and underscores, such as live.churn.metrics.cpu. Budgets name it.
	Name string `json:"name"`
	// Unit is that of Value, Samples and Base: us, ns, bytes, 1/s, 1. The ratio of a paired figure has none.
	Unit   string    `json:"unit"`
	Better Direction `json:"better"`
	// Note is a remark for the report, such as what the figure includes.
	Note    string    `json:"note,omitempty"`
	Value   float64   `json:"value,omitempty"`
	Samples []float64 `json:"samples,omitempty"`
	Base    []float64 `json:"base,omitempty"`
	// Block is how many samples after each other have something in common, such as the processes that made them; 0 is 1.
	Block int `json:"block,omitempty"`
}

// Exact says whether the figure is deterministic.
func (f *Figure) Exact() bool { return len(f.Samples) == 0 }

// Paired says whether the figure is a ratio to a base.
func (f *Figure) Paired() bool { return len(f.Base) > 0 }

// Check returns what is wrong with the figure's form.
func (f *Figure) Check() error {
	if f.Name == "" {
		return fmt.Errorf("a figure (%s) has no name", f.Unit)
	}
	if f.Paired() && len(f.Base) != len(f.Samples) {
		return fmt.Errorf("figure %s: %d samples and %d of its base; a round gives one of each", f.Name, len(f.Samples), len(f.Base))
	}
	for _, numbers := range [][]float64{{f.Value}, f.Samples, f.Base} {
		for _, v := range numbers {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return fmt.Errorf("figure %s: %v is no measurement", f.Name, v)
			}
		}
	}
	for _, v := range f.Base {
		if v <= 0 {
			return fmt.Errorf("figure %s: its base measured %v, of which there is no ratio", f.Name, v)
		}
	}
	return nil
}

// Options are of one run of all sources.
type Options struct {
	// Quick asks for what CI has time for: the same figures from fewer rounds.
	Quick bool
	// Seed is of everything that is shuffled. It is printed, so that an order can be had again.
	Seed uint64
	// Agent is the path of the built sidelight program.
	Agent string
	// Log takes progress, a line at a time.
	Log io.Writer
}

// Source measures some figures.
type Source interface {
	// Name is the first part of the names of the source's figures, and what --sources and budgets call it.
	Name() string
	// Measure leaves nothing behind, also when ctx ends or it fails. An error means that the run is no measurement: lost data, a program that
	// died. A figure that is worse than its budget is no error.
	Measure(ctx context.Context, o Options) ([]Figure, error)
}

// Again is a source that can measure some of its figures once more.
type Again interface {
	Source
	// MeasureAgain measures these figures, and may measure others with them.
	MeasureAgain(ctx context.Context, o Options, names []string) ([]Figure, error)
}

// Pool adds the samples of a second measurement to the figures that have the same names. Figures that only one of them has stay as they are.
func Pool(figures, again []Figure) {
	byName := make(map[string]*Figure, len(again))
	for i := range again {
		byName[again[i].Name] = &again[i]
	}
	for i := range figures {
		if more := byName[figures[i].Name]; more != nil && !figures[i].Exact() {
			figures[i].Samples = append(figures[i].Samples, more.Samples...)
			figures[i].Base = append(figures[i].Base, more.Base...)
		}
	}
}
