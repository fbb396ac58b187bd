package look

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/maps"
)

func TestWhyLines(t *testing.T) {
	a := &Why{
		Connection: json.RawMessage(`{"sidelight.role":"client","sidelight.reason":"denied","process.executable.name":"\u001b]0;x\u0007evil","sidelight.duration_ns":1234567}`),
		Now: []*maps.Explanation{{
			Dialled: "10.96.0.1:80", Client: maps.ExplainClient{Workload: "shop/web", Identity: "web", KnownBy: "its address"},
			Service: "shop/cart", Frontend: "10.96.0.1:80", Generation: 7, Algorithm: "random",
			Endpoints: []maps.ExplainEndpoint{
				{Endpoint: "shop/cart-1", Address: "10.1.0.1:8080", Eligible: true, Share: 1, Open: 3, Policy: &maps.ExplainPolicy{Verdict: "deny"}},
				{Endpoint: "shop/cart-2", Address: "10.1.0.2", Because: "its weight is 0"},
			},
			Limits:  []maps.ExplainLimit{{Name: "service shop/cart", Open: 5, MaxOpen: 5, Refuses: "circuit_open"}},
			Outcome: "denied", Because: "there are allow policies, and none of their rules matches",
		}},
	}
	got, err := a.Lines(false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"THEN",
		"  seen by the      client",
		"  outcome          denied",
		"  process          \ufffd]0;x\ufffdevil",
		"  open for ns      1234567",
		"NOW",
		"  client           shop/web, identity web, known by its address",
		"  dials            10.96.0.1:80",
		"  service          shop/cart (10.96.0.1:80), generation 7, chooses by random",
		"  endpoint         shop/cart-1 10.1.0.1:8080: 100.0 % of the choices, 3 open",
		"                     deny: there are allow policies, and none of their rules matches",
		"  endpoint         shop/cart-2 10.1.0.2: not chosen: its weight is 0",
		"  limit            service shop/cart: 5 open of 5, 0 connecting of any",
		"  outcome          denied: there are allow policies, and none of their rules matches",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	painted, err := a.Lines(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, escape := range strings.Split(strings.Join(painted, ""), "\x1b")[1:] {
		if code, _, ok := strings.Cut(escape, "m"); !ok || strings.Trim(code, "[0123456789") != "" {
			t.Errorf("an escape that is no colour: %q", escape)
		}
	}
	if a.Refused() != a.Now[0].Because || (&Why{Now: []*maps.Explanation{{Outcome: "depends"}, {Outcome: "ok"}}}).Refused() != "" {
		t.Error("what is refused")
	}
}
