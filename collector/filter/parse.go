package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// operator compares a field with a value.
type operator uint8

const (
	none operator = iota
	equal
	notEqual
	less
	atMost
	more
	atLeast
	matches
	matchesNot
	in
)

// The longer ones first.
var operators = []struct {
	text string
	op   operator
}{
	{"==", equal},
	{"!=", notEqual},
	{"<=", atMost},
	{">=", atLeast},
	{"=~", matches},
	{"!~", matchesNot},
	{"<", less},
	{">", more},
}

// mostText, mostDepth and mostSteps bound what somebody may ask an agent to look at. For each character of a value a regular expression may take as many
// steps as its program has instructions, and {1000} in it makes a thousand of one.
const (
	mostText  = 4096
	mostDepth = 64
	mostSteps = 1000 // of all regular expressions together
)

// Compile reads an expression over fields. An error says at which character it is, and what can be there.
func Compile(expression string, fields []Field) (*Expression, error) {
	if len(expression) > mostText {
		return nil, fmt.Errorf("filter: %d characters; use at most %d", len(expression), mostText)
	}
	p := parser{text: expression, fields: fields, expression: new(Expression)}
	root, err := p.or(0)
	if err == nil {
		if p.space(); p.at < len(p.text) {
			err = p.fault(p.at, fmt.Errorf("%q is not expected; use && or || between comparisons", p.rest()))
		}
	}
	if err != nil {
		return nil, err
	}
	p.expression.root = root
	return p.expression, nil
}

type parser struct {
	text       string
	at         int
	fields     []Field
	expression *Expression
	steps      int // of regular expressions
}

// fault is an error at a byte of the text.
func (p *parser) fault(at int, err error) error {
	return fmt.Errorf("filter, character %d: %w", utf8.RuneCountInString(p.text[:at])+1, err)
}

// rest is the beginning of what was not read, for messages.
func (p *parser) rest() string {
	rest := p.text[p.at:]
	if len(rest) > 12 {
		rest = strings.ToValidUTF8(rest[:12], "") + "..."
	}
	return rest
}

func (p *parser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// take reads a token if it is next.
func (p *parser) take(token string) bool {
	p.space()
	if strings.HasPrefix(p.text[p.at:], token) {
		p.at += len(token)
		return true
	}
	return false
}

func (p *parser) or(depth int) (node, error) {
	return p.list(depth, "||", p.and, func(nodes []node) node { return or(nodes) })
}

func (p *parser) and(depth int) (node, error) {
	return p.list(depth, "&&", p.not, func(nodes []node) node { return and(nodes) })
}

func (p *parser) list(depth int, between string, one func(int) (node, error), together func([]node) node) (node, error) {
	var nodes []node
	for {
		n, err := one(depth)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
		if !p.take(between) {
			break
		}
	}
	if len(nodes) == 1 {
		return nodes[0], nil
	}
	return together(nodes), nil
}

func (p *parser) not(depth int) (node, error) {
	p.space()
	if depth == mostDepth {
		return nil, p.fault(p.at, errors.New("too many parentheses"))
	}
	switch {
	case p.take("!"):
		n, err := p.not(depth + 1)
		return not{n}, err
	case p.take("("):
		n, err := p.or(depth + 1)
		if err == nil && !p.take(")") {
			err = p.fault(p.at, errors.New("a closing parenthesis is missing"))
		}
		return n, err
	}
	return p.comparison()
}

func isFieldByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.'
}

func (p *parser) comparison() (node, error) {
	p.space()
	start := p.at
	for p.at < len(p.text) && isFieldByte(p.text[p.at]) {
		p.at++
	}
	name := p.text[start:p.at]
	if name == "" {
		if p.at == len(p.text) {
			return nil, p.fault(start, errors.New("a comparison is missing; write FIELD == VALUE"))
		}
		return nil, p.fault(start, fmt.Errorf("%q is no field; write FIELD == VALUE", p.rest()))
	}
	f, err := p.field(name)
	if err != nil {
		return nil, p.fault(start, err)
	}
	field := &p.fields[f]
	slot := p.slot(f)
	opAt := p.at
	op := p.operator()
	switch {
	case op == none && field.Type == Bool:
		return is{slot}, nil
	case op == none:
		return has{slot}, nil
	}
	var values []value
	if op == in {
		values, err = p.values()
	} else {
		var v value
		v, err = p.value()
		values = []value{v}
	}
	if err != nil {
		return nil, err
	}
	return p.compare(field, name, slot, op, opAt, values)
}

