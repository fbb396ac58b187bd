package main

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestFailClosed leaves a data path alone for longer than it is told to be: policies deny everything then, until there is an agent again.
func TestFailClosed(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	config := filepath.Join(t.TempDir(), "closed.yaml")
	writeFile(t, config, fmt.Sprintf("%s\nmesh: {fail_closed_after: %v}\n", noBudget, stretched(5*time.Second)))
	w.startOf(program, "--config", config)
	to := w.service()
	if got := w.web.do(meshOrder{To: to, Count: 3}); got.Answers[serverV4(1)] != 3 {
		t.Fatalf("with an agent: %+v", got)
	}
	if got := w.web.do(meshOrder{To: to, Count: 2, Hold: true}); got.Answers[serverV4(1)] != 2 {
		t.Fatalf("to be held: %+v", got)
	}
	w.kill()
	if got := w.web.do(meshOrder{To: to, Count: 3}); got.Answers[serverV4(1)] != 3 {
		t.Errorf("without an agent: %+v", got)
	}
	// Not so often that the ring, which nobody reads, is full before: then the refusal would be told as sums.
	eventuallyEvery(t, 200*time.Millisecond, 30*time.Second, "policies to deny everything", func() error {
		if got := w.web.do(meshOrder{To: to, Count: 1}); got.Errors["EPERM"] != 1 {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	w.startOf(program, "--config", config)
	if got := w.web.do(meshOrder{To: to, Count: 3}); got.Answers[serverV4(1)] != 3 {
		t.Errorf("with an agent again: %+v", got)
	}
	// What was open has been open all the time.
	if got := w.web.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("%d of 2 open connections were cut", got.Cut)
	}
	w.stop() // no line is being written
	var verdicts []string
	for _, l := range readLog[meshLine](t, w.access) {
		if l.Role == "client" && l.Reason == "denied" {
			verdicts = append(verdicts, l.Verdict)
		}
	}
	if len(verdicts) != 1 || verdicts[0] != "unattended" {
		t.Errorf("verdicts of denied connects: %q", verdicts)
	}
}
