// Package filter is the small language in which operators say which connections or edges they want to see:
//
//	reason != ok && peer.workload == "cart"
//	connect > 10ms || sent >= 1MiB
//	peer.address in (10.0.0.0/8, "::1") && !adopted
//
// A comparison is FIELD OPERATOR VALUE. Operators are == != < <= > >=, =~ and !~ (a regular expression, anywhere in the text), and in with a list.
// Comparisons are put together by && || ! and parentheses; && binds closer than ||. A field alone says that it is there, or of one that is true or
// false that it is true. A value is a word, or text in quotes ("…" or '…', with \ before a quote and before itself). A number may have a unit: ns us ms
// s m h of times, B kB KiB MB MiB GB GiB of bytes. An address is equal to a prefix that it is in.
//
// What is not known of a connection is absent: then == < =~ and in are false, and != and !~, which are their opposites, are true.
//
// An expression is checked when it is compiled: fields have types, and some of them a list of the values that there are. What it takes to evaluate one is
// bounded: by its length, for there are no loops and no functions, and by the size of its regular expressions, which are those of package regexp.
package filter

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Type is what the values of a field are.
type Type uint8

// The types.
const (
	Text Type = iota
	Number
	Bool
	Address
)

// Unit is what numbers of a field are in.
type Unit uint8

// The units.
const (
	Count Unit = iota
	Nanoseconds
	Microseconds
	Seconds
	Bytes
)

// Field is what expressions can ask for.
type Field struct {
	Name string
	// Short are other names of it.
	Short []string
	Type  Type
	Unit  Unit
	// Values are all that there are; nil: any.
	Values []string
}

// Value is what a field is; the zero Value is absent.
type Value struct {
	There   bool
	Text    string
	Number  float64
	Bool    bool
	Address netip.Addr
}

// Expression is one that was compiled. It does not change, and is safe for concurrent use.
type Expression struct {
	root node
	uses []int
}

// Uses returns the fields that are asked for, as indices of what was given to Compile. Match takes their values in this order.
func (e *Expression) Uses() []int { return e.uses }

// Match evaluates the expression. It does not allocate, unless an address is matched by a regular expression.
func (e *Expression) Match(values []Value) bool { return e.root.match(values) }

type node interface{ match([]Value) bool }

type (
	and  []node
	or   []node
	not  struct{ of node }
	is   struct{ slot int } // of a Bool
	has  struct{ slot int }
	text struct {
		slot int
		is   []string
	}
	pattern struct {
		slot    int
		pattern *regexp.Regexp
		address bool
	}
	number struct {
		slot int
		op   operator
		is   []float64 // more than one of an in
	}
	address struct {
		slot int
		is   []netip.Prefix
	}
	boolean struct {
		slot int
		is   bool
	}
)

func (n and) match(v []Value) bool {
	for _, of := range n {
		if !of.match(v) {
			return false
		}
	}
	return true
}

func (n or) match(v []Value) bool {
	for _, of := range n {
		if of.match(v) {
			return true
		}
	}
	return false
}

func (n not) match(v []Value) bool     { return !n.of.match(v) }
func (n is) match(v []Value) bool      { return v[n.slot].There && v[n.slot].Bool }
func (n has) match(v []Value) bool     { return v[n.slot].There }
func (n boolean) match(v []Value) bool { return v[n.slot].There && v[n.slot].Bool == n.is }

func (n text) match(v []Value) bool {
	return v[n.slot].There && slices.Contains(n.is, v[n.slot].Text)
}

func (n pattern) match(v []Value) bool {
	if !v[n.slot].There {
		return false
	}
	if n.address {
		return n.pattern.MatchString(v[n.slot].Address.String())
	}
	return n.pattern.MatchString(v[n.slot].Text)
}

func (n number) match(v []Value) bool {
	if !v[n.slot].There {
		return false
	}
	have := v[n.slot].Number
	for _, want := range n.is {
		switch n.op {
		case equal, in:
			if have == want {
				return true
			}
		case less:
			return have < want
		case atMost:
			return have <= want
		case more:
			return have > want
		case atLeast:
			return have >= want
		}
	}
	return false
}

func (n address) match(v []Value) bool {
	if !v[n.slot].There {
		return false
	}
	for _, p := range n.is {
		if p.Contains(v[n.slot].Address) {
			return true
		}
	}
	return false
}

// Describe returns a line for each field: its short names, or its name, and what its values are.
func Describe(fields []Field) string {
	var b strings.Builder
	for i := range fields {
		f := &fields[i]
		b.WriteString("  ")
		b.WriteString(strings.Join(append(slices.Clone(f.Short), f.Name), ", "))
		switch {
		case f.Values != nil:
			b.WriteString(": " + strings.Join(f.Values, " "))
		case f.Type == Bool:
			b.WriteString(": true, false")
		case f.Type == Address:
			b.WriteString(": address or prefix")
		case f.Unit == Bytes:
			b.WriteString(": bytes")
		case f.Unit != Count:
			b.WriteString(": time")
		case f.Type == Number:
			b.WriteString(": number")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
