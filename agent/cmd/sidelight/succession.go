package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

// succession is what an agent takes over from the one before it, and leaves the next. What is in the kernel's sums and in the ring stays there, with the
// numbers of what was read of it; what is in this process's sums goes into a file when it stops by itself. Who is killed leaves no file: counters begin anew
// then, as a new process's do, and what it had read and not handed on is still in the ring.
type succession struct {
	n      *node
	ledger *datapath.Ledger

	counted datapath.Counted // as the agent before left it
	logged  datapath.Logged
	agents  uint64 // before this one
	resumed bool
	ended   bool   // the one before stopped by itself
	handed  uint64 // and had handed on what it read before this position
	alive   sync.WaitGroup
	// carried says that the maps of before had another layout; uncarried sockets lost what was known of them in that.
	carried   bool
	uncarried uint64

	written map[string]struct{} // uids of lines that the one before wrote after it last said how far it was
	until   uint64              // the position from which on there are none of its
	again   struct {            // connections that it counted
		logged atomic.Uint64 // and whose lines were not written
		handed atomic.Uint64
		// written are those that it had not noted as counted, and whose lines it had written all the same.
		written atomic.Uint64
	}
}

// succeed looks at what the agent before left, once the datapath is loaded.
func (n *node) succeed() error {
	s := &succession{n: n, ledger: n.datapath.Ledger(), resumed: n.datapath.Resumed()}
	n.succession = s
	if n.config.PinDirectory != config.Off {
		n.reader.Progress = s
		if n.log != nil {
			n.log.Noted = s.noteLogged
		}
	}
	s.counted, s.logged, s.ended, s.agents = s.ledger.Before()
	s.handed = s.ledger.HandedBefore()
	if !s.resumed {
		return nil
	}
	n.stats.Received.Store(s.counted.Received)
	n.stats.DecodeFailed.Store(s.counted.DecodeFailed)
	for kind := range s.counted.Decoded {
		if kind < len(n.stats.Decoded) {
			n.stats.Decoded[kind].Store(s.counted.Decoded[kind])
		}
	}
	n.reader.Counted = s.counted.Position
	n.reader.Tell() // programs that are about to be attached have a position of their own
	if n.log != nil {
		if err := s.readLog(n.config.AccessLog); err != nil {
			return err
		}
		s.until = n.reader.Written()
		n.unwritten = s.unwritten
	}
	s.restore()
	return nil
}

// stateFile has the sums of an agent that stopped by itself.
const stateFile = "sums.json"

// savedSums is its content.
type savedSums struct {
	Boot     string      `json:"boot"`
	DataPath uint32      `json:"data_path"` // id of a map of it
	Agents   uint64      `json:"agents"`    // how many there were, with the one that wrote it
	Edges    []edge.Edge `json:"edges"`
	Gone     []edge.Edge `json:"gone,omitempty"` // of edge.Snapshot
	// Decisions are the zero value of a version before there were any.
	Decisions edge.Decisions `json:"decisions"`
}

func (s *succession) statePath() string { return filepath.Join(s.n.config.StateDirectory, stateFile) }

