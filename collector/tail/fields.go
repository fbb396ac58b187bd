package tail

import (
	"net/netip"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
	"github.com/sidelight-mesh/sidelight/collector/filter"
)

// Fields are those that a filter can ask for: all of a line of the access log but its timestamp, and the names of both ends, which are those of
// the metrics' labels.
func Fields() []filter.Field { return fields }

var fields = []filter.Field{
	{Name: "local.workload"},
	{Name: "local.namespace"},
	{Name: "peer.workload"},
	{Name: "peer.namespace"},
	{Name: "log.record.uid", Short: []string{"uid"}},
	{Name: "trace_id"},
	{Name: "span_id"},
	{Name: "network.transport", Values: []string{"tcp"}},
	{Name: "network.type", Short: []string{"type"}, Values: []string{"ipv4", "ipv6"}},
	{Name: "network.local.address", Short: []string{"local.address"}, Type: filter.Address},
	{Name: "network.local.port", Short: []string{"local.port"}, Type: filter.Number},
	{Name: "network.peer.address", Short: []string{"peer.address"}, Type: filter.Address},
	{Name: "network.peer.port", Short: []string{"peer.port"}, Type: filter.Number},
	{Name: "client.address", Type: filter.Address},
	{Name: "client.port", Type: filter.Number},
	{Name: "server.address", Type: filter.Address},
	{Name: "server.port", Short: []string{"port"}, Type: filter.Number},
	{Name: "sidelight.role", Short: []string{"role"}, Values: []string{connection.Client.String(), connection.Server.String()}},
	{Name: "sidelight.reason", Short: []string{"reason"}, Values: reasons()},
	{Name: "error.type", Short: []string{"error"}, Values: reasons()[1:]},
	{Name: "sidelight.adopted", Short: []string{"adopted"}, Type: filter.Bool},
	{Name: "sidelight.duration_ns", Short: []string{"duration"}, Type: filter.Number, Unit: filter.Nanoseconds},
	{Name: "sidelight.connect_ns", Short: []string{"connect"}, Type: filter.Number, Unit: filter.Nanoseconds},
	{Name: "sidelight.decision_ns", Short: []string{"decision"}, Type: filter.Number, Unit: filter.Nanoseconds},
	{Name: "sidelight.first_sent_ns", Short: []string{"first_sent"}, Type: filter.Number, Unit: filter.Nanoseconds},
	{Name: "sidelight.first_received_ns", Short: []string{"first_received"}, Type: filter.Number, Unit: filter.Nanoseconds},
	{Name: "sidelight.sent_bytes", Short: []string{"sent"}, Type: filter.Number, Unit: filter.Bytes},
	{Name: "sidelight.received_bytes", Short: []string{"received"}, Type: filter.Number, Unit: filter.Bytes},
	{Name: "sidelight.retransmits", Short: []string{"retransmits"}, Type: filter.Number},
	{Name: "sidelight.syn_retransmits", Short: []string{"syn_retransmits"}, Type: filter.Number},
	{Name: "sidelight.rtt_us", Short: []string{"rtt"}, Type: filter.Number, Unit: filter.Microseconds},
	{Name: "sidelight.min_rtt_us", Short: []string{"min_rtt"}, Type: filter.Number, Unit: filter.Microseconds},
	{Name: "sidelight.sampling_probability", Short: []string{"probability"}, Type: filter.Number},
	{Name: "process.pid", Short: []string{"pid"}, Type: filter.Number},
	{Name: "process.executable.name", Short: []string{"exe"}},
	{Name: "process.linux.cgroup", Short: []string{"cgroup"}},
	{Name: "container.id", Short: []string{"container"}},
	{Name: "k8s.pod.uid", Short: []string{"pod.uid"}},
	{Name: "sidelight.original_destination", Short: []string{"dialled"}},
	{Name: "sidelight.service", Short: []string{"service"}},
	{Name: "sidelight.backend", Short: []string{"backend"}},
	{Name: "sidelight.verdict", Short: []string{"verdict"}, Values: verdicts()},
	{Name: "sidelight.policy", Short: []string{"policy"}},
	{Name: "sidelight.policy.rule", Short: []string{"policy.rule"}, Type: filter.Number},
	{Name: "sidelight.config_generation", Short: []string{"generation"}, Type: filter.Number},
	{Name: "sidelight.dry_run.verdict", Short: []string{"dry_run.verdict"}, Values: verdicts()},
	{Name: "sidelight.dry_run.policy", Short: []string{"dry_run.policy"}},
	{Name: "sidelight.dry_run.policy.rule", Short: []string{"dry_run.policy.rule"}, Type: filter.Number},
	{Name: "sidelight.limit", Short: []string{"limit"}},
	{Name: "sidelight.limit.value", Short: []string{"limit.value"}, Type: filter.Number},
	{Name: "sidelight.refused_by_mesh", Short: []string{"refused_by_mesh"}, Type: filter.Bool},
}

