package attribute

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// text is a Sink that writes name=value.
type text []string

func (t *text) String(name, value string)             { *t = append(*t, fmt.Sprintf("%s=%q", name, value)) }
func (t *text) Prefixed(name, prefix, value string)   { t.String(name, prefix+value) }
func (t *text) Qualified(name, ns, value string)      { t.String(name, ns+"/"+value) }
func (t *text) Address(name string, value netip.Addr) { t.String(name, value.String()) }
func (t *text) Bool(name string, value bool)          { *t = append(*t, fmt.Sprintf("%s=%t", name, value)) }
func (t *text) Int(name string, value int64)          { *t = append(*t, fmt.Sprintf("%s=%d", name, value)) }
func (t *text) Double(name string, value float64)     { *t = append(*t, fmt.Sprintf("%s=%v", name, value)) }

func (t *text) AddrPort(name string, value netip.AddrPort) { t.String(name, value.String()) }

func TestUIDNamesBootSocketAndStart(t *testing.T) {
	boot := NewBoot("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0\n")
	if got, want := boot.UID(connection.Key{Cookie: 0x1f, StartNS: 0xabc}), "0f1e2d3c4b5a6978-1f-abc"; got != want {
		t.Errorf("UID %q, want %q", got, want)
	}
	if got, want := NewBoot("").UID(connection.Key{}), "-0-0"; got != want {
		t.Errorf("UID without a boot id %q, want %q", got, want)
	}
}