// restore takes over the sums, if they are those of the agent before. Without them all counters begin with 0.
func (s *succession) restore() {
	text, err := os.ReadFile(s.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var saved savedSums
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	switch {
	case err != nil:
		s.n.logger.Warn("counters begin anew", "error", fmt.Errorf("read the sums of the agent before: %w", err))
	case s.ended && saved.Boot == s.n.bootID && saved.DataPath == s.n.datapath.ID() && saved.Agents == s.agents:
		s.n.edges.Restore(edge.Snapshot{Edges: saved.Edges, Gone: saved.Gone, Decisions: saved.Decisions})
	}
}

// save writes the sums for the next agent.
func (s *succession) save() error {
	sums := s.n.edges.Snapshot()
	text, err := json.Marshal(savedSums{
		Boot: s.n.bootID, DataPath: s.n.datapath.ID(), Agents: s.agents + 1, Edges: sums.Edges, Gone: sums.Gone, Decisions: sums.Decisions,
	})
	if err == nil {
		err = os.MkdirAll(s.n.config.StateDirectory, 0o700)
	}
	if err == nil {
		err = replaceFile(s.statePath(), text)
	}
	if err != nil {
		return fmt.Errorf("save the sums for the next agent, whose counters begin anew: %w", err)
	}
	return nil
}

// Handled is of event.Progress.
func (s *succession) Handled(position uint64) {
	s.ledger.Alive()
	if position >= s.until {
		s.written = nil
	}
	if s.n.log != nil {
		s.n.log.Mark(position)
	}
	if s.n.collector != nil {
		s.n.records.logs.Mark(position)
		s.n.records.traces.Mark(position)
	}
	if position > s.counted.Position {
		s.setCounted(position)
	}
}

func (s *succession) setCounted(position uint64) {
	c := datapath.Counted{Position: position, Received: s.n.stats.Received.Load(), DecodeFailed: s.n.stats.DecodeFailed.Load()}
	for kind := range s.n.stats.Decoded {
		c.Decoded[kind] = s.n.stats.Decoded[kind].Load()
	}
	s.ledger.SetCounted(&c)
}

// HandedOn is of event.Progress.
func (s *succession) HandedOn() uint64 {
	to := ^uint64(0)
	if s.n.log != nil {
		to = min(to, s.n.log.Marked())
	}
	if s.n.collector != nil {
		to = min(to, s.n.records.handedOn())
	}
	return to
}

// takeAgain hands on what the agent before counted and may not have handed on. It is of the reader's goroutine.
func (s *succession) takeAgain(batch []enrich.Record, position uint64) {
	if s.n.log != nil && position > s.logged.Position {
		if _, written := s.written[s.n.boot.UID(batch[0].Event.Key)]; !written {
			s.again.logged.Add(1)
			s.n.log.Consume(batch)
		}
	}
	if s.n.collector != nil && position > s.handed {
		s.again.handed.Add(1)
		s.n.records.logs.Consume(batch)
		s.n.records.traces.Consume(batch)
	}
}

// unwritten leaves out records whose lines the agent before wrote just before it was killed. It is of the reader's goroutine, as are Handled and takeAgain.
func (s *succession) unwritten(batch []enrich.Record) []enrich.Record {
	if len(s.written) == 0 {
		return batch
	}
	has := func(r enrich.Record) bool {
		_, written := s.written[s.n.boot.UID(r.Event.Key)]
		return written
	}
	if !slices.ContainsFunc(batch, has) {
		return batch
	}
	left := slices.DeleteFunc(slices.Clone(batch), has) // others have the batch too
	s.again.written.Add(uint64(len(batch) - len(left)))
	return left
}

// closes is how many connections ended that this agent is to hand on, to the log and to exporters.
func (s *succession) closes() (log, exporters uint64) {
	own := s.n.stats.Decoded[connection.Close].Load() - s.counted.Decoded[connection.Close]
	return own + s.again.logged.Load() - s.again.written.Load(), own + s.again.handed.Load()
}

// readLog finds out which lines the agent before had written when it ended, of those that it had not said of. A log that is no file has no memory, and may
// get some lines twice.
func (s *succession) readLog(path string) error {
	s.written = make(map[string]struct{})
	if s.ended {
		return nil
	}
	noted, err := s.notedFile(path)
	if err != nil {
		return err
	}
	if noted != nil {
		defer noted.Close()
		if err := s.readLines(noted, int64(s.logged.Size)); err != nil {
			return err
		}
	}
	current, err := openLog(path)
	if err != nil || current == nil {
		return err
	}
	defer current.Close()
	if noted != nil {
		if same, err := sameFile(noted, current); same || err != nil {
			return err
		}
	}
	// It was opened since, or made. What is not said of fits into the ring, and no line has a hundred times its record's bytes.
	info, err := current.Stat()
	if err != nil {
		return fmt.Errorf("read the end of the access log: %w", err)
	}
	ring := int64(s.n.datapath.Ring().MaxEntries())
	before, _ := s.n.datapath.RingsBefore()
	for _, b := range before {
		ring += int64(b.Ring.MaxEntries())
	}
	return s.readLines(current, max(0, info.Size()-100*ring))
}

func sameFile(a, b *os.File) (bool, error) {
	first, err := a.Stat()
	if err != nil {
		return false, fmt.Errorf("read the end of the access log: %w", err)
	}
	second, err := b.Stat()
	if err != nil {
		return false, fmt.Errorf("read the end of the access log: %w", err)
	}
	return os.SameFile(first, second), nil
}

// openLog opens what the log may have been written to; nil: it is no file.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) {
		f, err = os.Open(path) // one that can only be appended to
	}
	if err != nil {
		return nil, fmt.Errorf("read the end of the access log: %w", err)
	}
	return f, nil
}

