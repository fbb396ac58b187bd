package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// onDisk is toChoosy with a queue on disk.
func onDisk(protocol, endpoint, directory string) string {
	uri := toChoosy(protocol, endpoint, "{logs: {level: info}}", strings.Replace(itemsQueue, "{", "{storage: file_storage, ", 1))
	return strings.Replace(uri, "service:", fmt.Sprintf(
		"extensions: {file_storage: {directory: %q, create_directory: true}}\nservice:\n  extensions: [file_storage]", directory), 1)
}

// spooled returns how many log records and spans went to disk.
func (c *Collector) spooled() (logs, spans int64) {
	c.account.mu.Lock()
	defer c.account.mu.Unlock()
	for key, l := range c.account.ledgers {
		switch key.signal.String() {
		case "logs":
			logs += l.spooled.Load()
		case "traces":
			spans += l.spooled.Load()
		}
	}
	return logs, spans
}

// TestNothingGoesToDiskWhileTheBackendTakesIt, and it is accounted for as if it did.
func TestNothingGoesToDiskWhileTheBackendTakesIt(t *testing.T) {
	for _, protocol := range []string{"grpc", "http"} {
		t.Run(protocol, func(t *testing.T) {
			const batches, size = 10, 50
			b := &choosy{rejectLogs: 3, rejectSpans: 7}
			s := newSource()
			c := New(Options{
				URI: onDisk(protocol, b.serve(t, protocol), filepath.Join(t.TempDir(), "queue")), Mesh: s.mesh(), Version: "test",
				DiscardMetrics: true, Persistent: true, Logger: slog.New(slog.DiscardHandler),
			})
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i := range batches {
				s.give(size)
				fixture.Eventually(t, "a batch arrived", func() bool { return b.logItems.Load() == int64((i+1)*size) && b.spanItems.Load() == int64((i+1)*size) })
			}
			s.Close()
			shutdown(t, c)
			const n = batches * size
			if logs, spans := c.spooled(); logs != 0 || spans != 0 {
				t.Errorf("%d log records and %d spans went to disk", logs, spans)
			}
			logs, spans := 3*b.logRequests.Load(), 7*b.traceRequests.Load()
			for signal, want := range map[string]Stats{"logs": {Taken: n, Sent: n - logs, Rejected: logs}, "traces": {Taken: n, Sent: n - spans, Rejected: spans}} {
				if got := c.Stats()[signal]; got != want {
					t.Errorf("%s: %+v, want %+v", signal, got, want)
				}
			}
		})
	}
}

// TestTheDiskTakesWhatTheBackendDoesNot: nothing is lost or sent twice when a backend comes and goes, and each change is told once.
func TestTheDiskTakesWhatTheBackendDoesNot(t *testing.T) {
	address := otlptest.FreeAddress(t)
	s := newSource()
	var log lockedBuffer
	c := New(Options{
		URI: onDisk("grpc", "http://"+address, filepath.Join(t.TempDir(), "queue")), Mesh: s.mesh(), Version: "test",
		DiscardMetrics: true, Persistent: true, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	const n = 100
	for i := range 3 {
		s.give(n)
		fixture.Eventually(t, "a batch waits on disk", func() bool {
			logs, spans := c.spooled()
			return logs == int64((i+1)*n) && spans == int64((i+1)*n)
		})
	}
	b := new(choosy)
	b.serveGRPC(t, address)
	fixture.Eventually(t, "the queue is empty", func() bool {
		stats := c.Stats()
		return stats["logs"].Sent == 3*n && stats["traces"].Sent == 3*n && stats["logs"].Queued == 0 && stats["traces"].Queued == 0
	})
	given := int64(3 * n)
	fixture.Eventually(t, "data goes directly again", func() bool {
		before, spansBefore := c.spooled()
		s.give(n)
		given += n
		fixture.Eventually(t, "it arrived", func() bool { return b.logItems.Load() == given && b.spanItems.Load() == given })
		logs, spans := c.spooled()
		return logs == before && spans == spansBefore
	})
	s.Close()
	shutdown(t, c)
	for _, signal := range []string{"logs", "traces"} {
		if got, want := c.Stats()[signal], (Stats{Taken: given, Sent: given}); got != want {
			t.Errorf("%s: %+v, want %+v", signal, got, want)
		}
	}
	for _, line := range []string{"The backend does not take data, it waits on disk", "The backend takes data again"} {
		for _, signal := range []string{"logs", "traces"} {
			count := 0
			for l := range strings.Lines(log.String()) {
				if strings.Contains(l, line) && strings.Contains(l, "otelcol.signal="+signal) {
					count++
				}
			}
			if count != 1 {
				t.Errorf("the log says %q of %s %d times:\n%s", line, signal, count, log.String())
			}
		}
	}
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// TestDirectRests: longer the more often it fails, and a backend that does not answer holds nobody up for longer than the time for it.
func TestDirectRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &direct{ledger: new(ledger), logger: zap.NewNop()}
		began := time.Now()
		var tries []time.Duration
		answer := func(ctx context.Context) error {
			tries = append(tries, time.Since(began))
			if len(tries) == 3 {
				<-ctx.Done()
				return ctx.Err()
			}
			if len(tries) > 8 {
				return nil
			}
			return errors.New("no")
		}
		for range 2000 {
			if err := d.send(t.Context(), 1, answer, func(context.Context) error { return nil }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			if len(tries) > 9 {
				break
			}
		}
		s := time.Second
		const hung = 3*time.Second + directTimeout
		want := []time.Duration{0, s, 3 * s, hung + 4*s, hung + 12*s, hung + 28*s, hung + 60*s, hung + 120*s, hung + 180*s, hung + 180*s + s/10}
		if fmt.Sprint(tries) != fmt.Sprint(want) {
			t.Errorf("tries at %v, want %v", tries, want)
		}
		if got := d.ledger.spooled.Load(); got == 0 {
			t.Error("nothing went to disk")
		}
	})
}
