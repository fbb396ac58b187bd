package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// settle waits until connects are answered as wanted, from some moment on.
func (w *meshWorld) settle(what string, c *meshCaller, o meshOrder, good func(meshTally) bool) {
	w.t.Helper()
	eventually(w.t, what, func() error {
		if got := c.do(o); !good(got) {
			return fmt.Errorf("answers %v and errors %v", got.Answers, got.Errors)
		}
		return nil
	})
}

func all(answer string) func(meshTally) bool {
	return func(got meshTally) bool {
		return len(got.Errors) == 0 && len(got.Answers) == 1 && got.Answers[answer] > 0
	}
}

const nodeYAML = "mesh: {locality: {region: r1, zone: z1, node: n1}}"

// TestMeshLocality has endpoints near and far: the nearest that can be had, and with strict none but the near.
func TestMeshLocality(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2), serverV4(3), serverV4(4))
	places := []string{"{region: r1, zone: z1, node: n1}", "{region: r1, zone: z1, node: n2}", "{region: r1, zone: z2}", "{region: r2}"}
	mesh := func(ill int) string {
		endpoints := func(service string) string {
			var specs []string
			for i, place := range places {
				spec := ", locality: " + place
				if i < ill {
					spec += ", health: unhealthy"
				}
				specs = append(specs, spec)
			}
			return endpointsYAML(service, specs...)
		}
		return serviceYAML("near", 1, ", loadBalancing: {policy: roundRobin, locality: failover}") + endpoints("near") +
			serviceYAML("zone", 2, ", loadBalancing: {policy: roundRobin, locality: strict, scope: zone}") + endpoints("zone") +
			serviceYAML("node", 3, ", loadBalancing: {policy: roundRobin, locality: strict, scope: node}") + endpoints("node") +
			serviceYAML("anywhere", 4, ", loadBalancing: {policy: roundRobin}") + endpoints("anywhere")
	}
	w.run(mesh(0), nodeYAML)
	c := w.client("client")
	refused := only("ECONNREFUSED", 4)
	for ill, want := range []struct{ near, zone, node, anywhere, zoneErrs, nodeErrs map[string]int }{
		{only(serverV4(1), 4), only(serverV4(1), 2, serverV4(2), 2), only(serverV4(1), 4), only(serverV4(1), 1, serverV4(2), 1, serverV4(3), 1, serverV4(4), 1), nil, nil},
		{only(serverV4(2), 4), only(serverV4(2), 4), nil, nil, nil, refused},
		{only(serverV4(3), 4), nil, nil, only(serverV4(3), 2, serverV4(4), 2), refused, refused},
		{only(serverV4(4), 4), nil, nil, only(serverV4(4), 4), refused, refused},
	} {
		if ill > 0 {
			w.change(mesh(ill))
		}
		dial := func(service int) meshTally { return c.do(meshOrder{To: to(serviceV4(service), 80), Count: 4}) }
		w.expect(fmt.Sprintf("failover, %d ill", ill), dial(1), want.near, nil)
		w.expect(fmt.Sprintf("strict zone, %d ill", ill), dial(2), want.zone, want.zoneErrs)
		w.expect(fmt.Sprintf("strict node, %d ill", ill), dial(3), want.node, want.nodeErrs)
		if want.anywhere != nil {
			w.expect(fmt.Sprintf("anywhere, %d ill", ill), dial(4), want.anywhere, nil)
		}
	}
	w.finish()
}

// TestMeshPriority lets the lowest priority with a healthy endpoint serve.
func TestMeshPriority(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2))
	w.run(serviceYAML("shop", 1, "") + endpointsYAML("shop", ", priority: 1", ", priority: 0"))
	c := w.client("client")
	w.expect("both healthy", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 10}), only(serverV4(2), 10), nil)
	w.change(serviceYAML("shop", 1, "") + endpointsYAML("shop", ", priority: 1", ", priority: 0, health: unhealthy"))
	w.expect("the first ill", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 10}), only(serverV4(1), 10), nil)
	w.finish()
}

