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
	spec, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	// Without a mesh those of a mesh are empty, and the others what they are.
	if err := bpf.WithMesh(spec); err != nil {
		t.Fatal(err)
	}
	// And without trace ids in SYNs what they take is left out.
	if err := spec.Variables[bpf.TraceOption].Set(true); err != nil {
		t.Fatal(err)
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
		fmt.Printf("verifier: %s %s\n", name, count[1])
	}
}
