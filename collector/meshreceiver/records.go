package meshreceiver

import (
	"net/netip"
	"sync"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
)

// scopeName is the instrumentation scope of everything that comes from here.
const scopeName = "github.com/sidelight-mesh/sidelight/collector/meshreceiver"

// attributes is an attribute.Sink. It keeps texts that come again, which most do, so that pdata holds the same string in many records.
type attributes struct {
	to        pcommon.Map
	arena     arena
	addresses map[netip.Addr]string
	prefixed  map[string]string // by what follows the prefix, which is always the same
	// The two ends of a connection, which are asked for twice.
	last [2]struct {
		addr netip.Addr
		text string
	}
	turn int
}

// mostTexts bounds each of the texts that are kept: peers and cgroups come and go.
const mostTexts = 4096

// sinks are kept from one batch to the next.
var sinks = sync.Pool{New: func() any {
	a := &attributes{addresses: make(map[netip.Addr]string), prefixed: make(map[string]string)}
	for i := range a.last {
		a.last[i].text = a.last[i].addr.String() // of the zero address
	}
	return a
}}

func (a *attributes) release() {
	a.to, a.arena = pcommon.Map{}, arena{} // what is left of it would keep the batch
	sinks.Put(a)
}

func (a *attributes) begin(to pcommon.Map, attributes int) {
	a.to = to
	a.arena.begin(to, attributes)
}

func (a *attributes) String(name, value string)    { a.arena.putStr(a.to, name, value) }
func (a *attributes) Int(name string, value int64) { a.arena.putInt(a.to, name, value) }
func (a *attributes) Bool(name string, value bool) { a.to.PutBool(name, value) }

// Double implements attribute.Sink.
func (a *attributes) Double(name string, value float64) { a.to.PutDouble(name, value) }

func (a *attributes) Prefixed(name, prefix, value string) {
	text, ok := a.prefixed[value]
	if !ok {
		text = prefix + value
		remember(a.prefixed, value, text)
	}
	a.String(name, text)
}

// Qualified implements attribute.Sink. Unlike a prefix, a namespace may be any.
func (a *attributes) Qualified(name, namespace, value string) {
	a.String(name, a.arena.text(len(namespace)+1+len(value), func(buf []byte) []byte {
		return append(append(append(buf, namespace...), '/'), value...)
	}))
}

func (a *attributes) Address(name string, addr netip.Addr) { a.String(name, a.address(addr)) }

// mostAddrPort is the length of the longest: IPv6, in brackets, and a port.
const mostAddrPort = 2 + 39 + 1 + 5

// AddrPort implements attribute.Sink.
func (a *attributes) AddrPort(name string, value netip.AddrPort) {
	a.String(name, a.arena.text(mostAddrPort, value.AppendTo))
}

func (a *attributes) address(addr netip.Addr) string {
	for i := range a.last {
		if a.last[i].addr == addr {
			return a.last[i].text
		}
	}
	text, ok := a.addresses[addr]
	if !ok {
		text = addr.String()
		remember(a.addresses, addr, text)
	}
	last := &a.last[a.turn%len(a.last)]
	last.addr, last.text = addr, text
	a.turn++
	return text
}

func remember[K comparable](texts map[K]string, key K, text string) {
	if len(texts) >= mostTexts {
		clear(texts)
	}
	texts[key] = text
}

// attributesOf is about how many attributes a connection has, and seldom too few.
func attributesOf(r *enrich.Record) int {
	n := 27
	if r.Event.Reason != connection.OK {
		n++
	}
	if r.Identity.Local.ContainerID != "" {
		n++
	}
	if r.Identity.Local.PodUID != "" {
		n++
	}
	if r.Event.Flags&connection.Decided != 0 {
		n += 7 // what is there of a refusal only, stands for what a refusal lacks
		if r.Event.Decision.DryVerdict != connection.VerdictNone {
			n += 3
		}
	}
	return n
}

// byWorkload finds or makes the scope of a workload's records: the workload is the resource.
type byWorkload[S any] struct {
	scopes map[*enrich.Workload]S
	create func() (pcommon.Resource, S)
	host   string
}

func (b *byWorkload[S]) scope(w *enrich.Workload) S {
	scope, ok := b.scopes[w]
	if !ok {
		var resource pcommon.Resource
		resource, scope = b.create()
		workloadResource(resource.Attributes(), w, b.host)
		b.scopes[w] = scope
	}
	return scope
}

func workloadResource(to pcommon.Map, w *enrich.Workload, host string) {
	to.PutStr("service.name", w.Name)
	if w.Namespace != "" {
		to.PutStr("service.namespace", w.Namespace)
	}
	if host != "" {
		to.PutStr("host.name", host)
	}
	if w.ContainerID != "" {
		to.PutStr("container.id", w.ContainerID)
	}
	if w.PodUID != "" {
		to.PutStr("k8s.pod.uid", w.PodUID)
	}
}

