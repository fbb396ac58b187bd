package event

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Decode reads by offsets of its own; the generated types have those of the compiled object.
func TestOffsets(t *testing.T) {
	var e bpf.Event
	var c bpf.CloseEvent
	var d bpf.Decision
	tests := []struct {
		name string
		got  uintptr
		want uintptr
	}{
		{"kind", offKind, unsafe.Offsetof(e.Kind)},
		{"role", offRole, unsafe.Offsetof(e.Role)},
		{"reason", offReason, unsafe.Offsetof(e.Reason)},
		{"local_port", offLocalPort, unsafe.Offsetof(e.LocalPort)},
		{"peer_port", offPeerPort, unsafe.Offsetof(e.PeerPort)},
		{"cookie", offCookie, unsafe.Offsetof(e.Cookie)},
		{"start_ns", offStart, unsafe.Offsetof(e.StartNs)},
		{"connect_ns", offConnect, unsafe.Offsetof(e.ConnectNs)},
		{"established_ns", offEstablished, unsafe.Offsetof(e.EstablishedNs)},
		{"local_addr", offLocalAddr, unsafe.Offsetof(e.LocalAddr)},
		{"peer_addr", offPeerAddr, unsafe.Offsetof(e.PeerAddr)},
		{"cgroup_id", offCgroup, unsafe.Offsetof(e.CgroupId)},
		{"owner.start_boottime_ns", offOwnerStart, unsafe.Offsetof(e.Owner) + unsafe.Offsetof(e.Owner.StartBoottimeNs)},
		{"owner.pid", offOwnerPID, unsafe.Offsetof(e.Owner) + unsafe.Offsetof(e.Owner.Pid)},
		{"owner.comm", offOwnerComm, unsafe.Offsetof(e.Owner) + unsafe.Offsetof(e.Owner.Comm)},
		{"client_isn", offClientISN, unsafe.Offsetof(e.ClientIsn)},
		{"told", offTold, unsafe.Offsetof(e.Told)},
		{"flags", offFlags, unsafe.Offsetof(e.Flags)},
		{"event_ns", offEvent, unsafe.Offsetof(e.EventNs)},
		{"event", 0, unsafe.Offsetof(c.Event)},
		{"reported_sent_bytes", offReportedSent, unsafe.Offsetof(c.ReportedSentBytes)},
		{"reported_received_bytes", offReportedRecv, unsafe.Offsetof(c.ReportedReceivedBytes)},
		{"reported_retransmits", offReportedRetr, unsafe.Offsetof(c.ReportedRetransmits)},
		{"reported_syn_retransmits", offReportedSYN, unsafe.Offsetof(c.ReportedSynRetransmits)},
		{"first_sent_ns", offFirstSent, unsafe.Offsetof(c.FirstSentNs)},
		{"first_received_ns", offFirstReceived, unsafe.Offsetof(c.FirstReceivedNs)},
		{"syn_retransmits", offSYNRetr, unsafe.Offsetof(c.SynRetransmits)},
		{"sent_bytes", offSentBytes, unsafe.Offsetof(c.SentBytes)},
		{"received_bytes", offReceivedBytes, unsafe.Offsetof(c.ReceivedBytes)},
		{"retransmits", offRetransmits, unsafe.Offsetof(c.Retransmits)},
		{"srtt_us", offSRTT, unsafe.Offsetof(c.SrttUs)},
		{"min_rtt_us", offMinRTT, unsafe.Offsetof(c.MinRttUs)},
		{"original_addr", offOriginalAddr, unsafe.Offsetof(d.OriginalAddr)},
		{"original_port", offOriginalPort, unsafe.Offsetof(d.OriginalPort)},
		{"verdict", offVerdict, unsafe.Offsetof(d.Verdict)},
		{"dry_verdict", offDryVerdict, unsafe.Offsetof(d.DryVerdict)},
		{"service", offService, unsafe.Offsetof(d.Service)},
		{"backend", offBackend, unsafe.Offsetof(d.Backend)},
		{"backend_tag", offBackendTag, unsafe.Offsetof(d.BackendTag)},
		{"destination", offDestination, unsafe.Offsetof(d.Destination)},
		{"policy_set", offPolicySet, unsafe.Offsetof(d.PolicySet)},
		{"rule", offRule, unsafe.Offsetof(d.Rule)},
		{"dry_rule", offDryRule, unsafe.Offsetof(d.DryRule)},
		{"limit", offLimit, unsafe.Offsetof(d.Limit)},
		{"limit_value", offLimitValue, unsafe.Offsetof(d.LimitValue)},
		{"decision_ns", offDecisionNS, unsafe.Offsetof(d.DecisionNs)},
		{"generation", offGeneration, unsafe.Offsetof(d.Generation)},
		{"sizeof(struct mesh_decision)", bpf.DecisionSize, unsafe.Sizeof(d)},
		{"sizeof(struct mesh_event)", bpf.EventSize, unsafe.Sizeof(e)},
		{"sizeof(struct mesh_close_event)", bpf.CloseEventSize, unsafe.Sizeof(c)},
	}
	for _, test := range tests {
		if test.got != test.want {
			t.Errorf("%s is %d, want %d", test.name, test.got, test.want)
		}
	}
}

