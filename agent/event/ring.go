package event

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ring is a BPF ring buffer as user space sees it: a page with the position up to which it is read, which is ours to write, a page with the
// position up to which it is written, and the data, twice in a row, so that no record has a seam. Positions are bytes since the ring was made.
// The ring's own readers of libraries give a record's room back when it is read; here that waits until it is handed on: see Reader.
type ring struct {
	mine     []byte
	theirs   []byte
	data     []byte
	mask     uint64
	consumed *uint64
	produced *uint64
}

// Of the header of a record: its length, and two bits (BPF_RINGBUF_BUSY_BIT and BPF_RINGBUF_DISCARD_BIT of linux/bpf.h).
const (
	ringHeader  = 8
	ringBusy    = 1 << 31
	ringDiscard = 1 << 30
)

func openRing(m *ebpf.Map) (*ring, error) {
	if m.Type() != ebpf.RingBuf {
		return nil, fmt.Errorf("map into memory: it is a %v", m.Type())
	}
	page, size := unix.Getpagesize(), int(m.MaxEntries())
	mine, err := unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map its own position into memory: %w", err)
	}
	theirs, err := unix.Mmap(m.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Munmap(mine)
		return nil, fmt.Errorf("map its data into memory: %w", err)
	}
	return &ring{
		mine: mine, theirs: theirs, data: theirs[page:], mask: uint64(size) - 1,
		consumed: (*uint64)(unsafe.Pointer(&mine[0])), produced: (*uint64)(unsafe.Pointer(&theirs[0])),
	}, nil
}

func (r *ring) close() error {
	err := unix.Munmap(r.mine)
	if other := unix.Munmap(r.theirs); err == nil {
		err = other
	}
	r.mine, r.theirs, r.data = nil, nil, nil
	return err
}

// size in bytes.
func (r *ring) size() uint64 { return r.mask + 1 }

func (r *ring) written() uint64 { return atomic.LoadUint64(r.produced) }

func (r *ring) released() uint64 { return atomic.LoadUint64(r.consumed) }

// release gives back the room of all records before a position, which is that of a record.
func (r *ring) release(position uint64) { atomic.StoreUint64(r.consumed, position) }

// next returns the record at a position, which is in the ring's memory until it is released, and the position of the one after it. Without a
// record it returns the same position; a record without a sample was thrown away by who wrote it.
func (r *ring) next(position uint64) (sample []byte, after uint64) {
	if position >= r.written() {
		return nil, position
	}
	at := position & r.mask
	header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.data[at])))
	if header&ringBusy != 0 {
		return nil, position
	}
	length := uint64(header &^ (ringBusy | ringDiscard))
	after = position + (length+ringHeader+7)&^7
	if header&ringDiscard != 0 {
		return nil, after
	}
	return r.data[at+ringHeader : at+ringHeader+length : at+ringHeader+length], after
}