func TestNetworkTypeIsOfThePackets(t *testing.T) {
	for addr, want := range map[string]string{"192.0.2.1:1": "ipv4", "[2001:db8::1]:1": "ipv6", "[::1]:1": "ipv6"} {
		if got := NetworkType(netip.MustParseAddrPort(addr).Addr()); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

// closed is a connection of which everything is known.
func closed(role connection.Role) enrich.Record {
	return enrich.Record{
		Event: connection.Event{
			Kind: connection.Close, Role: role, Key: connection.Key{Cookie: 1, StartNS: 1000}, ConnectNS: 1100, EstablishedNS: 1600, EventNS: 5000,
			Local: netip.MustParseAddrPort("10.0.0.1:1111"), Peer: netip.MustParseAddrPort("10.0.0.2:22"),
			Totals: connection.Totals{
				SentBytes: 1, ReceivedBytes: 2, Retransmits: 3, SYNRetransmits: 1, RTTUS: 4, MinRTTUS: 5, FirstSentNS: 1610, FirstReceivedNS: 1700,
			},
		},
		Identity: enrich.Identity{
			Local:   &enrich.Workload{Name: "w", Cgroup: "/", ContainerID: "c", PodUID: "p"},
			Peer:    &enrich.Workload{Name: "external"},
			Process: &enrich.Process{PID: 7, Executable: "curl"},
		},
	}
}

const ofClient = `
network.transport="tcp" network.type="ipv4" network.local.address="10.0.0.1" network.local.port=1111 network.peer.address="10.0.0.2"
network.peer.port=22 client.address="10.0.0.1" client.port=1111 server.address="10.0.0.2" server.port=22 sidelight.role="client"
sidelight.reason="ok" sidelight.duration_ns=4000 sidelight.connect_ns=500 sidelight.decision_ns=100
sidelight.first_sent_ns=10 sidelight.first_received_ns=100 sidelight.sent_bytes=1
sidelight.received_bytes=2 sidelight.retransmits=3 sidelight.syn_retransmits=1 sidelight.rtt_us=4 sidelight.min_rtt_us=5 process.pid=7
process.executable.name="curl" process.linux.cgroup="0::/" container.id="c" k8s.pod.uid="p"`

func TestConnection(t *testing.T) {
	for name, test := range map[string]struct {
		role   connection.Role
		change func(*enrich.Record)
		with   map[string]string // instead of the client's; empty for absent
	}{
		"client": {connection.Client, func(*enrich.Record) {}, nil},
		"server": {connection.Server, func(*enrich.Record) {}, map[string]string{
			"client.address": `"10.0.0.2"`, "client.port": "22", "server.address": `"10.0.0.1"`, "server.port": "1111",
			"sidelight.role": `"server"`, "sidelight.connect_ns": "", "sidelight.decision_ns": "",
		}},
		"failed": {connection.Client, func(r *enrich.Record) { r.Event.EstablishedNS, r.Event.Reason = 0, connection.Refused }, map[string]string{
			"sidelight.reason": `"refused"`, "error.type": `"refused"`, "sidelight.connect_ns": "",
			"sidelight.first_sent_ns": "", "sidelight.first_received_ns": "",
		}},
		"no decision": {connection.Client, func(r *enrich.Record) { r.Event.ConnectNS = r.Event.Key.StartNS }, map[string]string{
			"sidelight.connect_ns": "600", "sidelight.decision_ns": "",
		}},
		"never measured": {connection.Client, func(r *enrich.Record) { r.Event.Totals = connection.Totals{} }, map[string]string{
			"sidelight.sent_bytes": "0", "sidelight.received_bytes": "0", "sidelight.retransmits": "0", "sidelight.rtt_us": "", "sidelight.min_rtt_us": "",
			"sidelight.syn_retransmits": "0", "sidelight.first_sent_ns": "", "sidelight.first_received_ns": "",
		}},
		"adopted open": {connection.Client, func(r *enrich.Record) {
			r.Event.Flags, r.Event.ConnectNS = connection.Adopted|connection.AdoptedOpen, 0
		}, map[string]string{
			"sidelight.adopted": "true", "sidelight.duration_ns": "", "sidelight.connect_ns": "", "sidelight.decision_ns": "",
			"sidelight.first_sent_ns": "", "sidelight.first_received_ns": "",
		}},
		// The handshake was seen, the SYN was not.
		"adopted connecting": {connection.Client, func(r *enrich.Record) {
			r.Event.Flags, r.Event.ConnectNS = connection.Adopted, 0
		}, map[string]string{
			"sidelight.adopted": "true", "sidelight.duration_ns": "", "sidelight.connect_ns": "", "sidelight.decision_ns": "",
		}},
		"end only": {connection.Client, func(r *enrich.Record) {
			r.Event.Flags, r.Event.ConnectNS, r.Event.Key.StartNS, r.Event.EstablishedNS = connection.Stateless, 0, 5000, 5000
			r.Event.Totals.FirstSentNS, r.Event.Totals.FirstReceivedNS, r.Identity.Process = 0, 0, nil
		}, map[string]string{
			"sidelight.duration_ns": "", "sidelight.connect_ns": "", "sidelight.decision_ns": "",
			"sidelight.first_sent_ns": "", "sidelight.first_received_ns": "", "process.pid": "", "process.executable.name": "",
		}},
		"no process": {connection.Client, func(r *enrich.Record) { r.Identity.Process = nil }, map[string]string{
			"process.pid": "", "process.executable.name": "",
		}},
		"no name": {connection.Client, func(r *enrich.Record) { r.Identity.Process = &enrich.Process{PID: 7} }, map[string]string{
			"process.executable.name": "",
		}},
		"no cgroup": {connection.Client, func(r *enrich.Record) { r.Identity.Local = &enrich.Workload{Name: "unknown"} }, map[string]string{
			"process.linux.cgroup": "", "container.id": "", "k8s.pod.uid": "",
		}},
		"ipv6": {connection.Client, func(r *enrich.Record) {
			r.Event.Local, r.Event.Peer = netip.MustParseAddrPort("[2001:db8::1]:1111"), netip.MustParseAddrPort("[2001:db8::2]:22")
		}, map[string]string{
			"network.type": `"ipv6"`, "network.local.address": `"2001:db8::1"`, "network.peer.address": `"2001:db8::2"`,
			"client.address": `"2001:db8::1"`, "server.address": `"2001:db8::2"`,
		}},
	} {
		record := closed(test.role)
		test.change(&record)
		var got text
		Connection(&record, &got)
		if want := replace(strings.Fields(ofClient), test.with); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", name, got, want)
		}
	}
}

// replace puts other values into attributes. One that is new comes after sidelight.reason.
func replace(attributes []string, with map[string]string) []string {
	var out []string
	for _, a := range attributes {
		name, value, _ := strings.Cut(a, "=")
		if other, ok := with[name]; ok {
			value = other
		}
		if value != "" {
			out = append(out, name+"="+value)
		}
		for _, added := range []string{"error.type", "sidelight.adopted"} {
			if v := with[added]; name == "sidelight.reason" && v != "" {
				out = append(out, added+"="+v)
			}
		}
	}
	return out
}