func reasons() []string {
	var all []string
	for r := range connection.ReasonCount {
		all = append(all, r.String())
	}
	return all
}

func verdicts() []string {
	return []string{connection.VerdictAllow.String(), connection.VerdictDeny.String(), connection.VerdictUnattended.String()}
}

// matcher evaluates a filter over records. It is an attribute.Sink that keeps what the filter asks for; not safe for concurrent use.
type matcher struct {
	expression *filter.Expression
	slots      map[string]int // by the field's name
	values     []filter.Value
	boot       attribute.Boot
}

func newMatcher(e *filter.Expression, boot attribute.Boot) *matcher {
	m := &matcher{expression: e, slots: make(map[string]int), boot: boot}
	for slot, field := range e.Uses() {
		m.slots[fields[field].Name] = slot
	}
	m.values = make([]filter.Value, len(m.slots))
	return m
}

func (m *matcher) match(r *enrich.Record) bool {
	clear(m.values)
	attribute.Names(&r.Identity, m)
	if m.wants("log.record.uid") {
		m.String("log.record.uid", m.boot.UID(r.Event.Key))
	}
	if m.wants("trace_id") || m.wants("span_id") {
		trace := r.Event.Trace()
		span := trace.Span(r.Event.Role)
		m.String("trace_id", hexadecimal(trace.ID[:]))
		m.String("span_id", hexadecimal(span[:]))
	}
	attribute.Connection(r, m)
	return m.expression.Match(m.values)
}

func (m *matcher) wants(name string) bool {
	_, wanted := m.slots[name]
	return wanted
}

// put returns where a value goes, if it is wanted.
func (m *matcher) put(name string) (*filter.Value, bool) {
	slot, wanted := m.slots[name]
	if !wanted {
		return nil, false
	}
	m.values[slot].There = true
	return &m.values[slot], true
}

func (m *matcher) String(name, value string) {
	if v, wanted := m.put(name); wanted {
		v.Text = value
	}
}

func (m *matcher) Prefixed(name, prefix, value string) {
	if v, wanted := m.put(name); wanted {
		v.Text = prefix + value
	}
}

func (m *matcher) Qualified(name, namespace, value string) {
	if v, wanted := m.put(name); wanted {
		v.Text = namespace + "/" + value
	}
}

func (m *matcher) Address(name string, value netip.Addr) {
	if v, wanted := m.put(name); wanted {
		v.Address = value
	}
}

func (m *matcher) AddrPort(name string, value netip.AddrPort) {
	if v, wanted := m.put(name); wanted {
		v.Text = value.String()
	}
}

func (m *matcher) Int(name string, value int64) {
	if v, wanted := m.put(name); wanted {
		v.Number = float64(value)
	}
}

func (m *matcher) Bool(name string, value bool) {
	if v, wanted := m.put(name); wanted {
		v.Bool = value
	}
}

func (m *matcher) Double(name string, value float64) {
	if v, wanted := m.put(name); wanted {
		v.Number = value
	}
}
