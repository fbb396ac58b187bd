package bpf

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// A macro leaves no trace in the object, so the constant is kept by hand.
func TestABIVersion(t *testing.T) {
	header, err := os.ReadFile("abi.h")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("\n#define MESH_ABI_VERSION %d\n", ABIVersion); !strings.Contains(string(header), want) {
		t.Errorf("abi.h does not say %q", want)
	}
}
