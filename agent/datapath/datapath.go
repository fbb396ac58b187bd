// Package datapath loads the kernel side, attaches it to a cgroup and takes it off again. It owns the programs, the maps and the
// links.
package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Options of Load.
type Options struct {
	// RingBytes is the size of the event ring: a power of two, and a multiple of the page size.
	RingBytes uint32
	// WakeupBytes is how much may be pending before the kernel wakes the reader; 0: an eighth of the ring.
	WakeupBytes uint64
	// Cgroup is where Attach attaches to.
	Cgroup Cgroup
	// FirstBytes asks for the times of the first bytes, which costs up to 16 runs more of the sockops program a connection.
	FirstBytes bool
	// TraceWith are the blocks of peers to exchange trace ids with, by an option of the SYN, at most one less than the map has entries; none: with nobody, and nothing of it is in
	// the programs.
	TraceWith []netip.Prefix
	// Silent are the kinds of events that are not to be sent. What they would have told comes with a later event or the sweep, or if it is
	// the Close, as sums: see Losses.
	Silent []connection.Kind
	// Pin is the directory of bpffs where what is to outlive this process is pinned, and where what an earlier one left is found; "": nothing outlives
	// it.
	Pin string
	// Mounted says that this process mounted the bpffs of Pin, so that Uninstall is to unmount it.
	Mounted bool
	// Version of this program, for whoever comes after it.
	Version string
	// FailClosed is for how long policies hold without an agent; then they deny everything. 0: for ever.
	FailClosed time.Duration
	// Mesh has the sizes of the mesh's maps by their names; nil: there is no mesh, and nothing of it in the programs.
	Mesh map[string]uint32
}

// Datapath is the loaded kernel side.
type Datapath struct {
	objects bpf.Objects
	cgroup  Cgroup
	// linksMu is held by who reads or changes links, but for Attach: nobody may ask before it has returned. Commit, Rollback and Detach may come while
	// others ask.
	linksMu sync.Mutex
	links   []attached
	room    map[string]uint32 // of each map in maps(), since load
	trace   trace
	losses  losses
	mesh    meshState
	version string
	ledger  *Ledger
	// traceWith is Options.TraceWith, traceBefore what was there before; nil: it was not looked at.
	traceWith   []netip.Prefix
	traceBefore map[bpf.TraceBlock]uint32

	pins  *pins // nil: nothing is pinned
	ring  rings
	carry *carry // from maps of another layout; nil: nothing is
	// carrying is held by who reads of carry while others may let go of it.
	carrying  sync.RWMutex
	committed bool // there is no way back
	spec      *ebpf.CollectionSpec
	// resumed says that the maps are those of an earlier process, whose programs are or were attached.
	resumed bool
	keep    bool // what is pinned stays when this process lets go
	took    bool // Attach has begun
	removed bool // what was pinned

	listeners atomic.Uint64 // entries of the map at the last look
	since     atomic.Pointer[time.Time]
}

// attached is the link of a hook, and what was attached there before.
type attached struct {
	link.Link
	name     string
	taken    bool          // over from an earlier process
	previous *ebpf.Program // that was attached then; nil: none was, or it cannot be had
}

