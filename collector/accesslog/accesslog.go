// Package accesslog writes one JSON line for each finished connection.
package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/queue"
)

// QueueRecords is how many records may wait for a slow disk or pipe: some seconds of a busy node.
const QueueRecords = 1 << 16

// writeBytes is how much is collected before a write.
const writeBytes = 64 << 10

// Log is a pipeline.Sink that writes lines from a goroutine of its own.
type Log struct {
	// Noted, if set before Run, hears that the lines of all connections before a position (see Mark) are written, and to which file; nil: to none. What the
	// file has beyond its size of that moment is of later positions. It is called by one goroutine at a time.
	Noted func(position uint64, file *os.File)

	queue *queue.Queue
	boot  attribute.Boot

	// writing is held while lines are written that the queue does not know yet to be done: then the file has more than what is marked.
	writing   sync.Mutex
	noted     uint64 // with writing
	notedFile *os.File

	mu   sync.Mutex
	out  io.Writer
	file *os.File // nil for a stream that is not ours to close
	path string
	torn bool // the last write ended within a line
	// found is as long as nothing was written to the file since it was opened: how it ends is asked only then, as the end may be mended before.
	found bool

	lines  atomic.Uint64
	failed atomic.Uint64
}

// Open opens a log: "stdout", "stderr", or a file to append to, which is made if need be.
func Open(target string, boot attribute.Boot) (*Log, error) {
	l := &Log{queue: queue.NewFair(QueueRecords), boot: boot}
	switch target {
	case "stdout":
		l.out = os.Stdout
	case "stderr":
		l.out = os.Stderr
	default:
		l.path = target
		if err := l.Reopen(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// NewWriter returns a log that writes to w.
func NewWriter(w io.Writer, boot attribute.Boot) *Log {
	return &Log{queue: queue.NewFair(QueueRecords), boot: boot, out: w}
}

// Wait makes Consume wait for a slow disk or pipe rather than drop. To be called before all else.
func (l *Log) Wait() { l.queue.Wait() }

// Reopen opens the file anew by its path, for log rotation by renaming. It does nothing for a stream. On error the log goes on
// into the file it had.
func (l *Log) Reopen() error {
	if l.path == "" {
		return nil
	}
	// Addresses and process names are nobody else's business.
	// Not blocking: opening a pipe that nobody reads would wait for ever, and now is an error.
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return fmt.Errorf("open access log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.out, l.torn, l.found = file, file, false, true
	return nil
}

// endsTorn reports whether a file ends within a line: whoever wrote it was killed or had no more room, or the machine went down. What cannot be read, or has
// no end, does not.
func endsTorn(file *os.File) bool {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	// The log's own descriptor only writes, and its path may have another file by now.
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return false
	}
	defer again.Close()
	last := make([]byte, 1)
	_, err = again.ReadAt(last, info.Size()-1)
	return err == nil && last[0] != '\n'
}

// Consume queues a batch of connections that ended.
func (l *Log) Consume(batch []enrich.Record) { l.queue.Consume(batch) }

// Run writes until Close was called and everything queued is written.
func (l *Log) Run() {
	out := line{make([]byte, 0, writeBytes+4096)}
	for {
		batches, ok := l.queue.Next(context.Background())
		if !ok {
			l.note()
			return
		}
		l.writing.Lock()
		lines := uint64(0)
		for _, batch := range batches {
			for i := range batch {
				out.append(l.boot, &batch[i])
				if lines++; len(out.buf) >= writeBytes {
					l.write(out.buf, lines)
					out.buf, lines = out.buf[:0], 0
				}
			}
		}
		l.write(out.buf, lines)
		out.buf = out.buf[:0]
		for _, batch := range batches {
			l.queue.Done(len(batch))
		}
		l.writing.Unlock()
		l.note()
	}
}

// note says how far the log is, if that is known and new. While lines are written, who writes does it afterwards.
func (l *Log) note() {
	if l.Noted == nil {
		return
	}
	for l.writing.TryLock() {
		known := l.noteExact()
		l.writing.Unlock()
		// Whoever came meanwhile went away again.
		if position, exact := l.queue.Marked(); !exact || position == known || position == 0 {
			return
		}
	}
}

// noteExact returns the position that was said last.
func (l *Log) noteExact() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if position, exact := l.queue.Marked(); exact && position != 0 && (position != l.noted || l.file != l.notedFile) {
		l.noted, l.notedFile = position, l.file
		l.Noted(position, l.file)
	}
	return l.noted
}

// Mark says that all connections that ended before a position were given to Consume. Positions only grow.
func (l *Log) Mark(position uint64) {
	l.queue.Mark(position)
	l.note()
}

// Marked returns the last position that Mark was told of whose lines are all written, or lost.
func (l *Log) Marked() uint64 {
	position, _ := l.queue.Marked()
	return position
}

func (l *Log) write(buf []byte, lines uint64) {
	if lines == 0 {
		return
	}
	written, err := l.writeLines(buf)
	l.lines.Add(written)
	// Once a second would be too often for a full disk; the counter tells how much.
	if lost := lines - written; lost > 0 && l.failed.Add(lost) == lost {
		slog.Error("write access log: lines are lost, see sidelight_dropped_total", "error", err)
	}
}

var newline = []byte{'\n'}

// writeLines returns how many lines were written whole.
func (l *Log) writeLines(buf []byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.found {
		l.found, l.torn = false, endsTorn(l.file)
	}
	if l.torn {
		// What was broken off must not take the next line with it.
		if _, err := l.out.Write(newline); err != nil {
			return 0, err
		}
		l.torn = false
	}
	n, err := l.out.Write(buf)
	l.torn = n > 0 && buf[n-1] != '\n'
	return uint64(bytes.Count(buf[:n], newline)), err
}

// Close makes Run end after what is queued. The caller waits for Run, then calls CloseFile.
func (l *Log) Close() { l.queue.Close() }

// CloseFile closes the file, unless Run hangs in a write that nobody takes. Safe twice.
func (l *Log) CloseFile() error {
	if !l.mu.TryLock() {
		return errors.New("close access log: a write does not end")
	}
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// Waiting is how many lines are still to be written. Whoever adds up reads it before Lines and Dropped: then a line that is written
// meanwhile is seen twice rather than not at all.
func (l *Log) Waiting() int { return l.queue.Waiting() }

// Lines counts lines written.
func (l *Log) Lines() uint64 { return l.lines.Load() }

// Dropped counts lines lost, for want of room in the queue or because a write failed.
func (l *Log) Dropped() uint64 { return l.queue.Dropped() + l.failed.Load() }
