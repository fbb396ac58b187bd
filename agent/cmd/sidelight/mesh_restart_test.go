package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// restartMesh has a policy that lets web in and rogue not. In each edition everybody has another identity, which only the editions beside it know.
func restartMesh(edition int) string {
	mesh := shopMesh(policyYAML("allow", ofShop+fmt.Sprintf("rules: [{from: [{source: {identities: [web%d, web%d, web%d]}}]}]", edition-1, edition, edition+1)))
	for _, name := range []string{"web", "rogue", "shop"} {
		mesh = strings.Replace(mesh, "identity: "+name, fmt.Sprintf("identity: %s%d", name, edition), 1)
	}
	return mesh
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

// both lets web and rogue connect at a steady rate while f goes on, and a little longer, and checks every connect.
func (w *restartWorld) both(f func()) {
	t := w.web.t
	t.Helper()
	to, until := w.service(), filepath.Join(t.TempDir(), "end")
	w.web.begin(meshOrder{To: to, Workers: 32, Until: until, Pause: 20 * time.Millisecond})
	w.rogue.begin(meshOrder{To: to, Workers: 2, Until: until, Pause: 5 * time.Millisecond})
	f()
	after := time.AfterFunc(500*time.Millisecond, func() {
		if err := os.WriteFile(until, nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	defer after.Stop()
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
	// While more than a quarter of the ring is unread, refusals are told as sums.
	want := 2*w.made + w.denied - int(r.Kernel.Aggregated+r.Kernel.Totalled)
	w.linesOnce(want)
}

// finish checks, wants nothing held and no drift, and stops the agent: what is pinned stays.
func (w *restartWorld) finish() {
	t := w.web.t
	t.Helper()
	w.check()
	w.state = filepath.Join(filepath.Dir(w.access), "state")
	w.idle()
	w.dump()
	w.stop()
	if _, err := os.Stat(w.pins); err != nil {
		t.Errorf("what is pinned: %v", err)
	}
}

// TestMeshRestarts starts, stops, kills and replaces agents under load in random order: no connect fails that should not, nobody gets through who should
// not, and everything is counted and logged once.
func TestMeshRestarts(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	ways := []string{"stop", "kill", "takeover", "kill, renamed", "stop, renamed", "other ring"}
	var other, bad, otherLayout, badLayout string
	rounds := len(ways) // a machine of the kernel matrix is slow: each way once
	if hasSource() {
		ways = append(ways, "upgrade", "rollback", "other layout", "other layout, killed", "other layout, takeover", "other layout, unready", "other layout, renamed")
		other, bad = buildWith(t, "sidelight_other_programs"), buildWith(t, "sidelight_unready,sidelight_other_programs")
		otherLayout, badLayout = otherLayoutProgram(t), buildWith(t, "sidelight_unready,sidelight_other_layout")
		rounds = 26
	}
	if n, err := strconv.Atoi(os.Getenv("SIDELIGHT_TEST_RESTARTS")); err == nil {
		rounds = n
	}
	ring := ringConfig(t, 1<<20)
	w.restart()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	edition := 0
	rename := func() {
		edition++
		w.write(restartMesh(edition))
	}
	var next []string
	for range rounds {
		if len(next) == 0 { // each of them, in random order
			next = slices.Clone(ways)
			random.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		}
		way := next[0]
		next = next[1:]
		t.Logf("%s after %d connections and %d refusals", way, w.made, w.denied)
		// A log that is behind by more than half of the ring has lost what is beyond that if its agent is killed (event.chain.most): on a slow machine it still
		// writes what came while there was no agent the last time.
		eventually(t, "the log to be written", func() error {
			if n := w.audit().AccessLog.Waiting; n > 0 {
				return fmt.Errorf("%d lines wait", n)
			}
			return nil
		})
		w.both(func() {
			switch way {
			case "upgrade":
				w.stop()
				w.startOf(other)
			case "other layout", "other layout, renamed": // the next way, whatever it is, goes back from there
				w.stop()
				if way == "other layout, renamed" {
					rename()
				}
				w.startOf(otherLayout)
			case "other layout, killed":
				w.kill()
				w.startOf(otherLayout)
				w.kill()
				w.restart()
				w.kill()
				w.startOf(otherLayout)
			case "other layout, takeover":
				before := w.lasting.agent
				w.startOf(otherLayout, "--takeover")
				if err := before.cmd.Wait(); err != nil {
					t.Errorf("the agent that handed over: %v", err)
				}
			case "rollback":
				w.stop()
				w.restart() // with maps as those of the version that does not work
				w.stop()
				before := w.programs()
				w.fails(bad, putBackAgain)
				if after := w.programs(); !maps.Equal(before, after) {
					t.Errorf("programs were %v and are %v", before, after)
				}
				w.restart()
			case "other layout, unready":
				w.stop()
				w.restart()
				w.stop()
				w.fails(badLayout, noWayBack)
				w.restart()
			case "stop", "stop, renamed":
				w.stop()
				if way == "stop, renamed" {
					rename()
				}
				w.restart()
			case "kill", "kill, renamed":
				w.kill()
				if way == "kill, renamed" {
					rename()
				}
				w.restart()
			case "other ring": // and back again, while the old one is full of what came meanwhile
				w.kill()
				w.startOf(program, "--config", ring)
				w.stop()
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
	w.finish()
}

// TestRollback starts a version that does not work: the programs before it are put back, and the next agent goes on.
func TestRollback(t *testing.T) {
	w := newRestartWorld(t, restartMesh(0))
	bad := buildWith(t, "sidelight_unready")
	w.restart()
	w.stop()
	before := w.programs()
	w.both(func() {
		w.fails(bad, putBackAgain)
	})
	if after := w.programs(); !maps.Equal(before, after) || len(after) < 8 {
		t.Errorf("programs were %v and are %v", before, after)
	}
	w.restart()
	if after := w.programs(); maps.Equal(before, after) {
		t.Errorf("programs are still %v", after)
	}
	w.both(func() {})
	w.check()
}

// TestMeshEjectionsLast ejects an endpoint that fails: it stays out without an agent, and with the next ones.
func TestMeshEjectionsLast(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2))
	w.write(serviceYAML("shop", 1, ", loadBalancing: {policy: roundRobin}, outlierDetection: {consecutiveFailures: 5, baseEjectionTime: 1h, maxEjectionPercent: 50}") +
		endpointsYAML("shop", "", "", ""))
	l := newLasting(t, w.cgroup, "--mesh", w.file)
	l.restart()
	w.agent = l.agent
	c := w.client("client")
	eventually(t, "the ejection", func() error {
		if got := c.do(meshOrder{To: to(serviceV4(1), 80), Count: 3}); len(got.Errors) > 0 {
			return fmt.Errorf("errors %v", got.Errors)
		}
		return nil
	})
	still := func(when string) {
		t.Helper()
		w.expect(when, c.do(meshOrder{To: to(serviceV4(1), 80), Count: 100}), only(serverV4(1), 50, serverV4(2), 50), nil)
	}
	still("with the agent that ejected it")
	l.stop()
	still("without an agent")
	l.restart()
	still("with another one")
	l.kill()
	l.restart()
	still("with one after another that was killed")
	report, err := fetchMesh(t.Context(), filepath.Join(filepath.Dir(l.access), "state"))
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(report.Out, map[string]string{"demo/shop-3": "outlier"}) {
		t.Errorf("out of service: %v", report.Out)
	}
	l.stop()
}

// TestDecisionsLast has the count of decisions go on with the next agent, which reads what was decided without one.
func TestDecisionsLast(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1))
	w.write(serviceYAML("shop", 1, "") + endpointsYAML("shop", ""))
	l := newLasting(t, w.cgroup, "--mesh", w.file)
	l.restart()
	c := w.client("client")
	connect := func(n int) {
		t.Helper()
		w.expect("the client", c.do(meshOrder{To: to(serviceV4(1), 80), Count: n}), only(serverV4(1), n), nil)
	}
	want := func(when string, n uint64) {
		t.Helper()
		eventually(t, when, l.wants(map[string]uint64{decisionDuration + "_count": n, decisionDuration + `_bucket{le="+Inf"}`: n}))
	}
	connect(20)
	want("with one agent", 20)
	l.stop()
	connect(30)
	l.restart()
	want("with the next one", 50)
	connect(5)
	want("with more", 55)
	l.stop()
}