// Load loads programs and maps, or takes over the maps that an earlier process pinned. It attaches nothing. A feature that the kernel lacks is a
// *FeatureError, another agent at work a *LockedError, and what cannot be taken over a *PinError.
func Load(options Options) (_ *Datapath, err error) {
	d := newDatapath(&options)
	if options.Pin != "" {
		if d.pins, err = openPins(options.Pin); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil && !d.removed {
				err = errors.Join(err, d.pins.leave(), d.pins.close())
			}
		}()
		if options.Mounted {
			if err := d.pins.markMounted(); err != nil {
				return nil, fmt.Errorf("note that bpffs was mounted: %w", err)
			}
		}
		if err := d.pins.clear(); err != nil {
			return nil, err
		}
	}
	spec, err := options.spec()
	if err != nil {
		return nil, err
	}
	if d.pins != nil {
		set, err := d.pins.find()
		if err != nil {
			return nil, err
		}
		d.pins.roomOf(set, spec, options.Mesh != nil)
		if err := d.fitRing(spec); err != nil {
			return nil, err
		}
	}
	if err := d.prepare(&options, spec); err != nil {
		return nil, errors.Join(err, d.letGo())
	}
	if err := d.inherit(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Prepare does what Load does, as far as that can be done while another agent attends to what is pinned: it changes nothing. When that one has ended, Lock
// does the rest. It returns nil when nothing is attached yet, but all is well; then it takes Load.
func Prepare(options Options) (*Datapath, error) {
	d := newDatapath(&options)
	d.pins = &pins{dir: options.Pin}
	spec, err := options.spec()
	if err != nil {
		return nil, err
	}
	set, err := d.pins.find()
	if err != nil {
		return nil, err
	}
	d.pins.roomOf(set, spec, options.Mesh != nil)
	size, differs, err := d.pins.otherRing(set, spec)
	if err != nil {
		return nil, err
	}
	if differs { // that is changed by who has the lock; that all else is well is seen with what there is
		spec.Maps[bpf.EventsMap].MaxEntries = size
	}
	if err := d.prepare(&options, spec); err != nil {
		return nil, errors.Join(err, d.letGo())
	}
	if differs || !d.resumed || d.carry != nil && d.carry.arrived {
		return nil, d.letGo()
	}
	return d, nil
}

// letGo frees what was loaded, before anything is attached or pinned.
func (d *Datapath) letGo() error {
	d.endCarry()
	return errors.Join(d.mesh.close(), d.objects.Close())
}

// Lock makes this process the one that attends to what is pinned. After an error the Datapath is only good for Close.
func (d *Datapath) Lock() error {
	locked, err := openPins(d.pins.dir)
	if err != nil {
		return err
	}
	d.pins.lock = locked.lock
	if err := d.unchanged(); err != nil {
		return err
	}
	if err := d.pins.clear(); err != nil {
		return err
	}
	return d.inherit()
}

// unchanged tells whether the maps of Prepare are still those that are pinned.
func (d *Datapath) unchanged() error {
	inForce, ledger := d.pins.set, d.objects.Ledger
	if c := d.carry; c != nil {
		inForce, ledger = filepath.Join(d.pins.dir, c.set), c.before[ledgerMap].Map
	}
	changed := &PinError{inForce, "it is not what it was when this agent began to take over", "start it again"}
	set, err := d.pins.find()
	if err != nil {
		return err
	}
	if filepath.Join(d.pins.dir, set) != inForce {
		return changed
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(inForce, mapPrefix+ledgerMap), nil)
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", ledgerMap, err)
	}
	defer m.Close()
	pinned, err := mapID(m)
	if err != nil {
		return err
	}
	known, err := mapID(ledger)
	if err != nil {
		return err
	}
	if pinned != known {
		return changed
	}
	return nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("look at map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

func newDatapath(options *Options) *Datapath {
	return &Datapath{
		cgroup: options.Cgroup, version: options.Version, traceWith: options.TraceWith, losses: losses{byEdge: make(map[bpf.LostKey]bpf.Lost), totals: make(map[uint32]bpf.Lost)},
	}
}

// prepare loads all of it, with the maps that are pinned, if there are any and they fit.
func (d *Datapath) prepare(options *Options, spec *ebpf.CollectionSpec) error {
	shared := spec.Copy() // before it is loaded, for what is loaded beside it
	d.spec, d.trace.pins = shared, d.pins
	if options.Mesh != nil {
		d.mesh = meshState{on: true, spec: shared, pins: d.pins}
	}
	old, err := d.pinned(spec)
	if err != nil {
		return err
	}
	d.resumed = old != nil
	if d.carry != nil && !d.carry.arrived {
		err = d.load(spec, d.carry.shared) // which are its
	} else {
		err = d.load(spec, old)
	}
	closeMaps(old)
	if err == nil {
		return d.prepareCarry()
	}
	// The probes cost a few milliseconds and say what a verifier message cannot.
	for _, f := range Features() {
		if f.Required && f.Err != nil {
			return &FeatureError{Feature: f.Name, Remedy: f.Consequence}
		}
	}
	return fmt.Errorf("load programs: %w", err)
}

// inherit takes note of what the process before left, once nobody else writes it, and fills maps that take the place of others.
func (d *Datapath) inherit() (err error) {
	if c := d.carry; c != nil && !c.arrived {
		if err := c.fill(d.mesh.maps); err != nil {
			return err
		}
	}
	if d.ledger, err = openLedger(d.objects.Ledger, d.objects.Watchdog); err != nil || !d.resumed {
		d.spec = nil
		return err
	}
	d.resolveBase()
	err = errors.Join(d.losses.resume(&d.objects), d.openBefore())
	d.spec = nil // megabytes that nobody needs again
	return err
}

// resolveBase ends what an earlier process began that ended while it took a ring away: by how many there are, before there is one more.
func (d *Datapath) resolveBase() {
	set := d.pins.set
	if c := d.carry; c != nil && !c.arrived {
		set = c.set
	}
	before, _ := d.pins.ringsBefore(filepath.Base(set))
	d.ledger.resolveBase(len(before))
}

// spec is the object, made for these options.
func (options *Options) spec() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.Spec()
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	spec.Maps[bpf.EventsMap].MaxEntries = options.RingBytes
	id, err := options.Cgroup.id()
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]any{
		bpf.WakeupBytes: cmp.Or(options.WakeupBytes, uint64(options.RingBytes)/wakeupShare), bpf.AttachedCgroup: id, bpf.FirstBytes: options.FirstBytes, bpf.Silent: silentBits(options.Silent),
		bpf.TraceOption: len(options.TraceWith) > 0, bpf.RefuseBytes: uint64(options.RingBytes) / refuseShare, bpf.FailClosed: uint64(options.FailClosed),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	if options.Mesh != nil {
		if err := bpf.WithMesh(spec); err != nil {
			return nil, err
		}
	}
	for name, size := range options.Mesh {
		if spec.Maps[name] == nil {
			return nil, fmt.Errorf("set size of map %s: there is none", name)
		}
		spec.Maps[name].MaxEntries = size
	}
	return spec, nil
}

// pinned opens the maps of the set that is in force, if there is one and it fits. It changes nothing.
func (d *Datapath) pinned(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	if d.pins == nil {
		return nil, nil
	}
	set, err := d.pins.find()
	if err != nil {
		return nil, err
	}
	wanted := layoutOf(spec)
	d.pins.use(wanted.hash())
	if set == "" {
		return nil, nil
	}
	before := d.pins.after(set)
	if set != wanted.hash() && before != "" {
		return nil, &PinError{
			filepath.Join(d.pins.dir, set), "its maps take the place of others, and the agent that saw to it did not get to the end",
			"start that version once more, with the configuration that it had, or take all of it off with: sidelight uninstall",
		}
	}
	if err := d.checkLinks(set); err != nil {
		return nil, err
	}
	if set != wanted.hash() {
		if d.carry, err = d.pins.planCarry(set, spec, d.mesh.on); err != nil {
			return nil, err
		}
		return map[string]*ebpf.Map{}, nil
	}
	if before != "" {
		if err := d.checkLinks(before); err != nil {
			return nil, err
		}
		if d.carry, err = d.pins.planCarry(before, spec, d.mesh.on); err != nil {
			return nil, err
		}
		d.carry.arrived = true
	}
	return d.pins.maps(spec.Maps)
}

// prepareCarry loads what carries state over, if anything does.
func (d *Datapath) prepareCarry() error {
	if d.carry == nil || !d.carry.carries() {
		return nil
	}
	return d.carry.loadCarriers(d)
}

// Resumed tells whether the maps were an earlier process's.
func (d *Datapath) Resumed() bool { return d.resumed }

// Ledger returns what agents leave each other.
func (d *Datapath) Ledger() *Ledger { return d.ledger }

// load loads everything, with those maps that there are already, and keeps what other programs are to share.
func (d *Datapath) load(spec *ebpf.CollectionSpec, old map[string]*ebpf.Map) error {
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: old})
	if err != nil {
		return err
	}
	defer collection.Close()
	if d.mesh.on || d.pins != nil {
		if err := d.mesh.share(collection); err != nil {
			return err
		}
	}
	if err := collection.Assign(&d.objects); err != nil {
		return err
	}
	d.room = make(map[string]uint32)
	for name, m := range d.maps() {
		d.room[name] = m.MaxEntries()
	}
	return nil
}

