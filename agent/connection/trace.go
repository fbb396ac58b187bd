package connection

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// TraceID names a connection. Both of its ends come to the same name without a word on the wire: it is a hash of what both hold, the
// client's and the server's address and the client's initial sequence number. Where something translates an address between the ends, or the sequence number, they
// disagree, and each is a trace of its own, unless the client's id was in its SYN (TraceTold).
type TraceID [16]byte

// Trace has a connection's names.
type Trace struct {
	ID         TraceID
	ClientSpan [8]byte
	ServerSpan [8]byte
}

// Client returns the address of the end that connected.
func (e *Event) Client() netip.AddrPort {
	if e.Role == Client {
		return e.Local
	}
	return e.Peer
}

// Server returns the address of the end that accepted.
func (e *Event) Server() netip.AddrPort {
	if e.Role == Client {
		return e.Peer
	}
	return e.Local
}

// TraceID returns the name of the connection's trace: MurmurHash3 (x64, 128 bits, seed 0) of the client's address and the server's, of 16 bytes each, their ports and the
// sequence number, in network byte order. The kernel side computes the same for the SYN (bpf/lib/propagate.h), which is why it is no cryptographic one:
// who makes two connections with one name has only his own traces mixed up.
func (e *Event) TraceID() TraceID {
	if e.Role == Server && e.Flags&TraceTold != 0 {
		return e.ToldTraceID
	}
	client, server := e.Client(), e.Server()
	c, s := client.Addr().As16(), server.Addr().As16()
	if e.Flags&RefusedHere != 0 {
		// No SYN left, or nobody saw it: what names it is of this end alone.
		binary.BigEndian.PutUint64(c[:8], e.Key.Cookie)
		binary.BigEndian.PutUint64(c[8:], e.Key.StartNS)
	}
	var last [8]byte
	binary.BigEndian.PutUint16(last[0:], client.Port())
	binary.BigEndian.PutUint16(last[2:], server.Port())
	binary.BigEndian.PutUint32(last[4:], e.ClientISN)
	return hash40(&c, &s, &last)
}

// Trace returns the connection's names.
func (e *Event) Trace() Trace {
	id := e.TraceID()
	sum := sha256.Sum256(id[:])
	t := Trace{ID: id, ClientSpan: [8]byte(sum[:8]), ServerSpan: [8]byte(sum[8:16])}
	if e.Role == Server && e.Flags&TraceTold != 0 {
		// Nobody else has to know it, and who sends one id time and again is not to make spans that have one id.
		var own [32]byte
		copy(own[:], id[:])
		binary.BigEndian.PutUint64(own[16:], e.Key.Cookie)
		binary.BigEndian.PutUint64(own[24:], e.Key.StartNS)
		sum = sha256.Sum256(own[:])
		t.ServerSpan = [8]byte(sum[:8])
	}
	return t
}

// Span returns the id of the local end's span.
func (t *Trace) Span(r Role) [8]byte {
	if r == Client {
		return t.ClientSpan
	}
	return t.ServerSpan
}

// hash40 is MurmurHash3_x64_128 of 40 bytes, its halves in network byte order.
func hash40(first, second *[16]byte, last *[8]byte) (id TraceID) {
	const c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
	left := func(k uint64) uint64 { return bits.RotateLeft64(k*c1, 31) * c2 }
	right := func(k uint64) uint64 { return bits.RotateLeft64(k*c2, 33) * c1 }
	mix := func(h uint64) uint64 {
		h = (h ^ h>>33) * 0xff51afd7ed558ccd
		h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
		return h ^ h>>33
	}
	le := binary.LittleEndian
	var a, b uint64
	for _, block := range [...]*[16]byte{first, second} {
		a = (bits.RotateLeft64(a^left(le.Uint64(block[:])), 27)+b)*5 + 0x52dce729
		b = (bits.RotateLeft64(b^right(le.Uint64(block[8:])), 31)+a)*5 + 0x38495ab5
	}
	a ^= left(le.Uint64(last[:]))
	const size = 40
	a, b = a^size, b^size
	a += b
	b += a
	a, b = mix(a), mix(b)
	a += b
	b += a
	binary.BigEndian.PutUint64(id[:], a)
	binary.BigEndian.PutUint64(id[8:], b)
	return id
}

// wire is what both ends know of a connection, as a map key.
type wire struct {
	client, server netip.AddrPort
	isn            uint32
}

func (e *Event) wire() wire { return wire{e.Client(), e.Server(), e.ClientISN} }
