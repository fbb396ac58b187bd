package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// fill copies what the old set holds to maps that are not shared, before any program works with these: at the same indices, so that what refers to them
// does so in both.
func (c *carry) fill(all map[string]*ebpf.Map) error {
	for name, t := range c.types {
		var err error
		switch {
		case name == ledgerMap:
			err = c.fillLedger(all[name], t)
		case name == "watchdog" || slices.Contains(meshArrays, name):
			err = c.fillArray(name, all[name], t)
		case slices.Contains(meshHashes, name):
			err = fillHash(all[name], c.before[name], t)
		}
		if err != nil {
			return fmt.Errorf("copy map %s to one of another layout: %w", name, err)
		}
	}
	return nil
}

func (c *carry) fillLedger(to *ebpf.Map, t entryTranslation) error {
	old := c.before[ledgerMap]
	value, err := old.LookupBytes(uint32(0))
	if err != nil {
		return err
	}
	ledger := as[bpf.Ledger](t.value.value(value))
	if ledger.DataPath == 0 {
		id, _ := old.info.ID()
		ledger.DataPath = uint64(id)
	}
	return to.Put(uint32(0), &ledger)
}

// notCopied are the fields that go over with the state of each socket, or in the end.
var notCopied = map[string][][]string{loadsMap: {{"open"}, {"picks"}, {"failed"}}, limitStatesMap: {{"counts", "open"}, {"counts", "connecting"}}}

func (c *carry) fillArray(name string, to *ebpf.Map, t entryTranslation) error {
	old := c.before[name]
	value := slices.Clone(t.value)
	for _, way := range notCopied[name] {
		if at, ok := place(old.value, way...); ok {
			for i, from := range value {
				if from >= uint16(at) && from < uint16(at)+8 {
					value[i] = nowhere
				}
			}
		}
	}
	if old.info.Flags&unix.BPF_F_MMAPABLE == 0 {
		return fillEntries(to, old, value)
	}
	from, fromStep, err := mapAll(old.Map)
	if err != nil {
		return err
	}
	defer unix.Munmap(from)
	into, step, err := mapAll(to)
	if err != nil {
		return err
	}
	defer unix.Munmap(into)
	for i := range int(min(old.MaxEntries(), to.MaxEntries())) {
		if entry := from[i*fromStep : (i+1)*fromStep]; !isZero(entry) {
			value.into(into[i*step:i*step+len(value)], entry)
		}
	}
	if name == loadsMap {
		return c.forgetLoads(from, fromStep)
	}
	return nil
}

// forgetLoads clears what was counted of backends that there are none of any more: their indices may be others' before it is added up. No program can choose them.
func (c *carry) forgetLoads(loads []byte, step int) error {
	backends := c.before["backends"]
	service, ok := place(backends.value, "service")
	if !ok {
		return nil
	}
	from, fromStep, err := mapAll(backends.Map)
	if err != nil {
		return err
	}
	defer unix.Munmap(from)
	for i := range int(backends.MaxEntries()) {
		if at := i*fromStep + int(service); isZero(from[at:at+4]) && (i+1)*step <= len(loads) {
			clear(loads[i*step : (i+1)*step])
		}
	}
	return nil
}

func fillEntries(to *ebpf.Map, old *otherMap, value translation) error {
	for i := range min(old.MaxEntries(), to.MaxEntries()) {
		entry, err := old.LookupBytes(i)
		if err != nil {
			return err
		}
		if isZero(entry) {
			continue
		}
		if err := to.Put(i, value.value(entry)); err != nil {
			return err
		}
	}
	return nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// mapAll maps an array into memory. Its elements are aligned to 8 bytes.
func mapAll(m *ebpf.Map) (memory []byte, step int, err error) {
	step = int(m.ValueSize()+7) &^ 7
	page := unix.Getpagesize()
	size := (step*int(m.MaxEntries()) + page - 1) &^ (page - 1)
	memory, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, 0, fmt.Errorf("map it into memory: %w", err)
	}
	return memory, step, nil
}

// eachEntry calls f with the bytes of each entry of a hash.
func eachEntry(m *ebpf.Map, f func(key, value []byte) error) error {
	key, err := m.NextKeyBytes(nil)
	for ; err == nil && key != nil; key, err = m.NextKeyBytes(key) {
		value, err := m.LookupBytes(key)
		if err != nil {
			return err
		}
		if value == nil {
			continue
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	return err
}

func fillHash(to *ebpf.Map, old *otherMap, t entryTranslation) error {
	return eachEntry(old.Map, func(key, value []byte) error { return to.Put(t.key.value(key), t.value.value(value)) })
}

// as is bytes as a struct of the kernel's.
func as[T any](b []byte) (value T) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&value)), unsafe.Sizeof(value)), b)
	return value
}

// sums adds up what the CPUs have, of a value that is made of numbers of 64 bits.
func sums(perCPU []byte, size int) []byte {
	sum := make([]byte, size)
	step := (size + 7) &^ 7
	for ; len(perCPU) >= step && step > 0; perCPU = perCPU[step:] {
		addWords(sum, perCPU[:size])
	}
	return sum
}

func addWords(to, more []byte) {
	for i := 0; i+8 <= len(to); i += 8 {
		binary.LittleEndian.PutUint64(to[i:], binary.LittleEndian.Uint64(to[i:])+binary.LittleEndian.Uint64(more[i:]))
	}
}

func subtractWords(to, less []byte) {
	for i := 0; i+8 <= len(to); i += 8 {
		binary.LittleEndian.PutUint64(to[i:], binary.LittleEndian.Uint64(to[i:])-binary.LittleEndian.Uint64(less[i:]))
	}
}

