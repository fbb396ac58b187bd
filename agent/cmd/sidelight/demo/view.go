package demo

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/account"
)

// View is what the terminal shows.
type View struct {
	Received Received
	Account  account.Account
	Lines    uint64 // written to the access log file
	Metrics  string // where /metrics is
	State    string // directory of the control socket
	Left     time.Duration
}

// Write prints the whole page.
func (v *View) Write(out io.Writer) {
	fmt.Fprintf(out, "Sidelight demo: a client and its services in cgroups and network namespaces of their own. Metrics: http://%s/metrics", v.Metrics)
	if v.Left > 0 {
		v.writeLeft(out)
	}
	fmt.Fprint(out, "\n\nEDGES, from the OTLP metrics that arrived\n")
	v.writeEdges(out)
	fmt.Fprint(out, "\nACCESS LOG, the latest of the OTLP log records that arrived\n")
	v.writeLines(out)
	fmt.Fprint(out, "\nACCOUNT\n")
	v.writeAccount(out)
}

func (v *View) writeEdges(out io.Writer) {
	before := make(map[edgeKey]Edge)
	for _, e := range Edges(v.Received.Previous) {
		before[edgeKey{e.Role, e.Local, e.Peer, e.NetworkType}] = e
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  ROLE\tLOCAL\tPEER\tNET\tCONNS\tPER S\tOPEN\tCONNECT P50\tP99\tSENT\tRECEIVED\tNOT OK")
	for _, e := range Edges(v.Received.Metrics) {
		// Since the report before, or on the last page since the beginning.
		b, ok := before[edgeKey{e.Role, e.Local, e.Peer, e.NetworkType}]
		if v.Left <= 0 {
			b, ok = Edge{at: e.since}, true
		}
		rate := "-"
		if ok && e.at > b.at {
			rate = fmt.Sprintf("%.1f", float64(e.Total()-b.Total())/(float64(e.at-b.at)/1e9))
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", e.Role, e.Local, e.Peer, e.NetworkType, e.Total(), rate,
			e.Open+e.Connecting, seconds(e.ConnectP50), seconds(e.ConnectP99), bytes(e.SentBytes), bytes(e.ReceivedBytes), notOK(e))
	}
	table.Flush()
}

func notOK(e Edge) string {
	var parts []string
	for _, counts := range []map[string]int64{e.Failures, e.Closed} {
		for _, reason := range slices.Sorted(maps.Keys(counts)) {
			if reason != "ok" {
				parts = append(parts, fmt.Sprintf("%s=%d", reason, counts[reason]))
			}
		}
	}
	return strings.Join(parts, " ")
}

func seconds(s *float64) string {
	if s == nil {
		return "-"
	}
	d := time.Duration(*s * 1e9)
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

func bytes(n int64) string {
	switch {
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// writeLeft says how long it goes on, and how to look closer meanwhile.
func (v *View) writeLeft(out io.Writer) {
	fmt.Fprintf(out, "   %v left, Ctrl-C to stop\n", v.Left.Round(time.Second))
	fmt.Fprintf(out, "In another terminal, as root: ./bin/sidelight top --state-directory %s   (or tail, status, why)", v.State)
}

func (v *View) writeLines(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, l := range v.Received.Lines {
		a := l.Attributes
		connect := "-"
		if ns, ok := a["sidelight.connect_ns"].(int64); ok {
			connect = time.Duration(ns).Round(time.Microsecond).String()
		}
		duration, _ := a["sidelight.duration_ns"].(int64)
		fmt.Fprintf(table, "  %s\t%s\t%v\t%v:%v\t%v\tconnect %s\ttotal %v\tsent %v\treceived %v\tpid %v\n",
			l.At.AsTime().Format("15:04:05.000000"), l.Workload, a["sidelight.role"], a["network.peer.address"], a["network.peer.port"],
			a["sidelight.reason"], connect, time.Duration(duration).Round(time.Microsecond), a["sidelight.sent_bytes"],
			a["sidelight.received_bytes"], a["process.pid"])
	}
	table.Flush()
}

func (v *View) writeAccount(out io.Writer) {
	k := &v.Account.Kernel
	fmt.Fprintf(out, "  kernel     %d attempted = %d established + %d failed + %d connecting (clients);  %d established (servers)\n",
		k.Attempts, k.Established["client"], k.Failed, k.Attempts-k.Established["client"]-k.Failed, k.Established["server"])
	fmt.Fprintf(out, "  kernel     %d connections ended;  events lost for want of room: %d\n", Ended(&v.Account), lost(k))
	fmt.Fprintf(out, "  agent      %d close events read, %d access log lines written, unaccounted: %d\n",
		v.Account.User.Decoded["close"], v.Lines, v.Account.Unaccounted)
	fmt.Fprintf(out, "  over OTLP  %d log records, %d spans, %d data points\n", v.Received.Logs, v.Received.Spans, v.Received.DataPoints)
}

// Ended is how many connections the kernel saw end, and how many the mesh refused at the server's side, where nothing else counts them.
func Ended(a *account.Account) uint64 {
	return a.Kernel.Failed + a.Kernel.Closed["client"] + a.Kernel.Closed["server"] + a.Kernel.Refused["server"]
}

func lost(k *account.Kernel) uint64 {
	n := uint64(0)
	for _, of := range k.ReserveFailed {
		n += of
	}
	return n
}
