package connection

import "net/netip"

// Verdict is what policies said: enum mesh_verdict.
type Verdict uint8

// The verdicts.
const (
	VerdictNone  Verdict = 0 // no policy is about it
	VerdictAllow Verdict = 1
	VerdictDeny  Verdict = 2
	// VerdictUnattended denies, because there has been no agent for longer than is allowed.
	VerdictUnattended Verdict = 3
)

var verdictNames = [...]string{VerdictAllow: "allow", VerdictDeny: "deny", VerdictUnattended: "unattended"}

func (v Verdict) String() string { return name(verdictNames[:], int(v)) }

// NoRule says that no rule decided.
const NoRule = 0xffff

// Decision is what the mesh decided of a connection: struct mesh_decision. Its numbers are indices and ids of the kernel's maps, which agent/maps has
// the names of.
type Decision struct {
	Original    netip.AddrPort // dialled; of a server's, the address that was asked for
	Verdict     Verdict
	DryVerdict  Verdict // what dry-run policies would have said
	Service     uint32  // 0: none was dialled
	Backend     uint32  // 0: none
	BackendTag  uint32
	Destination uint32 // workload; 0: none that is known
	PolicySet   uint32 // 0: none
	Rule        uint16 // NoRule: none
	DryRule     uint16
	Limit       uint32 // that refused; 0: none
	LimitValue  uint32 // its bound
	DecisionNS  uint32
	Generation  uint64 // of the service's configuration; 0 without a service
}
