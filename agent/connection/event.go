// Package connection turns events of the kernel into connection records. It holds the only state of the telemetry side, and is
// pure: no clock, no kernel, no I/O.
package connection

import "net/netip"

// Kind says what happened to a connection.
type Kind uint8

// The kinds of events, in the order of a connection's life. The values are those of enum mesh_kind.
const (
	PreConnect  Kind = 1 // a client's SYN is about to leave
	Established Kind = 2 // the handshake is done
	Close       Kind = 3 // the socket reached TCP_CLOSE
	Sweep       Kind = 4 // a look at a live socket; not an event of the ring
)

var kindNames = [...]string{PreConnect: "pre_connect", Established: "established", Close: "close", Sweep: "sweep"}

func (k Kind) String() string { return name(kindNames[:], int(k)) }

// Kinds returns every kind that comes through the ring.
func Kinds() []Kind { return []Kind{PreConnect, Established, Close} }

// Role says which end of the connection the local socket is.
type Role uint8

// The values are those of enum mesh_role.
const (
	Client Role = 1 // it connected
	Server Role = 2 // it was accepted
)

var roleNames = [...]string{Client: "client", Server: "server"}

func (r Role) String() string { return name(roleNames[:], int(r)) }

// Reason says why a connection ended or failed.
type Reason uint8

// The values are those of enum mesh_reason.
const (
	OK Reason = iota
	Refused
	ResetByPeer
	ResetByLocal
	Timeout
	Unreachable
	Denied
	CircuitOpen
	RateLimited
	NoEndpoint
	Other
	UnknownLost
	Aborted // closed by its own process before the handshake was done
	ReasonCount
)

var reasonNames = [...]string{
	OK: "ok", Refused: "refused", ResetByPeer: "reset_by_peer", ResetByLocal: "reset_by_local", Timeout: "timeout",
	Unreachable: "unreachable", Denied: "denied", CircuitOpen: "circuit_open", RateLimited: "rate_limited",
	NoEndpoint: "no_endpoint", Other: "other", UnknownLost: "unknown_lost", Aborted: "aborted",
}

func (r Reason) String() string { return name(reasonNames[:], int(r)) }

func name(names []string, i int) string {
	if i < len(names) && names[i] != "" {
		return names[i]
	}
	return "unknown"
}

// Key names one connection of one socket for the time of one boot: a socket has one cookie, and may connect more than once.
type Key struct {
	Cookie  uint64
	StartNS uint64 // CLOCK_MONOTONIC
}

// Owner is the process that called connect or listen. PID is 0 when the kernel could not tell.
type Owner struct {
	StartBoottimeNS uint64 // start of the process since boot, CLOCK_BOOTTIME; with PID it names a process for good
	PID             uint32 // in the initial PID namespace
	Comm            [16]byte
}

// Event is one decoded message of the kernel. It carries all that was known when it was sent, so a later event makes up for a
// lost one. Times are CLOCK_MONOTONIC nanoseconds, 0 for "did not happen".
type Event struct {
	Kind          Kind
	Role          Role
	Reason        Reason // of Close only
	Told          Told   // before this event
	Flags         Flags
	Key           Key
	ConnectNS     uint64 // the SYN was about to leave; clients only
	EstablishedNS uint64
	EventNS       uint64
	ClientISN     uint32         // the client's initial sequence number, which both ends know; 0 of a server with TraceTold
	ToldTraceID   TraceID        // of a server with TraceTold: what the client's SYN said; else zero
	Local, Peer   netip.AddrPort // IPv4 unmapped, whatever the socket's family
	CgroupID      uint64         // cgroup v2 of the socket; 0 unknown
	Owner         Owner
	Totals        Totals   // of Close and Sweep only
	Reported      Reported // of Close and Sweep only
	Decision      Decision // of the mesh; there if Flags has Decided
}

// Reported is what user space had been told of the totals before an event. Sums take the difference, modulo the width of the field: a
// Sweep reads a socket without its lock, and what it reads too much or too little the next report makes up for.
type Reported struct {
	SentBytes      uint64
	ReceivedBytes  uint64
	Retransmits    uint32
	SYNRetransmits uint32
}

// Moved returns what an event adds to the sums of its totals.
func (e *Event) Moved() (sentBytes, receivedBytes, retransmits, synRetransmits uint64) {
	return e.Totals.SentBytes - e.Reported.SentBytes, e.Totals.ReceivedBytes - e.Reported.ReceivedBytes,
		uint64(int32(e.Totals.Retransmits - e.Reported.Retransmits)),
		uint64(int32(e.Totals.SYNRetransmits - e.Reported.SYNRetransmits))
}

// Flags say what is special about a connection: a set of bits, those of enum mesh_flags.
type Flags uint8

const (
	// Adopted began before the agent did: Key.StartNS is when it was found.
	Adopted Flags = 1
	// AdoptedOpen was open when it was found: it counts as adopted, neither as attempt nor as established.
	AdoptedOpen Flags = 2
	// Stateless found no room for its state in the kernel: only its Close is told, and all its times are that of the Close.
	Stateless Flags = 4
	// Decided says that there is an Event.Decision.
	Decided Flags = 8
	// RefusedHere was refused by the mesh: a client's SYN never left, a server never saw it.
	RefusedHere Flags = 16
	// Revoked was allowed by policies and cut when they allowed it no more.
	Revoked Flags = 32
	// TraceTold says that the client's trace id was in its SYN: of a client that it wrote it, of a server that it found it.
	TraceTold Flags = 64
)

// StartKnown says whether Key.StartNS is when the connection started.
func (e *Event) StartKnown() bool { return e.Flags&(Adopted|Stateless) == 0 }

// OpenKnown says whether EstablishedNS is when the handshake was done.
func (e *Event) OpenKnown() bool {
	return e.EstablishedNS != 0 && e.Flags&(AdoptedOpen|Stateless) == 0
}

// Told says what user space had been told of a connection before an event: a set of bits, those of enum mesh_told.
type Told uint8

// The steps that are counted once.
const (
	ToldAttempt     Told = 1
	ToldEstablished Told = 2
	ToldEnd         Told = 4
)

// Totals are what crossed a socket: payload only, each byte once.
type Totals struct {
	SentBytes       uint64
	ReceivedBytes   uint64
	FirstSentNS     uint64 // CLOCK_MONOTONIC; when the first byte left; 0 none did, or it was not seen
	FirstReceivedNS uint64 // CLOCK_MONOTONIC; when the first byte was here, by the first segment that left after it; 0 none, or not seen
	Retransmits     uint32 // segments, SYN among them
	SYNRetransmits  uint32 // of these, during the handshake
	RTTUS           uint32 // smoothed, microseconds; 0 never measured
	MinRTTUS        uint32 // microseconds; 0 never measured
}
