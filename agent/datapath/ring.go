package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// A ring of another size takes the place of the one before by renames in the set's directory, before any program is replaced:
//
//	map-events_next   it is made
//	map-events        -> map-events_before
//	map-events_next   -> map-events
//	the directory     -> the hash of the layout with it
//
// Programs that are attached go on writing to the old one, wherever it is, until others take their place. Who comes after one that ended in between goes on
// from there. The old one is read to its end first, and then unpinned.
const (
	ringBefore = bpf.EventsMap + "_before"
	ringNext   = bpf.EventsMap + "_next"
)

// rings are what a set has of them.
type rings struct {
	mu     sync.Mutex // of before
	before []RingBefore
	mixed  bool // see Mixed
	// asked is the size that the configuration asked for; 0: that is what there is.
	asked uint32
}

// RingBefore is a ring that is read to its end.
type RingBefore struct {
	Ring *ebpf.Map
	// Translate makes its records records of this version, in memory that is valid until the next; nil: they are alike.
	Translate func([]byte) []byte
	name      string // of its pin
}

// mostRings bounds how many there are: more than one are of agents that ended before they had handed on what is in the first.
const mostRings = 16

// beforeName is the name of the i-th ring before the one that is written to, and beforeFormats that of what says what its records are made of.
func beforeName(i int) string {
	if i == 0 {
		return ringBefore
	}
	return fmt.Sprint(ringBefore, i+1)
}

func beforeFormats(ring string) string { return formatsBefore + strings.TrimPrefix(ring, ringBefore) }

// ringsBefore are the names of those in a set, the oldest first, and the name for the next.
func (p *pins) ringsBefore(set string) (names []string, next string) {
	next = beforeName(0)
	for i := range mostRings {
		if name := beforeName(i); exists(filepath.Join(p.dir, set, mapPrefix+name)) {
			names, next = append(names, name), beforeName(i+1)
		}
	}
	return names, next
}

func (r *rings) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, b := range r.before {
		errs = append(errs, b.Ring.Close())
	}
	r.before = nil
	return errors.Join(errs...)
}

// mendRing ends what an earlier process began, and returns the set's name then.
func (p *pins) mendRing(set string, spec *ebpf.CollectionSpec) (string, error) {
	dir := filepath.Join(p.dir, set)
	at := func(name string) string { return filepath.Join(dir, mapPrefix+name) }
	if exists(at(ringNext)) {
		if exists(at(bpf.EventsMap)) {
			return set, removeMap(at(ringNext))
		}
		if err := os.Rename(at(ringNext), at(bpf.EventsMap)); err != nil {
			return set, fmt.Errorf("put the new ring in place: %w", err)
		}
	}
	if !exists(at(ringBefore)) {
		return set, nil
	}
	before, err := ringSize(at(ringBefore))
	if err != nil {
		return set, err
	}
	now, err := ringSize(at(bpf.EventsMap))
	if err != nil {
		return set, err
	}
	if withRing(spec, before).hash() != set {
		return set, nil
	}
	return p.renameSet(set, withRing(spec, now).hash())
}

func (p *pins) renameSet(set, name string) (string, error) {
	if set == name {
		return set, nil
	}
	if err := os.Rename(filepath.Join(p.dir, set), filepath.Join(p.dir, name)); err != nil {
		return set, fmt.Errorf("name the set of pins after its layout: %w", err)
	}
	return name, nil
}

// otherRing tells whether a set differs from a layout in the size of its ring alone, and what that is.
func (p *pins) otherRing(set string, spec *ebpf.CollectionSpec) (size uint32, differs bool, err error) {
	if set == layoutOf(spec).hash() {
		return 0, false, nil
	}
	path := filepath.Join(p.dir, set, mapPrefix+bpf.EventsMap)
	if !exists(path) {
		return 0, false, nil
	}
	if size, err = ringSize(path); err != nil {
		return 0, false, err
	}
	return size, withRing(spec, size).hash() == set, nil
}

