package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
)

// meshWorld is one network namespace with addresses for servers, cgroups for who is in it, and an agent that steers them.
type meshWorld struct {
	t      *testing.T
	ns     netns.NsHandle
	cgroup string
	path   string // of the cgroup, below the root of cgroup v2
	file   string // the mesh
	state  string
	agent  *agent
	writes int
}

// The addresses of servers are on loopback; those of services nowhere.
func serverV4(n int) string  { return fmt.Sprintf("127.0.1.%d:8080", n) }
func serverV6(n int) string  { return fmt.Sprintf("[fd00::%d]:8080", n) }
func serviceV4(n int) string { return fmt.Sprintf("10.96.0.%d", n) }
func serviceV6(n int) string { return fmt.Sprintf("fd00:96::%d", n) }

func newMeshWorld(t *testing.T, cgroups ...string) *meshWorld {
	t.Helper()
	needRoot(t)
	w := &meshWorld{t: t, ns: newNamespace(t), cgroup: newCgroup(t, cgroups...)}
	w.path = "/" + filepath.Base(w.cgroup)
	dir := t.TempDir()
	w.file, w.state = filepath.Join(dir, "mesh.yaml"), filepath.Join(dir, "state")
	w.addresses("lo", "fd00::1/64", "fd00::2/64", "fd00::3/64", "fd00::4/64", "fd00::5/64")
	return w
}

func (w *meshWorld) addresses(device string, prefixes ...string) {
	w.t.Helper()
	h, err := netlink.NewHandleAt(w.ns, unix.NETLINK_ROUTE)
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(device)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range prefixes {
		prefix := netip.MustParsePrefix(p)
		if err := h.AddrAdd(l, &netlink.Addr{
			IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}, Flags: unix.IFA_F_NODAD,
		}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *meshWorld) dir(name string) string { return filepath.Join(w.cgroup, name) }

// servers starts one process that listens on all addresses.
func (w *meshWorld) servers(cgroup string, addresses ...string) *meshServers {
	w.t.Helper()
	return startMeshServers(w.t, w.ns, w.dir(cgroup), addresses...)
}

func (w *meshWorld) client(cgroup string) *meshCaller {
	w.t.Helper()
	return startMeshClient(w.t, w.ns, w.dir(cgroup))
}

// run starts the agent with a mesh, in which CGROUP stands for the world's cgroup.
func (w *meshWorld) run(mesh string, more ...string) {
	w.t.Helper()
	w.write(mesh)
	config := filepath.Join(w.t.TempDir(), "sidelight.yaml")
	writeFile(w.t, config, noBudget+"\nstate_directory: "+w.state+"\n"+strings.Join(more, "\n"))
	w.agent = startAgent(w.t, w.cgroup, "--config", config, "--mesh", w.file)
	w.writes = 1
}

func (w *meshWorld) write(mesh string) {
	w.t.Helper()
	next := w.file + ".next"
	writeFile(w.t, next, strings.ReplaceAll(mesh, "CGROUP", w.path))
	if err := os.Rename(next, w.file); err != nil {
		w.t.Fatal(err)
	}
}

// change puts another mesh in force.
func (w *meshWorld) change(mesh string) {
	w.t.Helper()
	w.write(mesh)
	w.writes++
	eventually(w.t, "a change of the mesh", func() error {
		text, _ := os.ReadFile(w.agent.log)
		if !strings.Contains(string(text), fmt.Sprintf("generation=%d ", w.writes)) {
			return fmt.Errorf("generation %d is not in force", w.writes)
		}
		return nil
	})
}

// dump asks as a user would, and wants no drift.
func (w *meshWorld) dump() string {
	w.t.Helper()
	out, err := exec.Command(program, "mesh", "dump", "--state-directory", w.state).CombinedOutput()
	if err != nil {
		w.t.Fatalf("mesh dump: %v\n%s", err, out)
	}
	return string(out)
}

// idle wants that nothing is held of any limit or backend any more.
func (w *meshWorld) idle() {
	w.t.Helper()
	eventually(w.t, "limits and backends to be free", func() error {
		report, err := fetchMesh(w.t.Context(), w.state)
		if err != nil {
			return err
		}
		for _, l := range report.Maps.Limits {
			if l.Counts.Open != 0 || l.Counts.Connecting != 0 {
				return fmt.Errorf("%s: %d open, %d connecting", l.Name, l.Counts.Open, l.Counts.Connecting)
			}
		}
		for _, b := range report.Maps.Backends {
			if b.Open != 0 {
				return fmt.Errorf("%s: %d open", b.Endpoint, b.Open)
			}
		}
		return nil
	})
}

// finish holds the account, the maps and the log against what is known of the test.
func (w *meshWorld) finish() {
	w.t.Helper()
	w.idle()
	w.agent.waitClosed()
	if report := w.agent.audit(); report.Unaccounted != 0 {
		w.t.Errorf("%d unaccounted: %+v", report.Unaccounted, report.Account)
	}
	w.dump()
	w.agent.stop()
}

func only(answers ...any) map[string]int {
	want := make(map[string]int)
	for i := 0; i < len(answers); i += 2 {
		want[answers[i].(string)] = answers[i+1].(int)
	}
	return want
}

func (w *meshWorld) expect(what string, got meshTally, answers, errs map[string]int) {
	w.t.Helper()
	if !maps.Equal(got.Answers, answers) || !maps.Equal(got.Errors, errs) {
		w.t.Errorf("%s: answers %v and errors %v, want %v and %v", what, got.Answers, got.Errors, answers, errs)
	}
}

func to(address string, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(address), uint16(port))
}

