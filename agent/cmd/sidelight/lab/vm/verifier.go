package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"
)

// verifierFile is relative to the root of the work tree, where make runs this.
const verifierFile = "bpf/verifier.yaml"

// tolerance is how far a count may exceed its figure, in percent: clang's choices move it a little, and so do kernels of one series.
const tolerance = 5

// counts are the instructions that a verifier processed, by program. It gives up at a million.
type counts map[string]int

func (c counts) programs() []string { return slices.Sorted(maps.Keys(c)) }

// series -> program -> count.
type allCounts map[string]counts

func readCounts(file string) (allCounts, error) {
	all := make(allCounts)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

// compare holds the counts of a kernel against its figures.
func (a allCounts) compare(series string, got counts) []string {
	want := a[series]
	var faults []string
	for _, program := range got.programs() {
		figure, known := want[program]
		switch {
		case !known:
			faults = append(faults, fmt.Sprintf("%s has no figure for %s: make test-kernels UPDATE=1", verifierFile, program))
		case got[program]*100 > figure*(100+tolerance):
			faults = append(faults, fmt.Sprintf("the verifier processed %d instructions of %s, more than %d by over %d %%: if that has to be, make test-kernels UPDATE=1",
				got[program], program, figure, tolerance))
		}
	}
	for _, program := range want.programs() {
		if _, ok := got[program]; !ok {
			faults = append(faults, "the verifier's count of "+program+" is missing")
		}
	}
	return faults
}

func (a allCounts) write(file string) error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "# Instructions that the verifier processed, by kernel series and program. make test-kernels fails when a count exceeds\n"+
		"# its figure by more than %d %%; make test-kernels UPDATE=1 writes this file.\n", tolerance)
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(a); err != nil {
		return err
	}
	return os.WriteFile(file, text.Bytes(), 0o644)
}
