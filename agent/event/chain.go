package event

import (
	"errors"

	"github.com/cilium/ebpf"
)

// chain is a ring, and before it what others hold that nobody writes to any more. Its positions count the bytes of all rings that there ever were.
type chain struct {
	rings []chained // the oldest first, and last the one that is written to
	// gone is called when the oldest ring is given back. After an error it is not.
	gone func(base uint64) error
}

type chained struct {
	*ring
	base      uint64
	translate func([]byte) []byte // nil: its records are as they are
}

// Rings are those of a data path.
type Rings struct {
	Now *ebpf.Map
	// Before are those that no program writes to any more, the oldest first.
	Before []Before
	// Base is the position at which the first of all began.
	Base uint64
	// Gone is called when the first of Before was read and can be given back, with the position at which the next one began; after an error again. It may be nil
	// without Before.
	Gone func(base uint64) error
}

// Before is a ring before the one that is written to.
type Before struct {
	Ring *ebpf.Map
	// Translate makes its records such as Decode knows, in memory that is valid until it is called again; nil: they are.
	Translate func([]byte) []byte
}

func openChain(rings *Rings) (*chain, error) {
	c := &chain{gone: rings.Gone}
	for _, b := range append(rings.Before, Before{Ring: rings.Now}) {
		opened, err := openRing(b.Ring)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.rings = append(c.rings, chained{opened, rings.Base, b.Translate})
	}
	c.settle()
	return c, nil
}

// settle is called when nobody writes to the old rings any more: each of the others begins where the one before it ends.
func (c *chain) settle() {
	for i := 1; i < len(c.rings); i++ {
		c.rings[i].base = c.rings[i-1].base + c.rings[i-1].written()
	}
}

func (c *chain) now() *chained { return &c.rings[len(c.rings)-1] }

// spent says that nobody needs the oldest ring any more when all before a position has been handed on.
func (c *chain) spent(position uint64) bool { return len(c.rings) > 1 && position >= c.rings[1].base }

func (c *chain) close() error {
	var errs []error
	for _, r := range c.rings {
		errs = append(errs, r.close())
	}
	c.rings = nil
	return errors.Join(errs...)
}

func (c *chain) written() uint64 { return c.now().base + c.now().written() }

func (c *chain) released() uint64 { return c.rings[0].base + c.rings[0].released() }

// release gives back the room before a position, and old rings once that is beyond them.
func (c *chain) release(position uint64) {
	for len(c.rings) > 1 {
		first, next := &c.rings[0], c.rings[1].base
		first.release(min(position, next) - first.base)
		if position < next {
			return
		}
		// Until it is gone, who opens all of them begins with it, and with the first record of the next.
		if err := c.gone(next); err != nil {
			return
		}
		_ = first.close() // it is not used again
		c.rings = c.rings[1:]
	}
	c.rings[0].release(position - c.rings[0].base)
}

// next is as that of a ring.
func (c *chain) next(position uint64) (sample []byte, after uint64) {
	i := len(c.rings) - 1
	for position < c.rings[i].base {
		i--
	}
	r := &c.rings[i]
	sample, after = r.next(position - r.base)
	if sample != nil && r.translate != nil {
		sample = r.translate(sample)
	}
	return sample, after + r.base
}

// most is the position before which room is given back whatever becomes of what was there: half of a ring is kept at most.
func (c *chain) most(position uint64) uint64 {
	if half := c.now().size() / 2; position > c.now().base+half {
		return position - half
	}
	return 0
}

// inNow is a position as programs that write to the ring have it.
func (c *chain) inNow(position uint64) uint64 {
	if position < c.now().base {
		return 0
	}
	return position - c.now().base
}
