package event

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// A recording is a line of JSON, the Header, and frames: the kind (one byte), the length of the payload (varint), the payload, and
// the CRC-32C of the file up to here (four bytes, little-endian). Since each checksum goes on from the one before, damage is found in the frame that it is in,
// and a frame that is missing, doubled or out of place is damage too. The last frame is FrameEnd.

// What a Header begins with.
const (
	Format        = "sidelight.events"
	FormatVersion = 2
	byteOrder     = "little" // of the kernel's records and of the frames
)

// Header says where a recording is from.
type Header struct {
	Format        string `json:"format"`
	FormatVersion int    `json:"format_version"`
	ABIVersion    int    `json:"abi_version"` // of the kernel's records, MESH_ABI_VERSION
	ByteOrder     string `json:"byte_order"`

	Version string `json:"sidelight_version"`
	Kernel  string `json:"kernel"` // its release
	Machine string `json:"machine"`
	Host    string `json:"host"`
	BootID  string `json:"boot_id"`
	Cgroup  string `json:"cgroup"`
	// ClockOffsetNS is wall time minus CLOCK_MONOTONIC, as measured at the monotonic time MeasuredNS.
	ClockOffsetNS int64  `json:"clock_offset_ns"`
	MeasuredNS    uint64 `json:"clock_measured_monotonic_ns"`
}

// Clock is the clock at the start of the recording.
func (h *Header) Clock() connection.Clock { return connection.Clock{OffsetNS: h.ClockOffsetNS} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer writes a recording. After an error it writes nothing more, and every call returns that error.
type Writer struct {
	out    *bufio.Writer
	sum    uint32
	frames uint64
	buf    []byte
	err    error
}

// NewWriter begins a recording. It fills in what the header has to say of the format.
func NewWriter(out io.Writer, header Header) (*Writer, error) {
	header.Format, header.FormatVersion, header.ABIVersion, header.ByteOrder = Format, FormatVersion, bpf.ABIVersion, byteOrder
	line, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("write recording: %w", err)
	}
	w := &Writer{out: bufio.NewWriterSize(out, maxFrame)}
	w.write(append(line, '\n'))
	return w, w.err
}

// Write appends a frame, into a buffer.
func (w *Writer) Write(f *Frame) error {
	if w.err != nil {
		return w.err
	}
	payload, err := appendPayload(w.buf[:0], f)
	w.buf = payload
	switch {
	case err != nil:
		w.err = fmt.Errorf("write recording: %w", err)
	case len(payload) > maxFrame:
		w.err = fmt.Errorf("write recording: %d bytes are too many for a frame of kind %d", len(payload), f.Kind)
	}
	var head [1 + binary.MaxVarintLen64]byte
	head[0] = byte(f.Kind)
	w.write(head[:1+binary.PutUvarint(head[1:], uint64(len(payload)))])
	w.write(payload)
	w.write(le.AppendUint32(head[:0], w.sum))
	w.frames++
	return w.err
}

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	w.sum = crc32.Update(w.sum, castagnoli, b)
	if _, err := w.out.Write(b); err != nil {
		w.err = fmt.Errorf("write recording: %w", err)
	}
}

// Flush hands what is buffered to the file.
func (w *Writer) Flush() error {
	if w.err == nil {
		if err := w.out.Flush(); err != nil {
			w.err = fmt.Errorf("write recording: %w", err)
		}
	}
	return w.err
}

// End writes the last frame. Nothing may be written after it.
func (w *Writer) End() error {
	_ = w.Write(&Frame{Kind: FrameEnd, Frames: w.frames}) // Flush says it again
	err := w.Flush()
	w.err = errors.Join(err, errors.New("write recording: it was ended"))
	return err
}
