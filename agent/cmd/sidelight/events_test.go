package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
)

// TestEvents asks the kernel for fewer events, or none: the sums are the same, and it is counted what was not asked for.
func TestEvents(t *testing.T) {
	needRoot(t)
	const count = 500
	for _, c := range []struct {
		events          string
		lines, sampled  uint64
		attempts, ended uint64 // of the events that were not asked for
	}{
		{"all", 2 * count, 0, 0, 0},
		{"closes", 2 * count, 3 * count, count, 0},
		{"none", 0, 5 * count, count, 2 * count},
	} {
		t.Run(c.events, func(t *testing.T) {
			cgroup := newCgroup(t, "client", "server")
			ns := newNamespace(t)
			a := startAgent(t, cgroup, "--config", writeConfig(t, "events: "+c.events))
			_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
			runScript(t, ns, filepath.Join(cgroup, "client"), script{
				Addr: netip.AddrPortFrom(netip.MustParseAddr("::1"), port), Ending: clientCloses, Count: count, Parallel: 20,
				Request: 100, Response: 1000,
			})
			a.waitClosed()
			// A sweep may have told of what was open and its end is to be read.
			want := map[string]uint64{
				`sidelight_tcp_connection_attempts_total{role="client"}`:           count,
				`sidelight_tcp_connection_established_total{role="client"}`:        count,
				`sidelight_tcp_connection_established_total{role="server"}`:        count,
				`sidelight_tcp_connection_closed_total{reason="ok",role="client"}`: count,
				`sidelight_tcp_connection_closed_total{reason="ok",role="server"}`: count,
				`sidelight_tcp_connection_open{role="client"}`:                     0,
				`sidelight_tcp_connection_open{role="server"}`:                     0,
				`sidelight_tcp_connection_connecting{role="client"}`:               0,
				`sidelight_tcp_sent_bytes_total{role="client"}`:                    count * (headerBytes + 100),
				`sidelight_tcp_received_bytes_total{role="client"}`:                count * 1000,
				`sidelight_tcp_sent_bytes_total{role="server"}`:                    count * 1000,
				`sidelight_tcp_received_bytes_total{role="server"}`:                count * (headerBytes + 100),
				`sidelight_self_events_sampled_out_total{}`:                        c.sampled,
				`sidelight_self_events_sampled_out_total{kind="pre_connect"}`:      c.attempts,
				`sidelight_self_events_sampled_out_total{kind="close"}`:            c.ended,
				`sidelight_self_aggregated_closes_total{by="edge"}`:                c.ended,
				`sidelight_tcp_connection_duration_seconds_count{role="server"}`:   c.lines / 2,
				`sidelight_self_access_log_lines_total`:                            c.lines,
				`sidelight_dropped_total{stage="ring"}`:                            0,
			}
			if c.lines > 0 { // else it depends on what a sweep finds open
				want[`sidelight_tcp_connect_duration_seconds_count{role="client"}`] = count
			}
			eventually(t, "the sums", a.wants(want))
			eventually(t, "the agent to forget what is gone", func() error {
				if followed := a.audit().User.Followed; followed != 0 {
					return fmt.Errorf("%d connections are remembered", followed)
				}
				return nil
			})
			if u := a.audit().Unaccounted; u != 0 {
				t.Errorf("%d are unaccounted", u)
			}
			a.stop()
			if lines := len(a.lines()); lines != int(c.lines) {
				t.Errorf("%d lines, want %d", lines, c.lines)
			}
		})
	}
}
