package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

const (
	stopSignal     = syscall.SIGSTOP
	continueSignal = syscall.SIGCONT
)

func (a *agent) signal(s syscall.Signal) {
	a.t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		a.t.Fatal(err)
	}
}

// edgeName is the labels of an edge.
type edgeName struct{ role, local, peer, network string }

// entry is one number that is known of an edge.
type entry struct {
	edge   edgeName
	what   string // attempts, established, failures, closed, open, connecting, sent, received, retransmits
	reason string // of failures and closed
}

// ledger is the form that every source of numbers is brought into. An entry that is 0 may be absent.
type ledger map[entry]int64

// line is what the numbers can be made of: one end of a connection, as a log line or a span has it.
type line struct {
	edge           edgeName
	reason         string
	established    bool
	sent, received int64
}

func (l ledger) addLine(x line) {
	if x.edge.role == "client" {
		l[entry{x.edge, "attempts", ""}]++
	}
	if x.established {
		l[entry{x.edge, "established", ""}]++
		l[entry{x.edge, "closed", x.reason}]++
	} else {
		l[entry{x.edge, "failures", x.reason}]++
	}
	l[entry{x.edge, "sent", ""}] += x.sent
	l[entry{x.edge, "received", ""}] += x.received
}

// sum adds up what all edges have of one thing.
func (l ledger) sum(what string) (sum int64) {
	for e, n := range l {
		if e.what == what {
			sum += n
		}
	}
	return sum
}

// sumOf adds up what all edges have for one reason.
func (l ledger) sumOf(what, reason string) (sum int64) {
	for e, n := range l {
		if e.what == what && e.reason == reason {
			sum += n
		}
	}
	return sum
}

// byRole leaves out all of an edge but its role.
func (l ledger) byRole() ledger {
	sums := make(ledger)
	for e, n := range l {
		sums[entry{edgeName{role: e.edge.role}, e.what, e.reason}] += n
	}
	return sums
}

// role is the part that has to do with one end.
func (l ledger) role(role string) ledger {
	kept := maps.Clone(l)
	maps.DeleteFunc(kept, func(e entry, _ int64) bool { return e.edge.role != role })
	return kept
}

// without leaves out retransmits, which a driver does not know beforehand.
func (l ledger) without(what string) ledger {
	kept := maps.Clone(l)
	maps.DeleteFunc(kept, func(e entry, _ int64) bool { return strings.HasSuffix(e.what, what) })
	return kept
}

// differ tells where a ledger says something else than another one.
func (l ledger) differ(want ledger) error {
	all := maps.Clone(want)
	maps.Copy(all, l)
	var faults []string
	for e := range all {
		if l[e] != want[e] {
			faults = append(faults, fmt.Sprintf("%v is %d, want %d", e, l[e], want[e]))
		}
	}
	if faults == nil {
		return nil
	}
	slices.Sort(faults)
	return fmt.Errorf("%d entries differ:\n%s", len(faults), strings.Join(faults[:min(len(faults), 20)], "\n"))
}

// metricNames are those of both ways, with dots.
var metricNames = map[string]string{
	"sidelight.tcp.connection.attempts":    "attempts",
	"sidelight.tcp.connection.established": "established",
	"sidelight.tcp.connection.failures":    "failures",
	"sidelight.tcp.connection.closed":      "closed",
	"sidelight.tcp.connection.open":        "open",
	"sidelight.tcp.connection.connecting":  "connecting",
	"sidelight.tcp.sent":                   "sent",
	"sidelight.tcp.received":               "received",
	"sidelight.tcp.retransmits":            "retransmits",
	"sidelight.tcp.syn.retransmits":        "syn_retransmits",
}

// scraped reads a ledger off the text of /metrics.
func scraped(t *testing.T, text string) ledger {
	t.Helper()
	l := make(ledger)
	for sample := range strings.SplitSeq(text, "\n") {
		name, rest, _ := strings.Cut(sample, "{")
		name = strings.TrimSuffix(strings.TrimSuffix(name, "_total"), "_bytes")
		what := metricNames[strings.ReplaceAll(name, "_", ".")]
		labels, value, ok := strings.Cut(rest, "} ")
		if what == "" || !ok {
			continue
		}
		label := make(map[string]string)
		for pair := range strings.SplitSeq(labels, ",") {
			key, quoted, _ := strings.Cut(pair, "=")
			label[key] = strings.Trim(quoted, `"`)
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%s: %v", sample, err)
		}
		e := entry{edgeName{label["role"], label["local_workload"], label["peer_workload"], label["network_type"]}, what, label["reason"]}
		if _, twice := l[e]; twice {
			t.Errorf("two samples of %v", e)
		}
		l[e] = int64(n)
	}
	return l
}