// readLines reads the lines from an offset on. One that the agent before could not end is cut off: its connection is still in the ring.
func (s *succession) readLines(f *os.File, from int64) error {
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return fmt.Errorf("read the end of the access log: %w", err)
	}
	lines := bufio.NewReaderSize(f, 64<<10)
	for end := from; ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if bytes.HasPrefix(line, []byte(`{"`)) {
				if err := f.Truncate(end); err != nil {
					s.n.logger.Warn("the access log has a line that breaks off", "file", f.Name(), "error", err)
				}
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the end of the access log: %w", err)
		}
		end += int64(len(line))
		var record struct {
			UID string `json:"log.record.uid"`
		}
		if json.Unmarshal(bytes.TrimSpace(line), &record) == nil && record.UID != "" {
			s.written[record.UID] = struct{}{}
		}
	}
}

// notedFile opens the file that the agent before wrote to when it last said how far it was, by this or, after a rotation, by another name beside it. nil: it
// is not there, or is shorter than it was.
func (s *succession) notedFile(path string) (*os.File, error) {
	if s.logged.Device == 0 {
		return nil, nil
	}
	names := []string{path}
	if beside, err := os.ReadDir(filepath.Dir(path)); err == nil {
		for _, e := range beside {
			names = append(names, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() || info.Size() < int64(s.logged.Size) {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Ino == s.logged.Inode && stat.Dev == s.logged.Device {
			return openLog(name)
		}
	}
	return nil, nil
}

// noteLogged tells the next agent how far the log is. It is of the log's goroutine.
func (s *succession) noteLogged(position uint64, file *os.File) {
	l := datapath.Logged{Position: position}
	if file != nil {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				l.Device, l.Inode, l.Size = stat.Dev, stat.Ino, uint64(info.Size())
			}
		}
	}
	s.ledger.SetLogged(&l)
}

// aliveInterval is how often the agent says that it is there, where somebody asks.
const aliveInterval = time.Second

// finish is called when all that was read has left this process, or will not: then it stays in the ring for the next.
func (s *succession) finish(keep bool) error {
	var err error
	if keep {
		err = s.save()
	}
	handed := ^uint64(0)
	if s.n.collector != nil {
		handed = s.n.handed
	}
	s.n.reader.Release(handed)
	s.ledger.Alive()
	s.ledger.Stopped(handed)
	return err
}

// say tells the log how this start came about.
func (s *succession) say(logger *slog.Logger) {
	switch {
	case !s.resumed:
		logger.Info("start: nothing was pinned", "pins", s.n.config.PinDirectory)
	default:
		how := "start: programs replaced in place, maps are those of before"
		if s.carried {
			how = "start: programs replaced, maps have another layout than those of before, and what was in those was carried over"
			if s.uncarried > 0 {
				logger.Warn("sockets without room for new state are not followed any more", "sockets", s.uncarried)
			}
		} else if before, _ := s.n.datapath.RingsBefore(); len(before) > 0 {
			how = "start: programs replaced in place, maps are those of before, but for an event ring of another size"
		}
		logger.Info(how, "pins", s.n.config.PinDirectory, "agents_before", s.agents,
			"version_before", s.ledger.VersionBefore(), "stopped", s.ended, "without_agent", s.ledger.Alone())
		if asked := s.n.datapath.RingAsked(); asked != 0 {
			logger.Warn("the event ring keeps its size until the next start: a new size waits until the old ring is read, and until an agent of the same version starts again",
				"ring_bytes", asked)
		}
	}
}
