package event

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// FuzzDecode holds Decode against the generated types: whatever the bytes are, it either refuses what the kernel cannot send or
// gives what the same bytes are as the C struct. The seeds are in testdata.
func FuzzDecode(f *testing.F) {
	swept := closeSample(bpf.Server, 17)
	swept.Event.Kind = bpf.Sweep
	f.Add(bytesOf(closeSample(bpf.Client, 17)))
	f.Add(bytesOf(closeSample(bpf.Client, bpf.NoRTT)))
	f.Add(bytesOf(swept))
	for _, s := range decidedSamples() {
		f.Add(s.in)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got connection.Event
		err := Decode(b, &got)
		// Bytes beyond what there is are zero, and a zero kind or role is refused.
		var raw bpf.CloseEvent
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unsafe.Sizeof(raw)), b)
		if !sendable(&raw, len(b)) {
			if err == nil {
				t.Fatalf("decoded what no kernel sends into %+v", got)
			}
			if got != (connection.Event{}) {
				t.Fatalf("refused (%v) and changed the event to %+v", err, got)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		want := convert(&raw)
		if raw.Event.Flags&uint16(bpf.Decided) != 0 {
			var decision bpf.Decision
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&decision)), unsafe.Sizeof(decision)), b[len(b)-bpf.DecisionSize:])
			want.Decision = convertDecision(&decision)
		}
		if got != want {
			t.Fatalf("\ngot  %+v\nwant %+v", got, want)
		}
	})
}

func sendable(e *bpf.CloseEvent, size int) bool {
	if e.Event.Flags&uint16(bpf.Decided) != 0 {
		size -= bpf.DecisionSize
	}
	switch e.Event.Kind {
	case 1, 2:
		if size != int(unsafe.Sizeof(e.Event)) {
			return false
		}
	case 3, 4:
		if size != int(unsafe.Sizeof(*e)) {
			return false
		}
	default:
		return false
	}
	return (e.Event.Role == 1 || e.Event.Role == 2) && e.Event.Reason <= 12
}

func convertDecision(d *bpf.Decision) connection.Decision {
	return connection.Decision{
		Original: netip.AddrPortFrom(netip.AddrFrom16(d.OriginalAddr).Unmap(), d.OriginalPort),
		Verdict:  connection.Verdict(d.Verdict), DryVerdict: connection.Verdict(d.DryVerdict),
		Service: d.Service, Backend: d.Backend, BackendTag: d.BackendTag, Destination: d.Destination,
		PolicySet: d.PolicySet, Rule: d.Rule, DryRule: d.DryRule, Limit: d.Limit, LimitValue: d.LimitValue,
		DecisionNS: d.DecisionNs, Generation: d.Generation,
	}
}

func convert(c *bpf.CloseEvent) connection.Event {
	e := &c.Event
	out := connection.Event{
		Kind: connection.Kind(e.Kind), Role: connection.Role(e.Role), Reason: connection.Reason(e.Reason),
		Key:       connection.Key{Cookie: e.Cookie, StartNS: e.StartNs},
		ConnectNS: e.ConnectNs, EstablishedNS: e.EstablishedNs, EventNS: e.EventNs, ClientISN: e.ClientIsn, Told: connection.Told(e.Told),
		Flags:    connection.Flags(e.Flags &^ uint16(bpf.TraceDue)),
		Local:    netip.AddrPortFrom(netip.AddrFrom16(e.LocalAddr).Unmap(), e.LocalPort),
		Peer:     netip.AddrPortFrom(netip.AddrFrom16(e.PeerAddr).Unmap(), e.PeerPort),
		CgroupID: e.CgroupId,
		Owner:    connection.Owner{StartBoottimeNS: e.Owner.StartBoottimeNs, PID: e.Owner.Pid},
	}
	if e.Role == bpf.Server && uint32(e.Flags)&bpf.TraceTold != 0 {
		out.ConnectNS, out.ClientISN = 0, 0
		binary.LittleEndian.PutUint64(out.ToldTraceID[0:], e.ConnectNs)
		binary.LittleEndian.PutUint32(out.ToldTraceID[8:], e.Owner.Reserved)
		binary.LittleEndian.PutUint32(out.ToldTraceID[12:], e.ClientIsn)
	}
	for i, c := range e.Owner.Comm {
		out.Owner.Comm[i] = byte(c)
	}
	if out.Kind == connection.Close || out.Kind == connection.Sweep {
		out.Reported = connection.Reported{
			SentBytes: c.ReportedSentBytes, ReceivedBytes: c.ReportedReceivedBytes, Retransmits: c.ReportedRetransmits,
			SYNRetransmits: c.ReportedSynRetransmits,
		}
		out.Totals = connection.Totals{
			SentBytes: c.SentBytes, ReceivedBytes: c.ReceivedBytes, Retransmits: c.Retransmits, RTTUS: c.SrttUs, MinRTTUS: c.MinRttUs,
			FirstSentNS: c.FirstSentNs, FirstReceivedNS: c.FirstReceivedNs, SYNRetransmits: c.SynRetransmits,
		}
		if c.MinRttUs == bpf.NoRTT {
			out.Totals.MinRTTUS = 0
		}
	}
	return out
}
