package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Files below the root of the machine, or of the directory that stands in for it on the running kernel.
const (
	testProgram   = "bin/sidelight"
	otherLayout   = "bin/sidelight-other-layout" // whose maps are not those of testProgram
	liveTests     = "test/sidelight.test"
	datapathTests = "test/datapath.test"
)

// emulated is the factor for the deadlines of tests under emulation.
const emulated = 10

// step is one program to run, and the tests that it is to pass.
type step struct {
	program string
	args    []string
	env     []string
	tests   []string
}

// guestSteps are those of a virtual machine.
var guestSteps = steps(emulated)

// steps lists what runs on each kernel. Tests that need a program that a bare machine lacks (nginx, wrk, curl, setpriv, go) stay
// where they are: in make test, on the running kernel.
func steps(patience int) []step {
	all := []step{
		{program: testProgram, args: []string{"check"}},
		{program: datapathTests, tests: []string{"TestVerifierCounts", "TestPrivileges"}},
		{program: liveTests, tests: []string{
			"TestConnections", "TestServerBeforeAgent", "TestAdoption", "TestAdoptionConnecting", "TestFirstBytes", "TestOutside", "TestSweep",
			"TestLoss", "TestLossWithoutRoom", "TestAudit", "TestExport", "TestTracesJoin", "TestTraceOptionOfThatConnection", "TestTraceOptionBesideOthers", "TestOTelConfig", "TestRotation", "TestEndpoints",
			"TestDemo", "TestDemoInterrupted", "TestBPFFS", "TestRecord", "TestRecordBesideRun", "TestStopIsNotHeldUp", "TestEvents", "TestTruth", "TestTruthAttach",
			"TestTruthBare", "TestBareListener", "TestAsleep", "TestConnect", "TestHalfClose", "TestTimeWait", "TestListen", "TestOwner", "TestCut", "TestUnreachable",
			"TestFastOpen", "TestMPTCP", "TestLongStream", "TestReasonOfOrderlyEnds",
			"TestMeshServices", "TestMeshBalancers", "TestMeshLimits", "TestMeshLeaks", "TestMeshPolicies", "TestMeshRevocation", "TestMeshHostile",
			"TestMeshBypass", "TestMeshLocality", "TestMeshPriority", "TestMeshOutliers", "TestMeshHealthChecks", "TestMeshDraining", "TestMeshReload",
			"TestMeshCgroupsLater", "TestMeshHammer", "TestMeshListeners", "TestMeshRivals", "TestMeshSums", "TestMeshConnecting",
			"TestMeshNowhere", "TestMeshIdentityUnderWay", "TestMeshPortUsedAgain", "TestMeshListenersTaken", "TestMeshLeaksOfMemory", "TestMeshAllowedStays",
			"TestRestart", "TestRestartAfterOverflow", "TestSince", "TestRestartWithoutBackend", "TestMeshRestarts", "TestMeshEjectionsLast", "TestRingChanges", "TestLayoutChangeHolds", "TestLayoutChangeOfMesh", "TestLayoutChangeSums", "TestLayoutChangeAdopted", "TestLayoutChangeVerdicts", "TestPinFaults", "TestPinReadOnly", "TestFailClosed",
		}, env: []string{"SIDELIGHT_TEST_PATIENCE=" + strconv.Itoa(patience)}},
	}
	for i, s := range all {
		if s.tests != nil {
			all[i].args = []string{"-test.v", "-test.timeout", "50m", "-test.run", "^(" + strings.Join(s.tests, "|") + ")$"}
		}
	}
	return all
}

// runSteps runs all of them, whatever fails.
func runSteps(ctx context.Context, root string, all []step, out io.Writer) error {
	failed := 0
	for _, s := range all {
		cmd := exec.CommandContext(ctx, filepath.Join(root, s.program), s.args...)
		cmd.Env = append(append(os.Environ(), "SIDELIGHT_TEST_PROGRAM="+filepath.Join(root, testProgram), "SIDELIGHT_TEST_OTHER_LAYOUT="+filepath.Join(root, otherLayout)), s.env...)
		cmd.Dir = os.TempDir()
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintf(out, "%s: %v\n", s.program, err)
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d programs failed", failed, len(all))
	}
	return nil
}

// console keeps what a machine says, in memory and in a file.
type console struct {
	mu   sync.Mutex
	file io.Writer
	text bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	return c.file.Write(p)
}

// result is what the console tells of the tests.
type result struct {
	counts         counts
	passed, failed []string // names of tests, the passed ones with the time that they took
}

// A console ends lines its own way. Subtests are indented, and part of their test.
var (
	verifierLine = regexp.MustCompile(`(?m)^verifier: (\w+) (\d+)\r?$`)
	testLine     = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+) (\(.*\))\r?$`)
)

func (c *console) result() result {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := result{counts: make(counts)}
	text := c.text.String()
	for _, m := range verifierLine.FindAllStringSubmatch(text, -1) {
		r.counts[m[1]], _ = strconv.Atoi(m[2])
	}
	for _, m := range testLine.FindAllStringSubmatch(text, -1) {
		switch m[1] {
		case "PASS":
			r.passed = append(r.passed, m[2]+" "+m[3])
		case "FAIL":
			r.failed = append(r.failed, m[2]+" "+m[3])
		case "SKIP":
			r.failed = append(r.failed, m[2]+" was skipped")
		}
	}
	return r
}

// missing names the tests that failed, were skipped, or were never heard of.
func (r result) missing(all []step) []string {
	has := func(list []string, test string) bool {
		for _, line := range list {
			if strings.HasPrefix(line, test+" ") {
				return true
			}
		}
		return false
	}
	faults := slices.Clone(r.failed)
	for _, s := range all {
		for _, test := range s.tests {
			if !has(r.passed, test) && !has(r.failed, test) {
				faults = append(faults, test+" has no result")
			}
		}
	}
	return faults
}
