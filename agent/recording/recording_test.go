package recording

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/bpf"
)

func bytesOf[T bpf.Event | bpf.CloseEvent](value T) []byte {
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&value)), unsafe.Sizeof(value)))
}

// heard is what sinks got, in order.
type heard struct {
	batches [][]enrich.Record
	losses  [][]enrich.Loss
	order   string
}

func (h *heard) Consume(batch []enrich.Record) {
	h.batches, h.order = append(h.batches, slices.Clone(batch)), h.order+"b"
}

func (h *heard) ConsumeLosses(losses []enrich.Loss) {
	h.losses, h.order = append(h.losses, losses), h.order+"l"
}

func (h *heard) records() (all []enrich.Record) {
	for _, batch := range h.batches {
		all = append(all, batch...)
	}
	return all
}

// host is a kernel and its files, as a pipeline and a recorder see them at the same time.
type host struct {
	random   *rand.Rand
	nowNS    uint64
	offsetNS int64
	facts    *enrich.Facts
	live     map[uint64]bpf.CloseEvent
	losses   [2][]connection.Loss // by who asks
	sweepErr error
	cookie   uint64
}

func newHost(seed uint64) *host {
	h := &host{
		random: rand.New(rand.NewPCG(seed, 1)), nowNS: 1000e9, offsetNS: 1e18, live: make(map[uint64]bpf.CloseEvent), facts: newFacts(),
	}
	for id := range uint64(3) {
		h.facts.AddCgroup(id+1, fmt.Sprintf("/system.slice/s%d.service", id))
		h.facts.AddProcess(owner(id), fmt.Sprintf("program-with-a-long-name-%d", id))
	}
	return h
}

