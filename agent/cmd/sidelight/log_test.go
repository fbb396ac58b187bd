package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// logLine is what most tests read of a line of the access log.
type logLine struct {
	UID         string `json:"log.record.uid"`
	TraceID     string `json:"trace_id"`
	NetworkType string `json:"network.type"`
	ServerPort  int    `json:"server.port"`
	Role        string `json:"sidelight.role"`
	Reason      string `json:"sidelight.reason"`
	ErrorType   string `json:"error.type"`
	Sent        uint64 `json:"sidelight.sent_bytes"`
	Received    uint64 `json:"sidelight.received_bytes"`
	PID         int    `json:"process.pid"`
	Executable  string `json:"process.executable.name"`
	Cgroup      string `json:"process.linux.cgroup"`
}

// readLog reads the lines of an access log, every one of which must be an object.
func readLog[L any](t *testing.T, file string) []L {
	t.Helper()
	lines, _ := readLogFrom[L](t, file, 0)
	return lines
}

// readLogFrom reads the lines from an offset on, and returns the offset of the next. A last line without an end is being written and left for the next
// time: the kernel shows a file's new size page by page (generic_perform_write), also within one write of whole lines.
func readLogFrom[L any](t *testing.T, file string, from int64) ([]L, int64) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var lines []L
	for reader := bufio.NewReader(f); ; {
		text, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return lines, from
		}
		if err != nil {
			t.Fatal(err)
		}
		var l L
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lines, from = append(lines, l), from+int64(len(text))
	}
}

// TestReadLog reads a log that is being written.
func TestReadLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	writeFile(t, file, `{"log.record.uid":"1"}`+"\n"+`{"log.rec`)
	lines, next := readLogFrom[logLine](t, file, 0)
	if len(lines) != 1 || lines[0].UID != "1" {
		t.Fatalf("got %+v", lines)
	}
	writeFile(t, file, `{"log.record.uid":"1"}`+"\n"+`{"log.record.uid":"2"}`+"\n")
	if lines, _ = readLogFrom[logLine](t, file, next); len(lines) != 1 || lines[0].UID != "2" {
		t.Fatalf("then %+v", lines)
	}
}

// lines reads the agent's log, in which no line is twice.
func (a *agent) lines() []logLine {
	a.t.Helper()
	lines := readLog[logLine](a.t, a.Access)
	uids := make(map[string]bool, len(lines))
	for _, l := range lines {
		if uids[l.UID] {
			a.t.Errorf("two lines have the uid %s", l.UID)
		}
		uids[l.UID] = true
	}
	return lines
}

// waitLines waits for that many lines of the log, and no more.
func (a *agent) waitLines(want int) {
	a.t.Helper()
	eventually(a.t, "the lines", func() error {
		if got := len(a.lines()); got != want {
			return fmt.Errorf("%d lines, want %d", got, want)
		}
		return nil
	})
}
