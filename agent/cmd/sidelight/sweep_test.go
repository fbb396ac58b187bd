package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSweep holds connections open: what they have moved shows while they live, and is not counted again when they end. With a
// ring that lost everything that was told of them, it shows all the same.
func TestSweep(t *testing.T) {
	needRoot(t)
	for _, lossy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lossy %v", lossy), func(t *testing.T) {
			const count = 100
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			a := startAgent(t, cgroup, "--config", writeConfig(t, "ring_bytes: 4096"))
			server := filepath.Join(cgroup, "server")
			_, port := startServer(t, ns, server)
			until := filepath.Join(t.TempDir(), "end")
			if lossy {
				if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			p := startScript(t, ns, filepath.Join(cgroup, "client"), script{
				Addr: netip.AddrPortFrom(netip.MustParseAddr("::1"), port), Ending: clientHolds, Count: count, Parallel: count,
				Request: 1000, Response: 100_000, Until: until,
			})
			if lossy {
				waitSockets(t, ns, established, 2*count)
				if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			want := func(open uint64) func() error {
				return func() error {
					metrics := a.metrics()
					for name, want := range map[string]uint64{
						`sidelight_tcp_connection_open{role="client"}`:              open,
						`sidelight_tcp_connection_open{role="server"}`:              open,
						`sidelight_tcp_connection_attempts_total{role="client"}`:    count,
						`sidelight_tcp_connection_established_total{role="client"}`: count,
						`sidelight_tcp_connection_established_total{role="server"}`: count,
						`sidelight_tcp_sent_bytes_total{role="client"}`:             count * (headerBytes + 1000),
						`sidelight_tcp_received_bytes_total{role="client"}`:         count * 100_000,
						`sidelight_tcp_sent_bytes_total{role="server"}`:             count * 100_000,
						`sidelight_tcp_received_bytes_total{role="server"}`:         count * (headerBytes + 1000),
					} {
						if got, _ := find(metrics, name); got != want {
							return fmt.Errorf("%s is %d, want %d", name, got, want)
						}
					}
					return nil
				}
			}
			eventually(t, "the sums of open connections", want(count))
			if err := os.WriteFile(until, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			p.end()
			a.waitClosed()
			if err := want(0)(); err != nil {
				t.Error(err)
			}
			if u := a.audit().Unaccounted; u != 0 {
				t.Errorf("%d are unaccounted", u)
			}
			a.stop()
		})
	}
}
