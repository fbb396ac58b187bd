package enrich

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

func TestIdentify(t *testing.T) {
	e, err := New(t.TempDir(), NewPeers([]PeerGroup{{Name: "database", Namespace: "prod", CIDRs: prefixes("10.0.0.2/32")}}))
	if err != nil {
		t.Fatal(err)
	}
	// A pid that no kernel gives out (it ends at 2^22), so that its name comes from the event.
	owner := connection.Owner{PID: 1<<22 + 1, Comm: [16]byte{'c', 'u', 'r', 'l'}}
	local, database := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:80")
	tests := []struct {
		name    string
		event   connection.Event
		peer    Workload
		process *Process
	}{
		{
			"client",
			connection.Event{Role: connection.Client, Local: local, Peer: database, Owner: owner},
			Workload{Name: "database", Namespace: "prod"},
			&Process{PID: owner.PID, Executable: "curl"},
		},
		{
			"server: the peer is the other end, not the server",
			connection.Event{Role: connection.Server, Local: database, Peer: local},
			Workload{Name: External},
			nil,
		},
	}
	check := func(t *testing.T) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				got := e.Identify(&test.event)
				if *got.Local != (Workload{Name: "unknown"}) {
					t.Errorf("local is %+v, want an unknown one", *got.Local)
				}
				if *got.Peer != test.peer {
					t.Errorf("peer is %+v, want %+v", *got.Peer, test.peer)
				}
				if (got.Process == nil) != (test.process == nil) || got.Process != nil && *got.Process != *test.process {
					t.Errorf("process is %+v, want %+v", got.Process, test.process)
				}
			})
		}
	}
	t.Run("open", check)
	for range 2 {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	// Events may still come while the agent stops.
	clear(e.cgroups.byID)
	t.Run("closed", check)
}

func TestNewWithoutMount(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	e, err := New(dir, NewPeers(nil))
	if e != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v and error %v, want one of no file", e, err)
	}
	if want := "open cgroup2 mount: open " + dir + ": no such file or directory"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
}