// resizeRing gives a set a ring of the size that a spec has.
func (p *pins) resizeRing(set string, spec *ebpf.CollectionSpec) error {
	dir := filepath.Join(p.dir, set)
	at := func(name string) string { return filepath.Join(dir, mapPrefix+name) }
	// Who unpinned the last ring that was of another layout may have ended before this.
	if err := removeMap(at(beforeFormats(ringBefore))); err != nil {
		return err
	}
	// Noted first: from the first rename on programs are attached that write to what is then the ring before.
	if err := setMixed(at("ledger")); err != nil {
		return err
	}
	ring, err := ebpf.NewMap(spec.Maps[bpf.EventsMap].Copy())
	if err != nil {
		return fmt.Errorf("make a ring of %d bytes: %w", spec.Maps[bpf.EventsMap].MaxEntries, err)
	}
	defer ring.Close()
	if err := ring.Pin(at(ringNext)); err != nil {
		return fmt.Errorf("pin the new ring: %w", err)
	}
	if err := os.Rename(at(bpf.EventsMap), at(ringBefore)); err != nil {
		return errors.Join(fmt.Errorf("put the old ring aside: %w", err), removeMap(at(ringNext)))
	}
	_, err = p.mendRing(set, spec)
	return err
}

func withRing(spec *ebpf.CollectionSpec, size uint32) layout {
	other := spec.Copy()
	other.Maps[bpf.EventsMap].MaxEntries = size
	return layoutOf(other)
}

func ringSize(path string) (uint32, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return 0, fmt.Errorf("open pinned map %s: %w; if it is damaged, take all off with: sidelight uninstall", path, err)
	}
	defer m.Close()
	return m.MaxEntries(), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func removeMap(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin map: %w", err)
	}
	return nil
}

// fitRing makes the ring of what is pinned the one that is asked for, if all else is the same. While an old one has not been read it stays as it is, and so it does
// for another version, because there would be no way back from it.
func (d *Datapath) fitRing(spec *ebpf.CollectionSpec) error {
	set, err := d.pins.find()
	if err != nil || set == "" {
		return err
	}
	if set, err = d.pins.mendRing(set, spec); err != nil {
		return err
	}
	size, differs, err := d.pins.otherRing(set, spec)
	if err != nil || !differs {
		return err
	}
	same, err := d.sameVersion(set)
	if err != nil {
		return err
	}
	if before, _ := d.pins.ringsBefore(set); same && len(before) == 0 {
		return d.pins.resizeRing(set, spec)
	}
	d.ring.asked = spec.Maps[bpf.EventsMap].MaxEntries
	return d.keepRing(spec, size)
}

// keepRing makes a spec one for a ring of the size that there is.
func (d *Datapath) keepRing(spec *ebpf.CollectionSpec, size uint32) error {
	spec.Maps[bpf.EventsMap].MaxEntries = size
	for name, share := range map[string]uint64{bpf.WakeupBytes: wakeupShare, bpf.RefuseBytes: refuseShare} {
		if err := spec.Variables[name].Set(uint64(size) / share); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// Of the ring: as much of it as is unread has the kernel wake the reader, and has refusals told as sums.
const (
	wakeupShare = 8
	refuseShare = 4
)

// setMixed notes in a ledger that programs write to a ring that is not the newest.
func setMixed(path string) error {
	return withLedger(path, func(m *ebpf.Map, l *bpf.Ledger) error {
		if l.NextBase != 0 { // there is no ring before this one, so who took the last one away ended then
			l.RingBase, l.NextBase = l.NextBase, 0
		}
		l.Mixed = 1
		return m.Put(uint32(0), l)
	})
}

// sameVersion tells whether the agent before was of this version.
func (d *Datapath) sameVersion(set string) (same bool, err error) {
	err = withLedger(filepath.Join(d.pins.dir, set, mapPrefix+"ledger"), func(_ *ebpf.Map, l *bpf.Ledger) error {
		same = text(l.Version[:]) == d.version
		return nil
	})
	return same, err
}

// withLedger opens a pinned ledger before there is a Ledger of it.
func withLedger(path string, f func(*ebpf.Map, *bpf.Ledger) error) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w; if it is damaged, take all off with: sidelight uninstall", path, err)
	}
	defer m.Close()
	var l bpf.Ledger
	if err = m.Lookup(uint32(0), &l); err == nil {
		err = f(m, &l)
	}
	if err != nil {
		return fmt.Errorf("pinned map %s: %w", path, err)
	}
	return nil
}

