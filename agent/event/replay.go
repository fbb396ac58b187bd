package event

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// DamageError says from where on a recording cannot be used. Everything before is whole.
type DamageError struct {
	Offset int64  // of the first byte that cannot be used
	Frames uint64 // before it
	Cause  error  // io.ErrUnexpectedEOF when the file just ends
}

func (e *DamageError) Error() string {
	what := "is damaged"
	if errors.Is(e.Cause, io.ErrUnexpectedEOF) {
		what = "breaks off"
	}
	return fmt.Sprintf("recording %s at byte %d: %v; the %d frames before it are whole", what, e.Offset, e.Cause, e.Frames)
}

func (e *DamageError) Unwrap() error { return e.Cause }

// Player reads a recording. It trusts nothing in it: whatever the bytes are, it takes no more memory than one frame may have.
type Player struct {
	in     *bufio.Reader
	header Header
	sum    uint32
	offset int64
	frames uint64
	buf    []byte
	inside bool // a sweep
	err    error
}

// NewPlayer reads a recording's header. An error is that of a file that this program cannot play at all.
func NewPlayer(in io.Reader) (*Player, error) {
	p := &Player{in: bufio.NewReaderSize(in, maxFrame)}
	line, err := p.in.ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("read recording: %w", err)
	}
	// Of a format that is to come only this much is known.
	var known struct {
		Format        string `json:"format"`
		FormatVersion int    `json:"format_version"`
	}
	if err != nil || json.Unmarshal(line, &known) != nil || known.Format != Format {
		return nil, errors.New("read recording: it does not begin as one; name a file that sidelight record has made")
	}
	if known.FormatVersion != FormatVersion {
		return nil, fmt.Errorf("read recording: its format is version %d, this program reads %d; replay it with the version of sidelight that has made it",
			known.FormatVersion, FormatVersion)
	}
	h := &p.header
	if err := json.Unmarshal(line, h); err != nil {
		return nil, fmt.Errorf("read recording: read its first line: %w", err)
	}
	switch {
	case h.ABIVersion < bpf.OldestABIVersion || h.ABIVersion > bpf.ABIVersion:
		return nil, fmt.Errorf("read recording: its events have the layout %d, this program reads %d to %d; replay it with sidelight %s, which has made it",
			h.ABIVersion, bpf.OldestABIVersion, bpf.ABIVersion, h.Version)
	case h.ByteOrder != byteOrder:
		return nil, fmt.Errorf("read recording: its byte order is %q, this program reads %q only", h.ByteOrder, byteOrder)
	}
	p.took(line)
	return p, nil
}

// Header says where the recording is from.
func (p *Player) Header() *Header { return &p.header }

// Frames is how many frames were read.
func (p *Player) Frames() uint64 { return p.frames }

func (p *Player) took(b []byte) {
	p.sum = crc32.Update(p.sum, castagnoli, b)
	p.offset += int64(len(b))
}

// Next returns the next frame, which is whole. After FrameEnd it returns io.EOF; where the recording is damaged or breaks off, a
// *DamageError. An error stays.
func (p *Player) Next() (Frame, error) {
	if p.err != nil {
		return Frame{}, p.err
	}
	f, err := p.next()
	if err != nil {
		p.err = err
		return Frame{}, err
	}
	p.frames++
	if f.Kind == FrameEnd {
		p.err = io.EOF
		if _, err := p.in.ReadByte(); !errors.Is(err, io.EOF) {
			p.err = p.damage(errors.New("something comes after its end"))
		}
	}
	return f, nil
}

// next reads a frame, and moves the offset only when it is whole.
func (p *Player) next() (Frame, error) {
	kind, err := p.in.ReadByte()
	if err != nil {
		return Frame{}, p.broken(err, "without its end")
	}
	length, err := p.length()
	if err != nil {
		return Frame{}, p.broken(err, "within a frame")
	}
	if length > maxFrame {
		return Frame{}, p.damage(fmt.Errorf("a frame of more than %d bytes", maxFrame))
	}
	// Written again rather than kept: a length that is written otherwise than by a Writer changes the checksum, and is damage.
	frame := binary.AppendUvarint(append(p.buf[:0], byte(kind)), length)
	head := len(frame)
	frame = append(frame, make([]byte, length)...)
	p.buf = frame
	if _, err := io.ReadFull(p.in, frame[head:]); err != nil {
		return Frame{}, p.broken(err, "within a frame")
	}
	var stored [4]byte
	if _, err := io.ReadFull(p.in, stored[:]); err != nil {
		return Frame{}, p.broken(err, "within a frame")
	}
	if want := crc32.Update(p.sum, castagnoli, frame); le.Uint32(stored[:]) != want {
		return Frame{}, p.damage(errors.New("the checksum differs"))
	}
	f, err := parsePayload(FrameKind(kind), frame[head:])
	if err == nil {
		err = p.check(&f)
	}
	if err != nil {
		return f, p.damage(err)
	}
	p.took(frame)
	p.took(stored[:])
	return f, nil
}

// length reads a varint, but of one that is longer than maxFrame's no more than that.
func (p *Player) length() (n uint64, err error) {
	for shift := 0; shift < 21; shift += 7 {
		b, err := p.in.ReadByte()
		if err != nil {
			return 0, err
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n, nil
		}
	}
	return maxFrame + 1, nil
}

// check holds a frame against what came before it.
func (p *Player) check(f *Frame) error {
	fact := f.Kind == FrameCgroup || f.Kind == FrameProcess || f.Kind == FrameClock
	if ofSweep := f.Kind == FrameSweepRecord || f.Kind == FrameSweepEnd; ofSweep != p.inside && !fact {
		return fmt.Errorf("a frame of kind %d where none can be", f.Kind)
	}
	switch f.Kind {
	case FrameSweepBegin:
		p.inside = true
	case FrameSweepEnd:
		p.inside = false
	case FrameEnd:
		if f.Frames != p.frames {
			return fmt.Errorf("its end counts %d frames", f.Frames)
		}
	}
	return nil
}

func (p *Player) damage(cause error) error {
	return &DamageError{Offset: p.offset, Frames: p.frames, Cause: cause}
}

// broken tells the end of the file from a file that cannot be read.
func (p *Player) broken(err error, where string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return p.damage(fmt.Errorf("it ends %s: %w", where, io.ErrUnexpectedEOF))
	}
	return fmt.Errorf("read recording at byte %d: %w", p.offset, err)
}
