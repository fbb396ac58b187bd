package edge

import (
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// entry is an edge of a table.
type entry struct {
	key      Key
	sums     Sums
	seen     time.Duration // on the table's clock, of its last record
	overflow bool          // it is the overflow edge of its role
	ends     []ends        // under which the table has it
	alias    *alias        // nil: nobody keeps it

	// Neighbours in the list of edges without a live connection.
	listed       bool
	older, newer *entry
}

// idleList holds the edges without a live connection, in the order of their last records. It takes every step in constant time, so
// that a flood of new names costs no search. An edge that is left out has something open or connecting: it cannot be folded, however
// long it is silent.
type idleList struct{ oldest, newest *entry }

func (l *idleList) remove(e *entry) {
	if !e.listed {
		return
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		l.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		l.newest = e.older
	}
	e.listed, e.older, e.newer = false, nil, nil
}

func (l *idleList) push(e *entry) {
	e.listed, e.older = true, l.newest
	if l.newest != nil {
		l.newest.newer = e
	} else {
		l.oldest = e
	}
	l.newest = e
}

// touch is called after every change of an edge.
func (t *Table) touch(e *entry, now time.Duration) {
	e.seen = now
	if e.overflow {
		return
	}
	live := e.sums.Open != 0 || e.sums.Connecting != 0
	if !live && t.idle.newest == e {
		return
	}
	t.idle.remove(e)
	if !live {
		t.idle.push(e)
	}
}

// foldable is an edge that nothing happened to for long enough; nil: there is none.
func (t *Table) foldable(now time.Duration) *entry {
	e := t.idle.oldest
	if t.foldAfter == 0 || e == nil || now-e.seen < t.foldAfter {
		return nil
	}
	return e
}

// fold makes room for an edge: the sums of this one go to the overflow edge.
func (t *Table) fold(e *entry) {
	// A new overflow edge has counted since the edge did that it is made of.
	t.overflow(e.key.Role, e.sums.SinceUnixNS).sums.fold(&e.sums)
	t.idle.remove(e)
	t.aliases.fold(e)
	delete(t.edges, e.key)
	for _, of := range e.ends {
		delete(t.ends, of)
	}
	t.evicted++
}

// fold adds another edge's sums, of which nothing is open or connecting.
func (s *Sums) fold(o *Sums) {
	s.foldCounters(o)
	s.ConnectDuration.merge(&o.ConnectDuration)
	s.FirstByteDuration.merge(&o.FirstByteDuration)
	s.ConnectionDuration.merge(&o.ConnectionDuration)
	s.RTT.merge(&o.RTT)
}

func (s *Sums) foldCounters(o *Sums) {
	s.Attempts += o.Attempts
	s.Established += o.Established
	s.Adopted += o.Adopted
	for reason := range connection.ReasonCount {
		s.Failures[reason] += o.Failures[reason]
		s.Closed[reason] += o.Closed[reason]
	}
	s.SentBytes += o.SentBytes
	s.ReceivedBytes += o.ReceivedBytes
	s.Retransmits += o.Retransmits
	s.SYNRetransmits += o.SYNRetransmits
}

// merge adds another histogram with the same bounds.
func (h *Histogram) merge(o *Histogram) {
	h.Count += o.Count
	h.Sum += o.Sum
	h.Zero += o.Zero
	for i, n := range o.Classic {
		h.Classic[i] += n
	}
	for i, n := range o.Exponential {
		if n > 0 {
			*h.exponential(o.Offset + i) += n
		}
	}
	for i, x := range o.Exemplars {
		if x.AtNS > h.Exemplars[i].AtNS {
			h.Exemplars[i] = x
		}
	}
}
