package datapath

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Counted is how far the ring was read, and what had been counted by then.
type Counted = bpf.Counted

// Logged is how far the access log has got, and where in which file that was.
type Logged = bpf.Logged

// Ledger is what one agent leaves the next, in memory that outlives both. Its methods are of one goroutine each: SetCounted of the reader's, SetLogged
// of the log's, others before and after these work; but for those that say otherwise.
type Ledger struct {
	mu       sync.Mutex // so that nobody writes to memory that is gone
	memory   []byte
	page     *bpf.Ledger // nil once closed
	watched  []byte
	watchdog *bpf.Watchdog

	// As an earlier agent left it.
	counted Counted
	logged  Logged
	agents  uint64
	meshGen uint64
	stopped bool
	handed  uint64
	version string
	alive   uint64
	alone   time.Duration
}

// openLedger reads what is there, and writes nothing.
func openLedger(ledger, watchdog *ebpf.Map) (_ *Ledger, err error) {
	l := new(Ledger)
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.memory, err = mapPage(ledger); err != nil {
		return nil, err
	}
	if l.watched, err = mapPage(watchdog); err != nil {
		return nil, err
	}
	l.page, l.watchdog = (*bpf.Ledger)(unsafe.Pointer(&l.memory[0])), (*bpf.Watchdog)(unsafe.Pointer(&l.watched[0]))
	l.counted = l.page.Counted[atomic.LoadUint64(&l.page.CountedNumber)&1]
	l.logged = l.page.Logged[atomic.LoadUint64(&l.page.LoggedNumber)&1]
	l.meshGen, l.handed = l.page.Generation, l.page.Handed
	l.agents, l.stopped, l.alive = l.page.Agents, l.page.Stopped != 0, atomic.LoadUint64(&l.watchdog.AliveNs)
	l.version = text(l.page.Version[:])
	return l, nil
}

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func mapPage(m *ebpf.Map) ([]byte, error) {
	page := unix.Getpagesize()
	if int(m.ValueSize()) > page {
		return nil, fmt.Errorf("map %v into memory: it has %d bytes, more than a page", m, m.ValueSize())
	}
	memory, err := unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %v into memory: %w", m, err)
	}
	return memory, nil
}

// begin notes that this process attends to the programs from now on.
func (l *Ledger) begin(version string) {
	if l.alive != 0 {
		l.alone = time.Duration(bpf.Monotonic() - l.alive)
	}
	l.Alive()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.page.AloneNs += uint64(l.alone)
	l.page.Agents = l.agents + 1
	l.page.AgentPid = uint64(os.Getpid())
	l.page.Stopped = 0
	l.page.Version = [64]uint8{}
	copy(l.page.Version[:len(l.page.Version)-1], version)
}

// dataPath is what agents know the data path by; 0: the id of the ledger's map.
func (l *Ledger) dataPath() uint32 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return 0
	}
	return uint32(l.page.DataPath)
}

// Alive says that an agent is there. Where programs look at it (Options.FailClosed), call it every second. Safe for concurrent use.
func (l *Ledger) Alive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page != nil {
		atomic.StoreUint64(&l.watchdog.AliveNs, bpf.Monotonic())
	}
}

// resolveBase ends what somebody began who ended while he took a ring away; before: how many there are before that which programs write to.
func (l *Ledger) resolveBase(before int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page.NextBase != 0 && uint64(before) < l.page.NextRings { // it is gone
		l.page.RingBase = l.page.NextBase
	}
	l.page.NextBase = 0
}

// ringBase is the position at which the oldest ring began.
func (l *Ledger) ringBase() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return 0
	}
	return l.page.RingBase
}

// mixed says that programs may write to a ring that is not the newest.
func (l *Ledger) mixed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.page.Mixed != 0
}

func (l *Ledger) setMixed(mixed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return
	}
	l.page.Mixed = 0
	if mixed {
		l.page.Mixed = 1
	}
}

// moveBase takes the oldest of so many rings before the one that is written to away by remove; the next one began at base.
func (l *Ledger) moveBase(base, rings uint64, remove func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return nil
	}
	l.page.NextRings = rings
	atomic.StoreUint64(&l.page.NextBase, base)
	if err := remove(); err != nil {
		return err
	}
	atomic.StoreUint64(&l.page.RingBase, base)
	atomic.StoreUint64(&l.page.NextBase, 0)
	return nil
}

// HandedBefore is the position in the ring up to which the agent before handed on what it read; 0 if it did not stop by itself.
func (l *Ledger) HandedBefore() uint64 {
	if !l.stopped {
		return 0
	}
	return l.handed
}

// Before returns what the agent before this one left: how far it had counted and logged, whether it stopped by itself, and how many agents there were
// before. All of it is 0 for the first.
func (l *Ledger) Before() (counted Counted, logged Logged, stopped bool, agents uint64) {
	return l.counted, l.logged, l.stopped, l.agents
}

// GenerationBefore is that of the mesh which the agent before put in force last, or was about to; 0 without one.
func (l *Ledger) GenerationBefore() uint64 { return l.meshGen }

// SetGeneration notes that of the mesh which is put in force next. Safe for concurrent use.
func (l *Ledger) SetGeneration(generation uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page != nil {
		l.page.Generation = generation
	}
}

// VersionBefore is that of the agent before.
func (l *Ledger) VersionBefore() string { return l.version }

// Alone is for how long there was no agent before this one. Of one that was killed it is up to a report interval too much.
func (l *Ledger) Alone() time.Duration { return l.alone }

// Attended is how many agents there were, this one included, and for how long there was none between them. Safe for concurrent use.
func (l *Ledger) Attended() (agents uint64, alone time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return 0, 0
	}
	return l.page.Agents, time.Duration(l.page.AloneNs)
}

// Stopped notes that this agent ended by itself, and has handed on what it read before a position in the ring.
func (l *Ledger) Stopped(handed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page != nil {
		l.page.Handed = handed
		l.page.Stopped = 1
	}
}

// SetCounted notes what was counted, all at once.
func (l *Ledger) SetCounted(c *Counted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return
	}
	number := atomic.LoadUint64(&l.page.CountedNumber) + 1
	l.page.Counted[number&1] = *c
	atomic.StoreUint64(&l.page.CountedNumber, number)
}

// SetLogged notes how far the access log has got, all at once.
func (l *Ledger) SetLogged(logged *Logged) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.page == nil {
		return
	}
	number := atomic.LoadUint64(&l.page.LoggedNumber) + 1
	l.page.Logged[number&1] = *logged
	atomic.StoreUint64(&l.page.LoggedNumber, number)
}

func (l *Ledger) close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.page = nil
	var errs []error
	for _, m := range []*[]byte{&l.memory, &l.watched} {
		if *m != nil {
			errs = append(errs, unix.Munmap(*m))
			*m = nil
		}
	}
	return errors.Join(errs...)
}
