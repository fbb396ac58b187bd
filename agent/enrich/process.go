package enrich

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// processKey has the name too, because exec changes it and neither pid nor start.
type processKey struct {
	pid   uint32
	start uint64
	comm  [16]byte
}

// processes names the owners of sockets.
type processes struct {
	proc  string // mount point of procfs
	byKey map[processKey]*Process
}

func newProcesses(proc string) *processes {
	return &processes{proc: proc, byKey: make(map[processKey]*Process)}
}

func (p *processes) process(owner connection.Owner) *Process {
	if owner.PID == 0 {
		return nil
	}
	key := processKey{owner.PID, owner.StartBoottimeNS, owner.Comm}
	if found := p.byKey[key]; found != nil {
		return found
	}
	found := &Process{PID: owner.PID, Executable: p.executable(owner)}
	if len(p.byKey) >= cacheLimit {
		clear(p.byKey)
	}
	p.byKey[key] = found
	return found
}

// executable is the base name of the file that the process runs, as semantic conventions want it. A process that is gone by now
// has only the 15 characters that the kernel kept of its name when it called connect or listen.
func (p *processes) executable(owner connection.Owner) string {
	dir := filepath.Join(p.proc, strconv.FormatUint(uint64(owner.PID), 10))
	if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		// The order matters: the start time read after the link proves that the link was of this process.
		if stat, err := os.ReadFile(filepath.Join(dir, "stat")); err == nil && startTicks(stat) == owner.StartBoottimeNS/nsPerTick {
			return label(filepath.Base(strings.TrimSuffix(exe, " (deleted)")))
		}
	}
	return label(commOf(owner))
}

// commOf is the kernel's own name of a process.
func commOf(owner connection.Owner) string {
	comm := owner.Comm[:]
	if end := bytes.IndexByte(comm, 0); end >= 0 {
		comm = comm[:end]
	}
	return string(comm)
}

// nsPerTick is one unit of /proc/PID/stat's times: USER_HZ is 100 on every architecture that we build for.
const nsPerTick = 10_000_000

// startTicks is field 22 of /proc/PID/stat, starttime. The name in field 2 may hold spaces and parentheses, so count from its end.
func startTicks(stat []byte) uint64 {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0
	}
	fields := bytes.Fields(stat[end+1:])
	const starttime = 22 - 3 // field 3 comes first here
	if len(fields) <= starttime {
		return 0
	}
	ticks, _ := strconv.ParseUint(string(fields[starttime]), 10, 64)
	return ticks
}
