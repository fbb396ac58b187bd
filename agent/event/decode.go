// Package event reads the kernel's ring buffer and decodes what it holds.
package event

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Offsets in struct mesh_event, which the longer records begin with, and in struct mesh_close_event (bpf/abi.h).
const (
	offKind          = unsafe.Offsetof(bpf.Event{}.Kind)
	offRole          = unsafe.Offsetof(bpf.Event{}.Role)
	offReason        = unsafe.Offsetof(bpf.Event{}.Reason)
	offLocalPort     = unsafe.Offsetof(bpf.Event{}.LocalPort)
	offPeerPort      = unsafe.Offsetof(bpf.Event{}.PeerPort)
	offCookie        = unsafe.Offsetof(bpf.Event{}.Cookie)
	offStart         = unsafe.Offsetof(bpf.Event{}.StartNs)
	offConnect       = unsafe.Offsetof(bpf.Event{}.ConnectNs)
	offEstablished   = unsafe.Offsetof(bpf.Event{}.EstablishedNs)
	offLocalAddr     = unsafe.Offsetof(bpf.Event{}.LocalAddr)
	offPeerAddr      = unsafe.Offsetof(bpf.Event{}.PeerAddr)
	offCgroup        = unsafe.Offsetof(bpf.Event{}.CgroupId)
	offOwnerStart    = unsafe.Offsetof(bpf.Event{}.Owner) + unsafe.Offsetof(bpf.Event{}.Owner.StartBoottimeNs)
	offOwnerReserved = unsafe.Offsetof(bpf.Event{}.Owner) + unsafe.Offsetof(bpf.Event{}.Owner.Reserved)
	offOwnerPID      = unsafe.Offsetof(bpf.Event{}.Owner) + unsafe.Offsetof(bpf.Event{}.Owner.Pid)
	offOwnerComm     = unsafe.Offsetof(bpf.Event{}.Owner) + unsafe.Offsetof(bpf.Event{}.Owner.Comm)
	offClientISN     = unsafe.Offsetof(bpf.Event{}.ClientIsn)
	offTold          = unsafe.Offsetof(bpf.Event{}.Told)
	offFlags         = unsafe.Offsetof(bpf.Event{}.Flags)
	offEvent         = unsafe.Offsetof(bpf.Event{}.EventNs)
	offReportedSent  = unsafe.Offsetof(bpf.CloseEvent{}.ReportedSentBytes)
	offReportedRecv  = unsafe.Offsetof(bpf.CloseEvent{}.ReportedReceivedBytes)
	offReportedRetr  = unsafe.Offsetof(bpf.CloseEvent{}.ReportedRetransmits)
	offReportedSYN   = unsafe.Offsetof(bpf.CloseEvent{}.ReportedSynRetransmits)
	offSentBytes     = unsafe.Offsetof(bpf.CloseEvent{}.SentBytes)
	offReceivedBytes = unsafe.Offsetof(bpf.CloseEvent{}.ReceivedBytes)
	offFirstSent     = unsafe.Offsetof(bpf.CloseEvent{}.FirstSentNs)
	offFirstReceived = unsafe.Offsetof(bpf.CloseEvent{}.FirstReceivedNs)
	offRetransmits   = unsafe.Offsetof(bpf.CloseEvent{}.Retransmits)
	offSYNRetr       = unsafe.Offsetof(bpf.CloseEvent{}.SynRetransmits)
	offSRTT          = unsafe.Offsetof(bpf.CloseEvent{}.SrttUs)
	offMinRTT        = unsafe.Offsetof(bpf.CloseEvent{}.MinRttUs)
)

// Offsets in struct mesh_decision.
const (
	offOriginalAddr = unsafe.Offsetof(bpf.Decision{}.OriginalAddr)
	offOriginalPort = unsafe.Offsetof(bpf.Decision{}.OriginalPort)
	offVerdict      = unsafe.Offsetof(bpf.Decision{}.Verdict)
	offDryVerdict   = unsafe.Offsetof(bpf.Decision{}.DryVerdict)
	offService      = unsafe.Offsetof(bpf.Decision{}.Service)
	offBackend      = unsafe.Offsetof(bpf.Decision{}.Backend)
	offBackendTag   = unsafe.Offsetof(bpf.Decision{}.BackendTag)
	offDestination  = unsafe.Offsetof(bpf.Decision{}.Destination)
	offPolicySet    = unsafe.Offsetof(bpf.Decision{}.PolicySet)
	offRule         = unsafe.Offsetof(bpf.Decision{}.Rule)
	offDryRule      = unsafe.Offsetof(bpf.Decision{}.DryRule)
	offLimit        = unsafe.Offsetof(bpf.Decision{}.Limit)
	offLimitValue   = unsafe.Offsetof(bpf.Decision{}.LimitValue)
	offDecisionNS   = unsafe.Offsetof(bpf.Decision{}.DecisionNs)
	offGeneration   = unsafe.Offsetof(bpf.Decision{}.Generation)
)

