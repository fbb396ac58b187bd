package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/demo"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// refusalErrno is what a connect gets that a limit refuses, on this kernel.
func refusalErrno() string {
	for _, f := range datapath.Features() {
		if strings.Contains(f.Name, "bpf_set_retval") && f.Err != nil {
			return "EPERM"
		}
	}
	return "ECONNREFUSED"
}

// TestDemoMesh runs the demo of a mesh as a script would, and holds what clients, kernel and log say of it against each other.
func TestDemoMesh(t *testing.T) {
	needRoot(t)
	cmd := demoProgram(t, "--mesh", "--json", "--duration", patiently(t, 12*time.Second).String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, &stderr, out)
	}
	if stderr.Len() > 0 {
		t.Errorf("it had something to say: %s", &stderr)
	}
	var report demoReport
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatal(err)
	}
	if !report.Closes || report.Account.Unaccounted != 0 || report.Mesh == nil || len(report.Mesh.Seen) != 5 {
		t.Fatalf("the account does not close, or there is no mesh: %s", out)
	}
	for _, s := range report.Mesh.Seen {
		if !s.OK {
			t.Errorf("%s: %s", s.What, s.Text)
		}
	}
	checkDemoEndpoints(t, &report)
	checkDemoRefusals(t, &report)
	wantNothingLeft(t, cmd)
}

func checkDemoEndpoints(t *testing.T, report *demoReport) {
	t.Helper()
	clients := report.Mesh.Clients
	rows := make(map[string]demo.EndpointRow)
	picks, failed := make(map[string]int), make(map[string]int) // by service
	for _, e := range report.Mesh.Endpoints {
		rows[e.Endpoint] = e
		picks[e.Service] += int(e.Picks)
		failed[e.Service] += int(e.Failed)
		if e.PicksOut != 0 || e.Open != 0 || e.Picks != uint64(e.Records) || e.PicksIPv6 == 0 || e.PicksIPv6 >= e.Picks {
			t.Errorf("%s: %+v", e.Endpoint, e)
		}
	}
	if len(rows) != 8 {
		t.Fatalf("%d endpoints, want 8", len(rows))
	}
	for _, service := range []string{"demo/api", "demo/flaky"} {
		web := clients["web"][service]
		if web.Dialled != picks[service] || web.Refused() != failed[service] || web.Answered()+web.Refused()+web.Cut != web.Dialled {
			t.Errorf("%s: %d picks and %d failed, the client says %+v", service, picks[service], failed[service], web)
		}
	}
	// Near ones until they went away, then the far one, which never failed. Ejected once, after three failures.
	api := clients["web"]["demo/api"]
	for _, near := range []string{"demo/api-near-1", "demo/api-near-2"} {
		if e := rows[near]; e.Share != 0 || e.Ejections != 1 || e.Failed < 3 || int(e.Picks-e.Failed) < api.Answers[near] || api.Answers[near] == 0 {
			t.Errorf("%+v", e)
		}
	}
	if far := rows["demo/api-far-1"]; far.Share != 1 || far.Failed != 0 || int(far.Picks) != api.Answers["demo/api-far-1"] || far.Ejections != 0 {
		t.Errorf("%+v", far)
	}
	if out := rows["demo/flaky-3"]; out.Failed != out.Picks || out.Picks < 3*out.Ejections || out.Ejections == 0 {
		t.Errorf("%+v", out)
	}
	// The two others take turns. Without a turn for it, or with, they differ by one for each change at most, over either family.
	one, two := int(rows["demo/flaky-1"].Picks), int(rows["demo/flaky-2"].Picks)
	if changes := 2 * (2*int(rows["demo/flaky-3"].Ejections) + 1); one-two > changes || two-one > changes {
		t.Errorf("%d connects to one and %d to the other, after %d changes of tables", one, two, changes)
	}
	ejected, back := 0, 0
	for _, s := range report.Mesh.Steps {
		if s.Endpoint == "demo/flaky-3" && s.What == "endpoint ejected" {
			ejected++
		} else if s.Endpoint == "demo/flaky-3" {
			back++
		}
	}
	if ejected != int(rows["demo/flaky-3"].Ejections) || back == 0 {
		t.Errorf("the log has %d ejections and %d returns: %+v", ejected, back, report.Mesh.Steps)
	}
}

