package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

// ringConfig is a configuration with a ring of a size.
func ringConfig(t *testing.T, size uint32) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ring.yaml")
	writeFile(t, file, fmt.Sprintf("%s\nring_bytes: %d\n", noBudget, size))
	return file
}

// hasRing waits until the old ring is read and gone, and wants one of a size.
func (l *lasting) hasRing(size uint32) {
	l.t.Helper()
	eventually(l.t, "one ring", func() error {
		for _, other := range []string{"map-events_before", "map-events_next"} {
			if _, err := os.Lstat(filepath.Join(l.set(), other)); err == nil {
				return fmt.Errorf("%s is there", other)
			}
		}
		return nil
	})
	eventually(l.t, "its size", l.wants(map[string]uint64{"sidelight_bpf_ring_bytes": uint64(size)}))
}

// TestRingChanges starts agents with rings of other sizes, while the old ones have events that nobody has read: each is counted and logged once.
func TestRingChanges(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	p := newPeers(t, cgroup)
	l := newLasting(t, cgroup)
	const small, large, larger = 64 << 10, 1 << 20, 2 << 20
	l.startOf(program, "--config", ringConfig(t, large))
	l.hasRing(large)
	p.connect(20)
	l.stop()
	p.connect(30) // into the old ring
	l.startOf(program, "--config", ringConfig(t, small))
	l.checkLast(50)
	l.hasRing(small)
	p.connect(10)
	l.kill()
	p.connect(40) // of which not all finds room
	l.startOf(program, "--config", ringConfig(t, larger))
	l.waitClosed()
	if r := l.audit(); r.Unaccounted != 0 || r.Kernel.Closed["client"] != 100 || r.Kernel.Closed["server"] != 100 {
		t.Errorf("of 100 connections: %+v", r)
	}
	l.hasRing(larger)
	before := l.agent
	p.connect(5)
	l.startOf(program, "--config", ringConfig(t, large), "--takeover")
	if err := before.cmd.Wait(); err != nil {
		t.Errorf("the agent that handed over: %v", err)
	}
	p.connect(5)
	l.hasRing(large)
	l.stop()

	// An agent that was killed between one step and the next.
	for step, of := range []func(next, now, before string){
		func(string, string, string) {},
		func(_, now, before string) { rename(t, now, before) },
		func(next, now, before string) { rename(t, now, before); rename(t, next, now) },
	} {
		size := uint32(larger >> (step % 2))
		ring, err := ebpf.NewMap(&ebpf.MapSpec{Name: "events", Type: ebpf.RingBuf, MaxEntries: size})
		if err != nil {
			t.Fatal(err)
		}
		at := func(name string) string { return filepath.Join(l.set(), "map-events"+name) }
		if err := ring.Pin(at("_next")); err != nil {
			t.Fatal(err)
		}
		ring.Close()
		p.connect(5)
		of(at("_next"), at(""), at("_before"))
		p.connect(5)
		l.startOf(program, "--config", ringConfig(t, size))
		p.connect(5)
		l.hasRing(size)
		l.stop()
	}
	l.restart()
	l.waitClosed()
	if r := l.audit(); r.Unaccounted != 0 || r.Kernel.Closed["client"] != uint64(p.count) || r.Kernel.Closed["server"] != uint64(p.count) {
		t.Errorf("of %d connections: %+v", p.count, r)
	}
	r := l.audit()
	l.linesOnce(2*p.count - int(r.Kernel.Aggregated+r.Kernel.Totalled))
	l.stop()
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
