package otelconfig_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/agenttest"
)

func TestMain(m *testing.M) { agenttest.Main(m) }

// recorded is a recording of some hundred connections, with the access log and the metrics that it is to come to.
const recorded = "../agent/cmd/sidelight/testdata/recordings/mix"

// replay runs the agent over the recording, with one of the examples as its collector's configuration, and waits for its end.
func replay(t *testing.T, example string, env map[string]string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the agent")
	}
	program := agenttest.Program(t)
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