func checkDemoRefusals(t *testing.T, report *demoReport) {
	t.Helper()
	clients := report.Mesh.Clients
	intruder, web := clients["intruder"]["demo/shop"], clients["web"]["demo/shop"]
	if n := intruder.Dialled; n == 0 || len(intruder.Answers) != 0 || !maps.Equal(intruder.Errors, only("EPERM", n)) {
		t.Errorf("the intruder: %+v", intruder)
	}
	if !maps.Equal(web.Answers, only("demo/shop-1", web.Dialled)) {
		t.Errorf("somebody else: %+v", web)
	}
	denied := 0
	for _, p := range report.Mesh.Policies {
		switch {
		case p.Verdict == "deny" && p.Policy == "demo/no-intruders" && p.Rule == 0 && p.Kernel == uint64(p.Records):
			denied += p.Records
		case p.Verdict != "allow" || p.Policy != "" || p.Records != web.Dialled:
			t.Errorf("%+v", p)
		}
	}
	greedy := clients["greedy"]["demo/narrow"]
	refused := greedy.Rounds * 4
	if greedy.Rounds < 2 || greedy.FewestHeld != 8 || greedy.MostHeld != 8 || !maps.Equal(greedy.Errors, only(refusalErrno(), refused)) ||
		!maps.Equal(greedy.Answers, only("demo/narrow-1", greedy.Rounds*8)) {
		t.Errorf("the greedy one: %+v", greedy)
	}
	want := demo.LimitRow{Limit: "service demo/narrow", Bound: 8, MostOpen: 8, Rejected: uint64(refused), Records: refused}
	if len(report.Mesh.Limits) != 1 || report.Mesh.Limits[0] != want {
		t.Errorf("limits %+v, want %+v", report.Mesh.Limits, want)
	}
	if n := report.Account.Kernel.Refused["client"]; denied != intruder.Dialled || n != uint64(denied+refused) {
		t.Errorf("%d denied and %d refused by a limit, the kernel has refused %d", denied, refused, n)
	}
}

// TestDemoMeshShort gives it too little time, less than to the first look at it: what is missing is told, and the exit code is 1.
func TestDemoMeshShort(t *testing.T) {
	needRoot(t)
	cmd := demoProgram(t, "--mesh", "--duration", "40ms")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Fatalf("%v, want exit code 1\n%s", err, out)
	}
	if text := string(out); !strings.Contains(text, "not seen as it should be: failover") || !strings.Contains(text, "The account closes") {
		t.Errorf("it says %s", text)
	}
	wantNothingLeft(t, cmd)
}

// TestDemoMeshInterrupted presses Ctrl-C, before much is there and while all runs: what there was no time for is no fault.
func TestDemoMeshInterrupted(t *testing.T) {
	needRoot(t)
	for name, until := range map[string]string{"while it begins": "cgroup.controllers", "while it runs": "cgroup.procs"} {
		t.Run(name, func(t *testing.T) {
			cmd := demoProgram(t, "--mesh", "--duration", "10m")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			root, err := datapath.OpenCgroup("")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(root.Dir, "sidelight-demo-"+itoa(cmd.Process.Pid), "greedy.service", until)
			eventually(t, "the demo", func() error {
				text, err := os.ReadFile(file)
				if err == nil && until == "cgroup.procs" && len(text) == 0 {
					return errors.New("no client runs")
				}
				return err
			})
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			killer := time.AfterFunc(patiently(t, 20*time.Second), func() { _ = cmd.Process.Kill() })
			defer killer.Stop()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, &out)
			}
			wantNothingLeft(t, cmd)
		})
	}
}