const shopYAML = `apiVersion: sidelight.io/v1alpha1
kind: Service
metadata: {name: shop, namespace: demo}
spec:
  addresses: [10.96.0.1, "fd00:96::1"]
  ports: [{name: http, port: 80, targetPort: 8080}]
  loadBalancing: {policy: roundRobin}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: shop-1, namespace: demo}
spec: {service: shop, addresses: [127.0.1.1, "fd00::1"]}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: shop-2, namespace: demo}
spec: {service: shop, addresses: [127.0.1.2, "fd00::2"]}
`

// TestMeshServices dials services over each family and sees who answers, and what getpeername says.
func TestMeshServices(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2), serverV6(1), serverV6(2), "127.0.1.3:7000", "127.0.1.3:7001")
	w.run(shopYAML + `---
apiVersion: sidelight.io/v1alpha1
kind: Service
metadata: {name: any, namespace: demo}
spec: {addresses: [10.96.0.2], ports: [{name: all, port: 0}]}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: any-1, namespace: demo}
spec: {service: any, addresses: [127.0.1.3]}
---
apiVersion: sidelight.io/v1alpha1
kind: Service
metadata: {name: empty, namespace: demo}
spec: {addresses: [10.96.0.3], ports: [{name: http, port: 80}]}
`)
	c := w.client("client")
	for _, test := range []struct {
		what    string
		order   meshOrder
		answers map[string]int
		errs    map[string]int
		peer    string
	}{
		{"IPv4", meshOrder{To: to("10.96.0.1", 80), Count: 10}, only(serverV4(1), 5, serverV4(2), 5), nil, "10.96.0.1:80"},
		{"IPv6", meshOrder{To: to("fd00:96::1", 80), Count: 10}, only(serverV6(1), 5, serverV6(2), 5), nil, "[fd00:96::1]:80"},
		{"any port", meshOrder{To: to("10.96.0.2", 7000), Count: 2}, only("127.0.1.3:7000", 2), nil, "10.96.0.2:7000"},
		{"another port", meshOrder{To: to("10.96.0.2", 7001), Count: 2}, only("127.0.1.3:7001", 2), nil, "10.96.0.2:7001"},
		{"no endpoint", meshOrder{To: to("10.96.0.3", 80), Count: 3}, nil, only("ECONNREFUSED", 3), ""},
		{"no service", meshOrder{To: netip.MustParseAddrPort(serverV4(1)), Count: 1}, only(serverV4(1), 1), nil, serverV4(1)},
	} {
		got := c.do(test.order)
		w.expect(test.what, got, test.answers, test.errs)
		for peer := range got.Peers {
			if peer != test.peer {
				t.Errorf("%s: getpeername says %s, want %s", test.what, peer, test.peer)
			}
		}
	}
	// An IPv6 socket that dials IPv4.
	mapped := startCaller(t, w.ns, w.dir("client"))
	fd := mapped.call("socket", 0, unix.AF_INET6, unix.SOCK_STREAM, 0)
	mapped.call("connect", fd, netip.MustParseAddrPort("[::ffff:10.96.0.1]:80"))
	mapped.recv(fd, len(serverV4(1))+1)
	mapped.close(fd)
	// MPTCP would go by the connect hooks, so there is none in a workload; without a workload nothing is kept from it.
	w.finish()
	lines := readLog[meshLine](t, w.agent.Access)
	count := make(map[string]int)
	for _, l := range lines {
		if l.Role == "client" && l.Original != "" {
			count[strings.Join([]string{l.Original, l.Service, l.Backend, l.Reason}, " ")]++
			if l.DecisionNS == 0 {
				t.Errorf("no time for the decision: %+v", l)
			}
			if (l.Generation == 0) != (l.Service == "") {
				t.Errorf("generation %d with service %q", l.Generation, l.Service)
			}
		}
	}
	want := map[string]int{
		"10.96.0.1:80 demo/shop demo/shop-1 ok": 5, "10.96.0.1:80 demo/shop demo/shop-2 ok": 5,
		"[fd00:96::1]:80 demo/shop demo/shop-1 ok": 5, "[fd00:96::1]:80 demo/shop demo/shop-2 ok": 5,
		"10.96.0.2:7000 demo/any demo/any-1 ok": 2, "10.96.0.2:7001 demo/any demo/any-1 ok": 2,
		"10.96.0.3:80 demo/empty  no_endpoint": 3,
	}
	// The mapped one took the next turn of the IPv4 table.
	want["10.96.0.1:80 demo/shop demo/shop-1 ok"]++
	if !maps.Equal(count, want) {
		t.Errorf("lines of decisions:\n%s\nwant\n%s", listed(count), listed(want))
	}
}

