package look

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

func qualified(namespace, name string) string {
	if namespace == "" {
		return printable(name)
	}
	return printable(namespace + "/" + name)
}

// Lines are the table of a report, with its head. A width of 0 is any.
func (r *Report) Lines(paint Paint, width int) []string {
	services := slices.ContainsFunc(r.Edges, func(e Row) bool { return e.Service != "" })
	columns := []column{{name: "ROLE"}, {name: "LOCAL", least: 9}, {name: "PEER", least: 9}}
	if services {
		columns = append(columns, column{name: "SERVICE", least: 9})
	}
	// What matters most comes first: a narrow terminal has no room for all of them.
	columns = append(columns, []column{
		{name: "CONN/S", right: true},
		{name: "OPEN", right: true},
		{name: "NOT OK/S", right: true},
		{name: "CONNECT P50", right: true},
		{name: "P99", right: true},
		{name: "1ST BYTE P99", right: true},
		{name: "SENT/S", right: true},
		{name: "RECEIVED/S", right: true},
		{name: "NET"},
		{name: "REASONS", tail: true},
	}...)
	rows := make([][]cell, 0, len(r.Edges))
	for i := range r.Edges {
		e := &r.Edges[i]
		row := []cell{plain(e.Role), plain(qualified(e.LocalNamespace, e.LocalWorkload)), plain(qualified(e.PeerNamespace, e.PeerWorkload))}
		if services {
			row = append(row, plain(qualified(e.ServiceNamespace, e.Service)))
		}
		open := fmt.Sprint(e.Open)
		if e.Connecting > 0 {
			open += fmt.Sprintf("+%d", e.Connecting)
		}
		failed := Plain
		if e.Interval.NotOK > 0 {
			failed = Bad
		}
		rows = append(rows, append(row, plain(rate(e.PerSecond.Begun)), plain(open), cell{rate(e.PerSecond.NotOK), failed},
			plain(seconds(e.Latency.ConnectP50)), plain(seconds(e.Latency.ConnectP99)), plain(seconds(e.Latency.FirstByteP99)),
			plain(bytes(e.PerSecond.SentBytes)), plain(bytes(e.PerSecond.ReceivedBytes)), plain(strings.TrimPrefix(e.NetworkType, "ip")),
			cell{reasons(e.Reasons), failed}))
	}
	return table(paint, columns, rows, width)
}

// reasons are in the order of their number.
func reasons(of map[string]uint64) string {
	names := slices.Sorted(maps.Keys(of))
	slices.SortStableFunc(names, func(a, b string) int {
		switch {
		case of[a] > of[b]:
			return -1
		case of[a] < of[b]:
			return 1
		}
		return 0
	})
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%d", name, of[name])
	}
	return b.String()
}

// Summary is a line of all edges that are shown.
func (r *Report) Summary() string {
	var sum Rates
	var open int64
	for i := range r.Edges {
		e := &r.Edges[i]
		open += e.Open
		sum.Begun += e.PerSecond.Begun
		sum.NotOK += e.PerSecond.NotOK
		sum.SentBytes += e.PerSecond.SentBytes
		sum.ReceivedBytes += e.PerSecond.ReceivedBytes
	}
	s := fmt.Sprintf("%s  %d edges  %s connections/s  %d open  %s/s sent  %s/s received  %s/s not ok", r.At.Local().Format("15:04:05"), len(r.Edges),
		rate(sum.Begun), open, bytes(sum.SentBytes), bytes(sum.ReceivedBytes), rate(sum.NotOK))
	if r.Rung != "" && r.Rung != "full" {
		s += "  over budget: " + r.Rung
	}
	return s
}
