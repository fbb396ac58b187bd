package main

import (
	"cmp"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const decisionDuration = "sidelight_mesh_decision_duration_seconds"

// meshSeries are those of the mesh that a scrape has, with their labels, but for times: of those to decide it is how many there are.
func meshSeries(t *testing.T, a *agent) map[string]string {
	t.Helper()
	text, err := a.scrape()
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok {
			name, value, ok = strings.Cut(strings.TrimSpace(line), " ")
		} else {
			name += "}"
		}
		for _, prefix := range []string{"sidelight_config_", "sidelight_mesh_", "sidelight_policy_", "sidelight_self_refused_"} {
			if ok && strings.HasPrefix(name, prefix) && !strings.HasPrefix(name, "sidelight_config_last_accepted") &&
				(!strings.HasPrefix(name, decisionDuration) || name == decisionDuration+"_count") {
				series[name] = value
			}
		}
	}
	return series
}

// wantSeries waits until a scrape has these and no others of the mesh.
func (w *meshWorld) wantSeries(what string, want map[string]string) {
	w.t.Helper()
	eventually(w.t, what, func() error {
		have := meshSeries(w.t, w.agent)
		if maps.Equal(have, want) {
			return nil
		}
		var lines []string
		for name, value := range want {
			if have[name] != value {
				lines = append(lines, fmt.Sprintf("%s is %q, want %s", name, have[name], value))
			}
		}
		for name, value := range have {
			if _, ok := want[name]; !ok {
				lines = append(lines, fmt.Sprintf("%s is %s, want none", name, value))
			}
		}
		slices.Sort(lines)
		return fmt.Errorf("series:\n%s", strings.Join(lines, "\n"))
	})
}

func metricsMesh(service string) string {
	return workloadYAML("shop", "shop", "127.0.1.1", "fd00::1") + workloadYAML("web", "web") + workloadYAML("rogue", "rogue") + service +
		`---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: shop-1, namespace: demo}
spec: {service: shop, workload: shop}
` + policyYAML("no-rogue", ofShop+"action: DENY, rules: [{from: [{source: {identities: [web-two]}}]}, {from: [{source: {identities: [rogue]}}]}]") +
		policyYAML("trial", ofShop+"dryRun: true, action: DENY, rules: [{from: [{source: {identities: [web]}}]}]") +
		serviceYAML("flaky", 2, ", loadBalancing: {policy: roundRobin}, "+
			"outlierDetection: {consecutiveFailures: 3, baseEjectionTime: 1h, maxEjectionTime: 1h, maxEjectionPercent: 50}") + `---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: good, namespace: demo}
spec: {service: flaky, addresses: [127.0.1.3]}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: bad, namespace: demo}
spec: {service: flaky, addresses: [127.0.1.4]}
`
}

