package demo

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// meshLines are of each list.
const meshLines = 5

// MeshView is what the terminal shows of a mesh.
type MeshView struct {
	View
	Report MeshReport
}

// Write prints the whole page.
func (v *MeshView) Write(out io.Writer) {
	fmt.Fprintf(out, "Sidelight demo of a mesh: clients and endpoints in cgroups and network namespaces of their own. Metrics: http://%s/metrics", v.Metrics)
	if v.Left > 0 {
		v.writeLeft(out)
	}
	fmt.Fprint(out, "\n\nSERVICES, from the kernel's maps\n")
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  SERVICE\tENDPOINT\tSHARE\tPICKS\tOVER IPV6\tOPEN\tFAILED\tEJECTIONS\tPICKS WHILE OUT")
	for _, e := range v.Report.Endpoints {
		fmt.Fprintf(table, "  %s\t%s\t%.0f %%\t%d\t%d\t%d\t%d\t%d\t%d\n", e.Service, e.Endpoint, 100*e.Share, e.Picks, e.PicksIPv6, e.Open, e.Failed,
			e.Ejections, e.PicksOut)
	}
	fmt.Fprintln(table, "\nPOLICIES, from the OTLP log records that arrived\n  POLICY\tRULE\tVERDICT\tCONNECTS")
	for _, p := range v.Report.Policies {
		rule := fmt.Sprint(p.Rule)
		if p.Policy == "" {
			p.Policy, rule = "none matches", "-"
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%d\n", p.Policy, rule, p.Verdict, p.Records)
	}
	fmt.Fprintln(table, "\nLIMITS, from the kernel's maps\n  OF\tMOST\tOPEN\tMOST SEEN\tREFUSED")
	for _, l := range v.Report.Limits {
		fmt.Fprintf(table, "  %s\t%d\t%d\t%d\t%d\n", l.Limit, l.Bound, l.Open, l.MostOpen, l.Rejected)
	}
	fmt.Fprintln(table, "\nOUT OF SERVICE AND BACK, from the agent's log")
	steps := v.Report.Steps
	for _, s := range steps[max(0, len(steps)-meshLines):] {
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\n", s.At.UTC().Format("15:04:05.000000"), s.What, s.Endpoint, s.Cause, until(s))
	}
	fmt.Fprintln(table, "\nREFUSED BY THE MESH, the latest of the OTLP log records that arrived")
	refusals := v.Received.Refusals
	for i := max(0, len(refusals)-meshLines); i < len(refusals); i++ {
		writeRefusal(table, &refusals[i])
	}
	table.Flush()
	fmt.Fprint(out, "\nACCOUNT\n")
	v.writeAccount(out)
	fmt.Fprintf(out, "  mesh       %d of the failed were refused by it before their SYN\n", v.Account.Kernel.Refused["client"])
	if len(v.Report.Seen) > 0 {
		fmt.Fprint(out, "\nSEEN\n")
	}
	for _, s := range v.Report.Seen {
		said := "yes"
		if !s.OK {
			said = "NO"
		}
		fmt.Fprintf(out, "  %-3s  %-16s  %s\n", said, s.What, strings.ReplaceAll(s.Text, "; ", "\n"+strings.Repeat(" ", 2+3+2+16+2)))
	}
}

func until(s Step) string {
	if s.Until.IsZero() {
		return ""
	}
	return "for " + s.Until.Sub(s.At).Round(10*time.Millisecond).String()
}

func writeRefusal(out io.Writer, l *Line) {
	a := l.Attributes
	why := ""
	if policy, ok := a["sidelight.policy"]; ok {
		why = fmt.Sprintf("policy %v, rule %v", policy, a["sidelight.policy.rule"])
	}
	if limit, ok := a["sidelight.limit"]; ok {
		why = fmt.Sprintf("limit of %v, %v", limit, a["sidelight.limit.value"])
	}
	ns, _ := a["sidelight.decision_ns"].(int64)
	fmt.Fprintf(out, "  %s\t%s\t%v\t%v\t%v\t%s\tdecided in %v\n", l.At.AsTime().Format("15:04:05.000000"), l.Workload, a["sidelight.original_destination"],
		a["sidelight.service"], a["sidelight.reason"], why, time.Duration(ns))
}