func listed(counts map[string]int) string {
	var lines []string
	for what, n := range counts {
		lines = append(lines, fmt.Sprintf("%4d %s", n, what))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// endpoints writes n endpoints of a service, with more of a spec each.
func endpointsYAML(service string, more ...string) string {
	var b strings.Builder
	for i, m := range more {
		fmt.Fprintf(&b, "---\napiVersion: sidelight.io/v1alpha1\nkind: Endpoint\nmetadata: {name: %s-%d, namespace: demo}\nspec: {service: %s, addresses: [127.0.1.%d, \"fd00::%d\"]%s}\n",
			service, i+1, service, i+1, i+1, m)
	}
	return b.String()
}

func serviceYAML(name string, n int, more string) string {
	return fmt.Sprintf("---\napiVersion: sidelight.io/v1alpha1\nkind: Service\nmetadata: {name: %s, namespace: demo}\nspec: {addresses: [%s, \"%s\"], ports: [{name: http, port: 80, targetPort: 8080}]%s}\n",
		name, serviceV4(n), serviceV6(n), more)
}

// chiSquared returns the statistic of counts against shares.
func chiSquared(counts map[string]int, shares map[string]float64) float64 {
	total := 0
	for _, n := range counts {
		total += n
	}
	sum := 0.0
	for name, share := range shares {
		want := share * float64(total)
		d := float64(counts[name]) - want
		sum += d * d / want
	}
	return sum
}

// TestMeshBalancers holds who was chosen against the weights.
func TestMeshBalancers(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.servers("server", serverV4(1), serverV4(2), serverV4(3))
	mesh := ""
	for i, policy := range []string{"random", "roundRobin", "leastConnections", "maglev"} {
		mesh += serviceYAML(strings.ToLower(policy), i+1, ", loadBalancing: {policy: "+policy+"}")
		mesh += endpointsYAML(strings.ToLower(policy), ", weight: 1", ", weight: 3", ", weight: 6")
	}
	w.run(mesh)
	c := w.client("client")
	// The probability that chi-squared with two degrees of freedom is above 27.6 is one in a million.
	const limit = 27.6
	shares := map[string]float64{serverV4(1): .1, serverV4(2): .3, serverV4(3): .6}
	got := c.do(meshOrder{To: to(serviceV4(1), 80), Count: 4000, Workers: 4})
	if x := chiSquared(got.Answers, shares); x > limit || len(got.Errors) > 0 {
		t.Errorf("random: %v and errors %v: chi-squared %.1f", got.Answers, got.Errors, x)
	}
	w.expect("round robin", c.do(meshOrder{To: to(serviceV4(2), 80), Count: 1000, Workers: 4}),
		only(serverV4(1), 100, serverV4(2), 300, serverV4(3), 600), nil)
	// Held connections fill endpoints up by their weights; of two looks each time the lesser is taken, so no endpoint is far from its share.
	got = c.do(meshOrder{To: to(serviceV4(3), 80), Count: 1000, Workers: 4, Hold: true})
	for name, share := range shares {
		if n := float64(got.Answers[name]); n < 1000*share*.85 || n > 1000*share*1.15 {
			t.Errorf("least connections: %v of %v, want %v", got.Answers[name], name, 1000*share)
		}
	}
	c.do(meshOrder{Release: true})
	// One client, one endpoint.
	if got = c.do(meshOrder{To: to(serviceV4(4), 80), Count: 200, Workers: 4}); len(got.Answers) != 1 || len(got.Errors) != 0 {
		t.Errorf("maglev: %v and errors %v, want one endpoint", got.Answers, got.Errors)
	}
	w.finish()
}

// TestMeshLimits races for limits: of n exactly n pass.
func TestMeshLimits(t *testing.T) {
	w := newMeshWorld(t, "client", "other", "server")
	w.servers("server", serverV4(1), serverV6(1))
	w.run(serviceYAML("few", 1, ", limits: {maxConnections: 50}") + endpointsYAML("few", "") +
		serviceYAML("slow", 2, ", limits: {connectionsPerSecond: 1, burst: 20}") + endpointsYAML("slow", "") +
		serviceYAML("plain", 3, "") + endpointsYAML("plain", "") +
		serviceYAML("tokens", 4, ", limits: {connectionsPerSecond: 1, burst: 20}") + endpointsYAML("tokens", "") +
		serviceYAML("bucket", 5, ", limits: {connectionsPerSecond: 1, burst: 20}") + endpointsYAML("bucket", "") + `---
apiVersion: sidelight.io/v1alpha1
kind: Workload
metadata: {name: other, namespace: demo}
spec: {cgroup: CGROUP/other, limits: {maxConnections: 7}}
`)
	c, other := w.client("client"), w.client("other")
	for range 3 {
		w.expect("circuit", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 200, Workers: 64, Hold: true}), only(serverV4(1), 50), only("ECONNREFUSED", 150))
		w.expect("circuit, the other family", c.do(meshOrder{To: to(serviceV6(1), 80), Count: 5, Workers: 5}), nil, only("ECONNREFUSED", 5))
		c.do(meshOrder{Release: true})
		w.idle()
	}
	begin := time.Now()
	got := c.do(meshOrder{To: to(serviceV4(2), 80), Count: 100, Workers: 64})
	most := 20 + int(time.Since(begin).Seconds()) + 1
	if n := got.Answers[serverV4(1)]; n < 20 || n > most || got.Errors["ECONNREFUSED"] != 100-n {
		t.Errorf("rate: %v and errors %v, want 20 to %d", got.Answers, got.Errors, most)
	}
	w.bucket(c)
	w.expect("workload", other.do(meshOrder{To: to(serviceV4(3), 80), Count: 20, Workers: 20, Hold: true}), only(serverV4(1), 7), only("ECONNREFUSED", 13))
	w.expect("workload, without a service", other.do(meshOrder{To: netip.MustParseAddrPort(serverV4(1)), Count: 1}), nil, only("ECONNREFUSED", 1))
	// Who is over its own limit costs a service nothing: its tokens are all there for others.
	w.expect("over its own limit", other.do(meshOrder{To: to(serviceV4(4), 80), Count: 30, Workers: 30}), nil, only("ECONNREFUSED", 30))
	if got := c.do(meshOrder{To: to(serviceV4(4), 80), Count: 20, Workers: 20}); got.Answers[serverV4(1)] != 20 {
		t.Errorf("a service's tokens: %v and errors %v, want 20", got.Answers, got.Errors)
	}
	c.do(meshOrder{Release: true})
	other.do(meshOrder{Release: true})
	w.finish()
	limits := make(map[string]int)
	for _, l := range readLog[meshLine](t, w.agent.Access) {
		if l.Limit != "" {
			limits[fmt.Sprintf("%s %s %d", l.Limit, l.Reason, l.LimitValue)]++
		}
	}
	rejected := got.Errors["ECONNREFUSED"]
	want := map[string]int{"service demo/few circuit_open 50": 3 * 155, "service demo/slow rate_limited 1": rejected, "workload demo/other circuit_open 7": 44}
	if !maps.Equal(limits, want) {
		t.Errorf("lines of limits:\n%s\nwant\n%s", listed(limits), listed(want))
	}
}