func silentBits(kinds []connection.Kind) uint32 {
	var bits uint32
	for _, kind := range kinds {
		bits |= 1 << kind
	}
	return bits
}

// SetSilent changes Options.Silent, from the next event on. Nothing is counted twice or missed by it: each event says what was told before.
// Safe for concurrent use.
func (d *Datapath) SetSilent(kinds []connection.Kind) error {
	if err := d.objects.Silent.Set(silentBits(kinds)); err != nil {
		return fmt.Errorf("set %s: %w", bpf.Silent, err)
	}
	return nil
}

// Attach attaches the programs to the cgroup by links. Those that are not pinned the kernel takes off when this process ends, however it ends; of those
// that are, and are there already, each gets its new program in one step. Programs that others attached stay and go on running. After an error it is as
// before.
func (d *Datapath) Attach() error {
	d.ledger.Alive() // before a program asks
	if err := d.useTraceBlocks(); err != nil {
		return errors.Join(err, d.restoreTraceBlocks())
	}
	if d.carry != nil {
		if err := d.attachCarrying(); err != nil {
			if !d.took {
				err = errors.Join(err, d.restoreTraceBlocks())
			}
			return err
		}
		d.begin()
		return nil
	}
	if err := d.attachAll(); err != nil {
		if d.resumed {
			return errors.Join(err, d.Rollback())
		}
		return errors.Join(err, d.detach())
	}
	d.begin()
	return nil
}

