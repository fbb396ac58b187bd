package event

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

var testHeader = Header{
	Version: "v1", Kernel: "6.1.0", Machine: "x86_64", Host: "node", BootID: "1-2", Cgroup: "/sys/fs/cgroup", ClockOffsetNS: -5, MeasuredNS: 7,
}

// fill gives every number in a struct a value of its own, so that a field that is forgotten or taken for another shows.
func fill(v reflect.Value, next *uint64) {
	*next++
	switch v.Kind() {
	case reflect.Uint8: // roles and reasons have limits
		v.SetUint(*next % 3)
	case reflect.Uint32:
		v.SetUint(*next | 1<<31)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint64:
		v.SetUint(*next | 1<<63)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]uint64{"a": *next, "b": math.MaxUint64}))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[netip.Addr]() {
			v.Set(reflect.ValueOf(netip.MustParseAddr("2001:db8::7")))
			return
		}
		for _, field := range v.Fields() {
			fill(field, next)
		}
	default:
		panic("no value for " + v.Type().String())
	}
}

// allFrames is a frame of each kind, and more where they differ, in an order that can be.
func allFrames() []Frame {
	var loss connection.Loss
	var kernel account.Kernel
	var next uint64
	fill(reflect.ValueOf(&loss).Elem(), &next)
	fill(reflect.ValueOf(&kernel).Elem(), &next)
	withIPv4 := loss
	withIPv4.Peer = netip.MustParseAddr("10.1.2.3")
	owner := connection.Owner{StartBoottimeNS: 1 << 60, PID: 1 << 30, Comm: [16]byte{'c', 0, 255}}
	return []Frame{
		{Kind: FrameCgroup, CgroupID: 1 << 62, Name: "/system.slice/\xff"},
		{Kind: FrameProcess, Owner: owner, Name: "curl"},
		{Kind: FrameEvent, Raw: bytesOf(sample(bpf.PreConnect, bpf.Client))},
		{Kind: FrameEvent, Raw: bytesOf(closeSample(bpf.Client, 17))},
		{Kind: FrameEvent, Raw: []byte{}},
		{Kind: FrameLoss, Loss: loss},
		{Kind: FrameLoss, Loss: withIPv4},
		{Kind: FrameLoss, Loss: connection.Loss{Role: connection.Server}},
		{Kind: FrameDrained, AtNS: 1 << 61, Empty: true},
		{Kind: FrameDrained, AtNS: 2},
		{Kind: FrameClock, AtNS: 3, Clock: connection.Clock{OffsetNS: -4}},
		{Kind: FrameSweepBegin, AtNS: 4},
		{Kind: FrameClock, AtNS: 5, Clock: connection.Clock{OffsetNS: 5}},
		{Kind: FrameCgroup, CgroupID: 0},
		{Kind: FrameSweepRecord, Raw: bytes.Repeat([]byte{7}, maxFrame)},
		{Kind: FrameSweepEnd, Whole: true},
		{Kind: FrameSweepBegin, AtNS: 6},
		{Kind: FrameSweepEnd},
		{Kind: FrameAccount, Account: &kernel},
	}
}

