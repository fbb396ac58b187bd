package dashboards

import (
	"os"
	"os/exec"
	"testing"
)

// TestGenerated wants the committed dashboards to be what the generator makes. "make check-dashboards" does the same, and gets what it needs.
func TestGenerated(t *testing.T) {
	if testing.Short() {
		t.Skip("runs Node")
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			lacks(t, "no "+program+": make check-dashboards is left out")
		}
	}
	if _, err := os.Stat("gen/node_modules/typescript"); err != nil {
		lacks(t, "the generator is not installed: make dashboards does that")
	}
	cmd := exec.CommandContext(t.Context(), "npm", "run", "--silent", "check")
	cmd.Dir = "gen"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
