// Package account holds what the kernel counted against what user space counted. At rest they agree to the last connection.
package account

import "github.com/sidelight-mesh/sidelight/agent/connection"

// Kernel is the kernel's side.
type Kernel struct {
	Attempts      uint64            `json:"attempts"`
	Established   map[string]uint64 `json:"established"` // by role
	Adopted       map[string]uint64 `json:"adopted"`     // by role; open when the agent came
	Failed        uint64            `json:"failed"`
	Closed        map[string]uint64 `json:"closed"`         // by role
	Submitted     map[string]uint64 `json:"submitted"`      // by kind of event
	ReserveFailed map[string]uint64 `json:"reserve_failed"` // by kind of event
	SampledOut    map[string]uint64 `json:"sampled_out"`    // by kind of event; not asked for
	// StorageFailed counts connections by role that found no room for their state: they are told by their end only.
	// StatelessEstablished are those of them that got through the handshake.
	StorageFailed        map[string]uint64 `json:"storage_failed"`
	StatelessEstablished uint64            `json:"stateless_established"`
	// AdoptedConnecting are those of Attempts that were under way when the agent came. AdoptFailed were open, and could not be adopted.
	AdoptedConnecting uint64 `json:"adopted_connecting"`
	AdoptFailed       uint64 `json:"adopt_failed"`
	// UntrackedClosed began before the agent did and were not adopted.
	UntrackedClosed uint64 `json:"untracked_closed"`
	// Aggregated and Totalled count close events that were lost or sampled out and whose sums the kernel kept, by edge or by role and reason only.
	Aggregated uint64 `json:"aggregated"`
	Totalled   uint64 `json:"totalled"`
	// ListenersFailed are listeners of workloads that could not be noted where they listen.
	ListenersFailed uint64 `json:"listeners_failed"`
	// Strays are packets that were left over from connections that had ended, and that policies would not let reach a listener: nobody was refused.
	Strays uint64 `json:"strays"`
	// TraceIDs counts by outcome connections with peers that trace ids are exchanged with: sent and no_room by clients, received and missing by servers; nil: there
	// have been none.
	TraceIDs map[string]uint64 `json:"trace_ids,omitempty"`
	// Refused counts by role what the mesh refused. Those of clients are in Attempts and in Failed too.
	Refused map[string]uint64 `json:"refused"`
}

// Live is how many connections are open or connecting.
func (k *Kernel) Live() int64 {
	client, server := connection.Client.String(), connection.Server.String()
	return int64(k.Attempts+k.Adopted[client]-k.Failed-k.Closed[client]) +
		int64(k.Established[server]+k.Adopted[server]-k.Closed[server])
}

// User is user space's side.
type User struct {
	Received     uint64            `json:"received"`
	DecodeFailed uint64            `json:"decode_failed"`
	Decoded      map[string]uint64 `json:"decoded"`  // by kind of event
	Followed     uint64            `json:"followed"` // connections whose two ends the agent remembers
}

// Account is both sides at one moment at rest: after the ring was drained.
type Account struct {
	Kernel Kernel `json:"kernel"`
	User   User   `json:"user"`
	// Unaccounted is how many connections or events the two sides differ by. Losses that are counted are accounted for.
	Unaccounted uint64 `json:"unaccounted"`
}

// New compares the sides. The kernel's was read before the ring was drained and again after, user space's last. So user space has
// seen at least all that the kernel had counted before, and what it lacks of that is lost without a trace. A program counts what
// tells of a step before it counts the step (account.h), however long it stands still in between: so in the later reading there is
// what tells of all steps of the earlier.
func New(before, after Kernel, user User) Account {
	a := Account{Kernel: after, User: user}
	lack := func(want, have uint64) {
		if want > have {
			a.Unaccounted += want - have
		}
	}
	var undecoded uint64
	for kind, submitted := range before.Submitted {
		if decoded := user.Decoded[kind]; submitted > decoded {
			undecoded += submitted - decoded
		}
	}
	// An event that could not be decoded has no kind; it is counted, so it makes up for one of whichever kind, and for one only.
	lack(undecoded, user.DecodeFailed)
	sent := func(kind connection.Kind) uint64 {
		return after.Submitted[kind.String()] + after.ReserveFailed[kind.String()] + after.SampledOut[kind.String()]
	}
	lack(before.Failed+before.Closed[connection.Client.String()]+before.Closed[connection.Server.String()]+before.Refused[connection.Server.String()],
		sent(connection.Close))
	// A close that was lost or not asked for is made up for by its sums, in one place or the other.
	lack(before.ReserveFailed[connection.Close.String()]+before.SampledOut[connection.Close.String()], after.Aggregated+after.Totalled)
	lack(before.Attempts, sent(connection.PreConnect)+after.StorageFailed[connection.Client.String()]+after.AdoptedConnecting+after.Refused[connection.Client.String()])
	lack(before.Established[connection.Client.String()]+before.Established[connection.Server.String()],
		sent(connection.Established)+after.StatelessEstablished)
	return a
}