func (d *Datapath) begin() {
	d.ledger.begin(d.version)
	since := time.Now()
	if d.pins != nil {
		since = d.pins.since()
	}
	d.since.Store(&since)
}

// Since is when the data path was made, whose counts go on from agent to agent; zero: not known, as before Attach. Safe for concurrent use.
func (d *Datapath) Since() time.Time {
	since := d.since.Load()
	// A clock that was set back since says nothing.
	if since == nil || since.After(time.Now()) {
		return time.Time{}
	}
	return *since
}

func (d *Datapath) attachAll() error {
	d.took = true
	if d.pins != nil && !d.resumed {
		if err := d.pins.pinMaps(d.mesh.maps); err != nil {
			return err
		}
	}
	if err := d.attachMesh(); err != nil {
		return err
	}
	for _, a := range d.hooks() {
		if err := d.attachCgroup(a); err != nil {
			return err
		}
	}
	return nil
}

// hooks are those that there are with and without a mesh.
func (d *Datapath) hooks() []hook {
	return []hook{
		// sockops first: an event without its process is worth more than a process without events.
		{sockopsHook, ebpf.AttachCGroupSockOps, d.sockops()},
		{"connect4", ebpf.AttachCGroupInet4Connect, d.either(d.objects.MeshConnect4, d.objects.MeshConnect4InMesh)},
		{"connect6", ebpf.AttachCGroupInet6Connect, d.either(d.objects.MeshConnect6, d.objects.MeshConnect6InMesh)},
	}
}

// hook is where a program is attached to the cgroup, by the name of its pin.
type hook struct {
	name    string
	attach  ebpf.AttachType
	program *ebpf.Program
}

// either is the program of a hook that there is with and without a mesh.
func (d *Datapath) either(without, with *ebpf.Program) *ebpf.Program {
	if d.mesh.on {
		return with
	}
	return without
}

// sockops is the program of that hook.
func (d *Datapath) sockops() *ebpf.Program {
	if len(d.traceWith) > 0 {
		return d.either(d.objects.MeshSockopsTraced, d.objects.MeshSockopsTracedInMesh)
	}
	return d.either(d.objects.MeshSockops, d.objects.MeshSockopsInMesh)
}

