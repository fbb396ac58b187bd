package look

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sidelight-mesh/sidelight/collector/tail"
)

// logLine is what is shown of a line of the access log.
type logLine struct {
	Event            string    `json:"event.name"`
	Lost             uint64    `json:"sidelight.lost"`
	Timestamp        time.Time `json:"timestamp"`
	Role             string    `json:"sidelight.role"`
	Reason           string    `json:"sidelight.reason"`
	Local            string    `json:"local.workload"`
	LocalNamespace   string    `json:"local.namespace"`
	Peer             string    `json:"peer.workload"`
	PeerNamespace    string    `json:"peer.namespace"`
	PeerAddress      string    `json:"network.peer.address"`
	PeerPort         int       `json:"network.peer.port"`
	Service          string    `json:"sidelight.service"`
	Backend          string    `json:"sidelight.backend"`
	Policy           string    `json:"sidelight.policy"`
	Rule             *int      `json:"sidelight.policy.rule"`
	Verdict          string    `json:"sidelight.verdict"`
	Limit            string    `json:"sidelight.limit"`
	DurationNS       *int64    `json:"sidelight.duration_ns"`
	ConnectNS        *int64    `json:"sidelight.connect_ns"`
	FirstReceivedNS  *int64    `json:"sidelight.first_received_ns"`
	SentBytes        uint64    `json:"sidelight.sent_bytes"`
	ReceivedBytes    uint64    `json:"sidelight.received_bytes"`
	Retransmits      uint64    `json:"sidelight.retransmits"`
	PID              int       `json:"process.pid"`
	Executable       string    `json:"process.executable.name"`
	SamplingOf       *float64  `json:"sidelight.sampling_probability"`
	OriginalDestined string    `json:"sidelight.original_destination"`
}

// LogText makes lines of the access log, with names of both ends, readable. Columns grow with what was in them, so that lines are below each other without
// one having to be known before.
type LogText struct {
	Paint  Paint
	widths [4]int
}

// mostWidth is how far a column grows.
const mostWidth = 40

func (l *LogText) pad(column int, text string) string {
	n := utf8.RuneCountInString(text)
	l.widths[column] = min(max(l.widths[column], n), mostWidth)
	return text + strings.Repeat(" ", max(0, l.widths[column]-n))
}

// Lost tells how many lines were lost.
func Lost(lines uint64) string {
	return fmt.Sprintf("%d lines lost here: they came faster than they were read", lines)
}

// Line makes one. What is no line of the log stays as it is.
func (l *LogText) Line(text []byte) string {
	var of logLine
	if err := json.Unmarshal(text, &of); err != nil || of.Event == "" {
		return printable(strings.TrimSpace(string(text)))
	}
	if of.Event == tail.LostEvent {
		return l.Paint.apply(Warn, "-- "+Lost(of.Lost))
	}
	style := Good
	if of.Reason != "ok" {
		style = Bad
	}
	fields := []string{
		l.Paint.apply(Faint, of.Timestamp.Local().Format("15:04:05.000000")),
		fmt.Sprintf("%-6s", printable(of.Role)),
		l.pad(0, qualified(of.LocalNamespace, of.Local)),
		l.pad(1, qualified(of.PeerNamespace, of.Peer)),
		l.pad(2, printable(net.JoinHostPort(of.PeerAddress, strconv.Itoa(of.PeerPort)))),
		l.Paint.apply(style, l.pad(3, printable(of.Reason))),
	}
	of.times(func(name, value string) { fields = append(fields, l.Paint.apply(Faint, name)+" "+value) })
	return strings.Join(fields, "  ")
}

// times are what is not the same in all lines, with their names.
func (of *logLine) times(add func(name, value string)) {
	for _, t := range []struct {
		name string
		ns   *int64
	}{{"connect", of.ConnectNS}, {"first byte", of.FirstReceivedNS}, {"total", of.DurationNS}} {
		if t.ns != nil {
			add(t.name, duration(time.Duration(*t.ns)))
		}
	}
	add("sent", bytes(float64(of.SentBytes)))
	add("received", bytes(float64(of.ReceivedBytes)))
	if of.Retransmits > 0 {
		add("retransmits", fmt.Sprint(of.Retransmits))
	}
	for _, s := range []struct{ name, value string }{
		{"service", of.Service}, {"backend", of.Backend}, {"dialled", of.OriginalDestined}, {"limit", of.Limit},
	} {
		if s.value != "" {
			add(s.name, printable(s.value))
		}
	}
	if of.Policy != "" {
		rule := ""
		if of.Rule != nil {
			rule = fmt.Sprintf(" rule %d", *of.Rule)
		}
		add(printable(of.Verdict)+" by", printable(of.Policy)+rule)
	}
	if of.SamplingOf != nil && *of.SamplingOf > 0 && *of.SamplingOf < 1 {
		add("stands for", fmt.Sprintf("%.0f", 1 / *of.SamplingOf))
	}
	if of.PID != 0 {
		process := fmt.Sprint(of.PID)
		if of.Executable != "" {
			process = fmt.Sprintf("%s[%d]", printable(of.Executable), of.PID)
		}
		add("process", process)
	}
}