func (p *parser) operator() operator {
	p.space()
	for _, o := range operators {
		if strings.HasPrefix(p.text[p.at:], o.text) {
			p.at += len(o.text)
			return o.op
		}
	}
	if rest := p.text[p.at:]; strings.HasPrefix(rest, "in") && (len(rest) == 2 || strings.IndexByte(" \t(\"'", rest[2]) >= 0) {
		p.at += 2
		return in
	}
	return none
}

// field finds a field by any of its names.
func (p *parser) field(name string) (int, error) {
	like, distance := "", 3 // of those that are this near one may have been meant
	for i := range p.fields {
		f := &p.fields[i]
		for _, known := range append([]string{f.Name}, f.Short...) {
			if known == name {
				return i, nil
			}
			if d := between(name, known); d < distance {
				like, distance = known, d
			}
		}
	}
	if like != "" {
		return 0, fmt.Errorf("there is no field %s; did you mean %s?", name, like)
	}
	return 0, fmt.Errorf("there is no field %s; --help lists those that there are", name)
}

// between is how many characters have to be put in, left out or changed to make one text of another.
func between(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// slot is where a field's value is when the expression is evaluated.
func (p *parser) slot(field int) int {
	if i := slices.Index(p.expression.uses, field); i >= 0 {
		return i
	}
	p.expression.uses = append(p.expression.uses, field)
	return len(p.expression.uses) - 1
}

// value is as it was written.
type value struct {
	at   int
	text string
}

func (p *parser) values() ([]value, error) {
	if !p.take("(") {
		v, err := p.value()
		return []value{v}, err
	}
	var values []value
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		switch {
		case p.take(")"):
			return values, nil
		case !p.take(","):
			return nil, p.fault(p.at, errors.New("a comma or a closing parenthesis is missing in the list"))
		}
	}
}

func (p *parser) value() (value, error) {
	p.space()
	v := value{at: p.at}
	if p.at == len(p.text) {
		return v, p.fault(p.at, errors.New("a value is missing"))
	}
	if quote := p.text[p.at]; quote == '"' || quote == '\'' {
		return p.quoted(quote)
	}
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n()&|,!=<>~\"'", p.text[p.at]) < 0 {
		p.at++
	}
	if v.text = p.text[v.at:p.at]; v.text == "" {
		return v, p.fault(v.at, fmt.Errorf("%q is no value; put it in quotes", p.rest()))
	}
	return v, nil
}

func (p *parser) quoted(quote byte) (value, error) {
	v := value{at: p.at}
	var b strings.Builder
	for p.at++; p.at < len(p.text); p.at++ {
		c := p.text[p.at]
		switch {
		case c == quote:
			p.at++
			v.text = b.String()
			return v, nil
		case c == '\\' && p.at+1 < len(p.text) && (p.text[p.at+1] == quote || p.text[p.at+1] == '\\'):
			p.at++
			c = p.text[p.at]
		}
		b.WriteByte(c)
	}
	return v, p.fault(v.at, errors.New("the closing quote is missing"))
}

