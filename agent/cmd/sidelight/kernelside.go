package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
)

// kernelSide is where events come from, for run and for record alike.
type kernelSide struct {
	cgroup   datapath.Cgroup
	datapath *datapath.Datapath
	enricher *enrich.Enricher
	stats    event.Stats
	reader   *event.Reader
	mounted  bool // bpffs was, by this process

	// waiting is how many want to see all that the kernel has told so far.
	waiting atomic.Int32
	summed  time.Time // when sums of lost events were read last; of the reader's goroutine
}

// check says whether this process may attach there.
func (k *kernelSide) check(cgroup string) (err error) {
	if k.cgroup, err = datapath.OpenCgroup(cgroup); err != nil {
		return err
	}
	return datapath.CheckPrivileges()
}

// load takes what it needs of the kernel, attaching nothing.
// options are those of the datapath. mesh: sizes of its maps; nil without one.
func (k *kernelSide) options(c *config.Config, mesh map[string]uint32) datapath.Options {
	return datapath.Options{
		RingBytes: c.RingBytes, Cgroup: k.cgroup, FirstBytes: c.FirstByteTimes, TraceWith: c.Traces.With(), Silent: silentKinds(c.Events),
		Mesh: mesh, Pin: pinDirectory(c), Mounted: k.mounted, Version: version(), FailClosed: c.Mesh.FailClosedAfter,
	}
}

// load loads the datapath, or goes on with what was prepared while another agent was there.
func (k *kernelSide) load(options datapath.Options, c *config.Config) (err error) {
	if k.datapath != nil {
		err = k.datapath.Lock()
	} else {
		k.datapath, err = datapath.Load(options)
	}
	if err != nil {
		return err
	}
	if k.enricher, err = enrich.New(k.cgroup.Mount, enrich.NewPeers(peerGroups(c.PeerGroups))); err != nil {
		return err
	}
	before, base := k.datapath.RingsBefore()
	rings := event.Rings{Now: k.datapath.Ring(), Base: base, Gone: k.datapath.DropRingBefore}
	for _, b := range before {
		rings.Before = append(rings.Before, event.Before{Ring: b.Ring, Translate: b.Translate})
	}
	k.reader, err = event.NewReader(&rings, c.DrainInterval, &k.stats)
	if err != nil {
		return err
	}
	// Between two reports there may be a sweep to make, by whoever is told that the ring is empty.
	k.reader.Asleep, k.reader.MostAsleep = k.datapath.ReaderAsleep, c.ReportInterval
	k.reader.Position = k.datapath.SetReadPosition
	return nil
}

func (k *kernelSide) attach(logger *slog.Logger) error {
	if err := k.datapath.Attach(); err != nil {
		return err
	}
	if err := k.datapath.Adopt(); err != nil {
		logger.Warn("some of what was there before is not followed", "error", err)
	}
	return nil
}

// drain returns when everything that the kernel had told by the time of the call was handled, sums of what it did not send too. Safe for
// concurrent use.
func (k *kernelSide) drain(ctx context.Context) error {
	k.waiting.Add(1)
	defer k.waiting.Add(-1)
	return k.reader.Drain(ctx)
}

// sumInterval is how often sums of lost events are read while nobody waits for them: a look at them costs more than one at the ring, and
// there can be as many as edges.
const sumInterval = time.Second

// losses reads them, if it is time or somebody waits.
func (k *kernelSide) losses() ([]connection.Loss, error) {
	if now := time.Now(); k.waiting.Load() > 0 || now.Sub(k.summed) >= sumInterval {
		k.summed = now
		return k.datapath.Losses()
	}
	return nil, nil
}

// sweep decodes what the kernel tells of live sockets.
func (k *kernelSide) sweep(all bool, observe func(*connection.Event)) error {
	var e connection.Event
	return k.datapath.Sweep(all, func(record []byte) {
		if err := event.Decode(record, &e); err != nil {
			k.stats.DecodeFailed.Add(1)
			return
		}
		k.stats.Decoded[e.Kind].Add(1)
		observe(&e)
	})
}

// audit drains the ring and compares what the kernel counted with what user space did. Safe for concurrent use while the reader
// runs.
func (k *kernelSide) audit(ctx context.Context, followed int64) (account.Account, error) {
	before, err := k.datapath.Account()
	if err != nil {
		return account.Account{}, err
	}
	if err := k.drain(ctx); err != nil {
		return account.Account{}, err
	}
	after, err := k.datapath.Account()
	if err != nil {
		return account.Account{}, err
	}
	return account.New(kernelAccount(before), kernelAccount(after), userAccount(&k.stats, followed)), nil
}

func userAccount(stats *event.Stats, followed int64) account.User {
	user := account.User{
		Received: stats.Received.Load(), DecodeFailed: stats.DecodeFailed.Load(), Decoded: make(map[string]uint64),
		Followed: uint64(followed),
	}
	for _, kind := range connection.Kinds() {
		user.Decoded[kind.String()] = stats.Decoded[kind].Load()
	}
	return user
}

// release frees what load took, in reverse. Safe twice.
func (k *kernelSide) release() {
	if k.reader != nil {
		k.reader.Close()
	}
	if k.enricher != nil {
		k.enricher.Close()
	}
	if k.datapath != nil {
		k.datapath.Close()
	}
}

// silentKinds are those that the kernel is not to send.
func silentKinds(events string) []connection.Kind {
	switch events {
	case config.EventsCloses:
		return []connection.Kind{connection.PreConnect, connection.Established}
	case config.EventsNone:
		return connection.Kinds()
	}
	return nil
}

func peerGroups(groups []config.PeerGroup) []enrich.PeerGroup {
	named := make([]enrich.PeerGroup, 0, len(groups))
	for _, g := range groups {
		named = append(named, enrich.PeerGroup{Name: g.Name, Namespace: g.Namespace, CIDRs: g.CIDRs})
	}
	return named
}

func readBootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
