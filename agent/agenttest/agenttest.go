// Package agenttest builds the agent, for tests of other packages that run it.
package agenttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var directory string // where it was built, if it was

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sidelight-agent")
	if err != nil {
		return "", err
	}
	directory = dir
	program := filepath.Join(dir, "sidelight")
	cmd := exec.Command("go", "build", "-o", program, "github.com/sidelight-mesh/sidelight/agent/cmd/sidelight")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return program, nil
})

// Program returns the file of the agent, which is built once for all tests of a process. Safe for concurrent use.
func Program(t *testing.T) string {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// Main is for TestMain: it runs the tests, takes away what was built, and ends the process.
func Main(m *testing.M) {
	code := m.Run()
	if directory != "" {
		_ = os.RemoveAll(directory)
	}
	os.Exit(code)
}