func write(t testing.TB, frames []Frame) []byte {
	t.Helper()
	var file bytes.Buffer
	w, err := NewWriter(&file, testHeader)
	if err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		if err := w.Write(&frames[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// play reads frames until an error, which is nil for a recording that is whole.
func play(p *Player) ([]Frame, error) {
	var frames []Frame
	for {
		f, err := p.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return frames, nil
		}
		if err != nil {
			return frames, err
		}
		if f.Raw != nil {
			f.Raw = bytes.Clone(f.Raw)
		}
		frames = append(frames, f)
	}
}

func TestRecording(t *testing.T) {
	frames := allFrames()
	kinds := make(map[FrameKind]bool)
	for _, f := range frames {
		kinds[f.Kind] = true
	}
	for kind := FrameEvent; kind < FrameEnd; kind++ {
		if !kinds[kind] {
			t.Errorf("no frame of kind %d: the test proves nothing of it", kind)
		}
	}
	p, err := NewPlayer(bytes.NewReader(write(t, frames)))
	if err != nil {
		t.Fatal(err)
	}
	want := testHeader
	want.Format, want.FormatVersion, want.ABIVersion, want.ByteOrder = "sidelight.events", 2, bpf.ABIVersion, "little"
	if got := p.Header(); *got != want || got.Clock().OffsetNS != -5 {
		t.Errorf("header\ngot  %+v\nwant %+v", *got, want)
	}
	got, err := play(p)
	if err != nil {
		t.Fatal(err)
	}
	wantFrames := append(frames, Frame{Kind: FrameEnd, Frames: uint64(len(frames))})
	for i := range min(len(got), len(wantFrames)) {
		if !reflect.DeepEqual(got[i], wantFrames[i]) {
			t.Errorf("frame %d\ngot  %.300s\nwant %.300s", i, fmt.Sprintf("%+v", got[i]), fmt.Sprintf("%+v", wantFrames[i]))
		}
	}
	if len(got) != len(wantFrames) || p.Frames() != uint64(len(wantFrames)) {
		t.Errorf("%d frames, counted %d, want %d", len(got), p.Frames(), len(wantFrames))
	}
	if _, err := p.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// small are frames of which a file is short enough to be broken in every way.
func small() []Frame {
	var short []Frame
	for _, f := range allFrames() {
		if len(f.Raw) < 1000 {
			short = append(short, f)
		}
	}
	return short
}

// TestBrokenOff cuts a recording at every byte. What was whole before is played.
func TestBrokenOff(t *testing.T) {
	file := write(t, small())
	all, err := play(must(NewPlayer(bytes.NewReader(file))))
	if err != nil {
		t.Fatal(err)
	}
	most, header := 0, bytes.IndexByte(file, '\n')+1
	for size := range len(file) {
		p, err := NewPlayer(bytes.NewReader(file[:size]))
		if size < header {
			if err == nil {
				t.Fatalf("%d bytes of a header of %d are enough", size, header)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		frames, err := play(p)
		var damage *DamageError
		if !errors.As(err, &damage) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("with %d of %d bytes: %v", size, len(file), err)
		}
		if int(damage.Frames) != len(frames) || !reflect.DeepEqual(frames, all[:len(frames):len(frames)]) && len(frames) > 0 {
			t.Fatalf("with %d bytes: %d frames, said %d", size, len(frames), damage.Frames)
		}
		if damage.Offset > int64(size) || len(frames) < most {
			t.Fatalf("with %d bytes: offset %d, %d frames, and %d with fewer", size, damage.Offset, len(frames), most)
		}
		most = len(frames)
	}
	if most != len(all)-1 {
		t.Errorf("one byte short %d frames are whole, want %d", most, len(all)-1)
	}
	const want = "recording breaks off at byte "
	p := must(NewPlayer(bytes.NewReader(file[:len(file)-1])))
	if _, err := play(p); !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), fmt.Sprintf("the %d frames before it are whole", len(all)-1)) {
		t.Errorf("error is %v", err)
	}
}

// TestDamaged changes every byte after the header: the change is found in the frame that it is in.
func TestDamaged(t *testing.T) {
	file := write(t, small())
	all, err := play(must(NewPlayer(bytes.NewReader(file))))
	if err != nil {
		t.Fatal(err)
	}
	for at := bytes.IndexByte(file, '\n') + 1; at < len(file); at++ {
		for _, flip := range []byte{1, 0x80, 0xff} {
			file[at] ^= flip
			frames, err := play(must(NewPlayer(bytes.NewReader(file))))
			file[at] ^= flip
			var damage *DamageError
			if !errors.As(err, &damage) {
				t.Fatalf("byte %d changed: %v", at, err)
			}
			if int64(at) < damage.Offset || len(frames) > 0 && !reflect.DeepEqual(frames, all[:len(frames)]) {
				t.Fatalf("byte %d changed: %d frames, damage is seen at %d", at, len(frames), damage.Offset)
			}
		}
	}
	// A change of the header that leaves it one is found with the first frame.
	other := bytes.Replace(file, []byte(`"node"`), []byte(`"nude"`), 1)
	if frames, err := play(must(NewPlayer(bytes.NewReader(other)))); err == nil || len(frames) != 0 {
		t.Errorf("another header: %d frames, %v", len(frames), err)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestNotARecording(t *testing.T) {
	file := string(write(t, nil))
	for _, test := range []struct{ name, file, want string }{
		{"empty", "", "it does not begin as one; name a file that sidelight record has made"},
		{"text", "hello\n", "it does not begin as one"},
		{"JSON", "{}\n", "it does not begin as one"},
		{"no end of line", strings.Repeat("x", 2*maxFrame), "it does not begin as one"},
		{"newer format", `{"format":"sidelight.events","format_version":3,"abi_version":"x"}` + "\n", "its format is version 3, this program reads 2; replay it with the version"},
		{"mistyped", strings.Replace(file, `"node"`, "3", 1), "read its first line: "},
		{
			"other ABI", strings.Replace(file, fmt.Sprintf(`"abi_version":%d`, bpf.ABIVersion), `"abi_version":2`, 1),
			fmt.Sprintf("its events have the layout 2, this program reads %d to %d; replay it with sidelight v1, which has made it", bpf.OldestABIVersion, bpf.ABIVersion),
		},
		{"big endian", strings.Replace(file, `"little"`, `"big"`, 1), `its byte order is "big"`},
	} {
		if _, err := NewPlayer(strings.NewReader(test.file)); err == nil || !strings.HasPrefix(err.Error(), "read recording: "+test.want) {
			t.Errorf("%s: error is %v, want %s", test.name, err, test.want)
		}
	}
}

// TestImpossible gives frames with true checksums that no recorder writes.
func TestImpossible(t *testing.T) {
	for _, test := range []struct {
		name   string
		frames []Frame
		want   string
	}{
		{"record outside of a sweep", []Frame{{Kind: FrameSweepRecord}}, "a frame of kind 3 where none can be"},
		{"end of no sweep", []Frame{{Kind: FrameSweepEnd}}, "a frame of kind 4 where none can be"},
		{"event in a sweep", []Frame{{Kind: FrameSweepBegin}, {Kind: FrameEvent}}, "a frame of kind 1 where none can be"},
		{"sweep in a sweep", []Frame{{Kind: FrameSweepBegin}, {Kind: FrameSweepBegin}}, "a frame of kind 2 where none can be"},
		{"end in a sweep", []Frame{{Kind: FrameSweepBegin}}, "a frame of kind 11 where none can be"},
		{"wrong count", []Frame{{Kind: FrameEnd, Frames: 7}}, "its end counts 7 frames"},
		{"after the end", []Frame{{Kind: FrameEnd}}, "something comes after its end"},
		{"role", []Frame{{Kind: FrameLoss, Loss: connection.Loss{Role: 3}}}, "unknown role or reason of a loss"},
		{"reason", []Frame{{Kind: FrameLoss, Loss: connection.Loss{Reason: connection.ReasonCount}}}, "unknown role or reason of a loss"},
	} {
		_, err := play(must(NewPlayer(bytes.NewReader(write(t, test.frames)))))
		var damage *DamageError
		if !errors.As(err, &damage) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error is %v, want %s", test.name, err, test.want)
		}
	}
	header := write(t, nil)
	header = header[:bytes.IndexByte(header, '\n')+1]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, length := range []string{"\xff\xff\xff\x7f", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "\x81\x80\x04"} {
		_, err := play(must(NewPlayer(io.MultiReader(bytes.NewReader(header), strings.NewReader("\x01"+length)))))
		if err == nil || !strings.Contains(err.Error(), "a frame of more than 65536 bytes") {
			t.Errorf("length %q: %v", length, err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 10*maxFrame {
		t.Errorf("%d bytes were allocated", took)
	}
}

// full takes so many bytes and no more.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	if n := min(f.room, len(b)); n < len(b) {
		f.room = 0
		return n, errors.New("disk full")
	}
	f.room -= len(b)
	return len(b), nil
}

func TestWriterStopsAtAnError(t *testing.T) {
	const want = "write recording: disk full"
	out := &full{room: 1000}
	w := must(NewWriter(out, testHeader))
	frame := &Frame{Kind: FrameEvent, Raw: make([]byte, maxFrame)}
	if err := w.Write(frame); err == nil || err.Error() != want {
		t.Errorf("a frame that goes through the buffer: %v", err)
	}
	out.room = 1 << 20 // room now would leave a hole
	for name, again := range map[string]func() error{
		"write": func() error { return w.Write(frame) }, "flush": w.Flush, "end": w.End,
	} {
		if err := again(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s after an error: %v", name, err)
		}
	}
	if out.room != 1<<20 {
		t.Error("it wrote after an error")
	}
	w = must(NewWriter(io.Discard, testHeader))
	if err := w.Write(&Frame{Kind: FrameCgroup, Name: strings.Repeat("x", maxFrame)}); err == nil {
		t.Error("wrote a frame that no player takes")
	}
	w = must(NewWriter(io.Discard, testHeader))
	if err := w.Write(&Frame{}); err == nil {
		t.Error("wrote a frame of no kind")
	}
}