// bucket wants why to say what the kernel's bucket has.
func (w *meshWorld) bucket(c *meshCaller) {
	w.t.Helper()
	begin := time.Now()
	w.expect("five of twenty", c.do(meshOrder{To: to(serviceV4(5), 80), Count: 5, Workers: 1}), only(serverV4(1), 5), nil)
	out, err := exec.Command(program, "why", "--json", "--state-directory", w.state, "--to", "demo/bucket").Output()
	most := min(20, 15+int(time.Since(begin).Seconds())+1)
	var answer look.Why
	if err := errors.Join(err, json.Unmarshal(out, &answer)); err != nil || len(answer.Now) != 2 || len(answer.Now[0].Limits) != 1 {
		w.t.Fatalf("why: %v: %s", err, out)
	}
	for _, now := range answer.Now { // one for each family
		if l := now.Limits[0]; l.Name != "service demo/bucket" || l.PerSecond != 1 || l.Burst != 20 || l.Tokens < 15 || int(l.Tokens) > most || now.Outcome != "ok" {
			w.t.Errorf("why: %s with %+v, want 15 to %d tokens", now.Outcome, l, most)
		}
	}
}

// TestMeshLeaks makes connects fail on every way out: nothing is held afterwards.
func TestMeshLeaks(t *testing.T) {
	w := newMeshWorld(t, "client", "server")
	w.run(serviceYAML("closed", 1, ", limits: {maxConnections: 5, maxConnecting: 5}") + endpointsYAML("closed", "") + `---
apiVersion: sidelight.io/v1alpha1
kind: Service
metadata: {name: nowhere, namespace: demo}
spec: {addresses: [10.96.0.2], ports: [{name: http, port: 80}], limits: {maxConnections: 5}}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: nowhere-1, namespace: demo}
spec: {service: nowhere, addresses: [192.0.2.77]}
`)
	c := w.client("client")
	w.expect("nobody listens", c.do(meshOrder{To: to(serviceV4(1), 80), Count: 100, Workers: 1}), nil, only("ECONNREFUSED", 100))
	w.expect("no route", c.do(meshOrder{To: to(serviceV4(2), 80), Count: 100, Workers: 1}), nil, only("ENETUNREACH", 100))
	// The same socket again and again.
	again := startCaller(t, w.ns, w.dir("client"))
	fd := again.tcp(to(serviceV4(2), 80))
	for range 20 {
		again.fails("ENETUNREACH", "connect", fd, to(serviceV4(2), 80))
	}
	again.fails("ECONNREFUSED", "connect", fd, to(serviceV4(1), 80))
	// Then to somebody who is no service: getpeername says who it is.
	w.servers("server", "127.0.1.9:8080")
	plain := netip.MustParseAddrPort("127.0.1.9:8080")
	again.call("connect", fd, plain)
	if peer := again.try("peer", fd).Addr; peer != plain {
		t.Errorf("getpeername says %v, want %v", peer, plain)
	}
	again.kill()
	w.finish()
}

