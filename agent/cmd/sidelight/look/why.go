package look

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/sidelight-mesh/sidelight/agent/maps"
)

// Why is what an agent answers who asks why.
type Why struct {
	// Connection is the line of a past one, as it is in the access log.
	Connection json.RawMessage `json:"connection,omitempty"`
	// Now are what would become of it now: one for each address that was asked for.
	Now []*maps.Explanation `json:"now"`
	// NotNow says why there is nothing in Now.
	NotNow string `json:"not_now,omitempty"`
}

// Refused is why one of the connections would be refused; "": none would.
func (a *Why) Refused() string {
	for _, e := range a.Now {
		if e.Outcome != "ok" && e.Outcome != "depends" {
			return e.Because
		}
	}
	return ""
}

// Lines tell it in the order in which it is decided.
func (a *Why) Lines(paint Paint) ([]string, error) {
	var lines []string
	if a.Connection != nil {
		past, err := pastLines(paint, a.Connection)
		if err != nil {
			return nil, err
		}
		lines = append(lines, past...)
	}
	for _, e := range a.Now {
		lines = append(lines, explanationLines(paint, e)...)
	}
	if a.NotNow != "" {
		lines = append(lines, printable(a.NotNow))
	}
	return lines, nil
}

// pastFields are those of a line that say what was decided, and by what.
var pastFields = []struct{ key, label string }{
	{"timestamp", "when"},
	{"sidelight.role", "seen by the"},
	{"sidelight.reason", "outcome"},
	{"client.address", "client"},
	{"process.executable.name", "process"},
	{"sidelight.original_destination", "dialled"},
	{"sidelight.service", "service"},
	{"sidelight.backend", "endpoint"},
	{"server.address", "server"},
	{"sidelight.verdict", "verdict"},
	{"sidelight.policy", "by"},
	{"sidelight.policy.rule", "rule"},
	{"sidelight.limit", "limit"},
	{"sidelight.limit.value", "which allows"},
	{"sidelight.config_generation", "generation"},
	{"sidelight.decision_ns", "decided in ns"},
	{"sidelight.connect_ns", "handshake in ns"},
	{"sidelight.duration_ns", "open for ns"},
}

func pastLines(paint Paint, line json.RawMessage) ([]string, error) {
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return nil, fmt.Errorf("read the line: %w", err)
	}
	s := said{paint: paint, lines: []string{paint.apply(Head, "THEN")}}
	for _, f := range pastFields {
		switch value := fields[f.key].(type) {
		case nil:
		case float64:
			s.add(f.label, Plain, strconv.FormatFloat(value, 'f', -1, 64))
		default:
			s.add(f.label, Plain, fmt.Sprint(value))
		}
	}
	return s.lines, nil
}

// said is a list of labels and what there is to say of them.
type said struct {
	paint Paint
	lines []string
}

// labelWidth is that of the longest label.
const labelWidth = 15

func (s *said) add(label string, style Style, text string) {
	gap := labelWidth - utf8.RuneCountInString(label)
	s.lines = append(s.lines, fmt.Sprintf("  %s%*s  %s", s.paint.apply(Faint, label), gap, "", s.paint.apply(style, printable(text))))
}

func outcomeStyle(outcome string) Style {
	switch outcome {
	case "ok":
		return Good
	case "depends":
		return Warn
	}
	return Bad
}

func explanationLines(paint Paint, e *maps.Explanation) []string {
	s := said{paint: paint, lines: []string{paint.apply(Head, "NOW")}}
	client := e.Client.Workload
	if client == "" {
		client = "nobody that the mesh knows"
	}
	if e.Client.Identity != "" {
		client += ", identity " + e.Client.Identity
	}
	s.add("client", Plain, client+", known by "+e.Client.KnownBy)
	s.add("dials", Plain, e.Dialled)
	switch {
	case e.Frontend != "":
		s.add("service", Plain, fmt.Sprintf("%s (%s), generation %d, chooses by %s", e.Service, e.Frontend, e.Generation, e.Algorithm))
	case e.Destination != "":
		s.add("workload", Plain, e.Destination)
	}
	for _, x := range e.Endpoints {
		style, text := Faint, "not chosen: "+x.Because
		if x.Eligible {
			style, text = Plain, fmt.Sprintf("%.1f %% of the choices, %d open", 100*x.Share, x.Open)
		}
		s.add("endpoint", style, fmt.Sprintf("%s %s: %s", x.Endpoint, x.Address, text))
		if x.Policy != nil {
			s.add("", policyStyle(x.Policy), "  "+policyText(x.Policy))
		}
	}
	if e.Policy != nil {
		s.add("policies", policyStyle(e.Policy), policyText(e.Policy))
	}
	for _, l := range e.Limits {
		style, text := Plain, fmt.Sprintf("%s: %d open of %s, %d connecting of %s", l.Name, l.Open, bound(l.MaxOpen), l.Connecting, bound(l.MaxConnecting))
		if l.PerSecond > 0 {
			text += fmt.Sprintf(", %d a second in bursts of %d, of which %d are left", l.PerSecond, l.Burst, l.Tokens)
		}
		if l.Refuses != "" {
			style = Bad
		}
		s.add("limit", style, text)
	}
	s.add("outcome", outcomeStyle(e.Outcome), e.Outcome+": "+e.Because)
	return s.lines
}

func bound(n uint32) string {
	if n == 0 {
		return "any"
	}
	return fmt.Sprint(n)
}

func policyStyle(p *maps.ExplainPolicy) Style {
	if p.Verdict == "allow" {
		return Good
	}
	return Bad
}

func policyText(p *maps.ExplainPolicy) string {
	text := p.Verdict
	switch {
	case p.Rule != "":
		text += " by " + p.Rule
	case p.Verdict == "deny":
		text += ": there are allow policies, and none of their rules matches"
	default:
		text += ": no deny rule matches, and there is no allow policy"
	}
	if p.DryRun != "" {
		text += "; dry run: " + p.DryRun
	}
	if p.Perhaps {
		text += "; if it is who is meant"
	}
	if p.Open {
		text += "; rules that ask for the client's address are left to the server's side, which knows it"
	}
	return text
}
