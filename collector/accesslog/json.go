package accesslog

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
)

// line builds JSON objects, one to a line; it is an attribute.Sink. Names are constants of ours and need no escaping.
type line struct{ buf []byte }

func (l *line) String(name, value string) {
	l.name(name)
	l.buf = appendString(l.buf, value)
}

func (l *line) Prefixed(name, prefix, value string) {
	l.name(name)
	l.buf = append(append(l.buf, '"'), prefix...) // one of ours
	l.buf = append(appendEscaped(l.buf, value), '"')
}

func (l *line) Qualified(name, namespace, value string) {
	l.name(name)
	l.buf = append(appendEscaped(append(l.buf, '"'), namespace), '/')
	l.buf = append(appendEscaped(l.buf, value), '"')
}

func (l *line) Address(name string, value netip.Addr) {
	l.name(name)
	l.buf = append(value.AppendTo(append(l.buf, '"')), '"') // addresses of the kernel: no zone that would need escaping
}

func (l *line) AddrPort(name string, value netip.AddrPort) {
	l.name(name)
	l.buf = append(value.AppendTo(append(l.buf, '"')), '"')
}

func (l *line) Bool(name string, value bool) {
	l.name(name)
	l.buf = strconv.AppendBool(l.buf, value)
}

func (l *line) Int(name string, value int64) {
	l.name(name)
	l.buf = strconv.AppendInt(l.buf, value, 10)
}

func (l *line) Double(name string, value float64) {
	l.name(name)
	l.buf = strconv.AppendFloat(l.buf, value, 'g', -1, 64)
}

func (l *line) name(name string) {
	if l.buf[len(l.buf)-1] != '{' {
		l.buf = append(l.buf, ',')
	}
	l.buf = append(l.buf, '"')
	l.buf = append(l.buf, name...)
	l.buf = append(l.buf, '"', ':')
}

// appendTime appends a time in UTC. It always has nine digits of fraction, so that lines sort as text.
func appendTime(buf []byte, unixNS int64) []byte {
	t := time.Unix(0, unixNS).UTC()
	buf = t.AppendFormat(buf, time.RFC3339) // the layout that package time has a short way for
	fraction := t.Nanosecond()
	buf[len(buf)-1] = '.' // was Z
	for unit := 100_000_000; unit > 0; unit /= 10 {
		buf = append(buf, digits[fraction/unit%10])
	}
	return append(buf, 'Z')
}

// AppendLine appends the access log line of a finished connection, with its newline.
func AppendLine(buf []byte, boot attribute.Boot, r *enrich.Record) []byte {
	l := line{buf}
	l.append(boot, r)
	return l.buf
}

func (l *line) append(boot attribute.Boot, r *enrich.Record) {
	l.buf = append(l.buf, '{')
	e := &r.Event
	trace := e.Trace()
	span := trace.Span(e.Role)
	l.name("timestamp")
	l.buf = append(appendTime(append(l.buf, '"'), r.Clock.WallNS(e.Key.StartNS)), '"')
	l.String("event.name", attribute.EventName)
	l.name("log.record.uid")
	l.buf = append(boot.AppendUID(append(l.buf, '"'), e.Key), '"')
	l.hex("trace_id", trace.ID[:])
	l.hex("span_id", span[:])
	attribute.Connection(r, l)
	l.buf = append(l.buf, '}', '\n')
}

const digits = "0123456789abcdef"

func (l *line) hex(name string, b []byte) {
	l.name(name)
	l.buf = append(l.buf, '"')
	for _, c := range b {
		l.buf = append(l.buf, digits[c>>4], digits[c&15])
	}
	l.buf = append(l.buf, '"')
}

// appendString appends a JSON string. Bytes that are no UTF-8 become U+FFFD: process and cgroup names come from the workloads.
func appendString(buf []byte, s string) []byte {
	return append(appendEscaped(append(buf, '"'), s), '"')
}

func appendEscaped(buf []byte, s string) []byte {
	plain := 0
	for plain < len(s) && s[plain] >= 0x20 && s[plain] < 0x7f && s[plain] != '"' && s[plain] != '\\' {
		plain++
	}
	buf = append(buf, s[:plain]...)
	for _, r := range s[plain:] {
		switch {
		case r == '"' || r == '\\':
			buf = append(buf, '\\', byte(r))
		case r < 0x20 || r == 0x7f:
			buf = append(buf, `\u00`...)
			buf = append(buf, digits[r>>4], digits[r&15])
		default:
			buf = utf8.AppendRune(buf, r)
		}
	}
	return buf
}

// AppendNames puts the names of both ends, which are the labels of metrics, at the end of a line that AppendLine made. They are no part of the access log:
// they are for those who show it.
func AppendNames(buf []byte, r *enrich.Record) []byte {
	l := line{buf[:len(buf)-len("}\n")]}
	attribute.Names(&r.Identity, &l)
	return append(l.buf, '}', '\n')
}