// TestMeshOutliers has an endpoint that nobody listens at: it is ejected after so many failures, and comes back.
func TestMeshOutliers(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	servers := w.servers("server", serverV4(1), serverV4(2))
	w.run(serviceYAML("shop", 1, fmt.Sprintf(", loadBalancing: {policy: roundRobin}, outlierDetection: {consecutiveFailures: 5, baseEjectionTime: %v, maxEjectionPercent: 50}",
		stretched(2*time.Second))) +
		endpointsYAML("shop", "", "", ""))
	c := w.client("client")
	// Of three endpoints one may be out. Its turns fail until the fifth in a row has been heard of, and never after it.
	failures := 0
	eventually(t, "the ejection", func() error {
		got := c.do(meshOrder{To: to(serviceV4(1), 80), Count: 3})
		failures += got.Errors["ECONNREFUSED"]
		if len(got.Errors) > 0 {
			return fmt.Errorf("errors %v", got.Errors)
		}
		return nil
	})
	if failures < 5 {
		t.Errorf("ejected after %d failures, want 5 or more", failures)
	}
	report, err := fetchMesh(t.Context(), w.state)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(report.Out, map[string]string{"demo/shop-3": "outlier"}) {
		t.Errorf("out of service: %v", report.Out)
	}
	w.expect("without it", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 100}), only(serverV4(1), 50, serverV4(2), 50), nil)
	// It listens again; the time of its ejection goes by.
	servers.say("listen " + serverV4(3))
	w.settle("the endpoint to come back", c, meshOrder{To: to(serviceV4(1), 80), Count: 3}, func(got meshTally) bool {
		return got.Answers[serverV4(3)] == 1 && len(got.Errors) == 0
	})
	w.finish()
}

// TestMeshHealthChecks takes out who does not answer, before anybody has to find out.
func TestMeshHealthChecks(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	// The endpoints have to be where the agent is.
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	w.ns = here
	servers := w.servers("server", serverV4(1), serverV4(2))
	w.run(serviceYAML("shop", 1, fmt.Sprintf(", loadBalancing: {policy: roundRobin}, healthCheck: {interval: 50ms, timeout: %v, unhealthyThreshold: 2, healthyThreshold: 2}",
		patiently(t, time.Second))) +
		strings.NewReplacer(`, "fd00::1"`, "", `, "fd00::2"`, "").Replace(endpointsYAML("shop", "", "")))
	c := w.client("client")
	w.expect("both listen", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 10}), only(serverV4(1), 5, serverV4(2), 5), nil)
	servers.say("close " + serverV4(2))
	w.settle("the one that left to be out", c, meshOrder{To: to(serviceV4(1), 80), Count: 10}, all(serverV4(1)))
	w.expect("only one listens", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 100}), only(serverV4(1), 100), nil)
	servers.say("listen " + serverV4(2))
	w.settle("it to be back", c, meshOrder{To: to(serviceV4(1), 80), Count: 10}, func(got meshTally) bool { return got.Answers[serverV4(2)] == 5 })
	w.finish()
}

// TestMeshDraining removes an endpoint: no new connections, and old ones as long as they may.
func TestMeshDraining(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2))
	forever := serviceYAML("forever", 1, ", loadBalancing: {policy: roundRobin}")
	short := serviceYAML("short", 2, ", loadBalancing: {policy: roundRobin}, drainTimeout: 1s")
	w.run(forever + endpointsYAML("forever", "", "") + short + endpointsYAML("short", "", ""))
	stays, goes := w.client("client"), w.client("client")
	for service, c := range map[int]*meshCaller{1: stays, 2: goes} {
		w.expect("at first", c.do(meshOrder{To: to(serviceV4(service), 80), Count: 20, Hold: true}), only(serverV4(1), 10, serverV4(2), 10), nil)
	}
	w.change(forever + endpointsYAML("forever", "") + short + endpointsYAML("short", ""))
	for service, c := range map[int]*meshCaller{1: stays, 2: goes} {
		w.expect("without it", c.do(meshOrder{To: to(serviceV4(service), 80), Count: 20, Hold: true}), only(serverV4(1), 20), nil)
	}
	canCut := kernelCuts()
	eventually(t, "connections to drain", func() error {
		report, err := fetchMesh(t.Context(), w.state)
		if err != nil {
			return err
		}
		left := make(map[string]uint64)
		for _, d := range report.Draining {
			left[d.Endpoint.String()] = d.Open
		}
		want := map[string]uint64{"demo/forever-2": 10}
		if !canCut {
			want["demo/short-2"] = 10
		}
		if !maps.Equal(left, want) {
			return fmt.Errorf("draining: %v, want %v", left, want)
		}
		return nil
	})
	if got := stays.do(meshOrder{Release: true}); got.Cut != 0 {
		t.Errorf("%d connections were cut that may end by themselves", got.Cut)
	}
	want := 0
	if canCut {
		want = 10
	}
	if got := goes.do(meshOrder{Release: true}); got.Cut != want {
		t.Errorf("%d connections were cut, want %d", got.Cut, want)
	}
	w.finish()
}

