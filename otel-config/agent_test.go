package otelconfig_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// agentDirectory is where the agent was built, if it was.
var agentDirectory string

// agentProgram is built once for all tests.
var agentProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sidelight-otel-config")
	if err != nil {
		return "", err
	}
	agentDirectory = dir
	program := filepath.Join(dir, "sidelight")
	cmd := exec.Command("go", "build", "-o", program, "../agent/cmd/sidelight")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return program, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if agentDirectory != "" {
		_ = os.RemoveAll(agentDirectory)
	}
	os.Exit(code)
}

// recorded is a recording of some hundred connections, with the access log and the metrics that it is to come to.
const recorded = "../agent/cmd/sidelight/testdata/recordings/mix"

// replay runs the agent over the recording, with one of the examples as its collector's configuration, and waits for its end.
func replay(t *testing.T, example string, env map[string]string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the agent")
	}
	program, err := agentProgram()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"STATE_DIRECTORY": t.TempDir()}
	maps.Copy(all, env)
	cmd := exec.Command(program, "replay", recorded+".rec", "--access-log", "off", "--otel-config", example)
	cmd.Env = environment(all)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("replay: %v\n%s", err, out)
	}
}

// accessLog is what the recording's lines say.
func accessLog(t *testing.T) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(recorded + ".log")
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for line := range bytes.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatal(err)
		}
		all = append(all, fields)
	}
	if len(all) == 0 {
		t.Fatal("the recording has no lines")
	}
	return all
}
