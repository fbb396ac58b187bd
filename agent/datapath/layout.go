package datapath

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// layout is what two sets of maps must have in common so that the programs of the one can work with the other: of each map that outlives its
// programs its kind, its sizes, and the fields of what it holds. What a program does is no part of it.
type layout map[string]string // by the name of the map

// lasting tells whether a map outlives the programs: those of their variables do not, because a program is loaded with its own.
func lasting(name string) bool { return !strings.HasPrefix(name, ".") }

func layoutOf(spec *ebpf.CollectionSpec) layout {
	l := make(layout)
	for name, m := range spec.Maps {
		if lasting(name) {
			l[name] = describeMap(m.Type, m.KeySize, m.Key, m.ValueSize, m.Value, m.MaxEntries, m.Flags)
		}
	}
	return l
}

func describeMap(kind ebpf.MapType, keySize uint32, key btf.Type, valueSize uint32, value btf.Type, entries, flags uint32) string {
	return fmt.Sprintf("%v, key %d %s, value %d %s, %d entries, flags %d", kind, keySize, describe(key), valueSize, describe(value), entries, flags)
}

// hash names the directory of a set of maps.
func (l layout) hash() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(l)) {
		fmt.Fprintf(h, "%s: %s\n", name, l[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// describe writes a type out, so that two of the same text have the same bytes in the same places for the same purpose.
func describe(t btf.Type) string {
	switch t := btf.UnderlyingType(t).(type) {
	case nil:
		return ""
	case *btf.Struct:
		var b strings.Builder
		b.WriteByte('{')
		for _, m := range t.Members {
			fmt.Fprintf(&b, "%s@%d:%s;", m.Name, m.Offset, describe(m.Type))
		}
		b.WriteByte('}')
		return b.String()
	case *btf.Array:
		return fmt.Sprintf("[%d]%s", t.Nelems, describe(t.Type))
	default:
		if size, err := btf.Sizeof(t); err == nil {
			return fmt.Sprint(size)
		}
		return fmt.Sprintf("%T", t)
	}
}