func (d *Datapath) attachCgroup(h hook) error {
	if d.resumed {
		switch l, err := d.pins.link(h.name); {
		case err != nil:
			return err
		case l != nil:
			return d.replace(h, l)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: d.cgroup.Dir, Attach: h.attach, Program: h.program})
	if err != nil {
		return fmt.Errorf("attach %v to %s: %w", h.attach, d.cgroup.Dir, err)
	}
	d.links = append(d.links, attached{Link: l, name: h.name})
	if d.pins != nil {
		return d.pins.pinLink(h.name, l)
	}
	return nil
}

// Sweep looks at every live socket that the programs follow, and calls back with the bytes of a record each, which are valid
// during the call only. Without all it is silent on open connections of which there is nothing new. Not safe for concurrent use.
func (d *Datapath) Sweep(all bool, record func([]byte)) error {
	var flag uint32
	if all {
		flag = 1
	}
	if err := d.objects.SweepAll.Set(flag); err != nil {
		return fmt.Errorf("set %s: %w", bpf.SweepAll, err)
	}
	iterator, err := link.AttachIter(link.IterOptions{Program: d.objects.MeshSweep, Map: d.objects.Connections})
	if err != nil {
		return fmt.Errorf("attach iterator over sockets: %w", err)
	}
	defer iterator.Close()
	run, err := iterator.Open()
	if err != nil {
		return fmt.Errorf("open iterator over sockets: %w", err)
	}
	defer run.Close()
	buf, have := make([]byte, 64<<10), 0
	for {
		n, err := run.Read(buf[have:])
		have += n
		used := 0
		for {
			size := bpf.SweepSize(buf[used:have])
			if size == 0 {
				break
			}
			record(buf[used : used+size])
			used += size
		}
		have = copy(buf, buf[used:have])
		if errors.Is(err, io.EOF) {
			return d.trace.release(d)
		}
		if errors.Is(err, unix.EAGAIN) { // as walk has it
			continue
		}
		if err != nil {
			return fmt.Errorf("walk over sockets: %w", err)
		}
	}
}

// ReaderAsleep says that the ring's reader waits for the next event without a timer, so that the program that has one wakes it. Not safe
// for concurrent use.
func (d *Datapath) ReaderAsleep(asleep bool) error {
	var flag uint32
	if asleep {
		flag = 1
	}
	if err := d.objects.ReaderAsleep.Set(flag); err != nil {
		return fmt.Errorf("set %s: %w", bpf.ReaderAsleep, err)
	}
	return nil
}

// SetReadPosition says how far the ring was read, so that the programs know how much waits. Not safe for concurrent use.
func (d *Datapath) SetReadPosition(position uint64) {
	_ = d.objects.ReadPosition.Set(position) // one that is wrong costs wake-ups only
}

// ID is the same for all agents that attend to the same data path, and another for others of the same boot.
func (d *Datapath) ID() uint32 {
	if id := d.ledger.dataPath(); id != 0 { // that of its first maps
		return id
	}
	info, err := d.objects.Ledger.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return uint32(id)
}

// Ring returns the map that events come through.
func (d *Datapath) Ring() *ebpf.Map { return d.objects.Events }

// Account is the kernel's side of the account, summed over CPUs. A reader sees each number at its own moment.
type Account = bpf.Account

