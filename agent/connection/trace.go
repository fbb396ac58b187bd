package connection

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
)

// Trace names a connection so that both of its ends come to the same names without a word on the wire: the ids are a hash of
// what both hold, the client's and the server's address and the client's initial sequence number. Where an address is
// translated between the ends they disagree, and each is a trace of its own.
type Trace struct {
	ID         [16]byte
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

// Trace returns the connection's names.
func (e *Event) Trace() Trace {
	var buf [40]byte
	client, server := e.Client(), e.Server()
	c, s := client.Addr().As16(), server.Addr().As16()
	if e.Flags&RefusedHere != 0 {
		// No SYN left, or nobody saw it: what names it is of this end alone.
		binary.BigEndian.PutUint64(c[:8], e.Key.Cookie)
		binary.BigEndian.PutUint64(c[8:], e.Key.StartNS)
	}
	copy(buf[0:], c[:])
	copy(buf[16:], s[:])
	binary.BigEndian.PutUint16(buf[32:], client.Port())
	binary.BigEndian.PutUint16(buf[34:], server.Port())
	binary.BigEndian.PutUint32(buf[36:], e.ClientISN)
	sum := sha256.Sum256(buf[:])
	return Trace{ID: [16]byte(sum[:16]), ClientSpan: [8]byte(sum[16:24]), ServerSpan: [8]byte(sum[24:32])}
}

// Span returns the id of the local end's span.
func (t *Trace) Span(r Role) [8]byte {
	if r == Client {
		return t.ClientSpan
	}
	return t.ServerSpan
}

// wire is what both ends know of a connection, as a map key.
type wire struct {
	client, server netip.AddrPort
	isn            uint32
}

func (e *Event) wire() wire { return wire{e.Client(), e.Server(), e.ClientISN} }