// TestMeshReload writes what is no mesh: the last good one stays in force, and it is said what is wrong.
func TestMeshReload(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2))
	w.run(serviceYAML("shop", 1, "") + endpointsYAML("shop", ""))
	c := w.client("client")
	for i, bad := range []string{"kind: [", serviceYAML("shop", 1, ", waypoint: demo/shop"), endpointsYAML("nothing", ""), ""} {
		w.write(bad)
		eventually(t, "a refusal", func() error {
			report, err := fetchMesh(t.Context(), w.state)
			if err != nil {
				return err
			}
			if report.Source.Rejected != uint64(i+1) || !strings.HasPrefix(report.Source.LastError, w.file) || report.Generation != 1 {
				return fmt.Errorf("%+v, generation %d", report.Source, report.Generation)
			}
			return nil
		})
		w.expect("the last good mesh", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 5}), only(serverV4(1), 5), nil)
	}
	w.change(serviceYAML("shop", 1, "") + strings.ReplaceAll(endpointsYAML("shop", ""), "127.0.1.1", "127.0.1.2"))
	w.expect("a good one", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 5}), only(serverV4(2), 5), nil)
	w.finish()
}

// TestMeshCgroupsLater enrols a workload whose cgroup is made after the mesh, and made anew.
func TestMeshCgroupsLater(t *testing.T) {
	w := newMeshWorld(t, "shop")
	w.servers("shop", serverV4(1))
	w.run(shopMesh(policyYAML("p", ofShop+"action: DENY, rules: [{from: [{source: {identities: [web]}}]}]")))
	for range 2 {
		dir := w.dir("web")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c := startMeshClient(t, w.ns, dir)
		w.settle("the cgroup to be enrolled", c, meshOrder{To: netip.MustParseAddrPort(serverV4(1)), Count: 1}, func(got meshTally) bool {
			return got.Errors["EPERM"] == 1
		})
		_ = c.Process.Kill()
		_ = c.Wait()
		if err := lab.RemoveCgroup(dir); err != nil {
			t.Fatal(err)
		}
	}
	w.finish()
}

