package filter

import (
	"net/netip"
	"regexp/syntax"
	"strings"
	"testing"
)

var fields = []Field{
	{Name: "sidelight.reason", Short: []string{"reason"}, Values: []string{"ok", "refused", "timeout"}},
	{Name: "peer.workload"},
	{Name: "sidelight.policy", Short: []string{"policy"}},
	{Name: "sidelight.policy.rule", Short: []string{"policy.rule"}, Type: Number},
	{Name: "sidelight.connect_ns", Short: []string{"connect"}, Type: Number, Unit: Nanoseconds},
	{Name: "sidelight.rtt_us", Short: []string{"rtt"}, Type: Number, Unit: Microseconds},
	{Name: "sidelight.sent_bytes", Short: []string{"sent"}, Type: Number, Unit: Bytes},
	{Name: "network.peer.address", Short: []string{"peer.address"}, Type: Address},
	{Name: "sidelight.adopted", Short: []string{"adopted"}, Type: Bool},
}

// connection is one by the names of the fields; what is not there is absent.
func connection(e *Expression, of map[string]Value) []Value {
	var values []Value
	for _, f := range e.Uses() {
		v, there := of[fields[f].Name]
		v.There = there
		values = append(values, v)
	}
	return values
}

func TestMatch(t *testing.T) {
	good := map[string]Value{
		"sidelight.reason": {Text: "ok"}, "peer.workload": {Text: `the "cart"`}, "sidelight.connect_ns": {Number: 10e6}, "sidelight.rtt_us": {Number: 250},
		"sidelight.sent_bytes": {Number: 1 << 20}, "network.peer.address": {Address: netip.MustParseAddr("10.1.2.3")},
	}
	bad := map[string]Value{
		"sidelight.reason": {Text: "refused"}, "peer.workload": {Text: "cart"}, "sidelight.policy": {Text: "shop/cart"}, "sidelight.policy.rule": {Number: 0},
		"sidelight.sent_bytes": {Number: 0}, "network.peer.address": {Address: netip.MustParseAddr("2001:db8::1")}, "sidelight.adopted": {Bool: true},
	}
	for _, c := range []struct {
		text      string
		good, bad bool
	}{
		{`reason!=ok && peer.workload=="cart"`, false, true},
		{`reason == ok`, true, false},
		{`sidelight.reason==ok`, true, false},
		{"  reason\t==\nok ", true, false},
		{`!(reason == ok)`, false, true},
		{`!!(reason == ok)`, true, false},
		{`reason in (refused, "timeout")`, false, true},
		{`reason in refused`, false, true},
		{`reason in ok || reason in(refused)`, true, true},
		{`peer.workload == 'the "cart"'`, true, false},
		{`peer.workload == "the \"cart\""`, true, false},
		{`peer.workload =~ "^c.*t$"`, false, true},
		{`peer.workload !~ ^the`, false, true},
		{`peer.workload =~ cart`, true, true},
		// || binds less than &&.
		{`reason==ok || reason==refused && peer.workload==x`, true, false},
		{`(reason==ok || reason==refused) && peer.workload==x`, false, false},
		// One field's name is another's beginning.
		{`policy == shop/cart && policy.rule == 0`, false, true},
		{`policy`, false, true},
		{`!policy`, true, false},
		{`adopted`, false, true},
		{`!adopted`, true, false},
		{`adopted == true`, false, true},
		{`adopted != true`, true, false},
		{`adopted == false`, false, false}, // absent is not false, as in the log
		{`connect >= 10ms`, true, false},
		{`connect > 10ms`, false, false},
		{`connect < 10ms || !connect`, false, true},
		{`connect == 10000us`, true, false},
		{`connect <= 0.01s && connect>0`, true, false},
		{`sidelight.connect_ns == 10000000`, true, false},
		{`sidelight.connect_ns == 10_000_000`, true, false},
		{`rtt == 250us`, true, false},
		{`sidelight.rtt_us in (1, 250)`, true, false},
		{`rtt < 1ms`, true, false},
		{`connect != 10ms`, false, true},
		{`sent>=1MiB`, true, false},
		{`sent==0`, false, true},
		{`sent == 1048576`, true, false},
		{`peer.address == 10.1.2.3`, true, false},
		{`peer.address == 10.0.0.0/8`, true, false},
		{`peer.address in (192.0.2.0/24, 2001:db8::/32)`, false, true},
		{`peer.address != 10.0.0.0/8`, false, true},
		{`peer.address =~ ":"`, false, true},
		{`peer.address == ::ffff:10.1.2.3`, true, false},
		{`peer.address == ::ffff:10.0.0.0/104`, true, false},
		{`peer.workload =~ "^.{0,400}t$"`, false, true},
	} {
		e, err := Compile(c.text, fields)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if g, b := e.Match(connection(e, good)), e.Match(connection(e, bad)); g != c.good || b != c.bad {
			t.Errorf("%s: %v of the good one and %v of the bad one, want %v and %v", c.text, g, b, c.good, c.bad)
		}
	}
}

