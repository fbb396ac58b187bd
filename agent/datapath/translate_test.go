package datapath

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/sidelight-mesh/sidelight/bpf"
)

func number(size uint32) *btf.Int { return &btf.Int{Name: "number", Size: size} }

func structOf(name string, size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: size, Members: members}
}

func at(name string, offset uint32, t btf.Type) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: btf.Bits(offset * 8)}
}

func TestTranslate(t *testing.T) {
	pair := structOf("pair", 4, at("a", 0, number(2)), at("b", 2, number(2)))
	riap := structOf("pair", 6, at("b", 0, number(2)), at("new", 2, number(2)), at("a", 4, number(2)))
	lock := structOf("bpf_spin_lock", 4, at("val", 0, number(4)))
	for _, c := range []struct {
		name     string
		to, from btf.Type
		in, want []byte
	}{
		{"the same", pair, pair, []byte{1, 2, 3, 4}, []byte{1, 2, 3, 4}},
		{"other places, and one more", riap, pair, []byte{1, 2, 3, 4}, []byte{3, 4, 0, 0, 1, 2}},
		{"one less", pair, riap, []byte{3, 4, 9, 9, 1, 2}, []byte{1, 2, 3, 4}},
		{"wider", structOf("s", 4, at("n", 0, number(4))), structOf("s", 2, at("n", 0, number(2))), []byte{1, 2}, []byte{1, 2, 0, 0}},
		{"narrower", structOf("s", 2, at("n", 0, number(2))), structOf("s", 4, at("n", 0, number(4))), []byte{1, 2, 3, 4}, []byte{1, 2}},
		{"a longer array", &btf.Array{Type: number(2), Nelems: 3}, &btf.Array{Type: number(1), Nelems: 2}, []byte{7, 8}, []byte{7, 0, 8, 0, 0, 0}},
		{"a shorter array of structs", &btf.Array{Type: pair, Nelems: 1}, &btf.Array{Type: riap, Nelems: 2}, []byte{3, 4, 9, 9, 1, 2, 8, 8, 8, 8, 8, 8}, []byte{1, 2, 3, 4}},
		{"a struct in a struct", structOf("s", 6, at("n", 0, number(2)), at("p", 2, pair)), structOf("s", 6, at("p", 0, riap)), []byte{3, 4, 9, 9, 1, 2}, []byte{0, 0, 1, 2, 3, 4}},
		{"a lock", structOf("s", 6, at("lock", 0, lock), at("n", 4, number(2))), structOf("s", 6, at("lock", 0, lock), at("n", 4, number(2))), []byte{5, 5, 5, 5, 1, 2}, []byte{0, 0, 0, 0, 1, 2}},
		{"an enum", &btf.Enum{Name: "e", Size: 4}, number(4), []byte{1, 0, 0, 0}, []byte{1, 0, 0, 0}},
	} {
		got, err := translate(c.to, c.from)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if out := got.value(c.in); !bytes.Equal(out, c.want) {
			t.Errorf("%s: %v, want %v", c.name, out, c.want)
		}
	}
	for name, types := range map[string][2]btf.Type{
		"a struct that was a number": {pair, number(4)},
		"a number that was a struct": {number(4), pair},
		"an array that was a number": {&btf.Array{Type: number(1), Nelems: 4}, number(4)},
		"a pointer":                  {&btf.Pointer{Target: number(4)}, number(8)},
		"a bit field":                {structOf("s", 4, btf.Member{Name: "n", Type: number(4), BitfieldSize: 3}), structOf("s", 4, at("n", 0, number(4)))},
	} {
		if _, err := translate(types[0], types[1]); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
}

// TestTranslateRecords makes records of the ring of such whose parts have other sizes and places.
func TestTranslateRecords(t *testing.T) {
	formats := func(kindAt, eventSize, closeSize, decisionSize uint32) btf.Type {
		event := structOf("event", eventSize, at("kind", kindAt, number(1)), at("id", kindAt+1, number(1)))
		closed := structOf("close", closeSize, at("event", 0, event), at("bytes", closeSize-1, number(1)))
		return structOf("formats", 100, at("event", 0, event), at("close", 20, closed), at("decision", 60, structOf("decision", decisionSize, at("rule", decisionSize-1, number(1)))))
	}
	now, err := translateRecords(formats(0, 2, 3, 1), formats(2, 4, 8, 2))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		in, want []byte
	}{
		{"event", []byte{0, 0, bpf.Established, 7}, []byte{bpf.Established, 7}},
		{"event with a decision", []byte{0, 0, bpf.PreConnect, 7, 0, 5}, []byte{bpf.PreConnect, 7, 5}},
		{"close", []byte{0, 0, bpf.Close, 7, 0, 0, 0, 9}, []byte{bpf.Close, 7, 9}},
		{"close with a decision", []byte{0, 0, bpf.Close, 7, 0, 0, 0, 9, 0, 5}, []byte{bpf.Close, 7, 9, 5}},
		{"something too short", []byte{1}, []byte{1}},
	} {
		if got := now(c.in); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if _, err := translateRecords(formats(0, 2, 3, 1), structOf("formats", 4)); err == nil {
		t.Error("records of which nothing is known are no error")
	}
}
