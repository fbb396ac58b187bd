package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf/btf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// translation says of each byte of a value where it is in a value of another layout; nowhere: it is in none.
type translation []uint16

const nowhere = ^uint16(0)

// translate finds the fields of one type in another by their names. What one of the two has not is left out; a number that got wider is the same number, without
// a sign. The other way round it is cut off. A lock is nothing to copy.
func translate(to, from btf.Type) (translation, error) {
	size, err := btf.Sizeof(to)
	if err != nil {
		return nil, fmt.Errorf("size of %v: %w", to, err)
	}
	fromSize, err := btf.Sizeof(from)
	if err != nil {
		return nil, fmt.Errorf("size of %v: %w", from, err)
	}
	if size >= int(nowhere) || fromSize >= int(nowhere) {
		return nil, fmt.Errorf("%v has %d bytes: that is too much to translate", to, max(size, fromSize))
	}
	t := make(translation, size)
	for i := range t {
		t[i] = nowhere
	}
	return t, t.fill(to, from, 0, 0)
}

func (t translation) fill(to, from btf.Type, at, fromAt uint32) error {
	to, from = btf.UnderlyingType(to), btf.UnderlyingType(from)
	switch to := to.(type) {
	case *btf.Struct:
		from, same := from.(*btf.Struct)
		if !same {
			return fmt.Errorf("%v was no struct", to)
		}
		if to.Name == "bpf_spin_lock" {
			return nil
		}
		for _, m := range to.Members {
			f := member(from, m.Name)
			if f == nil {
				continue
			}
			if m.BitfieldSize != 0 || f.BitfieldSize != 0 {
				return fmt.Errorf("%s of %v is a bit field", m.Name, to)
			}
			if err := t.fill(m.Type, f.Type, at+m.Offset.Bytes(), fromAt+f.Offset.Bytes()); err != nil {
				return err
			}
		}
		return nil
	case *btf.Array:
		from, same := from.(*btf.Array)
		if !same {
			return fmt.Errorf("%v was no array", to)
		}
		step, err := btf.Sizeof(to.Type)
		if err != nil {
			return fmt.Errorf("size of %v: %w", to.Type, err)
		}
		fromStep, err := btf.Sizeof(from.Type)
		if err != nil {
			return fmt.Errorf("size of %v: %w", from.Type, err)
		}
		for i := range min(to.Nelems, from.Nelems) {
			if err := t.fill(to.Type, from.Type, at+i*uint32(step), fromAt+i*uint32(fromStep)); err != nil {
				return err
			}
		}
		return nil
	case *btf.Int, *btf.Enum:
		switch from.(type) {
		case *btf.Int, *btf.Enum:
		default:
			return fmt.Errorf("%v was no number", to)
		}
		size, err := btf.Sizeof(to)
		if err != nil {
			return fmt.Errorf("size of %v: %w", to, err)
		}
		fromSize, err := btf.Sizeof(from)
		if err != nil {
			return fmt.Errorf("size of %v: %w", from, err)
		}
		for i := range uint32(min(size, fromSize)) { // little endian
			t[at+i] = uint16(fromAt + i)
		}
		return nil
	default:
		return fmt.Errorf("%v cannot be translated", to)
	}
}

// value returns a value that was translated.
func (t translation) value(from []byte) []byte {
	out := make([]byte, len(t))
	t.into(out, from)
	return out
}

func (t translation) into(out, from []byte) {
	for i, f := range t {
		if int(f) < len(from) {
			out[i] = from[f]
		} else {
			out[i] = 0
		}
	}
}

func member(s *btf.Struct, name string) *btf.Member {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i]
		}
	}
	return nil
}

// place returns where a field is in a struct, by the names on the way to it.
func place(t btf.Type, names ...string) (offset uint32, ok bool) {
	for _, name := range names {
		s, is := btf.UnderlyingType(t).(*btf.Struct)
		if !is {
			return 0, false
		}
		m := member(s, name)
		if m == nil {
			return 0, false
		}
		offset += m.Offset.Bytes()
		t = m.Type
	}
	return offset, true
}

// translateRecords makes records of the ring of others, by the types of struct mesh_formats of both. It is not safe for concurrent use: what it returns is valid
// until it is called again.
func translateRecords(to, from btf.Type) (func([]byte) []byte, error) {
	parts := make(map[string]translation)
	sizes := make(map[string]int)
	for _, name := range []string{"event", "close", "decision"} {
		toPart, fromPart := memberOf(to, name), memberOf(from, name)
		if toPart == nil || fromPart == nil {
			return nil, fmt.Errorf("there is no %s in it", name)
		}
		t, err := translate(toPart.Type, fromPart.Type)
		if err != nil {
			return nil, err
		}
		parts[name] = t
		if sizes[name], err = btf.Sizeof(fromPart.Type); err != nil {
			return nil, fmt.Errorf("size of %s: %w", name, err)
		}
	}
	kind, ok := place(from, "event", "kind")
	if !ok {
		return nil, errors.New("records have no kind")
	}
	var out []byte
	return func(record []byte) []byte {
		if len(record) < sizes["event"] {
			return record // it is nothing that anybody knows
		}
		part := "event"
		if k := record[kind]; (k == bpf.Close || k == bpf.Sweep) && len(record) >= sizes["close"] {
			part = "close"
		}
		size := len(parts[part])
		rest := record[sizes[part]:]
		if len(rest) > 0 {
			size += len(parts["decision"])
		}
		out = slices.Grow(out[:0], size)[:size]
		parts[part].into(out[:len(parts[part])], record)
		if len(rest) > 0 {
			parts["decision"].into(out[len(parts[part]):], rest)
		}
		return out
	}, nil
}

func memberOf(t btf.Type, name string) *btf.Member {
	s, ok := btf.UnderlyingType(t).(*btf.Struct)
	if !ok {
		return nil
	}
	return member(s, name)
}
