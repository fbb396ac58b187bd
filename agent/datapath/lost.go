package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// losses remembers what was read, because the kernel's sums only grow.
type losses struct {
	counted uint64 // lost MESH_CLOSE events, by the account
	byEdge  map[bpf.LostKey]bpf.Lost
	totals  map[uint32]bpf.Lost
	// alone are what is in byEdge of keys that are not in the kernel's map: sums that came from one of another layout.
	alone []bpf.LostKey
	known atomic.Uint64 // how many are in byEdge, for others than the reader
}

// Losses returns what connections added up to since the last call whose last event found no room in the ring. While nothing is
// lost it costs one look at the account. Not safe for concurrent use.
func (d *Datapath) Losses() ([]connection.Loss, error) {
	account, err := d.Account()
	if err != nil {
		return nil, err
	}
	if account.Aggregated+account.Totalled == d.losses.counted {
		return nil, nil
	}
	var found []connection.Loss
	var key bpf.LostKey
	var perCPU []bpf.Lost
	edge := func(now bpf.Lost) error {
		before := d.losses.byEdge[key]
		if now == before {
			return nil
		}
		// For whoever comes next, and first: what is noted and then not counted is lost with this process, as all that it has not exported.
		if err := d.objects.LostRead.Put(&key, &now); err != nil {
			return fmt.Errorf("note lost sums: %w", err)
		}
		d.losses.byEdge[key] = now
		found = append(found, lossOf(connection.Role(key.Role), connection.Reason(key.Reason), now, before))
		l := &found[len(found)-1]
		l.CgroupID, l.Peer = key.CgroupId, netip.AddrFrom16(key.PeerAddr).Unmap()
		l.Service, l.Destination, l.Refused = key.Service, key.Destination, key.Refused != 0
		return nil
	}
	for len(d.losses.alone) > 0 {
		key = d.losses.alone[0]
		if err := edge(bpf.Lost{}); err != nil {
			return found, err
		}
		// There is no such key beside it, whose place it would take.
		if err := d.objects.LostRead.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return found, fmt.Errorf("note lost sums: %w", err)
		}
		delete(d.losses.byEdge, key)
		d.losses.alone = d.losses.alone[1:]
	}
	entries := d.objects.Lost.Iterate()
	for entries.Next(&key, &perCPU) {
		if err := edge(sumLost(perCPU)); err != nil {
			return found, err
		}
	}
	if err := entries.Err(); err != nil {
		return found, fmt.Errorf("read lost sums: %w", err)
	}
	for role := range uint32(bpf.RoleCount) {
		for reason := range uint32(bpf.ReasonCount) {
			index := role*uint32(bpf.ReasonCount) + reason
			if err := d.objects.LostTotals.Lookup(index, &perCPU); err != nil {
				return found, fmt.Errorf("read lost totals: %w", err)
			}
			now, before := sumLost(perCPU), d.losses.totals[index]
			if now != before {
				if err := d.objects.LostTotalsRead.Put(index, &now); err != nil {
					return found, fmt.Errorf("note lost totals: %w", err)
				}
				d.losses.totals[index] = now
				found = append(found, lossOf(connection.Role(role), connection.Reason(reason), now, before))
			}
		}
	}
	d.losses.known.Store(uint64(len(d.losses.byEdge)))
	// What was counted before the reading is in it; what came meanwhile may be, and is looked for again.
	d.losses.counted = account.Aggregated + account.Totalled
	return found, nil
}

// resume reads what earlier processes have read.
func (l *losses) resume(objects *bpf.Objects) error {
	var key bpf.LostKey
	var sum bpf.Lost
	entries := objects.LostRead.Iterate()
	var perCPU []bpf.Lost
	l.alone = nil
	for entries.Next(&key, &sum) {
		l.byEdge[key] = sum
		switch err := objects.Lost.Lookup(&key, &perCPU); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			l.alone = append(l.alone, key)
		case err != nil:
			return fmt.Errorf("read lost sums: %w", err)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read what was read of lost sums: %w", err)
	}
	l.known.Store(uint64(len(l.byEdge)))
	for index := range uint32(bpf.RoleCount) * uint32(bpf.ReasonCount) {
		if err := objects.LostTotalsRead.Lookup(index, &sum); err != nil {
			return fmt.Errorf("read what was read of lost totals: %w", err)
		}
		l.totals[index] = sum
	}
	return nil
}

func sumLost(perCPU []bpf.Lost) bpf.Lost {
	var sum bpf.Lost
	for _, l := range perCPU {
		sum.Attempts += l.Attempts
		sum.Established += l.Established
		sum.Adopted += l.Adopted
		sum.Failed += l.Failed
		sum.Closed += l.Closed
		sum.ConnectingDown += l.ConnectingDown
		sum.OpenDown += l.OpenDown
		sum.SentBytes += l.SentBytes
		sum.ReceivedBytes += l.ReceivedBytes
		sum.Retransmits += l.Retransmits
		sum.SynRetransmits += l.SynRetransmits
	}
	return sum
}

func lossOf(role connection.Role, reason connection.Reason, now, before bpf.Lost) connection.Loss {
	return connection.Loss{
		Role: role, Reason: reason,
		Attempts: now.Attempts - before.Attempts, Established: now.Established - before.Established,
		Failed: now.Failed - before.Failed, Closed: now.Closed - before.Closed,
		ConnectingDown: now.ConnectingDown - before.ConnectingDown, OpenDown: now.OpenDown - before.OpenDown,
		SentBytes: now.SentBytes - before.SentBytes, ReceivedBytes: now.ReceivedBytes - before.ReceivedBytes,
		Retransmits: now.Retransmits - before.Retransmits, SYNRetransmits: now.SynRetransmits - before.SynRetransmits,
		Adopted: now.Adopted - before.Adopted,
	}
}
