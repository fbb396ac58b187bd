package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// restartMesh has services with a limit that nobody reaches, and a policy that lets web in and rogue not.
func restartMesh() string {
	return shopMesh(policyYAML("allow", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]"))
}

// restartWorld is a mesh under load, whose agent comes and goes.
type restartWorld struct {
	*meshWorld
	*lasting
	web, rogue *meshCaller
	made       int // connections of web that are done
	denied     int
}

func newRestartWorld(t *testing.T, mesh string) *restartWorld {
	t.Helper()
	w := newMeshWorld(t, "web", "rogue", "shop")
	w.write(mesh)
	w.servers("shop", serverV4(1), serverV6(1))
	l := newLasting(t, w.cgroup, "--mesh", w.file)
	return &restartWorld{meshWorld: w, lasting: l, web: w.client("web"), rogue: w.client("rogue")}
}

func (w *restartWorld) service() netip.AddrPort { return netip.MustParseAddrPort(serviceV4(1) + ":80") }

// both lets web and rogue connect at a steady rate for as long as f takes, and checks every connect.
func (w *restartWorld) both(length time.Duration, f func()) {
	t := w.web.t
	t.Helper()
	to := w.service()
	w.web.begin(meshOrder{To: to, Workers: 32, For: length, Pause: 20 * time.Millisecond})
	w.rogue.begin(meshOrder{To: to, Workers: 2, For: length, Pause: 5 * time.Millisecond})
	f()
	web, rogue := w.web.end(), w.rogue.end()
	if len(web.Errors) > 0 || len(web.Answers) != 1 || web.Answers[serverV4(1)] == 0 {
		t.Errorf("web: %+v", web)
	}
	if len(rogue.Answers) > 0 || len(rogue.Errors) != 1 || rogue.Errors["EPERM"] == 0 {
		t.Errorf("rogue: %+v", rogue)
	}
	for _, n := range web.Answers {
		w.made += n
	}
	for _, n := range rogue.Errors {
		w.denied += n
	}
}

// check wants everything that ever happened in the account, and in the log once.
func (w *restartWorld) check() {
	t := w.web.t
	t.Helper()
	w.waitClosed()
	r := w.audit()
	if k := &r.Kernel; r.Unaccounted != 0 || k.Attempts != uint64(w.made+w.denied) || k.Closed["client"] != uint64(w.made) ||
		k.Closed["server"] != uint64(w.made) || k.Refused["client"] != uint64(w.denied) {
		t.Errorf("of %d connections and %d refusals: %+v", w.made, w.denied, r)
	}
	// While more than half of the ring waits, refusals are told as sums.
	want := 2*w.made + w.denied - int(r.Kernel.Aggregated+r.Kernel.Totalled)
	eventually(t, "all lines", func() error {
		lines := strings.Split(strings.TrimSpace(readFile(t, w.access)), "\n")
		if len(lines) < want {
			return fmt.Errorf("%d lines, want %d", len(lines), want)
		}
		seen := make(map[string]bool, len(lines))
		for _, line := range lines {
			_, uid, _ := strings.Cut(line, `"log.record.uid":"`)
			uid, _, _ = strings.Cut(uid, `"`)
			if uid == "" || seen[uid] {
				t.Fatalf("a second line of the uid %q, of %d: %s", uid, len(lines), line)
			}
			seen[uid] = true
		}
		if len(lines) != want {
			t.Fatalf("%d lines, want %d", len(lines), want)
		}
		return nil
	})
}

// TestMeshRestarts starts, stops, kills and replaces agents under load in random order: no connect fails that should not, nobody gets through who should
// not, and everything is counted and logged once.
func TestMeshRestarts(t *testing.T) {
	w := newRestartWorld(t, restartMesh())
	ways := []string{"stop", "kill", "takeover"}
	var other, bad string
	// A machine of the kernel matrix has no compiler, and is slow.
	rounds := 8
	if _, err := exec.LookPath("go"); err == nil {
		ways = append(ways, "upgrade", "rollback")
		other, bad = buildWith(t, "sidelight_other_programs"), buildWith(t, "sidelight_unready,sidelight_other_programs")
		rounds = 20
	}
	if n, err := strconv.Atoi(os.Getenv("SIDELIGHT_TEST_RESTARTS")); err == nil {
		rounds = n
	}
	w.restart()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range rounds {
		way := ways[random.IntN(len(ways))]
		t.Logf("%s after %d connections and %d refusals", way, w.made, w.denied)
		w.both(1500*time.Millisecond, func() {
			switch way {
			case "upgrade":
				w.stop()
				w.startOf(other)
			case "rollback":
				w.stop()
				before := w.programs()
				w.fails(bad)
				if after := w.programs(); !maps.Equal(before, after) {
					t.Errorf("programs were %v and are %v", before, after)
				}
				w.restart()
			case "stop":
				w.stop()
				w.restart()
			case "kill":
				w.kill()
				w.restart()
			case "takeover":
				before := w.lasting.agent
				w.startOf(program, "--takeover")
				if err := before.cmd.Wait(); err != nil {
					t.Errorf("the agent that handed over: %v", err)
				}
			}
		})
	}
	w.check()
	w.state = filepath.Join(filepath.Dir(w.access), "state")
	w.idle()
	w.dump()
	w.stop()
	if _, err := os.Stat(w.pins); err != nil {
		t.Errorf("what is pinned: %v", err)
	}
}
