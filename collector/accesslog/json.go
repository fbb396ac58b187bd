package accesslog

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/attribute"
)

// line builds one JSON object; it is an attribute.Sink. Names are constants of ours and need no escaping.
type line struct{ buf []byte }

func (l *line) String(name, value string) {
	l.name(name)
	l.buf = appendString(l.buf, value)
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

// timestamp always has nine digits of fraction, so that lines sort as text.
const timestamp = "2006-01-02T15:04:05.000000000Z07:00"

// AppendLine appends the access log line of a finished connection, with its newline.
func AppendLine(buf []byte, boot attribute.Boot, r *enrich.Record) []byte {
	e := &r.Event
	trace := e.Trace()
	l := line{append(buf, '{')}
	l.String("timestamp", time.Unix(0, r.Clock.WallNS(e.Key.StartNS)).UTC().Format(timestamp))
	l.String("event.name", attribute.EventName)
	l.String("log.record.uid", boot.UID(e.Key))
	span := trace.Span(e.Role)
	l.String("trace_id", hex(trace.ID[:]))
	l.String("span_id", hex(span[:]))
	attribute.Connection(r, &l)
	return append(l.buf, '}', '\n')
}

const digits = "0123456789abcdef"

func hex(b []byte) string {
	out := make([]byte, 0, 32)
	for _, c := range b {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

// appendString appends a JSON string. Bytes that are no UTF-8 become U+FFFD: process and cgroup names come from the workloads.
func appendString(buf []byte, s string) []byte {
	buf = append(buf, '"')
	for _, r := range s {
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
	return append(buf, '"')
}
