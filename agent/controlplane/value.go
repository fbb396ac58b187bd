package controlplane

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// place is where something was written.
type place struct {
	file string
	line int
}

func (p place) String() string { return p.file + ":" + strconv.Itoa(p.line) }

type fault struct {
	place place
	text  string
}

// value is a part of a document. Its methods report what is wrong with it to the reader, and return what does no further harm.
type value struct {
	reader *reader
	place  place      // of one that was not given: of what lacks it
	path   string     // as in spec.ports[0].port; empty: the document itself
	node   *yaml.Node // nil: not given
}

func (v value) given() bool { return v.node != nil }

func (v value) fault(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if v.path != "" {
		text = v.path + ": " + text
	}
	v.reader.faults = append(v.reader.faults, fault{place: v.place, text: text})
}

// is says whether the value was given and is of a type, by its YAML tag; it is a fault if it was given as another.
func (v value) is(tag, remedy string) bool {
	if v.node == nil {
		return false
	}
	kind := yaml.ScalarNode
	switch tag {
	case mapTag:
		kind = yaml.MappingNode
	case listTag:
		kind = yaml.SequenceNode
	}
	if v.node.Kind == kind && v.node.ShortTag() == tag {
		return true
	}
	v.fault("is %s; write %s", describe(v.node), remedy)
	return false
}

// isText is not a fault if it is something else.
func (v value) isText() bool {
	return v.node != nil && v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == textTag
}

// none says whether the value was not given, or is an empty list.
func (v value) none() bool {
	return v.node == nil || (v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0)
}

const (
	textTag  = "!!str"
	wholeTag = "!!int"
	mapTag   = "!!map"
	listTag  = "!!seq"

	writeText = "text, in quotes if need be"
)

func describe(n *yaml.Node) string {
	tag := n.ShortTag()
	switch {
	case n.Kind == yaml.AliasNode: // none are followed: a short file with them can be a very long list
		return "an alias"
	case n.Kind == yaml.MappingNode && tag != mapTag, n.Kind == yaml.SequenceNode && tag != listTag,
		n.Kind == yaml.ScalarNode && n.Style&yaml.TaggedStyle != 0:
		return "tagged " + tag
	}
	switch tag {
	case "!!null":
		return "empty"
	case textTag:
		return "text"
	case wholeTag, "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!timestamp":
		return "a date"
	case mapTag:
		return "a mapping"
	case listTag:
		return "a list"
	default:
		return "tagged " + tag
	}
}

// child of a mapping; n is nil if it has none of that key.
func (v value) child(key string, n *yaml.Node) value {
	c := value{reader: v.reader, place: v.place, path: plain(key), node: n}
	if v.path != "" {
		c.path = v.path + "." + c.path
	}
	if n != nil {
		c.place.line = n.Line
	}
	return c
}

// plain is text that stands for itself in a message, or is quoted.
func plain(text string) string {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// object is a mapping whose keys are known.
type object struct {
	value
	fields []pair
}

// at returns what stands at a key, which must be one that object was called with.
func (o object) at(key string) value {
	for i := range o.fields {
		if o.fields[i].key == key {
			return o.fields[i].value
		}
	}
	return o.child(key, nil)
}

// object is false without a fault when the value was not given.
func (v value) object(known ...string) (object, bool) {
	pairs, ok := v.pairs()
	fields := pairs[:0]
	for _, p := range pairs {
		if !slices.Contains(known, p.key) {
			at := v
			at.place.line = p.line
			at.fault("unknown key %q; known here: %s", p.key, strings.Join(known, ", "))
			continue
		}
		fields = append(fields, p)
	}
	return object{value: v, fields: fields}, ok
}

type pair struct {
	value
	key  string
	line int // of the key
}

// pairs are those of a mapping with any keys, in the order of the file. It is false without a fault when the value was not given.
func (v value) pairs() ([]pair, bool) {
	if !v.is(mapTag, "a mapping of keys to values") {
		return nil, false
	}
	content := v.node.Content
	pairs := make([]pair, 0, len(content)/2)
	lines := make(map[string]int, len(content)/2)
	for i := 0; i+1 < len(content); i += 2 {
		key, at := content[i], v
		at.place.line = key.Line
		if key.Kind != yaml.ScalarNode || (key.ShortTag() != textTag && key.ShortTag() != "!!merge") {
			at.fault("a key is %s; write %s", describe(key), writeText)
			continue
		}
		if first, twice := lines[key.Value]; twice {
			at.fault("key %q is given twice, first in line %d; remove one", key.Value, first)
			continue
		}
		lines[key.Value] = key.Line
		pairs = append(pairs, pair{value: v.child(key.Value, content[i+1]), key: key.Value, line: key.Line})
	}
	return pairs, true
}

// list is false if the value is none, and true and empty if it was not given.
func (v value) list() ([]value, bool) {
	if v.node == nil {
		return nil, true
	}
	if !v.is(listTag, "a list") {
		return nil, false
	}
	items := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		items[i] = value{reader: v.reader, place: place{v.place.file, n.Line}, path: v.path + "[" + strconv.Itoa(i) + "]", node: n}
	}
	return items, true
}

