package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
)

// TestWhy makes connections that are allowed, denied and over a limit, and asks why, of these and of others.
func TestWhy(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	w.restart()
	state := filepath.Join(filepath.Dir(w.access), "state")
	why := func(args ...string) (string, int) {
		t.Helper()
		var out, said bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, append([]string{"why", "--state-directory", state}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, &said
		err := cmd.Run()
		return out.String() + said.String(), exitCode(err)
	}
	service := w.service().String()
	if got := w.web.do(meshOrder{To: w.service(), Count: 1}); got.Answers[serverV4(1)] != 1 {
		t.Fatalf("web: %+v", got)
	}
	if got := w.rogue.do(meshOrder{To: w.service(), Count: 1}); got.Errors["EPERM"] != 1 {
		t.Fatalf("rogue: %+v", got)
	}
	w.linesOnce(3)
	past := func(where, want string) string {
		t.Helper()
		for _, fields := range readLog[map[string]any](t, w.access) {
			if fields["sidelight.role"] == "client" && fmt.Sprint(fields[where]) == want {
				return fmt.Sprint(fields["log.record.uid"])
			}
		}
		t.Fatalf("no line has %s %s:\n%s", where, want, readFile(t, w.access))
		return ""
	}
	pid := fmt.Sprint("pid:", w.web.Process.Pid)
	for _, c := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"a workload that may", []string{"--from", "demo/web", "--to", service}, 0, []string{
			"demo/web, identity web0, known by its cgroup", "demo/shop (10.96.0.1:80)", "demo/shop-1 127.0.1.1:8080: 100.0 % of the choices", "allow by allow demo/allow rule 0", "outcome  ok",
		}},
		{"a process", []string{"--from", pid, "--to", "demo/shop:80"}, 0, []string{"demo/web", "allow by allow demo/allow rule 0"}},
		{"a workload that may not", []string{"--from", "demo/rogue", "--to", service}, 1, []string{"deny: there are allow policies", "outcome  denied", "it would be refused"}},
		{"nobody", []string{"--to", service}, 1, []string{"nobody that the mesh knows", "outcome  denied"}},
		{"elsewhere", []string{"--from", "demo/rogue", "--to", "192.0.2.1:9"}, 0, []string{"the connection goes there as it is"}},
		{"a service that there is not", []string{"--from", "demo/web", "--to", "demo/cart"}, exitInput, []string{"--to demo/cart: it is neither"}},
		{"a workload that there is not", []string{"--from", "demo/cart", "--to", service}, exitInput, []string{"--from demo/cart: there is no such workload"}},
		{"nothing", nil, exitInput, []string{"say which connection"}},
		{"one that was allowed", []string{past("sidelight.reason", "ok")}, 0, []string{"THEN", "demo/shop-1", "NOW", "outcome  ok"}},
		{"one that was denied", []string{past("sidelight.reason", "denied")}, 1, []string{"THEN", "denied", "NOW", "outcome  denied"}},
		{"one that there was not", []string{"0-0"}, exitInput, []string{`no line of`, `"0-0"`}},
	} {
		got, code := why(c.args...)
		flat := strings.Join(strings.FieldsFunc(got, func(r rune) bool { return r == '\n' }), "\n")
		for _, want := range c.want {
			if !strings.Contains(flat, want) && !strings.Contains(strings.Join(strings.Fields(flat), " "), strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s: it does not say %q:\n%s", c.name, want, got)
			}
		}
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d:\n%s", c.name, code, c.code, got)
		}
	}
	out, _ := why("--json", "--from", "demo/web", "--to", service)
	var answer look.Why
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Now) != 1 || answer.Now[0].Outcome != "ok" || answer.Now[0].Endpoints[0].Policy.Verdict != "allow" {
		t.Errorf("%v: %s", err, out)
	}
	w.stop()
}
