// Package account holds what the kernel counted against what user space counted. At rest they agree to the last connection.
package account

import "github.com/sidelight-mesh/sidelight/agent/connection"

// Kernel is the kernel's side.
type Kernel struct {
	Attempts        uint64
	Established     map[string]uint64 // by role
	Failed          uint64
	Closed          map[string]uint64 // by role
	Submitted       map[string]uint64 // by kind of event
	ReserveFailed   map[string]uint64 // by kind of event
	StorageFailed   uint64
	UntrackedClosed uint64
}

// User is user space's side.
type User struct {
	Received     uint64
	DecodeFailed uint64
	Decoded      map[string]uint64 // by kind of event
	Untracked    uint64            // events of connections over the limit
	Followed     uint64            // connections open or connecting now
}

// Account is both sides at one moment at rest: after the ring was drained.
type Account struct {
	Kernel Kernel
	User   User
	// Unaccounted is how many connections or events the two sides differ by. Losses that are counted are accounted for.
	Unaccounted uint64
}

// New compares the sides. The kernel's was read before the ring was drained and again after, user space's last. So user space has
// seen at least all that the kernel had counted before, and what it lacks of that is lost without a trace; and the steps that one
// run of a program counts one after the other are all in the later reading if the first of them is in the earlier.
func New(before, after Kernel, user User) Account {
	a := Account{Kernel: after, User: user}
	lack := func(want, have uint64) {
		if want > have {
			a.Unaccounted += want - have
		}
	}
	for kind, submitted := range before.Submitted {
		// An event that could not be decoded has no kind; it is counted, so it makes up for whichever lacks it.
		lack(submitted, user.Decoded[kind]+user.DecodeFailed)
	}
	sent := func(kind connection.Kind) uint64 {
		return after.Submitted[kind.String()] + after.ReserveFailed[kind.String()]
	}
	lack(before.Failed+before.Closed[connection.Client.String()]+before.Closed[connection.Server.String()], sent(connection.Close))
	lack(before.Attempts, sent(connection.PreConnect)+after.StorageFailed)
	return a
}
