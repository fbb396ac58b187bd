package event

import (
	"os/exec"
	"strings"
	"testing"
)

// TestInjectedAllocationIsFound builds a decoder that allocates: the gate has to turn red.
func TestInjectedAllocationIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles")
	}
	out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-tags", "bench_alloc", "-run", "^TestDecodeAllocatesNothing$", ".").CombinedOutput()
	if err == nil || strings.Count(string(out), "1 allocations") != len(samples()) {
		t.Errorf("the gate is green on a decoder that allocates: %v\n%s", err, out)
	}
}
