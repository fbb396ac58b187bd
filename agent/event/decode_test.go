package event

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// bytesOf is what the kernel would put into the ring: the generated types have the memory layout of the C ones.
func bytesOf[T bpf.Event | bpf.CloseEvent | bpf.Decision](value T) []byte {
	b := make([]byte, unsafe.Sizeof(value))
	copy(b, unsafe.Slice((*byte)(unsafe.Pointer(&value)), len(b)))
	return b
}

func comm(text string) (out [16]int8) {
	for i := range text {
		out[i] = int8(text[i])
	}
	return out
}

// sample is an event of which every field has a value of its own, so that no two can be mixed up.
func sample(kind, role uint8) bpf.Event {
	e := bpf.Event{
		Kind: kind, Role: role, OldState: 0xee,
		LocalPort: 0x0102, PeerPort: 0x0304,
		Cookie: 0x1112131415161718, StartNs: 0x2122232425262728, ConnectNs: 0x3132333435363738,
		EstablishedNs: 0x4142434445464748, EventNs: 0x5152535455565758, CgroupId: 0x6162636465666768,
		LocalAddr: netip.MustParseAddr("::ffff:10.1.2.3").As16(),
		PeerAddr:  netip.MustParseAddr("::ffff:10.4.5.6").As16(),
		ClientIsn: 0x71727374, Told: 3, Flags: 5,
	}
	e.Owner.StartBoottimeNs, e.Owner.Pid, e.Owner.Reserved = 0x8182838485868788, 0x91929394, 0xeeeeeeee
	e.Owner.Comm = comm("curl")
	return e
}

// decoded is what sample comes to.
func decoded(kind connection.Kind, role connection.Role) connection.Event {
	return connection.Event{
		Kind: kind, Role: role,
		Key:       connection.Key{Cookie: 0x1112131415161718, StartNS: 0x2122232425262728},
		ConnectNS: 0x3132333435363738, EstablishedNS: 0x4142434445464748, EventNS: 0x5152535455565758,
		ClientISN: 0x71727374, Told: 3, Flags: 5, CgroupID: 0x6162636465666768,
		Local: netip.MustParseAddrPort("10.1.2.3:258"),
		Peer:  netip.MustParseAddrPort("10.4.5.6:772"),
		Owner: connection.Owner{StartBoottimeNS: 0x8182838485868788, PID: 0x91929394, Comm: [16]byte{'c', 'u', 'r', 'l'}},
	}
}

func closeSample(role uint8, minRTT uint32) bpf.CloseEvent {
	return bpf.CloseEvent{
		Event: sample(bpf.Close, role), SkErr: 0xeeeeeeee,
		SentBytes: 0xa1a2a3a4a5a6a7a8, ReceivedBytes: 0xb1b2b3b4b5b6b7b8, Retransmits: 0xc1c2c3c4, SrttUs: 0xd1d2d3d4, MinRttUs: minRTT,
		FirstSentNs: 0xe1e2e3e4e5e6e7e8, FirstReceivedNs: 0xf1f2f3f4f5f6f7f8, SynRetransmits: 0x01020304, Reserved: 0xeeeeeeee,
	}
}