// Decode reads one record of the ring, or of a sweep, into an event, overwriting it whole. It allocates only for the error, which says what a
// kernel program of the same build can never send: treat it as corruption, count it and go on.
func Decode(b []byte, e *connection.Event) error {
	if len(b) < bpf.EventSize {
		return fmt.Errorf("decode event: %d bytes, want at least %d", len(b), bpf.EventSize)
	}
	kind, role, reason := b[offKind], b[offRole], b[offReason]
	want := bpf.EventSize
	withTotals := kind == bpf.Close || kind == bpf.Sweep
	if withTotals {
		want = bpf.CloseEventSize
	}
	decision := want
	decided := uint32(binary.LittleEndian.Uint16(b[offFlags:]))&bpf.Decided != 0
	if decided {
		want += bpf.DecisionSize
	}
	switch {
	case kind == 0 || kind >= bpf.KindCount:
		return fmt.Errorf("decode event: unknown kind %d", kind)
	case len(b) != want:
		return fmt.Errorf("decode event: %d bytes of kind %d, want %d", len(b), kind, want)
	case role != bpf.Client && role != bpf.Server:
		return fmt.Errorf("decode event: unknown role %d", role)
	case reason >= bpf.ReasonCount:
		return fmt.Errorf("decode event: unknown reason %d", reason)
	}
	injected()
	le := binary.LittleEndian
	*e = connection.Event{
		Kind:          connection.Kind(kind),
		Role:          connection.Role(role),
		Reason:        connection.Reason(reason),
		Told:          connection.Told(le.Uint16(b[offTold:])),
		Flags:         connection.Flags(le.Uint16(b[offFlags:]) &^ uint16(bpf.TraceDue)),
		Key:           connection.Key{Cookie: le.Uint64(b[offCookie:]), StartNS: le.Uint64(b[offStart:])},
		ConnectNS:     le.Uint64(b[offConnect:]),
		EstablishedNS: le.Uint64(b[offEstablished:]),
		EventNS:       le.Uint64(b[offEvent:]),
		ClientISN:     le.Uint32(b[offClientISN:]),
		Local:         addrPort(b[offLocalAddr:], b[offLocalPort:]),
		Peer:          addrPort(b[offPeerAddr:], b[offPeerPort:]),
		CgroupID:      le.Uint64(b[offCgroup:]),
		Owner: connection.Owner{
			StartBoottimeNS: le.Uint64(b[offOwnerStart:]),
			PID:             le.Uint32(b[offOwnerPID:]),
			Comm:            [16]byte(b[offOwnerComm:]),
		},
	}
	if e.Role == connection.Server && e.Flags&connection.TraceTold != 0 {
		decodeTraceID(b, e)
	}
	if decided {
		decodeDecision(b[decision:], &e.Decision)
	}
	if !withTotals {
		return nil
	}
	e.Reported = connection.Reported{
		SentBytes:      le.Uint64(b[offReportedSent:]),
		ReceivedBytes:  le.Uint64(b[offReportedRecv:]),
		Retransmits:    le.Uint32(b[offReportedRetr:]),
		SYNRetransmits: le.Uint32(b[offReportedSYN:]),
	}
	e.Totals = connection.Totals{
		SentBytes:       le.Uint64(b[offSentBytes:]),
		ReceivedBytes:   le.Uint64(b[offReceivedBytes:]),
		FirstSentNS:     le.Uint64(b[offFirstSent:]),
		FirstReceivedNS: le.Uint64(b[offFirstReceived:]),
		Retransmits:     le.Uint32(b[offRetransmits:]),
		SYNRetransmits:  le.Uint32(b[offSYNRetr:]),
		RTTUS:           le.Uint32(b[offSRTT:]),
		MinRTTUS:        le.Uint32(b[offMinRTT:]),
	}
	if e.Totals.MinRTTUS == bpf.NoRTT {
		e.Totals.MinRTTUS = 0
	}
	return nil
}

// decodeTraceID reads the id that a server found in the SYN, which is where other events have what a server then has not.
func decodeTraceID(b []byte, e *connection.Event) {
	copy(e.ToldTraceID[0:8], b[offConnect:])
	copy(e.ToldTraceID[8:12], b[offOwnerReserved:])
	copy(e.ToldTraceID[12:16], b[offClientISN:])
	e.ConnectNS, e.ClientISN = 0, 0
}

func decodeDecision(b []byte, d *connection.Decision) {
	le := binary.LittleEndian
	*d = connection.Decision{
		Original:    addrPort(b[offOriginalAddr:], b[offOriginalPort:]),
		Verdict:     connection.Verdict(b[offVerdict]),
		DryVerdict:  connection.Verdict(b[offDryVerdict]),
		Service:     le.Uint32(b[offService:]),
		Backend:     le.Uint32(b[offBackend:]),
		BackendTag:  le.Uint32(b[offBackendTag:]),
		Destination: le.Uint32(b[offDestination:]),
		PolicySet:   le.Uint32(b[offPolicySet:]),
		Rule:        le.Uint16(b[offRule:]),
		DryRule:     le.Uint16(b[offDryRule:]),
		Limit:       le.Uint32(b[offLimit:]),
		LimitValue:  le.Uint32(b[offLimitValue:]),
		DecisionNS:  le.Uint32(b[offDecisionNS:]),
		Generation:  le.Uint64(b[offGeneration:]),
	}
}

func addrPort(addr, port []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(addr)).Unmap(), binary.LittleEndian.Uint16(port))
}