// meshLine is what these tests read of a line.
type meshLine struct {
	edgeLine
	Original   string `json:"sidelight.original_destination"`
	Service    string `json:"sidelight.service"`
	Backend    string `json:"sidelight.backend"`
	Generation uint64 `json:"sidelight.config_generation"`
	DecisionNS uint64 `json:"sidelight.decision_ns"`
	Verdict    string `json:"sidelight.verdict"`
	Policy     string `json:"sidelight.policy"`
	PolicyRule *int   `json:"sidelight.policy.rule"`
	DryVerdict string `json:"sidelight.dry_run.verdict"`
	DryPolicy  string `json:"sidelight.dry_run.policy"`
	Limit      string `json:"sidelight.limit"`
	LimitValue uint64 `json:"sidelight.limit.value"`
	Refused    bool   `json:"sidelight.refused_by_mesh"`
}

// TestMeshConnecting bounds connects that nobody answers: of n exactly n are under way.
func TestMeshConnecting(t *testing.T) {
	w := newMeshWorld(t, "client")
	// A link without anybody at its other end who would answer. The neighbour is known: the kernel would give up a search for one after 3 s, and the connects
	// with it.
	h, err := netlink.NewHandleAt(w.ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	other := newNamespace(t)
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "wire", PeerNamespace: netlink.NsFd(other)}); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.NewHandleAt(other, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	for _, end := range []*netlink.Handle{h, peer} {
		l, err := end.LinkByName("wire")
		if err != nil {
			t.Fatal(err)
		}
		if err := end.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	w.addresses("wire", "198.51.100.1/24")
	near, err := h.LinkByName("wire")
	if err == nil {
		err = h.NeighAdd(&netlink.Neigh{
			LinkIndex: near.Attrs().Index, IP: net.IPv4(198, 51, 100, 77), HardwareAddr: wireAddress(7), State: netlink.NUD_PERMANENT,
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	w.run(`apiVersion: sidelight.io/v1alpha1
kind: Service
metadata: {name: silent, namespace: demo}
spec: {addresses: [10.96.0.1], ports: [{port: 80}], limits: {maxConnecting: 5}}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: silent-1, namespace: demo}
spec: {service: silent, addresses: [198.51.100.77]}
`)
	c := startCaller(t, w.ns, w.dir("client"))
	for round := range 3 {
		var fds []int
		for range 5 {
			fd := c.tcp(to(serviceV4(1), 80))
			c.call("nonblock", fd, 1)
			c.fails("EINPROGRESS", "connect", fd, to(serviceV4(1), 80))
			fds = append(fds, fd)
		}
		late := c.tcp(to(serviceV4(1), 80))
		c.fails("ECONNREFUSED", "connect", late, to(serviceV4(1), 80))
		c.close(append(fds, late)...)
		w.idle()
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	w.finish()
}
