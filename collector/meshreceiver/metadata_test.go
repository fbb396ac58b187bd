package meshreceiver

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/pdata/pcommon"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

func readTable(t *testing.T) *metadata.Table {
	t.Helper()
	table, err := metadata.Read("metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// allCases returns every golden case by its name: together they have all that can be known of a connection, and lack all that can be
// unknown.
func allCases(t *testing.T) map[string]fixture.Case {
	t.Helper()
	cases := make(map[string]fixture.Case)
	paths, err := filepath.Glob("testdata/*/records.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		cases[filepath.Base(filepath.Dir(path))] = fixture.Load(t, path)
	}
	return cases
}

// usage holds emitted attributes against a list of the table's.
type usage struct {
	t          *testing.T
	what       string
	attributes []metadata.Attribute
	present    map[string]int
	absent     map[string]int
}

func newUsage(t *testing.T, what string, attributes []metadata.Attribute) *usage {
	return &usage{t: t, what: what, attributes: attributes, present: make(map[string]int), absent: make(map[string]int)}
}

// see checks one item's attributes: each is in the table, with its type and one of its values, in the table's order.
func (u *usage) see(where string, got pcommon.Map) {
	u.t.Helper()
	next := 0
	for name, value := range got.All() {
		i := slices.IndexFunc(u.attributes, func(a metadata.Attribute) bool { return a.Name == name })
		if i < 0 {
			u.t.Errorf("%s: %s: %s is not in the table", where, u.what, name)
			continue
		}
		if i < next {
			u.t.Errorf("%s: %s: %s is out of the table's order", where, u.what, name)
		}
		next = i + 1
		checkValue(u.t, where+": "+u.what, u.attributes[i].Type, u.attributes[i].Enum, name, value)
	}
	for _, a := range u.attributes {
		if _, ok := got.Get(a.Name); ok {
			u.present[a.Name]++
		} else {
			u.absent[a.Name]++
		}
	}
}

var valueTypes = map[string]pcommon.ValueType{
	"string": pcommon.ValueTypeStr, "int": pcommon.ValueTypeInt, "bool": pcommon.ValueTypeBool,
	"double": pcommon.ValueTypeDouble,
}

func checkValue(t *testing.T, where, kind string, enum []string, name string, value pcommon.Value) {
	t.Helper()
	if value.Type() != valueTypes[kind] {
		t.Errorf("%s: %s is of type %v, want %s", where, name, value.Type(), kind)
	}
	if enum != nil && !slices.Contains(enum, value.AsString()) {
		t.Errorf("%s: %s is %q, want one of %v", where, name, value.AsString(), enum)
	}
	if value.AsString() == "" {
		t.Errorf("%s: %s is empty; what is unknown is absent", where, name)
	}
}

// done checks the other direction, over all items: what the table promises comes, and comes as it says.
func (u *usage) done() {
	u.t.Helper()
	for _, a := range u.attributes {
		if u.present[a.Name] == 0 {
			u.t.Errorf("%s: %s is in the table and nowhere else", u.what, a.Name)
		}
		if always := a.Requirement == metadata.Always; always != (u.absent[a.Name] == 0) {
			u.t.Errorf("%s: %s is %q in the table, and was absent %d times", u.what, a.Name, a.Requirement, u.absent[a.Name])
		}
	}
}

func TestRecordAttributesAreThoseOfTheTable(t *testing.T) {
	table := readTable(t)
	logs := newUsage(t, "log record", metadata.Of(table.LogAttributes, "logs"))
	traces := newUsage(t, "span", metadata.Of(table.LogAttributes, "traces"))
	settings := testSettings()
	for name, c := range allCases(t) {
		for i := range c.Finished {
			one := [][]enrich.Record{c.Finished[i : i+1]}
			log := newLogs(&settings, one).ResourceLogs().At(0).ScopeLogs().At(0).LogRecords().At(0)
			logs.see(name, log.Attributes())
			if log.EventName() != table.LogEventName {
				t.Errorf("%s: event name %q, want %q", name, log.EventName(), table.LogEventName)
			}
			traces.see(name, newTraces(&settings, one).ResourceSpans().At(0).ScopeSpans().At(0).Spans().At(0).Attributes())
			checkRequirements(t, name, table, &c.Finished[i], log.Attributes())
		}
	}
	logs.done()
	traces.done()
}

// checkRequirements checks the requirements that a record itself decides.
func checkRequirements(t *testing.T, where string, table *metadata.Table, r *enrich.Record, got pcommon.Map) {
	t.Helper()
	e := &r.Event
	for _, a := range table.LogAttributes {
		_, present := got.Get(a.Name)
		switch a.Requirement {
		case metadata.WhenFailed:
			if present != (e.Reason != connection.OK) {
				t.Errorf("%s: %s present: %v, with the reason %v", where, a.Name, present, e.Reason)
			}
		case metadata.AdoptedOnly:
			if present != (e.Flags&connection.Adopted != 0) {
				t.Errorf("%s: %s present: %v, with the flags %v", where, a.Name, present, e.Flags)
			}
		case metadata.WhileSampled:
			if present != (r.Sampling != 0) {
				t.Errorf("%s: %s present: %v, with the sampling %v", where, a.Name, present, r.Sampling)
			}
		case metadata.MeshDecisions:
			if present != (e.Flags&connection.Decided != 0) {
				t.Errorf("%s: %s present: %v, with the flags %v", where, a.Name, present, e.Flags)
			}
		case metadata.WhenRefused:
			if present != (e.Flags&connection.RefusedHere != 0) {
				t.Errorf("%s: %s present: %v, with the flags %v", where, a.Name, present, e.Flags)
			}
		case metadata.RefusedByLimit:
			if present != (e.Reason == connection.CircuitOpen || e.Reason == connection.RateLimited) {
				t.Errorf("%s: %s present: %v, with the reason %v", where, a.Name, present, e.Reason)
			}
		case metadata.ClientsOnly:
			if present && e.Role != connection.Client {
				t.Errorf("%s: a %v has %s", where, e.Role, a.Name)
			}
		case metadata.Always, metadata.WhenKnown: // over all records, in done
		default:
			t.Errorf("log_attributes: %s: the requirement %q is not for records", a.Name, a.Requirement)
		}
	}
}

// recorder is an attribute.Sink.
type recorder []string

func (r *recorder) String(name, _ string)             { *r = append(*r, name) }
func (r *recorder) Int(name string, _ int64)          { *r = append(*r, name) }
func (r *recorder) Prefixed(name, _, _ string)        { *r = append(*r, name) }
func (r *recorder) Qualified(name, _, _ string)       { *r = append(*r, name) }
func (r *recorder) Address(name string, _ netip.Addr) { *r = append(*r, name) }
func (r *recorder) Bool(name string, _ bool)          { *r = append(*r, name) }
func (r *recorder) Double(name string, _ float64)     { *r = append(*r, name) }

func (r *recorder) AddrPort(name string, _ netip.AddrPort) { *r = append(*r, name) }

func TestAFullRecordHasTheWholeTableInItsOrder(t *testing.T) {
	var all, adoptedOnly []string
	times := []string{
		"sidelight.duration_ns", "sidelight.connect_ns", "sidelight.first_sent_ns", "sidelight.first_received_ns",
	}
	for _, a := range readTable(t).LogAttributes {
		if a.Name == "log.record.uid" { // the access log and the log record say it themselves
			continue
		}
		if a.Name != "sidelight.adopted" {
			all = append(all, a.Name)
		}
		if !slices.Contains(times, a.Name) { // an adopted one's start is not known
			adoptedOnly = append(adoptedOnly, a.Name)
		}
	}
	full := load(t, "container")[0] // the first one's close
	full.Event.Reason, full.Sampling = connection.ResetByPeer, connection.SampledAt(0)
	// More than one connection can have: refused with an address of its own, and by policy and limit at once.
	decided := load(t, "mesh")[0]
	full.Event.Flags, full.Event.Decision, full.Identity.Decision = connection.Decided|connection.RefusedHere, decided.Event.Decision, decided.Identity.Decision
	full.Event.Decision.Limit = 1
	names := *full.Identity.Decision
	names.Limit = "service shop/cart"
	full.Identity.Decision = &names
	adopted := full
	adopted.Event.Flags |= connection.Adopted | connection.AdoptedOpen
	adopted.Event.ConnectNS = 0
	for _, test := range []struct {
		record *enrich.Record
		want   []string
	}{{&full, all}, {&adopted, adoptedOnly}} {
		var got recorder
		attribute.Connection(test.record, &got)
		if !slices.Equal(got, test.want) {
			t.Errorf("got  %v\nwant %v", got, test.want)
		}
	}
}

func TestEnumsAreThoseOfTheCode(t *testing.T) {
	var reasons, failures []string
	for _, r := range fixture.Reasons() {
		reasons = append(reasons, r.String())
		if r != connection.OK {
			failures = append(failures, r.String())
		}
	}
	roles := []string{connection.Client.String(), connection.Server.String()}
	verdicts := []string{connection.VerdictAllow.String(), connection.VerdictDeny.String(), connection.VerdictUnattended.String()}
	want := map[string][]string{
		"sidelight.reason": reasons, "error.type": failures, "sidelight.role": roles, "reason": reasons, "role": roles,
		"sidelight.verdict": verdicts, "sidelight.dry_run.verdict": verdicts,
	}
	table := readTable(t)
	check := func(name string, enum []string) {
		if want[name] != nil && !slices.Equal(enum, want[name]) {
			t.Errorf("%s: enum %v, want %v", name, enum, want[name])
		}
		delete(want, name)
	}
	for _, a := range table.LogAttributes {
		check(a.Name, a.Enum)
	}
	for _, a := range table.MetricAttributes {
		check(a.Name, a.Enum)
	}
	for name := range want {
		t.Errorf("%s: not in the table", name)
	}
}

func TestResourceAttributesAreThoseOfTheTable(t *testing.T) {
	table := readTable(t)
	signals := make(map[string]*usage)
	for _, signal := range []string{"logs", "traces", "metrics"} {
		signals[signal] = newUsage(t, "resource of "+signal, metadata.Of(table.ResourceAttributes, signal))
	}
	known := testSettings()
	unknown := known
	unknown.HostName = ""
	for _, settings := range []*Settings{&known, &unknown} {
		for name, c := range allCases(t) {
			batches := [][]enrich.Record{c.Finished}
			for _, r := range newLogs(settings, batches).ResourceLogs().All() {
				signals["logs"].see(name, r.Resource().Attributes())
				checkScope(t, table, r.ScopeLogs().At(0).Scope())
			}
			for _, r := range newTraces(settings, batches).ResourceSpans().All() {
				signals["traces"].see(name, r.Resource().Attributes())
				checkScope(t, table, r.ScopeSpans().At(0).Scope())
			}
			for _, r := range newMetrics(settings, snapshotOf(c), fixture.Now).ResourceMetrics().All() {
				signals["metrics"].see(name, sorted(r.Resource().Attributes(), signals["metrics"].attributes))
				checkScope(t, table, r.ScopeMetrics().At(0).Scope())
			}
		}
	}
	for _, u := range signals {
		u.done()
	}
}

// sorted puts what the table has into its order, where the order is nobody's business.
func sorted(got pcommon.Map, attributes []metadata.Attribute) pcommon.Map {
	out := pcommon.NewMap()
	for _, a := range attributes {
		if v, ok := got.Get(a.Name); ok {
			v.CopyTo(out.PutEmpty(a.Name))
		}
	}
	for name, v := range got.All() {
		if _, ok := out.Get(name); !ok {
			v.CopyTo(out.PutEmpty(name))
		}
	}
	return out
}

func checkScope(t *testing.T, table *metadata.Table, scope pcommon.InstrumentationScope) {
	t.Helper()
	if scope.Name() != table.Scope {
		t.Errorf("scope %q, want %q", scope.Name(), table.Scope)
	}
}

func TestSpansAreThoseOfTheTable(t *testing.T) {
	table := readTable(t)
	settings := testSettings()
	seen := make(map[string]bool)
	for name, c := range allCases(t) {
		for _, r := range newTraces(&settings, [][]enrich.Record{c.Finished}).ResourceSpans().All() {
			for _, span := range r.ScopeSpans().At(0).Spans().All() {
				i := slices.IndexFunc(table.Spans, func(s metadata.Span) bool { return s.Name == span.Name() })
				if i < 0 || table.Spans[i].Kind != strings.ToLower(span.Kind().String()) {
					t.Fatalf("%s: span %q of kind %v is not in the table", name, span.Name(), span.Kind())
				}
				seen[span.Name()] = true
				for _, event := range eventNames(span) {
					if !slices.Contains(table.Spans[i].Events, event) {
						t.Errorf("%s: span %q has the event %q, which is not in the table", name, span.Name(), event)
					}
					seen[span.Name()+" "+event] = true
				}
			}
		}
	}
	for _, span := range table.Spans {
		for _, event := range span.Events {
			if !seen[span.Name+" "+event] {
				t.Errorf("span %q with the event %q is in the table and nowhere else", span.Name, event)
			}
		}
	}
	var events []string
	for _, e := range table.SpanEvents {
		events = append(events, e.Name)
	}
	var kinds []string
	for _, k := range connection.Kinds() {
		kinds = append(kinds, k.String())
	}
	if !slices.Equal(events, kinds) {
		t.Errorf("span_events %v, want %v", events, kinds)
	}
}

func TestComponentIsThatOfTheTable(t *testing.T) {
	table := readTable(t)
	factory := NewFactory()
	if factory.Type().String() != table.Type || table.Status.Class != "receiver" {
		t.Errorf("type %q of class %q, want %q", table.Type, table.Status.Class, factory.Type())
	}
	got := map[string]component.StabilityLevel{
		"metrics": factory.MetricsStability(), "logs": factory.LogsStability(), "traces": factory.TracesStability(),
	}
	want := make(map[string]component.StabilityLevel)
	for level, signals := range table.Status.Stability {
		for _, signal := range signals {
			var l component.StabilityLevel
			if err := l.UnmarshalText([]byte(level)); err != nil {
				t.Error(err)
			}
			want[signal] = l
		}
	}
	for signal := range got {
		if got[signal] != want[signal] {
			t.Errorf("stability of %s is %v, the table says %v", signal, got[signal], want[signal])
		}
	}
}