func TestDecode(t *testing.T) {
	with := func(e connection.Event, change func(*connection.Event)) connection.Event {
		change(&e)
		return e
	}
	totals := connection.Totals{
		SentBytes: 0xa1a2a3a4a5a6a7a8, ReceivedBytes: 0xb1b2b3b4b5b6b7b8, Retransmits: 0xc1c2c3c4, RTTUS: 0xd1d2d3d4, MinRTTUS: 17,
		FirstSentNS: 0xe1e2e3e4e5e6e7e8, FirstReceivedNS: 0xf1f2f3f4f5f6f7f8, SYNRetransmits: 0x01020304,
	}
	reported := connection.Reported{SentBytes: 11, ReceivedBytes: 12, Retransmits: 13, SYNRetransmits: 14}
	told := sample(bpf.Established, bpf.Server)
	told.Flags = uint16(bpf.TraceTold)
	// As the id's bytes are in a SYN.
	told.ConnectNs, told.Owner.Reserved, told.ClientIsn = 0x0807060504030201, 0x0c0b0a09, 0x100f0e0d
	sent := sample(bpf.Established, bpf.Client)
	sent.Flags = uint16(bpf.TraceTold | bpf.TraceDue)
	tests := []struct {
		name string
		in   []byte
		want connection.Event
	}{
		{
			"sweep", bytesOf(func() bpf.CloseEvent {
				e := closeSample(bpf.Server, 17)
				e.Event.Kind = bpf.Sweep
				e.ReportedSentBytes, e.ReportedReceivedBytes, e.ReportedRetransmits = 11, 12, 13
				e.ReportedSynRetransmits = 14
				return e
			}()),
			with(decoded(connection.Sweep, connection.Server), func(e *connection.Event) { e.Totals, e.Reported = totals, reported }),
		},
		{"pre_connect", bytesOf(sample(bpf.PreConnect, bpf.Client)), decoded(connection.PreConnect, connection.Client)},
		{"established", bytesOf(sample(bpf.Established, bpf.Server)), decoded(connection.Established, connection.Server)},
		{
			"close", bytesOf(closeSample(bpf.Client, 17)),
			with(decoded(connection.Close, connection.Client), func(e *connection.Event) { e.Totals = totals }),
		},
		{
			"the last reason", bytesOf(func() bpf.CloseEvent {
				e := closeSample(bpf.Server, 17)
				e.Event.Reason = bpf.ReasonCount - 1
				return e
			}()),
			with(decoded(connection.Close, connection.Server), func(e *connection.Event) { e.Totals, e.Reason = totals, connection.Aborted }),
		},
		{
			"a server that found a trace id", bytesOf(told),
			with(decoded(connection.Established, connection.Server), func(e *connection.Event) {
				e.Flags, e.ConnectNS, e.ClientISN = connection.TraceTold, 0, 0
				e.ToldTraceID = connection.TraceID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
			}),
		},
		{
			"a client that sent one", bytesOf(sent),
			with(decoded(connection.Established, connection.Client), func(e *connection.Event) { e.Flags = connection.TraceTold }),
		},
		{
			"min RTT never measured", bytesOf(closeSample(bpf.Server, math.MaxUint32)),
			with(decoded(connection.Close, connection.Server), func(e *connection.Event) { e.Totals = totals; e.Totals.MinRTTUS = 0 }),
		},
		{
			"IPv6", bytesOf(func() bpf.Event {
				e := sample(bpf.PreConnect, bpf.Client)
				e.LocalAddr = netip.MustParseAddr("fd00::1").As16()
				e.PeerAddr = netip.MustParseAddr("2001:db8::2").As16()
				return e
			}()),
			with(decoded(connection.PreConnect, connection.Client), func(e *connection.Event) {
				e.Local, e.Peer = netip.MustParseAddrPort("[fd00::1]:258"), netip.MustParseAddrPort("[2001:db8::2]:772")
			}),
		},
		{
			"comm that fills its field", bytesOf(func() bpf.Event {
				e := sample(bpf.PreConnect, bpf.Client)
				e.Owner.Comm = comm("0123456789abcde\xff")
				return e
			}()),
			with(decoded(connection.PreConnect, connection.Client), func(e *connection.Event) { copy(e.Owner.Comm[:], "0123456789abcde\xff") }),
		},
		{
			"nothing known but what it is", bytesOf(bpf.Event{Kind: bpf.Established, Role: bpf.Server}),
			connection.Event{
				Kind: connection.Established, Role: connection.Server,
				Local: netip.MustParseAddrPort("[::]:0"), Peer: netip.MustParseAddrPort("[::]:0"),
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			// The reader decodes into one event over and over: nothing of the last may stay.
			got := decoded(connection.Close, connection.Client)
			got.Reported = reported
			got.Reason, got.Totals = connection.Timeout, connection.Totals{SentBytes: 1, ReceivedBytes: 1, Retransmits: 1, RTTUS: 1, MinRTTUS: 1}
			if err := Decode(test.in, &got); err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("\ngot  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestDecodeErrors(t *testing.T) {
	change := func(b []byte, offset uintptr, value byte) []byte {
		b[offset] = value
		return b
	}
	event := func() []byte { return bytesOf(sample(bpf.PreConnect, bpf.Client)) }
	closing := func() []byte { return bytesOf(closeSample(bpf.Client, 17)) }
	short, long := bpf.EventSize, bpf.CloseEventSize
	say := fmt.Sprintf
	tests := []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, say("decode event: 0 bytes, want at least %d", short)},
		{"one byte short", event()[:short-1], say("decode event: %d bytes, want at least %d", short-1, short)},
		{"kind zero", change(event(), offKind, 0), "decode event: unknown kind 0"},
		{"first kind that is none", change(event(), offKind, 5), "decode event: unknown kind 5"},
		{"kind 255", change(event(), offKind, 255), "decode event: unknown kind 255"},
		{"one byte too long", append(event(), 0), say("decode event: %d bytes of kind 1, want %d", short+1, short)},
		{"established of the size of a close", change(closing(), offKind, 2), say("decode event: %d bytes of kind 2, want %d", long, short)},
		{"close without totals", change(event(), offKind, 3), say("decode event: %d bytes of kind 3, want %d", short, long)},
		{"close one byte short", closing()[:long-1], say("decode event: %d bytes of kind 3, want %d", long-1, long)},
		{"close one byte too long", append(closing(), 0), say("decode event: %d bytes of kind 3, want %d", long+1, long)},
		{"role zero", change(event(), offRole, 0), "decode event: unknown role 0"},
		{"first role that is none", change(event(), offRole, 3), "decode event: unknown role 3"},
		{"first reason that is none", change(closing(), offReason, 13), "decode event: unknown reason 13"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := decoded(connection.Close, connection.Client)
			after := before
			err := Decode(test.in, &after)
			if err == nil || err.Error() != test.want {
				t.Errorf("error is %v, want %s", err, test.want)
			}
			if after != before {
				t.Errorf("the event was changed to %+v", after)
			}
		})
	}
}

// Decode runs once an event, in the one goroutine that empties the ring: garbage would cost where it hurts.
func TestDecodeAllocatesNothing(t *testing.T) {
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			var event connection.Event
			if n := testing.AllocsPerRun(100, func() {
				if err := Decode(s.in, &event); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, s := range samples() {
		b.Run(s.name, func(b *testing.B) {
			var event connection.Event
			b.ReportAllocs()
			b.SetBytes(int64(len(s.in)))
			for b.Loop() {
				if err := Decode(s.in, &event); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// samples are one event of each kind, as the kernel sends it.
func samples() []kernelSample {
	return []kernelSample{
		{"pre_connect", bytesOf(sample(bpf.PreConnect, bpf.Client))},
		{"established", bytesOf(sample(bpf.Established, bpf.Server))},
		{"close", bytesOf(closeSample(bpf.Client, 17))},
	}
}

type kernelSample struct {
	name string
	in   []byte
}

// decision is a struct mesh_decision in which every field has a value of its own.
func decision() bpf.Decision {
	return bpf.Decision{
		OriginalAddr: netip.MustParseAddr("::ffff:10.96.0.1").As16(), OriginalPort: 0x0506, Verdict: 1, DryVerdict: 2,
		Service: 0xa1a2a3a4, Backend: 0xb1b2b3b4, BackendTag: 0xc1c2c3c4, Destination: 0xd1d2d3d4, PolicySet: 0xe1e2e3e4,
		Rule: 0xf1f2, DryRule: 0xf3f4, Limit: 0x05152535, LimitValue: 0x06162636, DecisionNs: 0x07172737, Generation: 0x0818283848586878,
	}
}

// decidedSamples are those of samples, with a decision behind each.
func decidedSamples() []kernelSample {
	with := func(e *bpf.Event) { e.Flags |= uint16(bpf.Decided) }
	pre, established, ended := sample(bpf.PreConnect, bpf.Client), sample(bpf.Established, bpf.Client), closeSample(bpf.Client, 17)
	with(&pre)
	with(&established)
	with(&ended.Event)
	d := bytesOf(decision())
	return []kernelSample{
		{"pre_connect", append(bytesOf(pre), d...)},
		{"established", append(bytesOf(established), d...)},
		{"close", append(bytesOf(ended), d...)},
	}
}

func TestDecodeDecision(t *testing.T) {
	for _, s := range decidedSamples() {
		t.Run(s.name, func(t *testing.T) {
			var got connection.Event
			if err := Decode(s.in, &got); err != nil {
				t.Fatal(err)
			}
			want := connection.Decision{
				Original: netip.MustParseAddrPort("10.96.0.1:1286"), Verdict: connection.VerdictAllow, DryVerdict: connection.VerdictDeny,
				Service: 0xa1a2a3a4, Backend: 0xb1b2b3b4, BackendTag: 0xc1c2c3c4, Destination: 0xd1d2d3d4, PolicySet: 0xe1e2e3e4,
				Rule: 0xf1f2, DryRule: 0xf3f4, Limit: 0x05152535, LimitValue: 0x06162636, DecisionNS: 0x07172737, Generation: 0x0818283848586878,
			}
			if got.Decision != want || got.Flags&connection.Decided == 0 {
				t.Errorf("\ngot  %+v\nwant %+v", got.Decision, want)
			}
			if err := Decode(s.in[:len(s.in)-bpf.DecisionSize], &got); err == nil {
				t.Error("decoded without the decision that its flag says")
			}
		})
	}
}
