package maps

import (
	"cmp"
	"math/bits"
	"slices"
)

// indices hands out numbers from 1 up to a limit. One that was given back is handed out as late as can be: records that name it come in late.
type indices struct {
	last uint32 // that was ever handed out
	most uint32
	free []uint32 // first in, first out
}

func newIndices(most uint32) *indices { return &indices{most: most} }

// take returns a number and whether it was never used; 0 if there is none.
func (a *indices) take() (index uint32, fresh bool) {
	if a.last < a.most {
		a.last++
		return a.last, true
	}
	if len(a.free) == 0 {
		return 0, false
	}
	index = a.free[0]
	a.free = a.free[1:]
	return index, false
}

// occupy makes everything free that is not in use. All up to last may have been used before: the others come first.
func (a *indices) occupy(used map[uint32]bool, last uint32) {
	a.last, a.free = last, nil
	for i := uint32(1); i <= last; i++ {
		if !used[i] {
			a.free = append(a.free, i)
		}
	}
}

func (a *indices) give(index uint32) { a.free = append(a.free, index) }

func (a *indices) used() uint32 { return a.last - uint32(len(a.free)) }

// spans hands out ranges of slots. Those that are free and adjacent are one; they are kept by size: each small size for itself, larger ones by their
// highest bit.
type spans struct {
	sizes   map[uint32]uint32 // of free ones, by start
	starts  map[uint32]uint32 // of free ones, by end
	buckets [exactSizes + 32][]span
	listed  int // in buckets; among them are some that were merged with others since
	free    uint32
}

type span struct{ start, size uint32 }

const exactSizes = 64

func newSpans(size uint32) *spans {
	s := &spans{sizes: make(map[uint32]uint32), starts: make(map[uint32]uint32)}
	s.add(span{0, size})
	s.free = size
	return s
}

func bucket(size uint32) int {
	if size < exactSizes {
		return int(size)
	}
	return exactSizes + bits.Len32(size) - 1
}

func (s *spans) add(p span) {
	if p.size == 0 {
		return
	}
	s.sizes[p.start], s.starts[p.start+p.size] = p.size, p.start
	s.list(p)
	if s.listed > 4*len(s.sizes)+1024 {
		s.buckets, s.listed = [exactSizes + 32][]span{}, 0
		for start, size := range s.sizes {
			s.list(span{start, size})
		}
	}
}

func (s *spans) list(p span) {
	b := bucket(p.size)
	s.buckets[b] = append(s.buckets[b], p)
	s.listed++
}

func (s *spans) remove(p span) {
	delete(s.sizes, p.start)
	delete(s.starts, p.start+p.size)
}

// take returns a range, or false if there is none that is free and large enough. Of no slots it is that at 0.
func (s *spans) take(size uint32) (span, bool) {
	if size == 0 {
		return span{}, true
	}
	for b := bucket(size); b < len(s.buckets); b++ {
		// What was merged with its neighbours since is still listed: it goes when it is seen.
		kept := s.buckets[b]
		for i := len(kept) - 1; i >= 0; i-- {
			p := kept[i]
			valid := s.sizes[p.start] == p.size
			if valid && p.size < size {
				continue
			}
			kept[i] = kept[len(kept)-1]
			kept = kept[:len(kept)-1]
			s.buckets[b] = kept
			s.listed--
			if !valid {
				continue
			}
			s.remove(p)
			s.add(span{p.start + size, p.size - size})
			s.free -= size
			return span{p.start, size}, true
		}
	}
	return span{}, false
}

// occupy takes ranges out that are in use, of spans that are all free.
func (s *spans) occupy(used []span) {
	slices.SortFunc(used, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	size := s.free
	*s = spans{sizes: make(map[uint32]uint32), starts: make(map[uint32]uint32)}
	at := uint32(0)
	for _, p := range used {
		if p.size == 0 {
			continue
		}
		s.add(span{at, p.start - at})
		s.free += p.start - at
		at = p.start + p.size
	}
	s.add(span{at, size - at})
	s.free += size - at
}

func (s *spans) give(p span) {
	if p.size == 0 {
		return
	}
	s.free += p.size
	if start, ok := s.starts[p.start]; ok {
		before := span{start, p.start - start}
		s.remove(before)
		p = span{start, before.size + p.size}
	}
	if size, ok := s.sizes[p.start+p.size]; ok {
		after := span{p.start + p.size, size}
		s.remove(after)
		p.size += size
	}
	s.add(p)
}
