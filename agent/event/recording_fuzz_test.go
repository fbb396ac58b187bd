package event

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"testing"
)

// FuzzPlayer gives a player any bytes. It must neither panic nor hold on to more than a frame.
func FuzzPlayer(f *testing.F) {
	file := write(f, small())
	f.Add(file)
	f.Add(file[:len(file)-3])
	f.Fuzz(func(t *testing.T, file []byte) {
		p, err := NewPlayer(bytes.NewReader(file))
		if err != nil {
			return
		}
		_, _ = play(p)
		if cap(p.buf) > 2*maxFrame {
			t.Errorf("the buffer has grown to %d bytes", cap(p.buf))
		}
	})
}

// FuzzFrames puts any payload into an envelope whose checksum is true. What is read is written as the same bytes, but for JSON.
func FuzzFrames(f *testing.F) {
	for _, frame := range small() {
		payload, err := appendPayload(nil, &frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(frame.Kind), payload)
	}
	header := write(f, nil)
	header = header[:bytes.IndexByte(header, '\n')+1]
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		if len(payload) > maxFrame {
			return
		}
		file := append(bytes.Clone(header), kind)
		file = append(binary.AppendUvarint(file, uint64(len(payload))), payload...)
		file = le.AppendUint32(file, crc32.Checksum(file, castagnoli))
		frames, err := play(must(NewPlayer(bytes.NewReader(file))))
		if len(frames) == 0 {
			if err == nil {
				t.Fatal("no frame and no error")
			}
			return
		}
		again, err := appendPayload(nil, &frames[0])
		if err != nil {
			t.Fatal(err)
		}
		reread, err := parsePayload(FrameKind(kind), again)
		if err != nil || frames[0].Raw == nil && !reflect.DeepEqual(reread, frames[0]) {
			t.Fatalf("%v\ngot  %+v\nwant %+v", err, reread, frames[0])
		}
	})
}
