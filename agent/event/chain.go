package event

import (
	"errors"

	"github.com/cilium/ebpf"
)

// chain is a ring, and before it what another one holds that nobody writes to any more. Its positions count the bytes of all rings that there ever were.
type chain struct {
	old     *ring // nil: it was given back, or there is none
	oldBase uint64
	now     *ring
	base    uint64
	// gone is called when the old ring is given back. After an error it is not.
	gone func(base uint64) error
}

// Rings are those of a data path.
type Rings struct {
	Now *ebpf.Map
	// Before is one that no program writes to any more; nil: there is none.
	Before *ebpf.Map
	// Base is the position at which the first of them began.
	Base uint64
	// Gone is called when Before was read and can be given back, with the position at which Now began; after an error again. It may be nil without Before.
	Gone func(base uint64) error
}

func openChain(rings *Rings) (*chain, error) {
	now, err := openRing(rings.Now)
	if err != nil {
		return nil, err
	}
	c := &chain{now: now, base: rings.Base, gone: rings.Gone}
	if rings.Before == nil {
		return c, nil
	}
	if c.old, err = openRing(rings.Before); err != nil {
		return nil, errors.Join(err, now.close())
	}
	c.oldBase = rings.Base
	c.settle()
	return c, nil
}

// settle is called when nobody writes to the old ring any more: the other one begins where it ends.
func (c *chain) settle() {
	if c.old != nil {
		c.base = c.oldBase + c.old.written()
	}
}

// spent says that nobody needs the old ring any more when all before a position has been handed on.
func (c *chain) spent(position uint64) bool { return c.old != nil && position >= c.base }

func (c *chain) close() error {
	err := c.now.close()
	if c.old != nil {
		err = errors.Join(err, c.old.close())
		c.old = nil
	}
	return err
}

func (c *chain) written() uint64 { return c.base + c.now.written() }

func (c *chain) released() uint64 {
	if c.old != nil {
		return c.oldBase + c.old.released()
	}
	return c.base + c.now.released()
}

// release gives back the room before a position, and the old ring once that is beyond it.
func (c *chain) release(position uint64) {
	if c.old != nil {
		c.old.release(min(position, c.base) - c.oldBase)
		if position < c.base {
			return
		}
		// Until it is gone, who opens both begins with it, and with the first record of the other.
		if err := c.gone(c.base); err != nil {
			return
		}
		_ = c.old.close() // it is not used again
		c.old = nil
	}
	c.now.release(position - c.base)
}

// next is as that of a ring.
func (c *chain) next(position uint64) (sample []byte, after uint64) {
	if position < c.base {
		sample, after = c.old.next(position - c.oldBase)
		return sample, after + c.oldBase
	}
	sample, after = c.now.next(position - c.base)
	return sample, after + c.base
}

// most is the position before which room is given back whatever becomes of what was there: half of a ring is kept at most.
func (c *chain) most(position uint64) uint64 {
	if half := c.now.size() / 2; position > c.base+half {
		return position - half
	}
	return 0
}

// inNow is a position as programs that write to the ring have it.
func (c *chain) inNow(position uint64) uint64 {
	if position < c.base {
		return 0
	}
	return position - c.base
}