// compare makes a node of a comparison, if the field's type has such.
func (p *parser) compare(f *Field, name string, slot int, op operator, at int, values []value) (node, error) {
	// != and !~ are true of what is absent.
	switch op {
	case notEqual, matchesNot:
		opposite := equal
		if op == matchesNot {
			opposite = matches
		}
		n, err := p.compare(f, name, slot, opposite, at, values)
		return not{n}, err
	case matches:
		if f.Type != Text && f.Type != Address {
			return nil, p.fault(at, fmt.Errorf("%s is no text; use == or <", name))
		}
		expression, err := p.pattern(values[0].text)
		if err != nil {
			return nil, p.fault(values[0].at, err)
		}
		return pattern{slot, expression, f.Type == Address}, nil
	case less, atMost, more, atLeast:
		if f.Type != Number {
			return nil, p.fault(at, fmt.Errorf("%s is no number; use ==, != or in", name))
		}
	}
	switch f.Type {
	case Number:
		n := number{slot: slot, op: op}
		for _, v := range values {
			x, err := parseNumber(v.text, name, f.Unit)
			if err != nil {
				return nil, p.fault(v.at, err)
			}
			n.is = append(n.is, x)
		}
		return n, nil
	case Address:
		n := address{slot: slot}
		for _, v := range values {
			prefix, err := parsePrefix(v.text)
			if err != nil {
				return nil, p.fault(v.at, err)
			}
			n.is = append(n.is, prefix)
		}
		return n, nil
	case Bool:
		var nodes or
		for _, v := range values {
			if v.text != "true" && v.text != "false" {
				return nil, p.fault(v.at, fmt.Errorf("%s is true or false, and never %q", name, v.text))
			}
			nodes = append(nodes, boolean{slot, v.text == "true"})
		}
		return nodes, nil
	}
	n := text{slot: slot}
	for _, v := range values {
		if f.Values != nil && !slices.Contains(f.Values, v.text) {
			return nil, p.fault(v.at, fmt.Errorf("%s is never %q; it is one of %s", name, v.text, strings.Join(f.Values, ", ")))
		}
		n.is = append(n.is, v.text)
	}
	return n, nil
}

// pattern compiles a regular expression, if it is small enough with those that there are already.
func (p *parser) pattern(text string) (*regexp.Regexp, error) {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	// Before it is compiled, which may take a hundred megabytes.
	if p.steps += 2 + instructions(parsed); p.steps > mostSteps {
		return nil, fmt.Errorf("the regular expressions take %d steps; use at most %d, with shorter repetitions such as {0,10}", p.steps, mostSteps)
	}
	return regexp.Compile(text)
}

// instructions is how many a regular expression has at most when it is compiled, but for the first and the last of the program.
func instructions(of *syntax.Regexp) int {
	n := 0
	for _, sub := range of.Sub {
		n += instructions(sub)
	}
	switch of.Op {
	case syntax.OpLiteral:
		n = len(of.Rune)
	case syntax.OpCapture, syntax.OpStar:
		n += 2
	case syntax.OpPlus, syntax.OpQuest:
		n++
	case syntax.OpAlternate:
		n += len(of.Sub) - 1
	case syntax.OpRepeat:
		switch {
		case of.Max >= 0: // each of those that may be missing has a branch around it
			n = of.Max*n + of.Max - of.Min
		case of.Min == 0:
			n += 2
		default:
			n = of.Min*n + 1
		}
	}
	return max(1, n)
}

// parsePrefix reads an address or a prefix. IPv4 in IPv6 is IPv4, as with the values that it is compared with.
func parsePrefix(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		return prefix.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix, such as 10.0.0.0/8", text)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

var (
	times = map[string]float64{"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}
	sizes = map[string]float64{"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "KiB": 1 << 10, "MB": 1e6, "MiB": 1 << 20, "GB": 1e9, "GiB": 1 << 30}
)

// parseNumber reads a number with its unit. Without one a time is in the unit that the field's name ends with; a name that has none wants it said.
func parseNumber(text, name string, unit Unit) (float64, error) {
	end := 0
	for end < len(text) && strings.IndexByte("0123456789.-+_", text[end]) >= 0 {
		end++
	}
	x, err := strconv.ParseFloat(strings.ReplaceAll(text[:end], "_", ""), 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", text)
	}
	of := text[end:]
	switch unit {
	case Bytes:
		factor, known := sizes[of]
		if !known {
			return 0, fmt.Errorf("%q is no size; use one such as 512, 64KiB or 1MB", text)
		}
		return x * factor, nil
	case Nanoseconds, Microseconds, Seconds:
		own := map[Unit]float64{Nanoseconds: 1, Microseconds: 1e3, Seconds: 1e9}[unit]
		factor, known := times[of]
		if of == "" && (x == 0 || strings.HasSuffix(name, "_ns") || strings.HasSuffix(name, "_us")) {
			factor, known = own, true
		}
		if !known {
			return 0, fmt.Errorf("%q is no time; give it a unit, such as 250us, 10ms or 1.5s", text)
		}
		return x * factor / own, nil
	}
	if of != "" {
		return 0, fmt.Errorf("%q is no number; %s has no unit", text, name)
	}
	return x, nil
}