// TestMeshHammer changes endpoints and policies under 64 clients: no wrong backend, no wrong verdict, no error that the mesh does not explain.
func TestMeshHammer(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop")
	var addresses []string
	for i := range 8 {
		addresses = append(addresses, serverV4(i+1))
	}
	w.servers("shop", addresses...)
	random := rand.New(rand.NewPCG(1, 2))
	// Service a has endpoints 1 to 4, b has 5 to 8; of each some, and never none. The policy varies in what does not matter to web and rogue.
	mesh := func() string {
		var b strings.Builder
		b.WriteString(workloadYAML("web", "web") + workloadYAML("rogue", "rogue") + workloadYAML("shop", "shop", "127.0.1.1", "127.0.1.2", "127.0.1.3",
			"127.0.1.4", "127.0.1.5", "127.0.1.6", "127.0.1.7", "127.0.1.8"))
		for s, name := range []string{"a", "b"} {
			policy := []string{"random", "roundRobin", "leastConnections", "maglev"}[random.IntN(4)]
			b.WriteString(serviceYAML(name, s+1, ", loadBalancing: {policy: "+policy+"}"))
			always := random.IntN(4)
			for i := range 4 {
				if i == always || random.IntN(2) == 0 {
					fmt.Fprintf(&b, "---\napiVersion: sidelight.io/v1alpha1\nkind: Endpoint\nmetadata: {name: %s-%d, namespace: demo}\nspec: {service: %s, workload: shop, addresses: [127.0.1.%d], weight: %d}\n",
						name, i, name, 4*s+i+1, 1+random.IntN(5))
				}
			}
		}
		switch random.IntN(3) {
		case 0:
			b.WriteString(policyYAML("p", ofShop+"rules: [{from: [{source: {identities: [web]}}]}]"))
		case 1:
			b.WriteString(policyYAML("p", ofShop+"action: DENY, rules: [{from: [{source: {identities: [rogue]}}]}]"))
		case 2:
			fmt.Fprintf(&b, "%s", policyYAML("p", fmt.Sprintf(ofShop+"rules: [{from: [{source: {identities: [web], notIpBlocks: [10.%d.0.0/16]}}], to: [{operation: {ports: [\"8080\"]}}]}]", random.IntN(250))))
		}
		return b.String()
	}
	w.run(mesh())
	const clients = 8
	lasts := 6 * time.Second
	var callers []*meshCaller
	for i := range clients {
		who, pause := "web", time.Duration(0)
		if i%4 == 3 {
			who, pause = "rogue", time.Millisecond // a refusal costs so little that all of them would be more than the log takes
		}
		c := w.client(who)
		c.begin(meshOrder{To: to(serviceV4(i%2+1), 80), Workers: 8, For: lasts, Pause: pause})
		callers = append(callers, c)
	}
	changes := 0
	for end := time.Now().Add(lasts - time.Second); time.Now().Before(end); changes++ {
		w.change(mesh())
	}
	total, denied := 0, 0
	var mu sync.Mutex
	for i, c := range callers {
		got := c.end()
		mu.Lock()
		if i%4 == 3 {
			if len(got.Answers) != 0 || len(got.Errors) != 1 || got.Errors["EPERM"] == 0 {
				t.Errorf("rogue %d: answers %v, errors %v, want nothing but EPERM", i, got.Answers, got.Errors)
			}
			denied += got.Errors["EPERM"]
		} else {
			if len(got.Errors) != 0 {
				t.Errorf("web %d: errors %v", i, got.Errors)
			}
			for name, n := range got.Answers {
				total += n
				var address int
				if _, err := fmt.Sscanf(name, "127.0.1.%d:8080", &address); err != nil || (address-1)/4 != i%2 {
					t.Errorf("web %d was answered %d times by %s, which is none of its service", i, n, name)
				}
			}
		}
		mu.Unlock()
	}
	t.Logf("%d connections and %d refusals over %d changes", total, denied, changes)
	if total < 1000 || denied < 1000 || changes < 5 {
		if !emulatedMachine() {
			t.Errorf("%d connections, %d refusals and %d changes are too few to say anything", total, denied, changes)
		}
	}
	w.idle()
	w.agent.waitClosed()
	report := w.agent.audit()
	w.finish()
	lines := make(map[string]int)
	for _, l := range readLog[meshLine](t, w.agent.Access) {
		if l.Role != "client" {
			continue
		}
		switch l.Reason {
		case "ok", "denied":
		default:
			t.Errorf("a line says %s: %+v", l.Reason, l)
		}
		lines[l.Reason]++
		if l.Service != "" && !strings.HasPrefix(l.Backend, l.Service+"-") {
			t.Errorf("%s was sent to %s", l.Service, l.Backend)
		}
	}
	lost := report.Kernel.ReserveFailed["close"] + report.AccessLog.Dropped
	if lines["ok"] > total || lines["denied"] > denied || (lost == 0 && (lines["ok"] != total || lines["denied"] != denied)) {
		t.Errorf("lines %v with %d lost, want %d and %d", lines, lost, total, denied)
	}
}

func kernelCuts() bool { return haveKernelFunction("bpf_sock_destroy") }

// haveKernelFunction reads the kernel's list of symbols.
func haveKernelFunction(name string) bool {
	text, err := os.ReadFile("/proc/kallsyms")
	return err == nil && strings.Contains(string(text), " "+name+"\n")
}