// text is empty if it was not given.
func (v value) text() string {
	if !v.is(textTag, writeText) {
		return ""
	}
	return v.node.Value
}

// texts are those of a list, none of them empty.
func (v value) texts() []value {
	items, _ := v.list()
	var texts []value
	for _, item := range items {
		switch {
		case !item.is(textTag, writeText):
		case item.node.Value == "":
			item.fault("is empty; write something, or remove it from the list")
		default:
			texts = append(texts, item)
		}
	}
	return texts
}

func valuesOf(texts []value) []string {
	var list []string
	for _, t := range texts {
		list = append(list, t.node.Value)
	}
	return list
}

// labels are a mapping of text to text.
func (v value) labels() map[string]string {
	pairs, _ := v.pairs()
	var labels map[string]string
	for _, p := range pairs {
		if labels == nil {
			labels = make(map[string]string, len(pairs))
		}
		labels[p.key] = p.text()
	}
	return labels
}

func (v value) truth() bool {
	if !v.is("!!bool", "true or false") {
		return false
	}
	truth, err := strconv.ParseBool(strings.ToLower(v.node.Value))
	if err != nil || len(v.node.Value) == 1 { // it was tagged as one
		v.fault("%q; use true or false", v.node.Value)
	}
	return truth
}

// number is absent if it was not given, or is none from least to most, both included.
func (v value) number(absent, least, most uint32) uint32 {
	remedy := fmt.Sprintf("a whole number from %d to %d", least, most)
	if !v.is(wholeTag, remedy) {
		return absent
	}
	n, ok := decimal(v.node.Value)
	if !ok || n < uint64(least) || n > uint64(most) {
		v.fault("%s; use %s", plain(v.node.Value), remedy)
		return absent
	}
	return uint32(n)
}

// decimal reads digits alone: what YAML makes of 0x50, 0120 or 1_000 is nothing that people should have to know.
func decimal(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil && (len(text) == 1 || text[0] != '0')
}

// port is 0 if it was not given, or is none.
func (v value) port() uint16 { return uint16(v.number(0, 1, 65535)) }

// duration is absent if it was not given, or is none from least to most, both included.
func (v value) duration(absent, least, most time.Duration) time.Duration {
	remedy := fmt.Sprintf("a duration from %v to %v, such as 30s", least, most)
	if !v.is(textTag, remedy) {
		return absent
	}
	d, err := time.ParseDuration(v.node.Value)
	if err != nil || d < least || d > most {
		v.fault("%q; use %s", v.node.Value, remedy)
		return absent
	}
	return d
}

// choice is the index of the one that was given, and 0 if none was.
func (v value) choice(names ...string) int {
	i := 0
	if v.is(textTag, "one of "+strings.Join(names, ", ")) {
		if i = slices.Index(names, v.node.Value); i < 0 {
			v.fault("unknown %q; use one of %s", v.node.Value, strings.Join(names, ", "))
			i = 0
		}
	}
	return i
}