func newFacts() *enrich.Facts {
	return enrich.NewFacts(enrich.NewPeers([]enrich.PeerGroup{{Name: "lan", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}))
}

func owner(id uint64) connection.Owner {
	return connection.Owner{StartBoottimeNS: 1e9 + id, PID: 100 + uint32(id), Comm: [16]byte{'p', byte(id)}}
}

func (h *host) clock() connection.Clock { return connection.Clock{OffsetNS: h.offsetNS} }

// event is some step of some connection.
func (h *host) event() []byte {
	if h.random.IntN(50) == 0 {
		return []byte("no event at all")
	}
	if len(h.live) > 0 && h.random.IntN(2) == 0 {
		for cookie, c := range h.live {
			delete(h.live, cookie)
			c.Event.Kind, c.Event.EventNs = bpf.Close, h.nowNS
			c.Event.Told, c.SentBytes, c.SrttUs = uint16(bpf.ToldAttempt|bpf.ToldEstablished), 1000+cookie, 50
			return bytesOf(c)
		}
	}
	h.cookie++
	id := h.random.Uint64N(4) // the last is nobody's
	e := bpf.Event{
		Kind: bpf.Established, Role: bpf.Client, Cookie: h.cookie, StartNs: h.nowNS - 10, ConnectNs: h.nowNS - 5, EstablishedNs: h.nowNS,
		EventNs: h.nowNS, CgroupId: id + 1, LocalPort: uint16(h.cookie), PeerPort: 80,
		LocalAddr: netip.MustParseAddr("::ffff:10.0.0.1").As16(), PeerAddr: netip.MustParseAddr("::ffff:192.0.2.7").As16(),
	}
	if id != 3 {
		o := owner(id)
		e.Owner.StartBoottimeNs, e.Owner.Pid = o.StartBoottimeNS, o.PID
		e.Owner.Comm[0], e.Owner.Comm[1] = int8(o.Comm[0]), int8(o.Comm[1])
	}
	h.live[h.cookie] = bpf.CloseEvent{Event: e}
	return bytesOf(e)
}

// lose loses the last event of a connection, or of so many that only totals are left.
func (h *host) lose() {
	loss := connection.Loss{Role: connection.Client, Reason: connection.Timeout, Failed: 1 + h.random.Uint64N(5)}
	if h.random.IntN(2) == 0 {
		loss.CgroupID, loss.Peer = 1+h.random.Uint64N(4), netip.MustParseAddr("10.7.7.7")
	}
	for cookie := range h.live {
		delete(h.live, cookie)
		break
	}
	for i := range h.losses {
		h.losses[i] = append(h.losses[i], loss)
	}
}

func (h *host) takeLosses(who int) ([]connection.Loss, error) {
	losses := h.losses[who]
	h.losses[who] = nil
	return losses, nil
}

func (h *host) sweep(all bool, record func([]byte)) error {
	for cookie := range h.cookie + 1 { // in an order that is always the same
		if c, ok := h.live[cookie]; ok && (all || cookie%2 == 0) {
			c.Event.Kind, c.Event.EventNs, c.SentBytes = bpf.Sweep, h.nowNS, 10
			record(bytesOf(c))
		}
	}
	return h.sweepErr
}

const interval = 10 * time.Second

// TestReplayIsPipeline runs the same random life through a pipeline and through recorder, file and replay: the sinks must not be
// able to tell.
func TestReplayIsPipeline(t *testing.T) {
	quiet(t)
	for seed := range uint64(50) {
		h := newHost(seed)
		var direct, replayed heard
		p := pipeline.New(pipeline.Options{
			Limit: 100, Clock: h.clock, Now: func() time.Time { return h.clock().Wall(h.nowNS) }, Identify: h.facts.Identify,
			Sinks: []pipeline.Sink{&direct}, LossSinks: []pipeline.LossSink{&direct},
			Losses: func() ([]connection.Loss, error) { return h.takeLosses(0) },
			Sweep: func(all bool, observe func(*connection.Event)) error {
				var e connection.Event
				return h.sweep(all, func(raw []byte) {
					if err := event.Decode(raw, &e); err != nil {
						t.Fatal(err)
					}
					observe(&e)
				})
			},
			SweepInterval: interval,
		})
		file, r := record(t, h)
		var e connection.Event
		batch := false
		for range 500 {
			h.nowNS += h.random.Uint64N(1e9)
			switch h.random.IntN(10) {
			default:
				raw := h.event()
				batch = true
				r.Record(raw)
				if event.Decode(raw, &e) == nil {
					p.HandleEvent(&e)
				}
			case 0:
				h.lose()
			case 1:
				if !batch { // the clock is that of a batch's first event
					h.offsetNS += int64(2*clockStep) + h.random.Int64N(1000)
				}
			case 2, 3:
				h.sweepErr = nil
				if h.random.IntN(3) == 0 {
					h.sweepErr = errors.New("no")
				}
				empty := h.random.IntN(4) > 0
				batch = false
				r.HandleDrained(empty)
				p.HandleDrained(empty)
			}
		}
		h.sweepErr = nil
		r.HandleDrained(true) // as a reader does at its end
		p.HandleDrained(true)
		kernel := account.Kernel{Attempts: seed}
		all := r.lossy
		if err := r.Finish(kernel); err != nil {
			t.Fatal(err)
		}
		p.HandleSweep(all, func(all bool, observe func(*connection.Event)) error {
			return h.sweep(all, func(raw []byte) { _ = event.Decode(raw, &e); observe(&e) })
		})
		p.HandleDrained(true)

		replay := newReplay(t, file.Bytes(), &replayed)
		if err := replay.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if direct.order != replayed.order {
			t.Fatalf("seed %d: sinks were called\n%s, want\n%s", seed, replayed.order, direct.order)
		}
		compare(t, seed, direct.batches, replayed.batches)
		compare(t, seed, direct.losses, replayed.losses)
		if got, want := replay.Connections(), p.Connections(); got != want {
			t.Errorf("seed %d: %d connections, want %d", seed, got, want)
		}
		if replay.Account() == nil || replay.Account().Attempts != seed {
			t.Errorf("seed %d: account %+v", seed, replay.Account())
		}
		if s := r.Stats(); replay.Stats().Received.Load() != s.Events || replay.Sweeps() != s.Sweeps || s.Sweeps < 3 || s.Losses < 3 {
			t.Errorf("seed %d: %d events and %d sweeps of %+v", seed, replay.Stats().Received.Load(), replay.Sweeps(), s)
		}
		if replay.Clock() != h.clock() && len(direct.batches) > 0 {
			if last := direct.batches[len(direct.batches)-1][0].Clock; replay.Clock() != last {
				t.Errorf("seed %d: clock %v, want %v", seed, replay.Clock(), last)
			}
		}
	}
}

func compare[T any](t *testing.T, seed uint64, want, got []T) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("seed %d: %d, want %d", seed, len(got), len(want))
	}
	for i := range want {
		if !reflect.DeepEqual(want[i], got[i]) {
			t.Fatalf("seed %d: number %d is\n%+v, want\n%+v", seed, i, got[i], want[i])
		}
	}
}

func record(t *testing.T, h *host) (*bytes.Buffer, *Recorder) {
	t.Helper()
	file := new(bytes.Buffer)
	w, err := event.NewWriter(file, event.Header{ClockOffsetNS: h.offsetNS, MeasuredNS: h.nowNS})
	if err != nil {
		t.Fatal(err)
	}
	return file, NewRecorder(Options{
		Writer: w, Start: h.clock(), Clock: h.clock, Monotonic: func() uint64 { return h.nowNS }, Identify: h.facts.Identify,
		Losses: func() ([]connection.Loss, error) { return h.takeLosses(1) }, Sweep: h.sweep, SweepInterval: interval,
		Failed: func(err error) { t.Error(err) },
	})
}