// TestFaults wants every message to say where and what.
func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		``:                                    "filter, character 1: a comparison is missing; write FIELD == VALUE",
		`reson==ok`:                           "filter, character 1: there is no field reson; did you mean reason?",
		`peer.worklaod==x`:                    "filter, character 1: there is no field peer.worklaod; did you mean peer.workload?",
		`colour==x`:                           "filter, character 1: there is no field colour; --help lists those that there are",
		`reason==okay`:                        `filter, character 9: reason is never "okay"; it is one of ok, refused, timeout`,
		`reason==`:                            "filter, character 9: a value is missing",
		`reason==&&`:                          `filter, character 9: "&&" is no value; put it in quotes`,
		`reason==ok &&`:                       "filter, character 14: a comparison is missing; write FIELD == VALUE",
		`reason==ok adopted`:                  `filter, character 12: "adopted" is not expected; use && or || between comparisons`,
		`reason=ok`:                           `filter, character 7: "=ok" is not expected; use && or || between comparisons`,
		`(reason==ok`:                         "filter, character 12: a closing parenthesis is missing",
		`reason==ok)`:                         `filter, character 11: ")" is not expected; use && or || between comparisons`,
		`reason=="ok`:                         "filter, character 9: the closing quote is missing",
		`reason in (ok`:                       "filter, character 14: a comma or a closing parenthesis is missing in the list",
		`reason<ok`:                           "filter, character 7: reason is no number; use ==, != or in",
		`sent=~1`:                             "filter, character 5: sent is no text; use == or <",
		`connect>10`:                          `filter, character 9: "10" is no time; give it a unit, such as 250us, 10ms or 1.5s`,
		`connect>10MB`:                        `filter, character 9: "10MB" is no time; give it a unit, such as 250us, 10ms or 1.5s`,
		`sent>10ms`:                           `filter, character 6: "10ms" is no size; use one such as 512, 64KiB or 1MB`,
		`sent>ten`:                            `filter, character 6: "ten" is no number`,
		`policy.rule==1s`:                     `filter, character 14: "1s" is no number; policy.rule has no unit`,
		`peer.address==cart`:                  `filter, character 15: "cart" is neither an address nor a prefix, such as 10.0.0.0/8`,
		`adopted==1`:                          `filter, character 10: adopted is true or false, and never "1"`,
		`peer.workload=~"("`:                  "filter, character 16: error parsing regexp: missing closing ): `(`",
		`peer.workload=~"(.{9}){999}"`:        "filter, character 16: error parsing regexp: invalid repeat count",
		`peer.workload=~".{0,1000}"`:          "filter, character 16: the regular expressions take 2002 steps; use at most 1000, with shorter repetitions such as {0,10}",
		`reason=~".{400}"||reason=~".{601}"`:  "filter, character 27: the regular expressions take 1005 steps; use at most 1000, with shorter repetitions such as {0,10}",
		`"ä" == reason`:                       `filter, character 1: "\"ä\" == reas..." is no field; write FIELD == VALUE`,
		`reason=="ä" && x`:                    `filter, character 9: reason is never "ä"; it is one of ok, refused, timeout`,
		`peer.workload=="ä"&&x`:               "filter, character 21: there is no field x; --help lists",
		strings.Repeat("(", 1000) + "adopted": "filter, character 65: too many parentheses",
		strings.Repeat("!", 1000) + "adopted": "filter, character 65: too many parentheses",
		strings.Repeat(" ", 5000):             "filter: 5000 characters; use at most 4096",
	} {
		_, err := Compile(text, fields)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40s: %v\nwant %s", text, err, want)
		}
	}
}

// TestInstructions holds what is reckoned against what is compiled.
func TestInstructions(t *testing.T) {
	for _, text := range []string{
		``, `a`, `abc`, `(?i)abc`, `.`, `[a-z]`, `^$`, `\b`, `(a)`, `(?:a)`, `()`, `a*`, `(ab)+`, `a?`, `a|bc|d`, `a|`, `|||`, `(a|b)*c`, `[^\x00-\x{10FFFF}]`, `a{0}`, `a{0,0}b`,
		`a{3}`, `a{3,}`, `a{0,}`, `a{1,}`, `a{0,5}`, `a{2,5}`, `(a|bc){2,5}`, `((a{2}){3}){4}`, `(a*)*`, `(a*)+`, `(a?){3,7}`, `.{0,1000}`, `(?s).{0,9}?`, `(|a){9}`, `(){5}`, `\pL{3}`,
	} {
		parsed, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		reckoned := 2 + instructions(parsed)
		program, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(program.Inst); n > reckoned || n < reckoned/4 {
			t.Errorf("%q has %d instructions, reckoned %d", text, n, reckoned)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	e, err := Compile(`reason != ok && peer.workload =~ "^c" && connect < 10ms && peer.address in (10.0.0.0/8) || adopted`, fields)
	if err != nil {
		t.Fatal(err)
	}
	values := connection(e, map[string]Value{
		"sidelight.reason": {Text: "refused"}, "peer.workload": {Text: "cart"}, "sidelight.connect_ns": {Number: 1},
		"network.peer.address": {Address: netip.MustParseAddr("10.1.2.3")},
	})
	if n := testing.AllocsPerRun(100, func() { _ = e.Match(values) }); n != 0 || !e.Match(values) {
		t.Errorf("%v allocations, matches: %v", n, e.Match(values))
	}
}

func FuzzCompile(f *testing.F) {
	for _, text := range []string{`reason!=ok && peer.workload=="cart"`, `!(connect>10ms||sent in(1,2KiB))`, `peer.address in (10.0.0.0/8)`, `peer.workload=~'x'`} {
		f.Add(text)
	}
	f.Fuzz(func(_ *testing.T, text string) {
		if e, err := Compile(text, fields); err == nil {
			e.Match(make([]Value, len(e.Uses())))
		}
	})
}

func TestDescribe(t *testing.T) {
	const want = `  reason, sidelight.reason: ok refused timeout
  peer.workload
  policy, sidelight.policy
  policy.rule, sidelight.policy.rule: number
  connect, sidelight.connect_ns: time
  rtt, sidelight.rtt_us: time
  sent, sidelight.sent_bytes: bytes
  peer.address, network.peer.address: address or prefix
  adopted, sidelight.adopted: true, false
`
	if got := Describe(fields); got != want {
		t.Errorf("got\n%s", got)
	}
}
