package attribute

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

func TestDecision(t *testing.T) {
	const (
		v4 = `sidelight.original_destination="10.96.0.10:80"`
		v6 = `sidelight.original_destination="[fd00:96::10]:443"`
	)
	dialled := netip.MustParseAddrPort("10.96.0.10:80")
	rule, dryRule := &enrich.Rule{Policy: "shop/allow", Index: 2}, &enrich.Rule{Policy: "shop/dry"}
	for name, test := range map[string]struct {
		decision connection.Decision
		names    *enrich.Decision
		flags    connection.Flags
		want     string
	}{
		"nobody's names": {
			decision: connection.Decision{Original: dialled, Service: 3, Backend: 4, Generation: 7, Verdict: connection.VerdictAllow},
			want:     v4 + ` sidelight.verdict="allow" sidelight.config_generation=7`,
		},
		"numbers without a name": {
			decision: connection.Decision{Original: dialled, Service: 3, Backend: 4, Limit: 5, LimitValue: 6},
			names:    &enrich.Decision{},
			want:     v4 + ` sidelight.limit.value=6`,
		},
		"through a service": {
			decision: connection.Decision{Original: dialled, Service: 3, Backend: 4, Generation: 1 << 40},
			names:    &enrich.Decision{Service: &enrich.Service{Name: "cart", Namespace: "shop"}, Endpoint: "shop/cart-1"},
			want:     v4 + ` sidelight.service="shop/cart" sidelight.backend="shop/cart-1" sidelight.config_generation=1099511627776`,
		},
		"no endpoint": {
			decision: connection.Decision{Original: netip.MustParseAddrPort("[fd00:96::10]:443"), Service: 3, Generation: 7},
			names:    &enrich.Decision{Service: &enrich.Service{Name: "cart", Namespace: "shop"}},
			flags:    connection.RefusedHere,
			want:     v6 + ` sidelight.service="shop/cart" sidelight.config_generation=7 sidelight.refused_by_mesh=true`,
		},
		"allowed by a rule, dry run would not": {
			decision: connection.Decision{Original: dialled, Verdict: connection.VerdictAllow, DryVerdict: connection.VerdictDeny},
			names:    &enrich.Decision{Rule: rule, DryRule: dryRule},
			want: v4 + ` sidelight.verdict="allow" sidelight.policy="shop/allow" sidelight.policy.rule=2
				sidelight.dry_run.verdict="deny" sidelight.dry_run.policy="shop/dry" sidelight.dry_run.policy.rule=0`,
		},
		"denied by no rule": {
			decision: connection.Decision{Original: dialled, Verdict: connection.VerdictDeny, DryVerdict: connection.VerdictDeny},
			names:    &enrich.Decision{},
			flags:    connection.RefusedHere,
			want:     v4 + ` sidelight.verdict="deny" sidelight.dry_run.verdict="deny" sidelight.refused_by_mesh=true`,
		},
		// A rule without its verdict is a number that stands for nothing.
		"no policy": {
			decision: connection.Decision{Original: dialled},
			names:    &enrich.Decision{Rule: rule, DryRule: dryRule},
			want:     v4,
		},
		"by a limit": {
			decision: connection.Decision{Original: dialled, Limit: 1, LimitValue: 100},
			names:    &enrich.Decision{Limit: "workload shop/web"},
			flags:    connection.RefusedHere,
			want:     v4 + ` sidelight.limit="workload_shop/web" sidelight.limit.value=100 sidelight.refused_by_mesh=true`,
		},
	} {
		var got text
		decision(&test.decision, test.names, test.flags, &got)
		for i := range got {
			got[i] = strings.ReplaceAll(got[i], " ", "_") // as in the table
		}
		if want := strings.Fields(test.want); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, want)
		}
	}
}

func TestRefusedConnection(t *testing.T) {
	refuse := func(r *enrich.Record) {
		r.Event.Flags, r.Event.Reason = connection.Decided|connection.RefusedHere, connection.Denied
		r.Event.ConnectNS, r.Event.EstablishedNS, r.Event.EventNS, r.Event.Totals = 0, 0, 1700, connection.Totals{}
		r.Event.Decision = connection.Decision{Original: r.Event.Server(), Verdict: connection.VerdictDeny, DecisionNS: 700}
	}
	const common = `
		sidelight.reason="denied" error.type="denied" sidelight.duration_ns=700 sidelight.decision_ns=700 sidelight.sent_bytes=0
		sidelight.received_bytes=0 sidelight.retransmits=0 sidelight.syn_retransmits=0`
	for name, test := range map[string]struct {
		role   connection.Role
		change func(*enrich.Record)
		want   string
	}{
		"client, which has no address yet": {connection.Client, func(r *enrich.Record) {
			r.Event.Local = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}, `network.transport="tcp" network.type="ipv4" network.peer.address="10.0.0.2" network.peer.port=22 server.address="10.0.0.2"
			server.port=22 sidelight.role="client"` + common + ` process.pid=7 process.executable.name="curl" process.linux.cgroup="0::/"
			container.id="c" k8s.pod.uid="p" sidelight.original_destination="10.0.0.2:22"`},
		"server, of which no process and no cgroup is known": {connection.Server, func(r *enrich.Record) {
			r.Identity.Process, r.Identity.Local = nil, &enrich.Workload{Name: "web", Namespace: "shop"}
		}, `network.transport="tcp" network.type="ipv4" network.local.address="10.0.0.1" network.local.port=1111
			network.peer.address="10.0.0.2" network.peer.port=22 client.address="10.0.0.2" client.port=22
			server.address="10.0.0.1" server.port=1111 sidelight.role="server"` + common + ` sidelight.original_destination="10.0.0.1:1111"`},
	} {
		record := closed(test.role)
		refuse(&record)
		test.change(&record)
		var got text
		Connection(&record, &got)
		want := append(strings.Fields(test.want), `sidelight.verdict="deny"`, "sidelight.refused_by_mesh=true")
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, want)
		}
	}
}

// TestDecisionTimeIsTheMeshs holds that where the mesh decided it is not taken from the times of the connection.
func TestDecisionTimeIsTheMeshs(t *testing.T) {
	for name, test := range map[string]struct {
		flags     connection.Flags
		connectNS uint64
		want      string
	}{
		"decided":               {connection.Decided, 1100, "sidelight.decision_ns=42"},
		"decided, SYN not seen": {connection.Decided, 0, "sidelight.decision_ns=42"},
		"not decided":           {0, 1100, "sidelight.decision_ns=100"},
	} {
		record := closed(connection.Client)
		record.Event.Flags, record.Event.ConnectNS = test.flags, test.connectNS
		record.Event.Decision = connection.Decision{Original: record.Event.Peer, DecisionNS: 42}
		var got text
		Connection(&record, &got)
		var times []string
		for _, a := range got {
			if strings.HasPrefix(a, "sidelight.decision_ns=") {
				times = append(times, a)
			}
		}
		if !slices.Equal(times, []string{test.want}) {
			t.Errorf("%s: %v, want %s once", name, times, test.want)
		}
	}
}
