package meshreceiver

import (
	"reflect"
	"unsafe"

	"go.opentelemetry.io/collector/pdata/pcommon"
)

// pdata allocates each value of a map by itself, and searches the map for its key before: some 27 times a record, which is a third of the
// record's time. An arena makes maps of the same content out of a few large slices: all records of a batch live and die together.
//
// It knows how pdata lays maps out, which pdata does not promise. So it looks, when the program starts, whether they are as it knows
// them; if not, records are made by pdata's own functions: see layout and TestArenaFits.

// These are pcommon.Map, internal.KeyValue and what internal.AnyValue may point at.
type (
	mapLayout struct {
		entries *[]entryLayout
		state   *struct{} // of whatever type
	}
	entryLayout struct {
		value any // pointer to one of the following, but of pdata's types
		key   string
		_     int32 // an index of keys, of profiles only
	}
	stringLayout struct{ value string }
	intLayout    struct{ value int64 }
)

// layout is what is known of pdata's types; ok is false if they are not the above.
var layout = lookAtLayout()

type layouts struct {
	ok        bool
	str, ints oneof
}

// oneof is one of the types that a value can be of.
type oneof struct {
	of      reflect.Type
	pointer any // to one
}

// interfaceLayout is how Go lays out an interface without methods.
type interfaceLayout struct{ of, value unsafe.Pointer }

// at returns a pointer as a value: what reflect.NewAt does, in a tenth of its time.
func (o *oneof) at(p unsafe.Pointer) (value any) {
	value = o.pointer
	(*interfaceLayout)(unsafe.Pointer(&value)).value = p
	return value
}

func lookAtLayout() (l layouts) {
	sample := pcommon.NewMap()
	sample.PutStr("string", "value")
	sample.PutInt("int", 1)
	like := func(theirs reflect.Type, ours any, names ...string) bool {
		own := reflect.TypeOf(ours)
		if theirs.Kind() != reflect.Struct || theirs.NumField() != own.NumField() || theirs.Size() != own.Size() {
			return false
		}
		for i, name := range names {
			if f := theirs.Field(i); f.Name != name || f.Offset != own.Field(i).Offset || f.Type.Size() != own.Field(i).Type.Size() {
				return false
			}
		}
		return true
	}
	m := reflect.ValueOf(sample)
	if !like(m.Type(), mapLayout{}, "orig", "state") || m.Field(0).Type().Kind() != reflect.Pointer ||
		m.Field(0).Type().Elem().Kind() != reflect.Slice || m.Field(1).Type().Kind() != reflect.Pointer {
		return l
	}
	entries := m.Field(0).Elem()
	if !like(entries.Type().Elem(), entryLayout{}, "Value", "Key", "KeyStrindex") {
		return l
	}
	valueOf := func(i int) (value reflect.Value, ok bool) {
		any := entries.Index(i).Field(0)
		if any.Kind() != reflect.Struct || any.NumField() != 1 || any.Field(0).Kind() != reflect.Interface ||
			any.Field(0).NumMethod() != 0 || any.Field(0).Elem().Kind() != reflect.Pointer {
			return value, false
		}
		return any.Field(0).Elem().Elem(), entries.Index(i).Field(1).Kind() == reflect.String
	}
	text, textOK := valueOf(0)
	number, numberOK := valueOf(1)
	if !textOK || !numberOK || !like(text.Type(), stringLayout{}, "StringValue") || !like(number.Type(), intLayout{}, "IntValue") ||
		text.Field(0).Kind() != reflect.String || number.Field(0).Kind() != reflect.Int64 {
		return l
	}
	l.str = oneof{text.Type(), reflect.New(text.Type()).Interface()}
	l.ints = oneof{number.Type(), reflect.New(number.Type()).Interface()}
	// Of Go's own layout too: a value that was made so is what reflect makes.
	var a stringLayout
	l.ok = l.str.at(unsafe.Pointer(&a)) == reflect.NewAt(l.str.of, unsafe.Pointer(&a)).Interface()
	return l
}

// arena is of one batch.
type arena struct {
	entries []entryLayout
	strings []stringLayout
	ints    []intLayout
	bytes   []byte
}

// arenaRecords is how many records a slice is for: 30 KiB of entries.
const arenaRecords = 28

// begin lets a map begin with room for so many attributes.
func (a *arena) begin(to pcommon.Map, attributes int) {
	if !layout.ok {
		to.EnsureCapacity(attributes)
		return
	}
	if len(a.entries) < attributes {
		a.entries = make([]entryLayout, attributes*arenaRecords)
	}
	// Its capacity ends where the next one's begins: whoever adds to it later gets room elsewhere.
	*(*mapLayout)(unsafe.Pointer(&to)).entries = a.entries[:0:attributes]
	a.entries = a.entries[attributes:]
}

// putStr adds to a map that does not have the key.
func (a *arena) putStr(to pcommon.Map, key, value string) {
	if !layout.ok {
		to.PutStr(key, value)
		return
	}
	if len(a.strings) == 0 {
		a.strings = newSlab[stringLayout](layout.str.of)
	}
	a.strings[0].value = value
	put(to, key, layout.str.at(unsafe.Pointer(&a.strings[0])))
	a.strings = a.strings[1:]
}

func (a *arena) putInt(to pcommon.Map, key string, value int64) {
	if !layout.ok {
		to.PutInt(key, value)
		return
	}
	if len(a.ints) == 0 {
		a.ints = newSlab[intLayout](layout.ints.of)
	}
	a.ints[0].value = value
	put(to, key, layout.ints.at(unsafe.Pointer(&a.ints[0])))
	a.ints = a.ints[1:]
}

// newSlab allocates values of pdata's type, of which ours is the twin.
func newSlab[T any](theirs reflect.Type) []T {
	const values = 14 * arenaRecords // about as many of each as attributes
	return unsafe.Slice((*T)(reflect.MakeSlice(reflect.SliceOf(theirs), values, values).UnsafePointer()), values)
}

func put(to pcommon.Map, key string, value any) {
	entries := (*mapLayout)(unsafe.Pointer(&to)).entries
	*entries = append(*entries, entryLayout{value: value, key: key})
}

// text makes a string of what append appends, at most so many bytes.
func (a *arena) text(most int, add func([]byte) []byte) string {
	if cap(a.bytes)-len(a.bytes) < most {
		a.bytes = make([]byte, 0, most*arenaRecords)
	}
	begin := len(a.bytes)
	a.bytes = add(a.bytes)
	return unsafe.String(unsafe.SliceData(a.bytes[begin:]), len(a.bytes)-begin)
}
