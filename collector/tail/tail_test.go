package tail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/accesslog"
	"github.com/sidelight-mesh/sidelight/collector/filter"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func compile(t testing.TB, text string) *filter.Expression {
	t.Helper()
	e, err := filter.Compile(text, Fields())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// connections has n finished connections, told apart by their cookies, which count up from first.
func connections(first, n int) []enrich.Record {
	batch := make([]enrich.Record, n)
	for i := range batch {
		batch[i] = enrich.Record{
			Event:    connection.Event{Kind: connection.Close, Role: connection.Client, Key: connection.Key{Cookie: uint64(first + i), StartNS: 1e9}, EventNS: 2e9},
			Identity: enrich.Identity{Local: &enrich.Workload{Name: "w"}, Peer: &enrich.Workload{Name: "p", Namespace: "n"}},
			Clock:    fixture.Clock,
		}
	}
	return batch
}

// sink is a stream that can stop taking anything.
type sink struct {
	mu      sync.Mutex
	text    bytes.Buffer
	stuck   chan struct{} // closed: not stuck any more
	writing atomic.Bool
	aborted chan struct{}
	once    sync.Once
	pause   time.Duration // of each write
}

func newSink() *sink { return &sink{aborted: make(chan struct{})} }

func (s *sink) Write(b []byte) (int, error) {
	s.writing.Store(true)
	if s.stuck != nil {
		select {
		case <-s.stuck:
		case <-s.aborted:
			return 0, errors.New("aborted")
		}
	}
	time.Sleep(s.pause)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *sink) Flush() error { return nil }
func (s *sink) Abort()       { s.once.Do(func() { close(s.aborted) }) }

func (s *sink) wasAborted() bool {
	select {
	case <-s.aborted:
		return true
	default:
		return false
	}
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// follow reads until the function that it returns is called.
func follow(t *testing.T, tail *Tail, s *sink, o Options) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- tail.Follow(ctx, s, o, func() error {
			close(ready)
			return nil
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() error {
		cancel()
		return <-ended
	}
}

// TestFieldsAreTheLogs: what the log says can be asked for by the same name, with the same type and values, and nothing else but the names of the ends.
func TestFieldsAreTheLogs(t *testing.T) {
	table, err := metadata.Read("../meshreceiver/metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string][]filter.Type{"string": {filter.Text, filter.Address}, "int": {filter.Number}, "double": {filter.Number}, "bool": {filter.Bool}}
	want := []string{"local.workload", "local.namespace", "peer.workload", "peer.namespace"}
	names := make(map[string]bool)
	byName := make(map[string]*filter.Field)
	for i := range fields {
		f := &fields[i]
		byName[f.Name] = f
		for _, name := range append(slices.Clone(f.Short), f.Name) {
			if names[name] {
				t.Errorf("two fields are called %s", name)
			}
			names[name] = true
		}
	}
	for _, l := range table.LogLine {
		if l.Name != "timestamp" && l.Name != "event.name" {
			want = append(want, l.Name)
		}
	}
	for _, a := range table.LogAttributes {
		if !slices.Contains(want, a.Name) {
			want = append(want, a.Name)
		}
		f := byName[a.Name]
		if f == nil {
			continue
		}
		if !slices.Contains(types[a.Type], f.Type) {
			t.Errorf("%s is a %s of the log, and %d here", a.Name, a.Type, f.Type)
		}
		have, known := slices.Sorted(slices.Values(f.Values)), slices.Sorted(slices.Values(a.Enum))
		if len(known) > 0 && !slices.Equal(have, known) {
			t.Errorf("%s can be %v here, and %v in the log", a.Name, have, known)
		}
	}
	for _, name := range want {
		if byName[name] == nil {
			t.Errorf("%s cannot be asked for", name)
		}
		delete(byName, name)
	}
	for name := range byName {
		t.Errorf("%s is not in the log", name)
	}
}

// TestMatchIsTheLine asks for each value of each line of the log, and wants that line.
func TestMatchIsTheLine(t *testing.T) {
	for _, name := range []string{"plain", "mesh", "hostile", "sampled"} {
		for _, r := range fixture.Load(t, filepath.Join("../accesslog/testdata", name, "records.yaml")).Records {
			if r.Event.Kind != connection.Close {
				continue
			}
			line := accesslog.AppendNames(accesslog.AppendLine(nil, fixture.Boot, &r), &r)
			decoder := json.NewDecoder(bytes.NewReader(line))
			decoder.UseNumber()
			var values map[string]any
			if err := decoder.Decode(&values); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			for i := range fields {
				f := &fields[i]
				v, there := values[f.Name]
				if !there {
					if f.Type != filter.Bool && newMatcher(compile(t, f.Name), fixture.Boot).match(&r) {
						t.Errorf("%s: the line lacks %s, and the filter has it", name, f.Name)
					}
					continue
				}
				text := ""
				switch v := v.(type) {
				case string:
					if strings.ContainsAny(v, "\uFFFD") { // of what is no UTF-8
						continue
					}
					text = strings.ReplaceAll(strings.ReplaceAll(v, `\`, `\\`), `"`, `\"`)
				case json.Number:
					text = v.String()
				case bool:
					text = "true"
				}
				if !newMatcher(compile(t, f.Name+` == "`+text+`"`), fixture.Boot).match(&r) {
					t.Errorf("%s: %s is not %q for the filter: %s", name, f.Name, text, line)
				}
			}
		}
	}
}

func TestFollow(t *testing.T) {
	tail := New(fixture.Boot)
	tail.Consume(connections(0, 3)) // before anybody reads
	all, some, named := newSink(), newSink(), newSink()
	stops := []func() error{
		follow(t, tail, all, Options{}),
		follow(t, tail, some, Options{Filter: compile(t, `uid =~ "-[13]-" && peer.workload == p`)}),
		follow(t, tail, named, Options{Names: true, Filter: compile(t, `uid =~ "-4-"`)}),
	}
	if n, _ := tail.Readers(); n != 3 || !tail.Watched() {
		t.Errorf("%d readers", n)
	}
	var want, wantSome, wantNamed []byte
	for _, r := range connections(1, 5) {
		line := accesslog.AppendLine(nil, fixture.Boot, &r)
		want = append(want, line...)
		switch r.Event.Key.Cookie {
		case 1, 3:
			wantSome = append(wantSome, line...)
		case 4:
			wantNamed = append(line[:len(line)-2], `,"local.workload":"w","peer.workload":"p","peer.namespace":"n"}`+"\n"...)
		}
	}
	tail.Consume(connections(1, 2))
	tail.Consume(connections(3, 3))
	tail.Close() // after which everybody has everything
	for _, stop := range stops {
		fixture.Eventually(t, "the readers to end", func() bool { n, _ := tail.Readers(); return n == 0 })
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	for name, of := range map[string]struct {
		got  *sink
		want []byte
	}{"all": {all, want}, "some": {some, wantSome}, "named": {named, wantNamed}} {
		if of.got.String() != string(of.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, of.got, of.want)
		}
	}
	if err := tail.Follow(t.Context(), newSink(), Options{}, nil); err == nil {
		t.Error("one reads after the end")
	}
	if tail.Watched() {
		t.Error("nobody reads")
	}
}

// count adds up the lines in a text, and what it says was lost. Lines have to be in order.
func count(t *testing.T, text string) (lines, lost int) {
	t.Helper()
	last := ""
	for line := range strings.Lines(text) {
		var l struct {
			Event string `json:"event.name"`
			Lost  int    `json:"sidelight.lost"`
			UID   string `json:"log.record.uid"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if l.Event == LostEvent {
			lost += l.Lost
			continue
		}
		lines++
		if len(l.UID) < len(last) || len(l.UID) == len(last) && l.UID <= last {
			t.Errorf("%s comes after %s", l.UID, last)
		}
		last = l.UID
	}
	return lines, lost
}

// TestReaderThatDoesNotRead: nobody waits for it, another one gets everything, and what it lost it is told, each line once.
func TestReaderThatDoesNotRead(t *testing.T) {
	tail := New(fixture.Boot)
	slow, quick := newSink(), newSink()
	slow.stuck = make(chan struct{})
	stopSlow := follow(t, tail, slow, Options{Filter: compile(t, "role == client")})
	stopQuick := follow(t, tail, quick, Options{})
	const batches, each = 20, 500
	var longest time.Duration
	for i := range batches {
		batch := connections(1+i*each, each)
		begun := time.Now()
		tail.Consume(batch)
		longest = max(longest, time.Since(begun))
		// The quick one is read as fast as it can be; on a busy machine that is not as fast as this loop.
		fixture.Eventually(t, "a reader to have all", func() bool { return strings.Count(quick.String(), "\n") == (i+1)*each })
	}
	if longest > time.Second {
		t.Errorf("a batch took %v, while somebody did not read", longest)
	}
	if lines, lost := count(t, quick.String()); lines != batches*each || lost != 0 {
		t.Errorf("who reads has %d lines and lost %d", lines, lost)
	}
	if !slow.writing.Load() || slow.String() != "" {
		t.Error("who does not read has something")
	}
	fixture.Eventually(t, "the filter to be done", func() bool { _, lost := tail.Readers(); return lost > batches*each/2 })
	time.Sleep(20 * time.Millisecond)
	close(slow.stuck)
	// The last line of all comes when there is room again.
	fixture.Eventually(t, "the rest", func() bool {
		lines, lost := count(t, slow.String())
		return lines+lost == batches*each
	})
	tail.Consume(connections(1+batches*each, 1))
	fixture.Eventually(t, "the line after it", func() bool {
		lines, lost := count(t, slow.String())
		return lines+lost == batches*each+1
	})
	lines, lost := count(t, slow.String())
	if _, told := tail.Readers(); uint64(lost) != told || lines < mostBytes/1000 {
		t.Errorf("%d lines, %d lost by its own count and %d by the agent's", lines, lost, told)
	}
	if size := len(slow.String()); size > 2*mostBytes+1000 {
		t.Errorf("%d bytes waited for one who does not read", size)
	}
	if err := errors.Join(stopSlow(), stopQuick()); err != nil {
		t.Error(err)
	}
}

// TestEndWithReaderThatDoesNotRead: who stops the agent does not wait for it.
func TestEndWithReaderThatDoesNotRead(t *testing.T) {
	tail := New(fixture.Boot)
	s := newSink()
	s.stuck = make(chan struct{})
	stop := follow(t, tail, s, Options{})
	tail.Consume(connections(1, 1))
	fixture.Eventually(t, "it to hang", s.writing.Load)
	tail.Close()
	fixture.Eventually(t, "it to be gone", func() bool { return !tail.Watched() })
	if err := stop(); err == nil {
		t.Error("its lines were not written, and nobody says so")
	}
}

// TestEndWithReaderThatReads: who reads is never aborted, neither while there is more for him than he takes in a moment nor when he is done.
func TestEndWithReaderThatReads(t *testing.T) {
	tail := New(fixture.Boot)
	quick, slow := newSink(), newSink()
	slow.pause = patience / 10
	stops := []func() error{follow(t, tail, quick, Options{}), follow(t, tail, slow, Options{})}
	tail.Consume(connections(1, 1))
	fixture.Eventually(t, "him to read", slow.writing.Load)
	// As much as he has room for: it takes him longer than patience.
	for i := range 8 {
		tail.Consume(connections(2+i*1000, 1000))
	}
	tail.Close()
	fixture.Eventually(t, "the readers to end", func() bool { return !tail.Watched() })
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(3 * patience)
	for _, s := range []*sink{quick, slow} {
		if lines, lost := count(t, s.String()); s.wasAborted() || lines+lost != 8001 {
			t.Errorf("aborted: %v, with %d lines and %d lost", s.wasAborted(), lines, lost)
		}
	}
}

// TestFilterThatTakesItsTime: a reader that is gone costs nothing any more, whatever waits for its filter.
func TestFilterThatTakesItsTime(t *testing.T) {
	r := newReader(New(fixture.Boot), Options{})
	r.offer(connections(1, mostRecords))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.filter(ctx, nil)
	if len(r.lines) > 0 || r.lost > 0 || !r.done {
		t.Errorf("%d bytes and %d lost for one who is gone, done: %v", len(r.lines), r.lost, r.done)
	}
}

// TestFloodBeforeTheFilter: what finds no room before the filter is lost, counted and told.
func TestFloodBeforeTheFilter(t *testing.T) {
	r := newReader(New(fixture.Boot), Options{})
	if missed := r.offer(connections(1, mostRecords+7)); missed != 7 {
		t.Errorf("%d missed", missed)
	}
	if missed := r.offer(connections(1, 3)); missed != 3 || len(r.batches) != 1 {
		t.Errorf("%d missed, %d batches", missed, len(r.batches))
	}
	ended := make(chan struct{})
	close(ended)
	r.filter(t.Context(), ended)
	if got := r.lost + uint64(bytes.Count(r.lines, []byte("\n"))); got < mostRecords+10 {
		t.Errorf("%d lines and lost", got)
	}
}

func TestMostReaders(t *testing.T) {
	tail := New(fixture.Boot)
	var stops []func() error
	for range mostReaders {
		stops = append(stops, follow(t, tail, newSink(), Options{}))
	}
	if err := tail.Follow(t.Context(), newSink(), Options{}, nil); !errors.Is(err, ErrMany) {
		t.Errorf("one more: %v", err)
	}
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	if tail.Watched() {
		t.Error("nobody reads")
	}
}

// TestMostReadersOfOne: nobody takes the places of others, and all guests together not the owner's.
func TestMostReadersOfOne(t *testing.T) {
	tail := New(fixture.Boot)
	var stops []func() error
	for i := range mostGuests {
		guest := uint32(1000 + i/mostOfGuest)
		stops = append(stops, follow(t, tail, newSink(), Options{Guest: guest}))
		if i%mostOfGuest == mostOfGuest-1 {
			if err := tail.Follow(t.Context(), newSink(), Options{Guest: guest}, nil); !errors.Is(err, ErrManyOfYours) {
				t.Errorf("one more of %d: %v", guest, err)
			}
		}
	}
	if err := tail.Follow(t.Context(), newSink(), Options{Guest: 2000}, nil); !errors.Is(err, ErrMany) {
		t.Errorf("one more guest: %v", err)
	}
	stops = append(stops, follow(t, tail, newSink(), Options{}))
	if err := tail.Follow(t.Context(), newSink(), Options{}, nil); !errors.Is(err, ErrMany) {
		t.Errorf("one more of the owner's: %v", err)
	}
	for _, stop := range stops {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestNobodyReads: then it costs nothing.
func TestNobodyReads(t *testing.T) {
	tail, batch := New(fixture.Boot), connections(1, 100)
	if n := testing.AllocsPerRun(100, func() { tail.Consume(batch) }); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

func BenchmarkConsume(b *testing.B) {
	batch := connections(1, 100)
	b.Run("nobody reads", func(b *testing.B) {
		tail := New(fixture.Boot)
		b.ReportAllocs()
		for b.Loop() {
			tail.Consume(batch)
		}
	})
	b.Run("one does not read", func(b *testing.B) {
		tail := New(fixture.Boot)
		r := newReader(tail, Options{})
		if err := tail.enter(r); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			tail.Consume(batch)
		}
	})
	b.Run("filter", func(b *testing.B) {
		m := newMatcher(compile(b, `reason != ok && peer.workload == cart`), fixture.Boot)
		b.ReportAllocs()
		for b.Loop() {
			m.match(&batch[0])
		}
	})
}
