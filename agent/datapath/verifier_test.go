package datapath

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

var processedInstructions = regexp.MustCompile(`processed (\d+) insns`)

// TestVerifierCounts prints how many instructions this kernel's verifier processed for each program. "make test-kernels" holds
// the lines against bpf/verifier.yaml.
func TestVerifierCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("live test")
	}
	if os.Getuid() != 0 {
		t.Fatal("needs root; use go test -short without")
	}
	printVerifierCounts(t, false)
	printVerifierCounts(t, true)
}

// printVerifierCounts says "_in_mesh" behind the names of programs that are loaded for one.
func printVerifierCounts(t *testing.T, mesh bool) {
	t.Helper()
	spec, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.Variables[bpf.Mesh].Set(mesh); err != nil {
		t.Fatal(err)
	}
	suffix := ""
	if mesh {
		suffix = "_in_mesh"
	}
	spec.Maps[bpf.EventsMap].MaxEntries = uint32(unix.Getpagesize())
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer collection.Close()
	var names []string
	for name := range spec.Programs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		log := collection.Programs[name].VerifierLog
		count := processedInstructions.FindStringSubmatch(log)
		if count == nil {
			t.Errorf("%s: the verifier does not say what it processed: %q", name, log)
			continue
		}
		fmt.Printf("verifier: %s%s %s\n", name, suffix, count[1])
	}
}