// eachRecord calls f for each record.
func eachRecord(batches [][]enrich.Record, f func(*enrich.Record)) {
	for _, batch := range batches {
		for i := range batch {
			f(&batch[i])
		}
	}
}

func timestamp(r *enrich.Record, monotonicNS uint64) pcommon.Timestamp {
	return pcommon.Timestamp(r.Clock.WallNS(monotonicNS))
}

// newLogs makes the access log: one log record for each record of a connection that ended.
func newLogs(settings *Settings, batches [][]enrich.Record) plog.Logs {
	logs := plog.NewLogs()
	to := byWorkload[plog.ScopeLogs]{
		scopes: make(map[*enrich.Workload]plog.ScopeLogs), host: settings.HostName,
		create: func() (pcommon.Resource, plog.ScopeLogs) {
			r := logs.ResourceLogs().AppendEmpty()
			scope := r.ScopeLogs().AppendEmpty()
			scope.Scope().SetName(scopeName)
			return r.Resource(), scope
		},
	}
	sink := sinks.Get().(*attributes)
	defer sink.release()
	eachRecord(batches, func(r *enrich.Record) {
		e := &r.Event
		trace := e.Trace()
		log := to.scope(r.Identity.Local).LogRecords().AppendEmpty()
		log.SetTimestamp(timestamp(r, e.Key.StartNS))
		log.SetObservedTimestamp(timestamp(r, e.EventNS))
		log.SetEventName(attribute.EventName)
		log.SetTraceID(pcommon.TraceID(trace.ID))
		log.SetSpanID(pcommon.SpanID(trace.Span(e.Role)))
		log.SetFlags(plog.DefaultLogRecordFlags.WithIsSampled(true))
		severity := plog.SeverityNumberInfo
		if e.Reason != connection.OK {
			severity = plog.SeverityNumberWarn
		}
		log.SetSeverityNumber(severity)
		log.SetSeverityText(severity.String())
		sink.begin(log.Attributes(), attributesOf(r))
		sink.String("log.record.uid", sink.arena.text(attribute.MostUID, func(buf []byte) []byte { return settings.Boot.AppendUID(buf, e.Key) }))
		attribute.Connection(r, sink)
	})
	return logs
}

// newTraces makes a span of each record of a connection that ended.
func newTraces(settings *Settings, batches [][]enrich.Record) ptrace.Traces {
	traces := ptrace.NewTraces()
	to := byWorkload[ptrace.ScopeSpans]{
		scopes: make(map[*enrich.Workload]ptrace.ScopeSpans), host: settings.HostName,
		create: func() (pcommon.Resource, ptrace.ScopeSpans) {
			r := traces.ResourceSpans().AppendEmpty()
			scope := r.ScopeSpans().AppendEmpty()
			scope.Scope().SetName(scopeName)
			return r.Resource(), scope
		},
	}
	sink := sinks.Get().(*attributes)
	defer sink.release()
	eachRecord(batches, func(r *enrich.Record) {
		fillSpan(to.scope(r.Identity.Local).Spans().AppendEmpty(), r, sink)
	})
	return traces
}

// sampled is the W3C trace flag.
const sampled = 1

func fillSpan(span ptrace.Span, r *enrich.Record, sink *attributes) {
	e := &r.Event
	trace := e.Trace()
	span.SetTraceID(pcommon.TraceID(trace.ID))
	span.SetSpanID(pcommon.SpanID(trace.Span(e.Role)))
	span.SetFlags(sampled)
	switch e.Role {
	case connection.Client:
		span.SetName("tcp connect")
		span.SetKind(ptrace.SpanKindClient)
	case connection.Server:
		span.SetName("tcp accept")
		span.SetKind(ptrace.SpanKindServer)
		// A parent that nobody reports would make the trace look broken. Who put its id into the SYN has an agent that follows it, and mostly reports it.
		if r.ClientSeen || e.Flags&connection.TraceTold != 0 {
			span.SetParentSpanID(pcommon.SpanID(trace.ClientSpan))
		}
	}
	span.SetStartTimestamp(timestamp(r, e.Key.StartNS))
	span.SetEndTimestamp(timestamp(r, e.EventNS))
	if e.Reason != connection.OK {
		span.Status().SetCode(ptrace.StatusCodeError)
		span.Status().SetMessage(e.Reason.String())
	}
	sink.begin(span.Attributes(), attributesOf(r)-1) // no log.record.uid
	attribute.Connection(r, sink)
	span.Events().EnsureCapacity(3)
	event := func(kind connection.Kind, at uint64) {
		if at != 0 {
			e := span.Events().AppendEmpty()
			e.SetName(kind.String())
			e.SetTimestamp(timestamp(r, at))
		}
	}
	event(connection.PreConnect, e.ConnectNS)
	event(connection.Established, e.EstablishedNS)
	event(connection.Close, e.EventNS)
}
