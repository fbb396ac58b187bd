//go:build !sidelight_other_layout

package event

import (
	"testing"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Recorded event streams have these offsets. Whoever changes one raises MESH_ABI_VERSION.
func TestOffsets(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want uintptr
	}{
		{"event", unsafe.Offsetof(bpf.CloseEvent{}.Event), 0},
		{"kind", offKind, 0},
		{"role", offRole, 1},
		{"reason", offReason, 2},
		{"local_port", offLocalPort, 4},
		{"peer_port", offPeerPort, 6},
		{"cookie", offCookie, 8},
		{"start_ns", offStart, 16},
		{"connect_ns", offConnect, 24},
		{"established_ns", offEstablished, 32},
		{"local_addr", offLocalAddr, 40},
		{"peer_addr", offPeerAddr, 56},
		{"cgroup_id", offCgroup, 72},
		{"owner.start_boottime_ns", offOwnerStart, 80},
		{"owner.pid", offOwnerPID, 88},
		{"owner.comm", offOwnerComm, 96},
		{"client_isn", offClientISN, 112},
		{"told", offTold, 116},
		{"flags", offFlags, 118},
		{"event_ns", offEvent, 120},
		{"reported_sent_bytes", offReportedSent, 128},
		{"reported_received_bytes", offReportedRecv, 136},
		{"reported_retransmits", offReportedRetr, 144},
		{"reported_syn_retransmits", offReportedSYN, 148},
		{"first_sent_ns", offFirstSent, 168},
		{"first_received_ns", offFirstReceived, 176},
		{"syn_retransmits", offSYNRetr, 188},
		{"sent_bytes", offSentBytes, 152},
		{"received_bytes", offReceivedBytes, 160},
		{"retransmits", offRetransmits, 184},
		{"srtt_us", offSRTT, 192},
		{"min_rtt_us", offMinRTT, 196},
		{"original_addr", offOriginalAddr, 0},
		{"original_port", offOriginalPort, 16},
		{"verdict", offVerdict, 18},
		{"dry_verdict", offDryVerdict, 19},
		{"service", offService, 20},
		{"backend", offBackend, 24},
		{"backend_tag", offBackendTag, 28},
		{"destination", offDestination, 32},
		{"policy_set", offPolicySet, 36},
		{"rule", offRule, 40},
		{"dry_rule", offDryRule, 42},
		{"limit", offLimit, 44},
		{"limit_value", offLimitValue, 48},
		{"decision_ns", offDecisionNS, 52},
		{"generation", offGeneration, 56},
		{"sizeof(struct mesh_decision)", uintptr(bpf.DecisionSize), 64},
		{"sizeof(struct mesh_event)", uintptr(bpf.EventSize), 128},
		{"sizeof(struct mesh_close_event)", uintptr(bpf.CloseEventSize), 208},
	} {
		if test.got != test.want {
			t.Errorf("%s is %d, want %d", test.name, test.got, test.want)
		}
	}
}
