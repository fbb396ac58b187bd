// Package gate holds figures against their budgets.
package gate

import (
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// Budget is the limit of one figure. Exactly one of AtMost, AtLeast and Within is set.
type Budget struct {
	Figure  string   `yaml:"figure" json:"figure"`
	AtMost  *float64 `yaml:"at_most" json:"at_most,omitempty"`
	AtLeast *float64 `yaml:"at_least" json:"at_least,omitempty"`
	// Within is for what must be neither above this nor below its inverse: a comparison of the harness with itself.
	Within *float64 `yaml:"within" json:"within,omitempty"`
	// Why is where the limit comes from.
	Why string `yaml:"why" json:"why"`
}

// Limit is the budget as people write it.
func (b *Budget) Limit() string {
	switch {
	case b.AtMost != nil:
		return fmt.Sprintf("≤ %g", *b.AtMost)
	case b.AtLeast != nil:
		return fmt.Sprintf("≥ %g", *b.AtLeast)
	}
	return fmt.Sprintf("1 ± %.2g", *b.Within-1)
}

// Load reads budgets from YAML. Unknown keys, two budgets of a figure and a budget without its limit or reason are errors.
func Load(r io.Reader) ([]Budget, error) {
	var file struct {
		Budgets []Budget `yaml:"budgets"`
	}
	decoder := yaml.NewDecoder(r)
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return nil, fmt.Errorf("budgets: %w", err)
	}
	var errs []error
	seen := make(map[string]bool)
	for i := range file.Budgets {
		b := &file.Budgets[i]
		fault := func(text string) { errs = append(errs, fmt.Errorf("budgets[%d] (%s): %s", i, b.Figure, text)) }
		limits := 0
		for _, limit := range []*float64{b.AtMost, b.AtLeast, b.Within} {
			if limit != nil {
				limits++
			}
		}
		if limits != 1 {
			fault("set one of at_most, at_least and within")
		}
		if b.Within != nil && *b.Within <= 1 {
			fault("within is a ratio above 1, such as 1.01")
		}
		if b.Figure == "" {
			fault("figure: empty; name what is measured")
		}
		if b.Why == "" {
			fault("why: empty; say where the limit comes from")
		}
		if seen[b.Figure] {
			fault("a second budget of this figure; remove one")
		}
		seen[b.Figure] = true
	}
	return file.Budgets, errors.Join(errs...)
}
