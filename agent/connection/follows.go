package connection

import (
	"math/bits"
	"math/rand/v2"
)

// follow is what is kept of one open connection: 32 bytes without a pointer, so that a million of them cost the garbage collector
// nothing to look at.
type follow struct {
	key  Key
	wire uint64 // in clients, if it is a client's
	who  uint32 // where its identity is, above whoShift, and flags; 0 for a slot that is free
	seen uint32 // the number of the sweep during or after which it was seen last
}

// Flags of follow.who.
const (
	whoClient     = 1
	whoClientSeen = 2
	whoBefore     = 4 // all that is known of it is from before Tracker.Inherit's moment: it is in no gauge
	whoShift      = 3
)

// follows is a hash table of them: open addressing, linear probing, no tombstones. One search finds a connection, or the place where it
// goes; the slot is changed where it lies. A Go map would search three times in the life of a connection that is seen three times, and three times
// more to write.
type follows struct {
	slots []follow // a power of two of them
	used  int
	seed  uint64
}

const fewestSlots = 64

func newFollows() follows { return follows{slots: make([]follow, fewestSlots), seed: rand.Uint64()} }

// hash spreads keys that a kernel chose: cookies count up, starts are times.
func (f *follows) hash(k Key) int {
	high, low := bits.Mul64(k.Cookie^f.seed, k.StartNS^0x9e3779b97f4a7c15)
	return int((high ^ low) & uint64(len(f.slots)-1))
}

// find returns where a key is, or else where it would go.
func (f *follows) find(k Key) (at int, found bool) {
	mask := len(f.slots) - 1
	for at = f.hash(k); f.slots[at].who != 0; at = (at + 1) & mask {
		if f.slots[at].key == k {
			return at, true
		}
	}
	return at, false
}

// add puts in what find did not find, there or elsewhere.
func (f *follows) add(at int, added follow) {
	if f.used >= len(f.slots)/4*3 {
		f.resize(2 * len(f.slots))
		at, _ = f.find(added.key)
	}
	f.slots[at] = added
	f.used++
}

// remove frees a slot, and moves up what was put behind it for want of its own place. A table that is nearly empty shrinks.
func (f *follows) remove(at int) {
	mask := len(f.slots) - 1
	for next := (at + 1) & mask; f.slots[next].who != 0; next = (next + 1) & mask {
		// It may move if its own place is not between the hole and where it is.
		if home := f.hash(f.slots[next].key); (next-home)&mask >= (next-at)&mask {
			f.slots[at] = f.slots[next]
			at = next
		}
	}
	f.slots[at] = follow{}
	if f.used--; f.used < len(f.slots)/8 && len(f.slots) > fewestSlots {
		f.resize(len(f.slots) / 2)
	}
}

func (f *follows) resize(slots int) {
	old := f.slots
	f.slots = make([]follow, slots)
	for i := range old {
		if old[i].who != 0 {
			at, _ := f.find(old[i].key)
			f.slots[at] = old[i]
		}
	}
}