// accountBefore is what programs counted in the old maps.
func (c *carry) accountBefore() (Account, error) {
	old := c.before["account"]
	perCPU, err := old.LookupBytes(uint32(0))
	if err != nil {
		return Account{}, fmt.Errorf("read account of before: %w", err)
	}
	sum := sums(perCPU, int(old.info.ValueSize))
	if earlier := c.before["account_before"]; earlier != nil {
		value, err := earlier.LookupBytes(uint32(0))
		if err != nil {
			return Account{}, fmt.Errorf("read account of before: %w", err)
		}
		addWords(sum, value)
	}
	return as[Account](c.types["account"].value.value(sum)), nil
}

// settleAccount puts it where it is kept. Doing so twice is no harm.
func (c *carry) settleAccount(objects *bpf.Objects) error {
	if _, apart := c.types["account"]; !apart {
		return nil
	}
	account, err := c.accountBefore()
	if err != nil {
		return err
	}
	if err := objects.AccountBefore.Put(uint32(0), &account); err != nil {
		return fmt.Errorf("keep account of before: %w", err)
	}
	return nil
}

// settleLost makes sums of lost events that nobody has read yet part of the new maps: as if less than nothing had been read of those. Sums wrap, so the difference is
// right. Doing so twice is no harm, as long as nobody has read the new ones.
func (c *carry) settleLost(objects *bpf.Objects) error {
	for _, s := range []struct {
		lost string
		read *ebpf.Map
	}{{"lost", objects.LostRead}, {"lost_totals", objects.LostTotalsRead}} {
		t, apart := c.types[s.lost]
		if !apart {
			continue
		}
		unread := make(map[string][]byte) // by the new key
		of := func(m *otherMap, perCPU bool) func(key, value []byte) error {
			return func(key, value []byte) error {
				name := string(t.key.value(key))
				if unread[name] == nil {
					unread[name] = make([]byte, len(t.value))
				}
				if perCPU {
					addWords(unread[name], t.value.value(sums(value, int(m.info.ValueSize))))
				} else {
					subtractWords(unread[name], t.value.value(value))
				}
				return nil
			}
		}
		if err := eachEntry(c.before[s.lost].Map, of(c.before[s.lost], true)); err != nil {
			return fmt.Errorf("read lost sums of before: %w", err)
		}
		if err := eachEntry(c.before[s.lost+"_read"].Map, of(c.before[s.lost+"_read"], false)); err != nil {
			return fmt.Errorf("read what was read of lost sums of before: %w", err)
		}
		for key, sum := range unread {
			if isZero(sum) {
				continue
			}
			negative := make([]byte, len(sum))
			subtractWords(negative, sum)
			if err := s.read.Put([]byte(key), negative); err != nil {
				return fmt.Errorf("keep lost sums of before: %w", err)
			}
		}
	}
	return nil
}

// settleVerdicts adds up the counts of verdicts.
func (c *carry) settleVerdicts() error {
	t, apart := c.types[verdictsMap]
	if !apart {
		return nil
	}
	old := c.before[verdictsMap]
	type count struct {
		key []byte
		n   uint64
	}
	var all []count
	if err := eachEntry(old.Map, func(key, value []byte) error {
		all = append(all, count{slices.Clone(key), binary.LittleEndian.Uint64(sums(value, 8))})
		return nil
	}); err != nil {
		return fmt.Errorf("read verdicts of before: %w", err)
	}
	for _, v := range all {
		args := bpf.CarryVerdict{Count: v.n}
		copy(args.KeyBefore[:], v.key)
		copy(args.Key[:], t.key.value(v.key))
		if _, err := c.carriers.objects.CarryVerdicts.Run(&ebpf.RunOptions{Context: &args}); err != nil {
			return fmt.Errorf("add up verdicts: %w", err)
		}
	}
	return nil
}

// settleLoads adds what programs of before have counted of backends. What was added is taken out of the old entry, so that who is killed adds no more than one of
// them twice.
func (c *carry) settleLoads(objects *bpf.Objects) error {
	if _, apart := c.types[loadsMap]; !apart {
		return nil
	}
	old := c.before[loadsMap]
	picks, hasPicks := place(old.value, "picks")
	failed, hasFailed := place(old.value, "failed")
	if !hasPicks || !hasFailed {
		return nil
	}
	from, fromStep, err := mapAll(old.Map)
	if err != nil {
		return fmt.Errorf("read loads of before: %w", err)
	}
	defer unix.Munmap(from)
	into, step, err := mapAll(objects.Loads)
	if err != nil {
		return fmt.Errorf("add up loads: %w", err)
	}
	defer unix.Munmap(into)
	for i := range int(min(old.MaxEntries(), objects.Loads.MaxEntries())) {
		entry := from[i*fromStep : (i+1)*fromStep]
		if isZero(entry) {
			continue
		}
		now := (*bpf.Load)(unsafe.Pointer(&into[i*step]))
		for _, count := range []struct {
			at uint32
			to *uint64
		}{{picks, &now.Picks}, {failed, &now.Failed}} {
			word := entry[count.at : count.at+8]
			if n := binary.LittleEndian.Uint64(word); n != 0 {
				atomic.AddUint64(count.to, n)
				binary.LittleEndian.PutUint64(word, 0)
			}
		}
	}
	return nil
}

// settle adds up what the old maps have counted, when no program works with them any more.
func (c *carry) settle(objects *bpf.Objects) error {
	return errors.Join(c.settleAccount(objects), c.settleLost(objects), c.settleVerdicts(), c.settleLoads(objects))
}