// Account reads the kernel's counters. Safe for concurrent use.
func (d *Datapath) Account() (Account, error) {
	var perCPU []bpf.Account
	var sum Account
	if err := d.objects.Account.Lookup(uint32(0), &perCPU); err != nil {
		return sum, fmt.Errorf("read account: %w", err)
	}
	before, err := d.accountBefore()
	if err != nil {
		return sum, err
	}
	for _, a := range append(perCPU, before) {
		sum.Attempts += a.Attempts
		sum.Failed += a.Failed
		sum.StatelessEstablished += a.StatelessEstablished
		sum.AdoptedConnecting += a.AdoptedConnecting
		sum.AdoptFailed += a.AdoptFailed
		sum.ListenersFailed += a.ListenersFailed
		sum.Traced += a.Traced
		sum.TracedClosed += a.TracedClosed
		sum.UntrackedClosed += a.UntrackedClosed
		sum.Aggregated += a.Aggregated
		sum.Totalled += a.Totalled
		sum.Strays += a.Strays
		for i := range sum.TraceOptions {
			sum.TraceOptions[i] += a.TraceOptions[i]
		}
		for i := range sum.Established {
			sum.Established[i] += a.Established[i]
			sum.Adopted[i] += a.Adopted[i]
			sum.Closed[i] += a.Closed[i]
			sum.StorageFailed[i] += a.StorageFailed[i]
			sum.Refused[i] += a.Refused[i]
		}
		for i := range sum.Submitted {
			sum.Submitted[i] += a.Submitted[i]
			sum.ReserveFailed[i] += a.ReserveFailed[i]
			sum.SampledOut[i] += a.SampledOut[i]
		}
	}
	return sum, nil
}

// accountBefore is what programs counted whose maps had another layout.
func (d *Datapath) accountBefore() (before Account, err error) {
	d.carrying.RLock()
	defer d.carrying.RUnlock()
	if c := d.carry; c != nil && c.types["account"].value != nil {
		return c.accountBefore()
	}
	if err := d.objects.AccountBefore.Lookup(uint32(0), &before); err != nil {
		return before, fmt.Errorf("read account of before: %w", err)
	}
	return before, nil
}

// sweepProgram runs in the process that reads the iterator: this one.
const sweepProgram = "mesh_sweep"

// ProgramStats is the cost of one program since it was loaded.
type ProgramStats struct {
	Name string
	Runs uint64
	Time time.Duration
}

// ProgramStats returns what the kernel measured of each program. It measures only while kernel.bpf_stats_enabled is set, which
// costs every program of the machine some tens of nanoseconds a run; Runs is 0 where it never was.
func (d *Datapath) ProgramStats() ([]ProgramStats, error) {
	var all []ProgramStats
	for _, p := range d.programs() {
		stats, err := p.program.Stats()
		if err != nil {
			return nil, fmt.Errorf("read statistics of %s: %w", p.name, err)
		}
		all = append(all, ProgramStats{Name: p.name, Runs: stats.RunCount, Time: stats.Runtime})
	}
	return all, nil
}

// programs are those that run, or can.
func (d *Datapath) programs() []namedProgram {
	return append(append(d.meshPrograms(), d.tracePrograms()...), []namedProgram{
		{"mesh_connect4", d.either(d.objects.MeshConnect4, d.objects.MeshConnect4InMesh)},
		{"mesh_connect6", d.either(d.objects.MeshConnect6, d.objects.MeshConnect6InMesh)},
		{"mesh_sockops", d.sockops()},
		{sweepProgram, d.objects.MeshSweep},
	}...)
}

// Detach takes the programs off the cgroup, unless Keep was called: then they stay where they are. Whatever they tell is in the ring when it returns, and
// stays readable until Close. Safe twice.
func (d *Datapath) Detach() error {
	err := d.detach()
	if !d.keep {
		waitPrograms()
	}
	return err
}

// waitPrograms waits for programs that run where they were detached from meanwhile: closing a link does not. All of ours run in an RCU read-side section,
// and membarrier's oldest command is synchronize_rcu(). Where it is not to be had (nohz_full, a seccomp filter) what such a program tells last is not read.
func waitPrograms() {
	const membarrierCmdGlobal = 1 // linux/membarrier.h
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierCmdGlobal, 0, 0)
}

// Keep leaves what is pinned where it is when this process lets go of it. Without pins it does nothing.
func (d *Datapath) Keep() { d.keep = d.pins != nil }

// Close detaches and frees everything. Safe twice.
func (d *Datapath) Close() error {
	d.endCarry()
	return errors.Join(d.detach(), d.ledger.close(), d.mesh.close(), d.objects.Close(), d.ring.close(), d.pins.close())
}