// openBefore opens the old rings of the set, if there are any.
func (d *Datapath) openBefore() error {
	set := d.pins.set
	var names []string
	if c := d.carry; c != nil && !c.arrived { // they are pinned there with the links
		set = filepath.Join(d.pins.dir, c.set)
		names, _ = d.pins.ringsBefore(c.set)
		if c.newRing() {
			names = append(names, bpf.EventsMap)
		}
	} else {
		names, _ = d.pins.ringsBefore(filepath.Base(set))
	}
	for _, name := range names {
		m, err := ebpf.LoadPinnedMap(filepath.Join(set, mapPrefix+name), nil)
		if err != nil {
			return fmt.Errorf("open pinned map %s: %w; if it is damaged, take all off with: sidelight uninstall", name, err)
		}
		b := RingBefore{Ring: m, name: name}
		formats := formatsMap
		if name != bpf.EventsMap {
			formats = beforeFormats(name)
		}
		// One that has none of its own has those of its set.
		path := filepath.Join(set, mapPrefix+formats)
		if c := d.carry; !exists(path) && c != nil && !c.arrived {
			path = filepath.Join(set, mapPrefix+formatsMap)
		}
		if exists(path) {
			if b.Translate, err = d.recordTranslation(path); err != nil {
				return errors.Join(err, m.Close())
			}
		}
		if c := d.carry; name == bpf.EventsMap {
			_, b.name = d.pins.ringsBefore(c.set)
		}
		d.ring.before = append(d.ring.before, b)
	}
	d.ring.mixed = d.ledger.mixed()
	return nil
}

// recordTranslation is for a ring whose records are made of what a pinned map says.
func (d *Datapath) recordTranslation(path string) (func([]byte) []byte, error) {
	old, err := openOther(path)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	if old.describe() == layoutOf(d.spec)[formatsMap] {
		return nil, nil
	}
	t, err := translateRecords(d.spec.Maps[formatsMap].Value, old.value)
	if err != nil {
		return nil, otherLayout(path, err.Error())
	}
	return t, nil
}

// RingAsked is the size of the ring that was asked for and cannot be had before the next start; 0: it is as asked.
func (d *Datapath) RingAsked() uint32 { return d.ring.asked }

// RingsBefore are those before this one, the oldest first. Base is the position at which the first of all began.
func (d *Datapath) RingsBefore() (before []RingBefore, base uint64) {
	d.ring.mu.Lock()
	defer d.ring.mu.Unlock()
	return slices.Clone(d.ring.before), d.ledger.ringBase()
}

// DropRingBefore is called when the first of RingsBefore is read and handed on. The next ring began at base. After an error it is still there.
func (d *Datapath) DropRingBefore(base uint64) error {
	d.ring.mu.Lock()
	defer d.ring.mu.Unlock()
	if len(d.ring.before) == 0 {
		return nil
	}
	first := d.ring.before[0]
	err := d.ledger.moveBase(base, uint64(len(d.ring.before)), func() error { return removeMap(filepath.Join(d.pins.set, mapPrefix+first.name)) })
	if err != nil {
		return err
	}
	d.ring.before = d.ring.before[1:]
	// It is gone, whatever becomes of these.
	_ = removeMap(filepath.Join(d.pins.set, mapPrefix+beforeFormats(first.name)))
	_ = first.Ring.Close()
	return nil
}

// Mixed says that programs were attached before Attach that write to RingBefore, or to other maps of before: some of them may do so until their place is
// taken. There is no way back to them.
func (d *Datapath) Mixed() bool { return d.ring.mixed || d.carry != nil }

// Unmix is called when the place of all of them is taken, and returns when none runs any more, and nothing is left in maps of another layout.
func (d *Datapath) Unmix() error {
	if err := grace(); err != nil {
		return err
	}
	if err := d.settleCarry(); err != nil {
		return err
	}
	d.ledger.setMixed(false)
	d.ring.mixed = false
	return nil
}

// grace returns when all programs have ended that ran when it was called: a change of a map of maps waits for them (maybe_wait_bpf_programs).
func grace() (err error) {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	in, err := ebpf.NewMap(inner)
	if err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	defer in.Close()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	defer outer.Close()
	if err := outer.Put(uint32(0), in); err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	return nil
}