// TestMeshMetrics knows each connection of its world, and wants each number of the mesh.
func TestMeshMetrics(t *testing.T) {
	w := newMeshWorld(t, "web", "rogue", "shop", "other")
	w.servers("shop", serverV4(1), serverV6(1))
	w.servers("other", serverV4(3))
	w.run(metricsMesh(serviceYAML("shop", 1, ", limits: {maxConnections: 5}")))
	want := map[string]string{
		`sidelight_config_generation`:                                                         "1",
		`sidelight_config_inputs_total{result="accepted"}`:                                    "1",
		`sidelight_config_inputs_total{result="rejected"}`:                                    "0",
		`sidelight_config_in_force`:                                                           "1",
		`sidelight_mesh_guarded_namespaces`:                                                   "1",
		`sidelight_mesh_limit_open{limit="service demo/shop"}`:                                "0",
		`sidelight_mesh_limit_connecting{limit="service demo/shop"}`:                          "0",
		`sidelight_mesh_limit_max_open{limit="service demo/shop"}`:                            "5",
		`sidelight_mesh_limit_rejections_total{cause="open",limit="service demo/shop"}`:       "0",
		`sidelight_mesh_limit_rejections_total{cause="connecting",limit="service demo/shop"}`: "0",
		`sidelight_mesh_limit_rejections_total{cause="rate",limit="service demo/shop"}`:       "0",
		`sidelight_self_refused_total{role="client"}`:                                         "0",
		`sidelight_self_refused_total{role="server"}`:                                         "0",
	}
	w.wantSeries("a mesh that nobody used", want)

	// Of seven over both families five are within the limit. The policy is asked by both ends, but for those that the limit refuses.
	web, rogue := w.client("web"), w.client("rogue")
	w.expect("web", web.do(meshOrder{To: to(serviceV4(1), 80), Count: 4, Hold: true}), only(serverV4(1), 4), nil)
	w.expect("web", web.do(meshOrder{To: to(serviceV6(1), 80), Count: 3, Hold: true}), only(serverV6(1), 1), only("ECONNREFUSED", 2))
	w.expect("rogue", rogue.do(meshOrder{To: to(serviceV4(1), 80), Count: 3}), nil, only("EPERM", 3))
	endpoints := func(service string, counts map[string]string) {
		for _, state := range []string{"eligible", "standby", "draining", "unhealthy", "ejected", "excluded"} {
			want[fmt.Sprintf(`sidelight_mesh_service_endpoints{service="%s",service_namespace="demo",state="%s"}`, service, state)] = cmp.Or(counts[state], "0")
		}
	}
	endpoints("shop", map[string]string{"eligible": "1"})
	want[decisionDuration+"_count"] = "10"
	of := func(service, endpoint string) string {
		return fmt.Sprintf(`{endpoint="demo/%s",service="%s",service_namespace="demo"}`, endpoint, service)
	}
	maps.Copy(want, map[string]string{
		`sidelight_mesh_picks_total` + of("shop", "shop-1"):                                               "5",
		`sidelight_mesh_endpoint_open` + of("shop", "shop-1"):                                             "5",
		`sidelight_mesh_endpoint_failures_total` + of("shop", "shop-1"):                                   "0",
		`sidelight_mesh_limit_open{limit="service demo/shop"}`:                                            "5",
		`sidelight_mesh_limit_rejections_total{cause="open",limit="service demo/shop"}`:                   "2",
		`sidelight_policy_verdicts_total{dry_run="false",policy="",rule="",verdict="allow"}`:              "12",
		`sidelight_policy_verdicts_total{dry_run="true",policy="demo/trial",rule="0",verdict="deny"}`:     "12",
		`sidelight_policy_verdicts_total{dry_run="false",policy="demo/no-rogue",rule="1",verdict="deny"}`: "3",
		`sidelight_self_refused_total{role="client"}`:                                                     "5",
	})
	w.wantSeries("a limit and a policy", want)
	if out, err := exec.Command(program, "audit", "--metrics-address", w.agent.Address).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "\nrefused       5 by the mesh, of the failed; 0 more before they reached a server\n") {
		t.Errorf("audit: %v\n%s", err, out)
	}

	// Every other one fails, until that endpoint is out.
	endpoints("flaky", map[string]string{"eligible": "1", "ejected": "1"})
	want[decisionDuration+"_count"] = "16"
	w.expect("web", web.do(meshOrder{To: to(serviceV4(2), 80), Count: 6}), only(serverV4(3), 3), only("ECONNREFUSED", 3))
	maps.Copy(want, map[string]string{
		`sidelight_mesh_picks_total` + of("flaky", "good"):                                                             "3",
		`sidelight_mesh_endpoint_open` + of("flaky", "good"):                                                           "0",
		`sidelight_mesh_endpoint_failures_total` + of("flaky", "good"):                                                 "0",
		`sidelight_mesh_picks_total` + of("flaky", "bad"):                                                              "3",
		`sidelight_mesh_endpoint_open` + of("flaky", "bad"):                                                            "0",
		`sidelight_mesh_endpoint_failures_total` + of("flaky", "bad"):                                                  "3",
		`sidelight_mesh_endpoint_out{cause="outlier",endpoint="demo/bad",service="flaky",service_namespace="demo"}`:    "1",
		`sidelight_mesh_ejections_total{cause="outlier",endpoint="demo/bad",service="flaky",service_namespace="demo"}`: "1",
	})
	w.wantSeries("an ejected endpoint", want)

	// What is wrong is refused, and what was in force stays.
	w.write("kind: Nonsense\n")
	maps.Copy(want, map[string]string{`sidelight_config_inputs_total{result="rejected"}`: "1", `sidelight_config_in_force`: "0"})
	w.wantSeries("a refused input", want)
	web.do(meshOrder{Release: true})
	maps.Copy(want, map[string]string{`sidelight_mesh_endpoint_open` + of("shop", "shop-1"): "0", `sidelight_mesh_limit_open{limit="service demo/shop"}`: "0"})
	w.wantSeries("nothing open", want)

	// Without IPv6 the endpoint has one backend less, and what that one counted is not lost. The limit has other bounds, and nobody has used the two services
	// that are new: one has no endpoint, and tells.
	const limits = "maxConnecting: 3, connectionsPerSecond: 7, burst: 9"
	w.change(metricsMesh(strings.Replace(serviceYAML("shop", 1, ", limits: {"+limits+"}"), `, "`+serviceV6(1)+`"`, "", 1)) +
		serviceYAML("nobody", 3, "") + serviceYAML("quiet", 4, "") + `---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: quiet-1, namespace: demo}
spec: {service: quiet, addresses: [127.0.1.3]}
`)
	endpoints("nobody", nil)
	delete(want, `sidelight_mesh_limit_max_open{limit="service demo/shop"}`)
	maps.Copy(want, map[string]string{
		`sidelight_mesh_limit_max_connecting{limit="service demo/shop"}`: "3", `sidelight_mesh_limit_max_rate_per_second{limit="service demo/shop"}`: "7",
		`sidelight_mesh_limit_burst{limit="service demo/shop"}`: "9",
		`sidelight_config_generation`:                           "2", `sidelight_config_inputs_total{result="accepted"}`: "2", `sidelight_config_in_force`: "1",
	})
	w.wantSeries("another mesh", want)
	w.finish()
}