func newReplay(t *testing.T, file []byte, to *heard) *Replay {
	t.Helper()
	player, err := event.NewPlayer(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return NewReplay(player, newFacts(), pipeline.Options{Limit: 100, Sinks: []pipeline.Sink{to}, LossSinks: []pipeline.LossSink{to}})
}

// quiet keeps expected errors out of the test's output.
func quiet(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	slog.SetDefault(slog.New(slog.DiscardHandler))
}

// TestReplayOfABrokenRecording cuts a recording anywhere: every record of a frame that is whole comes, and no other.
func TestReplayOfABrokenRecording(t *testing.T) {
	h := newHost(1)
	file, r := record(t, h)
	for range 40 {
		h.nowNS += 3e8
		r.Record(h.event())
		if h.random.IntN(3) == 0 {
			r.HandleDrained(true)
		}
	}
	if err := r.Finish(account.Kernel{}); err != nil {
		t.Fatal(err)
	}
	var all heard
	if err := newReplay(t, file.Bytes(), &all).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	want, most := all.records(), 0
	for size := bytes.IndexByte(file.Bytes(), '\n') + 1; size < file.Len(); size += min(5, max(1, file.Len()-1-size)) {
		var some heard
		err := newReplay(t, file.Bytes()[:size], &some).Run(t.Context())
		var damage *event.DamageError
		if !errors.As(err, &damage) {
			t.Fatalf("with %d of %d bytes: %v", size, file.Len(), err)
		}
		got := some.records()
		if len(got) < most || len(got) > 0 && !reflect.DeepEqual(got, want[:len(got)]) {
			t.Fatalf("with %d of %d bytes: %d records", size, file.Len(), len(got))
		}
		most = len(got)
	}
	if most != len(want) {
		t.Errorf("without the last byte there are %d records, want all %d", most, len(want))
	}
}

// TestIdleRecorder writes nothing while nothing happens.
func TestIdleRecorder(t *testing.T) {
	h := newHost(1)
	file, r := record(t, h)
	r.HandleDrained(true) // the first sweep
	r.HandleDrained(true) // that which the sweep did not see may be forgotten
	before := file.Len()
	for range 100 {
		h.nowNS += 5e7
		r.HandleDrained(true)
	}
	if file.Len() != before {
		t.Errorf("%d bytes of nothing", file.Len()-before)
	}
}

// TestRecorderFails wants to hear of a full disk once, and of sums that could not be read at the end.
func TestRecorderFails(t *testing.T) {
	quiet(t)
	h := newHost(1)
	failed := 0
	w, err := event.NewWriter(failing{}, event.Header{})
	if err != nil {
		t.Fatal(err)
	}
	options := Options{
		Writer: w, Start: h.clock(), Clock: h.clock, Monotonic: func() uint64 { return h.nowNS }, Identify: h.facts.Identify,
		Losses: func() ([]connection.Loss, error) { return nil, nil }, Sweep: h.sweep, SweepInterval: interval,
		Failed: func(error) { failed++ },
	}
	r := NewRecorder(options)
	for range 3 {
		r.Record(h.event())
		r.HandleDrained(true)
	}
	if err := r.Finish(account.Kernel{}); err == nil || failed != 1 {
		t.Errorf("finish: %v; heard of it %d times", err, failed)
	}
	for name, breakIt := range map[string]func(*Options){
		"losses": func(o *Options) { o.Losses = func() ([]connection.Loss, error) { return nil, errors.New("no") } },
		"sweep":  func(o *Options) { o.Sweep = func(bool, func([]byte)) error { return errors.New("no") } },
	} {
		broken := options
		if broken.Writer, err = event.NewWriter(new(bytes.Buffer), event.Header{}); err != nil {
			t.Fatal(err)
		}
		breakIt(&broken)
		if err := NewRecorder(broken).Finish(account.Kernel{}); err == nil {
			t.Errorf("%s cannot be read, and the recording is said to be whole", name)
		}
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

// TestSweepForgets plays a sweep that does not see a connection: whether that is forgotten depends on whether the sweep was over all, and
// whole.
func TestSweepForgets(t *testing.T) {
	quiet(t)
	for _, sweep := range []struct {
		all, whole bool
		want       int64
	}{{true, true, 0}, {true, false, 1}, {false, true, 1}} {
		var file bytes.Buffer
		w, err := event.NewWriter(&file, event.Header{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []event.Frame{
			{Kind: event.FrameEvent, Raw: newHost(1).event()},
			{Kind: event.FrameDrained, Empty: true},
			{Kind: event.FrameSweepBegin, All: sweep.all},
			{Kind: event.FrameSweepEnd, Whole: sweep.whole},
			{Kind: event.FrameDrained, Empty: true},
		} {
			if err := w.Write(&f); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.End(); err != nil {
			t.Fatal(err)
		}
		r := newReplay(t, file.Bytes(), new(heard))
		if err := r.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r.Connections() != sweep.want || r.Stats().Decoded[connection.Established].Load() != 1 {
			t.Errorf("after the sweep %+v %d connections are followed", sweep, r.Connections())
		}
	}
}