// peerNames are the peer groups of a configuration.
type peerNames []peerName

type peerName struct {
	Name  string         `json:"name"`
	CIDRs []netip.Prefix `json:"cidrs"`
}

func (p *peerNames) add(name string, cidrs ...string) {
	group := peerName{Name: name}
	for _, c := range cidrs {
		group.CIDRs = append(group.CIDRs, netip.MustParsePrefix(c))
	}
	*p = append(*p, group)
}

func (p peerNames) name(addr netip.Addr) string {
	for _, group := range p {
		for _, c := range group.CIDRs {
			if c.Contains(addr.Unmap()) {
				return group.Name
			}
		}
	}
	return "external"
}

// lineOf reads one end of a connection off its attributes, of a line, a log record or a span.
func (p peerNames) lineOf(t *testing.T, attributes map[string]any) line {
	t.Helper()
	text := func(name string) string { s, _ := attributes[name].(string); return s }
	peer, err := netip.ParseAddr(text("network.peer.address"))
	if err != nil {
		t.Fatalf("%v in %v", err, attributes)
	}
	l := line{
		edge:   edgeName{text("sidelight.role"), path.Base(text("process.linux.cgroup")), p.name(peer), text("network.type")},
		reason: text("sidelight.reason"), sent: attributeNumber(t, attributes, "sidelight.sent_bytes"), received: attributeNumber(t, attributes, "sidelight.received_bytes"),
	}
	switch l.reason { // those of a mix
	case "ok", "reset_by_local", "reset_by_peer":
		l.established = true
	}
	return l
}

// dropped reads what was lost in any stage but those that the kernel's sums make up for.
func dropped(metrics string) map[string]uint64 {
	found := make(map[string]uint64)
	for sample := range strings.SplitSeq(metrics, "\n") {
		name, value, _ := strings.Cut(sample, "} ")
		if strings.HasPrefix(name, "sidelight_dropped_total{") && !strings.Contains(name, `stage="ring"`) && !strings.Contains(name, `stage="storage"`) {
			found[name], _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return found
}

// number is an attribute of a log record, or of a line, where JSON has but one kind of number.
func attributeNumber(t *testing.T, attributes map[string]any, name string) int64 {
	t.Helper()
	switch n := attributes[name].(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	}
	t.Fatalf("no %s in %v", name, attributes)
	return 0
}

// attributes reads the access log, as it is so far.
func (a *agent) attributes() []map[string]any {
	a.t.Helper()
	return readLog[map[string]any](a.t, a.Access)
}

// mibs reads what the kernel of a namespace counts: "Tcp" and "TcpExt" before the name of a counter.
func mibs(t *testing.T, ns netns.NsHandle) map[string]uint64 {
	t.Helper()
	counters := make(map[string]uint64)
	if err := lab.In(ns, func() error {
		for _, file := range []string{"snmp", "netstat"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			rows := strings.Split(strings.TrimSpace(string(text)), "\n")
			for i := 0; i+1 < len(rows); i += 2 { // names, then values
				names, values := strings.Fields(rows[i]), strings.Fields(rows[i+1])
				for j := 1; j < len(names); j++ {
					n, err := strconv.ParseInt(values[j], 10, 64) // MaxConn is -1
					if err != nil {
						return err
					}
					counters[strings.TrimSuffix(names[0], ":")+names[j]] = uint64(n)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return counters
}

// differ tells which lines there are too many of, and, unless some may be lost, too few.
func differ(got, want map[line]int, lossy bool) error {
	var faults []string
	fault := func(l line) { faults = append(faults, fmt.Sprintf("%d of %+v, want %d", got[l], l, want[l])) }
	for l, n := range got {
		if n > want[l] || n < want[l] && !lossy {
			fault(l)
		}
	}
	for l := range want {
		if got[l] == 0 && !lossy {
			fault(l)
		}
	}
	if faults == nil {
		return nil
	}
	slices.SortFunc(faults, cmp.Compare)
	return fmt.Errorf("%d kinds of lines differ:\n%s", len(faults), strings.Join(faults[:min(len(faults), 20)], "\n"))
}
