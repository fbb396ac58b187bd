package event

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// FrameKind says what a frame of a recording holds.
type FrameKind uint8

// The kinds of frames. The numbers are in files: only at the end may one be added, with a new FormatVersion.
const (
	FrameEvent       FrameKind = iota + 1 // Raw: a record of the ring
	FrameSweepBegin                       // AtNS, All
	FrameSweepRecord                      // Raw: a live socket; only within a sweep, and nothing else is there
	FrameSweepEnd                         // Whole
	FrameDrained                          // AtNS, Empty: the moment of HandleDrained
	FrameLoss                             // Loss, before the FrameDrained that reads it
	FrameClock                            // AtNS, Clock: the wall clock was set, or has drifted
	FrameCgroup                           // CgroupID, Name: its path below the cgroup2 root, before the first event that has it
	FrameProcess                          // Owner, Name: its executable, before the first event that has it
	FrameAccount                          // Account: the kernel's counters when everything was read
	FrameEnd                              // Frames before it
)

// Frame is one entry of a recording. Which fields count is said at its kind.
type Frame struct {
	Kind     FrameKind
	Raw      []byte // what the kernel wrote; of a Player valid until the next call
	AtNS     uint64 // CLOCK_MONOTONIC
	Empty    bool   // the ring was found empty
	All      bool   // the sweep tells of all live connections, not only of those of which there is something new
	Whole    bool   // the sweep saw every socket
	Clock    connection.Clock
	Loss     connection.Loss
	CgroupID uint64
	Owner    connection.Owner
	Name     string
	Account  *account.Kernel
	Frames   uint64
}

// maxFrame bounds a frame's payload. The largest that is written is a name: paths end at 4096 bytes.
const maxFrame = 64 << 10

var le = binary.LittleEndian

// appendPayload appends what a frame says.
func appendPayload(b []byte, f *Frame) ([]byte, error) {
	switch f.Kind {
	case FrameEvent, FrameSweepRecord:
		return append(b, f.Raw...), nil
	case FrameSweepBegin:
		return appendBool(le.AppendUint64(b, f.AtNS), f.All), nil
	case FrameSweepEnd:
		return appendBool(b, f.Whole), nil
	case FrameDrained:
		return appendBool(le.AppendUint64(b, f.AtNS), f.Empty), nil
	case FrameLoss:
		return appendLoss(b, &f.Loss), nil
	case FrameClock:
		return le.AppendUint64(le.AppendUint64(b, f.AtNS), uint64(f.Clock.OffsetNS)), nil
	case FrameCgroup:
		return append(le.AppendUint64(b, f.CgroupID), f.Name...), nil
	case FrameProcess:
		b = le.AppendUint32(le.AppendUint64(b, f.Owner.StartBoottimeNS), f.Owner.PID)
		return append(append(b, f.Owner.Comm[:]...), f.Name...), nil
	case FrameAccount:
		text, err := json.Marshal(f.Account)
		return append(b, text...), err
	case FrameEnd:
		return le.AppendUint64(b, f.Frames), nil
	}
	return b, fmt.Errorf("unknown kind %d", f.Kind)
}

func appendBool(b []byte, value bool) []byte {
	if value {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendLoss(b []byte, l *connection.Loss) []byte {
	peer := l.Peer.As16()
	b = append(b, uint8(l.Role), uint8(l.Reason))
	b = append(appendBool(b, l.Peer.IsValid()), peer[:]...)
	b = le.AppendUint32(le.AppendUint32(appendBool(b, l.Refused), l.Service), l.Destination)
	for _, n := range lossNumbers(l) {
		b = le.AppendUint64(b, *n)
	}
	return b
}

// lossNumbers are a loss's numbers in the order of the file.
func lossNumbers(l *connection.Loss) []*uint64 {
	return []*uint64{
		&l.CgroupID, &l.Attempts, &l.Established, &l.Adopted, &l.Failed, &l.Closed, &l.ConnectingDown, &l.OpenDown,
		&l.SentBytes, &l.ReceivedBytes, &l.Retransmits, &l.SYNRetransmits,
	}
}

// parsePayload reads what appendPayload wrote. It keeps no reference to the payload but for Raw.
func parsePayload(kind FrameKind, payload []byte) (Frame, error) {
	f := Frame{Kind: kind}
	c := cursor{rest: payload}
	switch kind {
	case FrameEvent, FrameSweepRecord:
		f.Raw = payload
		return f, nil
	case FrameSweepBegin:
		f.AtNS, f.All = c.uint64(), c.bool()
	case FrameSweepEnd:
		f.Whole = c.bool()
	case FrameDrained:
		f.AtNS, f.Empty = c.uint64(), c.bool()
	case FrameLoss:
		f.Loss = c.loss()
	case FrameClock:
		f.AtNS, f.Clock.OffsetNS = c.uint64(), int64(c.uint64())
	case FrameCgroup:
		f.CgroupID, f.Name = c.uint64(), c.text()
	case FrameProcess:
		f.Owner.StartBoottimeNS, f.Owner.PID = c.uint64(), c.uint32()
		copy(f.Owner.Comm[:], c.take(len(f.Owner.Comm)))
		f.Name = c.text()
	case FrameAccount:
		f.Account = new(account.Kernel)
		if err := json.Unmarshal(payload, f.Account); err != nil {
			return f, fmt.Errorf("read account: %w", err)
		}
		return f, nil
	case FrameEnd:
		f.Frames = c.uint64()
	default:
		return f, fmt.Errorf("unknown kind of frame %d", kind)
	}
	if c.wrong || len(c.rest) > 0 {
		return f, fmt.Errorf("%d bytes are no frame of kind %d", len(payload), kind)
	}
	if f.Kind == FrameLoss && (f.Loss.Role > connection.Server || f.Loss.Reason >= connection.ReasonCount) {
		return f, errors.New("unknown role or reason of a loss")
	}
	return f, nil
}

// cursor reads a payload from its beginning.
type cursor struct {
	rest  []byte
	wrong bool // too short, or a value that is none
}

func (c *cursor) take(n int) []byte {
	if len(c.rest) < n {
		c.wrong, c.rest = true, nil
		return make([]byte, n)
	}
	taken := c.rest[:n]
	c.rest = c.rest[n:]
	return taken
}

func (c *cursor) uint64() uint64 { return le.Uint64(c.take(8)) }
func (c *cursor) uint32() uint32 { return le.Uint32(c.take(4)) }

func (c *cursor) bool() bool {
	b := c.take(1)[0]
	c.wrong = c.wrong || b > 1
	return b == 1
}

func (c *cursor) text() string {
	text := string(c.rest)
	c.rest = nil
	return text
}

func (c *cursor) loss() connection.Loss {
	l := connection.Loss{Role: connection.Role(c.take(1)[0]), Reason: connection.Reason(c.take(1)[0])}
	known, peer := c.bool(), netip.AddrFrom16([16]byte(c.take(16))).Unmap()
	if known {
		l.Peer = peer
	}
	l.Refused, l.Service, l.Destination = c.bool(), c.uint32(), c.uint32()
	for _, n := range lossNumbers(&l) {
		*n = c.uint64()
	}
	return l
}