// Package connection imports nothing of ours, so it repeats the kernel's enums. Each value must be there, by number and by name.
func TestEnums(t *testing.T) {
	tests := []struct {
		enum  string
		name  func(uint8) string
		count uint8 // of Go values, from least on
		least uint8
	}{
		{"mesh_kind", func(v uint8) string { return connection.Kind(v).String() }, uint8(connection.Sweep), 1},
		{"mesh_role", func(v uint8) string { return connection.Role(v).String() }, 2, 1},
		{"mesh_reason", func(v uint8) string { return connection.Reason(v).String() }, uint8(connection.ReasonCount), 0},
	}
	for _, test := range tests {
		t.Run(test.enum, func(t *testing.T) {
			want := kernelEnum(t, test.enum)
			if len(want) != int(test.count) {
				t.Errorf("%d values in Go, %d in the kernel: %v", test.count, len(want), want)
			}
			for v := test.least; v < test.least+test.count; v++ {
				if got := test.name(v); got != want[v] {
					t.Errorf("%d is %q, in the kernel %q", v, got, want[v])
				}
			}
		})
	}
}

// kernelEnum reads the names of an enum's values off the compiled object, without MESH_ and without the NONE and COUNT at its ends.
func kernelEnum(t *testing.T, name string) map[uint8]string {
	t.Helper()
	spec, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName(name, &enum); err != nil {
		t.Fatal(err)
	}
	names := make(map[uint8]string)
	for _, v := range enum.Values {
		short := strings.ToLower(strings.TrimPrefix(v.Name, "MESH_"))
		if !strings.HasSuffix(short, "_none") && !strings.HasSuffix(short, "_count") {
			names[uint8(v.Value)] = short
		}
	}
	return names
}

func TestConstants(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want any
	}{
		{"pre_connect", uint8(connection.PreConnect), bpf.PreConnect},
		{"established", uint8(connection.Established), bpf.Established},
		{"close", uint8(connection.Close), bpf.Close},
		{"sweep", uint8(connection.Sweep), bpf.Sweep},
		{"the last kind", uint8(connection.Sweep), bpf.KindCount - 1},
		{"client", uint8(connection.Client), bpf.Client},
		{"server", uint8(connection.Server), bpf.Server},
		{"told of the attempt", uint32(connection.ToldAttempt), bpf.ToldAttempt},
		{"told of the handshake", uint32(connection.ToldEstablished), bpf.ToldEstablished},
		{"told of the end", uint32(connection.ToldEnd), bpf.ToldEnd},
		{"adopted", uint32(connection.Adopted), bpf.Adopted},
		{"adopted open", uint32(connection.AdoptedOpen), bpf.AdoptedOpen},
		{"stateless", uint32(connection.Stateless), bpf.Stateless},
		{"decided", uint32(connection.Decided), bpf.Decided},
		{"revoked", uint32(connection.Revoked), bpf.Revoked},
		{"refused here", uint32(connection.RefusedHere), bpf.RefusedHere},
		{"no verdict", uint8(connection.VerdictNone), bpf.VerdictNone},
		{"allow", uint8(connection.VerdictAllow), bpf.VerdictAllow},
		{"deny", uint8(connection.VerdictDeny), bpf.VerdictDeny},
		{"unattended", uint8(connection.VerdictUnattended), bpf.VerdictUnattended},
		{"no rule", uint16(connection.NoRule), bpf.NoRule},
		{"the number of reasons", uint8(connection.ReasonCount), bpf.ReasonCount},
		// Stats counts by kind, so it needs room for each.
		{"room in Stats", uint8(len(new(Stats).Decoded)), bpf.KindCount},
	} {
		if fmt.Sprintf("%T %v", test.got, test.got) != fmt.Sprintf("%T %v", test.want, test.want) {
			t.Errorf("%s is %v, want %v", test.name, test.got, test.want)
		}
	}
}
