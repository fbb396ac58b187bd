package enrich

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// TestFacts wants of facts what an Enricher says of the same, and of what nobody told it what that says of what is gone.
func TestFacts(t *testing.T) {
	lan := []PeerGroup{{Name: "lan", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	facts := NewFacts(NewPeers(lan))
	curl := connection.Owner{StartBoottimeNS: 1, PID: 7, Comm: [16]byte{'c', 'u', 'r', 'l'}}
	execed := curl
	execed.Comm[0] = 'C'
	facts.AddCgroup(5, "/system.slice/nginx.service")
	facts.AddProcess(curl, "curl-\xff")
	gone, err := New(t.TempDir(), NewPeers(lan)) // finds no cgroup and no process
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	inLAN, elsewhere := netip.MustParseAddrPort("10.1.1.1:1"), netip.MustParseAddrPort("192.0.2.1:1")
	nginx := &Workload{Name: "nginx.service", Cgroup: "/system.slice/nginx.service", SystemdUnit: "nginx.service"}
	for _, test := range []struct {
		name  string
		event connection.Event
		want  Identity
	}{
		{
			"told",
			connection.Event{CgroupID: 5, Peer: inLAN, Owner: curl},
			Identity{Local: nginx, Peer: &Workload{Name: "lan"}, Process: &Process{PID: 7, Executable: "curl-\uFFFD"}},
		},
		{"no process", connection.Event{CgroupID: 5, Peer: elsewhere}, Identity{Local: nginx, Peer: &Workload{Name: External}}},
		{
			"a program that was not told of",
			connection.Event{CgroupID: 5, Peer: inLAN, Owner: execed},
			Identity{Local: nginx, Peer: &Workload{Name: "lan"}, Process: &Process{PID: 7, Executable: "Curl"}},
		},
		{"a cgroup that was not told of", connection.Event{CgroupID: 6}, gone.Identify(&connection.Event{CgroupID: 6})},
	} {
		for range 2 { // the second time from memory
			if got := facts.Identify(&test.event); !reflect.DeepEqual(got, test.want) {
				t.Errorf("%s:\ngot  %+v %+v %+v\nwant %+v %+v %+v", test.name, got.Local, got.Peer, got.Process, test.want.Local, test.want.Peer, test.want.Process)
			}
		}
	}
}
