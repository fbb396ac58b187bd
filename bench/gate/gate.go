package gate

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/stat"
)

// Verdict is what the gate says of a figure.
type Verdict string

// The verdicts. Only Broken fails.
const (
	// Broken: the whole interval is worse than the limit.
	Broken Verdict = "broken"
	// Open: the limit lies in the interval, and the run cannot tell.
	Open Verdict = "open"
	// Kept: the whole interval is within the limit.
	Kept Verdict = "kept"
	// Better: the interval would be within the limit if what it costs were a tenth more, so the limit can be tightened.
	Better Verdict = "better"
	// None: the figure has no budget.
	None Verdict = ""
)

// room is what a limit is to leave above what was reached.
const room = 1.1

// Result is a figure with its estimate, and its verdict where it has a budget.
type Result struct {
	Figure   figure.Figure `json:"figure"`
	Estimate stat.Estimate `json:"estimate"`
	Budget   *Budget       `json:"budget,omitempty"`
	Verdict  Verdict       `json:"verdict,omitempty"`
}

// Source is the first part of the figure's name.
func (r *Result) Source() string { return sourceOf(r.Figure.Name) }

func sourceOf(name string) string {
	source, _, _ := strings.Cut(name, ".")
	return source
}

// Doubtful says whether the figure is broken by less than the width of its interval. One interval in twenty does not hold the truth, so among many figures
// some are beyond a limit that is kept: these are worth a second measurement.
func (r *Result) Doubtful() bool {
	if r.Verdict != Broken || r.Figure.Exact() {
		return false
	}
	width := r.Estimate.High - r.Estimate.Low
	wider := stat.Estimate{Point: r.Estimate.Point, Low: r.Estimate.Low - width, High: r.Estimate.High + width}
	return r.Budget.verdict(&r.Figure, wider) != Broken
}

// Judge returns a result for each figure, in their order. A budget of one of the sources without its figure, and one whose figure
// improves in the other direction, is an error.
func Judge(figures []figure.Figure, budgets []Budget, sources []string, seed uint64) ([]Result, error) {
	byName := make(map[string]*Budget, len(budgets))
	for i := range budgets {
		byName[budgets[i].Figure] = &budgets[i]
	}
	results := make([]Result, 0, len(figures))
	measured := make(map[string]bool, len(figures))
	for _, f := range figures {
		if err := f.Check(); err != nil {
			return nil, err
		}
		if measured[f.Name] {
			return nil, fmt.Errorf("figure %s is there twice", f.Name)
		}
		measured[f.Name] = true
		r := Result{Figure: f, Estimate: Estimate(&f, seed), Budget: byName[f.Name]}
		if b := r.Budget; b != nil {
			if (b.AtMost != nil && f.Better == figure.Higher) || (b.AtLeast != nil && f.Better == figure.Lower) {
				return nil, fmt.Errorf("budget of %s: %s, but %v is better; turn the comparison around", f.Name, b.Limit(), f.Better)
			}
			r.Verdict = b.verdict(&f, r.Estimate)
		}
		results = append(results, r)
	}
	for _, source := range sources {
		for _, b := range budgets {
			if sourceOf(b.Figure) == source && !measured[b.Figure] {
				return nil, fmt.Errorf("budget of %s: the source %s did not measure it; correct the name or remove the budget", b.Figure, source)
			}
		}
	}
	return results, nil
}

// Estimate returns the number that counts of a figure. Its seed depends on the name, so other figures of a run do not change it.
func Estimate(f *figure.Figure, seed uint64) stat.Estimate {
	h := fnv.New64a()
	h.Write([]byte(f.Name))
	seed ^= h.Sum64()
	switch {
	case f.Exact():
		return stat.Exactly(f.Value)
	case f.Paired():
		return stat.OfRatio(f.Samples, f.Base, f.Block, seed)
	}
	return stat.OfMedian(f.Samples, f.Block, seed)
}

func (b *Budget) verdict(f *figure.Figure, e stat.Estimate) Verdict {
	switch {
	case b.AtMost != nil:
		return verdict(e.Low, e.High, worse(f, e.High, room), *b.AtMost)
	case b.AtLeast != nil:
		// The same seen in a mirror.
		return verdict(-e.High, -e.Low, -worse(f, e.Low, 1/room), -*b.AtLeast)
	case e.Low > *b.Within || e.High < 1 / *b.Within:
		return Broken
	case e.High <= *b.Within && e.Low >= 1 / *b.Within:
		return Kept
	}
	return Open
}

// slack is by how much a machine that others use as well may be slower than the one that budgets were made on. The same version took from 1 to 1.6 times
// as long on the machine it was made on, within two hours.
const slack = 2

// ForAnyMachine returns budgets for a machine whose speed nobody knows: absolute times have twice the room. Ratios and counts, which is what the speed does not
// move, have the same.
func ForAnyMachine(budgets []Budget, figures []figure.Figure) []Budget {
	absolute := make(map[string]bool)
	for i := range figures {
		f := &figures[i]
		switch f.Unit {
		case "ns", "us", "ms", "% of a core":
			absolute[f.Name] = !f.Paired()
		}
	}
	loose := slices.Clone(budgets)
	for i := range loose {
		if b := &loose[i]; absolute[b.Figure] && b.AtMost != nil {
			limit := slack * *b.AtMost
			b.AtMost = &limit
		}
	}
	return loose
}

// worse is v with its cost multiplied. A ratio's cost is its distance from 1 if that is on the worse side; anything else is cost as a whole.
func worse(f *figure.Figure, v, factor float64) float64 {
	if !f.Paired() {
		return v * factor
	}
	if f.Better == figure.Higher {
		return 1 - max(0, 1-v)*room
	}
	return 1 + max(0, v-1)*room
}

func verdict(low, high, worse, limit float64) Verdict {
	switch {
	case low > limit:
		return Broken
	case high > limit:
		return Open
	case worse < limit:
		return Better
	}
	return Kept
}
