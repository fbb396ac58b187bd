package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/agent/status"
)

// whyPath is where the control socket explains.
const whyPath = "/why"

// whyAnswer is what "sidelight why" shows.
type whyAnswer struct {
	// Connection is the line of a past one, as it is in the access log.
	Connection json.RawMessage `json:"connection,omitempty"`
	// Now are what would become of it now: one for each address that was asked for.
	Now []*maps.Explanation `json:"now"`
	// NotNow says why there is nothing in Now.
	NotNow string `json:"not_now,omitempty"`
}

func whyCommand() *cobra.Command {
	var directory, from, to string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "why [CONNECTION | --from WHO --to WHERE]",
		Short: "Explain what the mesh decides of a connection, one that there was or one that there could be",
		Long: `Explain what the mesh decides of a connection: which service was dialled, which of its endpoints can be chosen and why the others cannot, which
policy and rule matches, and which limits stand against it. The answer comes from the maps that the kernel's programs read.

CONNECTION is the log.record.uid of a line of the access log: it is shown what was decided then, and what would be now.
WHO is a workload (NAMESPACE/NAME), a cgroup (/PATH below the root of cgroup v2), a process (pid:N) or an address.
WHERE is an address with a port, or a service (NAMESPACE/NAME or NAMESPACE/NAME:PORT).

The exit code is 0 if the connection may be made, and 1 if it would be refused.`,
		Example: `  sidelight why --from demo/web --to 10.96.0.1:80
  sidelight why --from pid:4711 --to demo/cart
  sidelight why 5f0c2d51a7c3e801-00000000000a2f1c`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{}
			switch {
			case len(args) == 1 && from == "" && to == "":
				query.Set("connection", args[0])
			case len(args) == 0 && to != "":
				query.Set("from", from)
				query.Set("to", to)
			default:
				return inputError{errors.New("say which connection: its log.record.uid, or --from WHO --to WHERE")}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			text, err := status.AskControl(ctx, filepath.Join(directory, controlSocket), whyPath+"?"+query.Encode())
			if err != nil {
				return inputError{err}
			}
			var answer whyAnswer
			if err := json.Unmarshal(text, &answer); err != nil {
				return inputError{fmt.Errorf("read the agent's answer: %w", err)}
			}
			if asJSON {
				_, err = cmd.OutOrStdout().Write(text)
			} else {
				err = printWhy(cmd.OutOrStdout(), &answer)
			}
			if err != nil {
				return err
			}
			for _, e := range answer.Now {
				if e.Outcome != "ok" && e.Outcome != "depends" {
					return fmt.Errorf("it would be refused: %s", e.Because)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "`WHO` connects; nothing: somebody that the mesh does not know")
	cmd.Flags().StringVar(&to, "to", "", "`WHERE` to")
	cmd.Flags().StringVar(&directory, "state-directory", config.Default().StateDirectory, "`DIR` of the agent")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printWhy tells it in the order in which it is decided.
func printWhy(out io.Writer, a *whyAnswer) error {
	if a.Connection != nil {
		if err := printPast(out, a.Connection); err != nil {
			return err
		}
	}
	for _, e := range a.Now {
		if err := printExplanation(out, e); err != nil {
			return err
		}
	}
	if a.NotNow != "" {
		_, err := fmt.Fprintln(out, a.NotNow)
		return err
	}
	return nil
}

// pastFields are those of a line that say what was decided, and by what.
var pastFields = []struct{ key, label string }{
	{"timestamp", "when"},
	{"sidelight.role", "seen by the"},
	{"sidelight.reason", "outcome"},
	{"client.address", "client"},
	{"process.executable.name", "process"},
	{"sidelight.local.workload", "workload"},
	{"sidelight.original_destination", "dialled"},
	{"sidelight.service", "service"},
	{"sidelight.backend", "endpoint"},
	{"server.address", "server"},
	{"sidelight.verdict", "verdict"},
	{"sidelight.policy", "by"},
	{"sidelight.policy.rule", "rule"},
	{"sidelight.limit", "limit"},
	{"sidelight.limit.value", "which allows"},
	{"sidelight.config_generation", "generation"},
	{"sidelight.decision_ns", "decided in ns"},
	{"sidelight.connect_ns", "handshake in ns"},
	{"sidelight.duration_ns", "open for ns"},
}

func printPast(out io.Writer, line json.RawMessage) error {
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		return fmt.Errorf("read the line: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "THEN")
	for _, f := range pastFields {
		if value, ok := fields[f.key]; ok {
			if number, is := value.(float64); is {
				value = strconv.FormatFloat(number, 'f', -1, 64)
			}
			fmt.Fprintf(w, "  %s\t%v\t\n", f.label, value)
		}
	}
	return w.Flush()
}

func printExplanation(out io.Writer, e *maps.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NOW")
	client := e.Client.Workload
	if client == "" {
		client = "nobody that the mesh knows"
	}
	if e.Client.Identity != "" {
		client += ", identity " + e.Client.Identity
	}
	fmt.Fprintf(w, "  client\t%s, known by %s\t\n", client, e.Client.KnownBy)
	fmt.Fprintf(w, "  dials\t%s\t\n", e.Dialled)
	switch {
	case e.Frontend != "":
		fmt.Fprintf(w, "  service\t%s (%s), generation %d, chooses by %s\t\n", e.Service, e.Frontend, e.Generation, e.Algorithm)
	case e.Destination != "":
		fmt.Fprintf(w, "  workload\t%s\t\n", e.Destination)
	}
	for _, x := range e.Endpoints {
		said := "not chosen: " + x.Because
		if x.Eligible {
			said = fmt.Sprintf("%.1f %% of the choices, %d open", 100*x.Share, x.Open)
		}
		fmt.Fprintf(w, "  endpoint\t%s %s: %s\t\n", x.Endpoint, x.Address, said)
		if x.Policy != nil {
			fmt.Fprintf(w, "  \t  %s\t\n", policyText(x.Policy))
		}
	}
	if e.Policy != nil {
		fmt.Fprintf(w, "  policies\t%s\t\n", policyText(e.Policy))
	}
	for _, l := range e.Limits {
		said := fmt.Sprintf("%d open of %s, %d connecting of %s", l.Open, bound(l.MaxOpen), l.Connecting, bound(l.MaxConnecting))
		if l.PerSecond > 0 {
			said += fmt.Sprintf(", %d a second", l.PerSecond)
		}
		fmt.Fprintf(w, "  limit\t%s: %s\t\n", l.Name, said)
	}
	fmt.Fprintf(w, "  outcome\t%s: %s\t\n", e.Outcome, e.Because)
	return w.Flush()
}

func policyText(p *maps.ExplainPolicy) string {
	said := p.Verdict
	switch {
	case p.Rule != "":
		said += " by " + p.Rule
	case p.Verdict == "deny":
		said += ": there are allow policies, and none of their rules matches"
	default:
		said += ": no deny rule matches, and there is no allow policy"
	}
	if p.DryRun != "" {
		said += "; dry run: " + p.DryRun
	}
	if p.Open {
		said += "; rules that ask for the client's address are left to the server's side, which knows it"
	}
	return said
}

// serveWhy answers on the control socket.
func (n *node) serveWhy(w http.ResponseWriter, r *http.Request) {
	answer, err := n.why(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(answer) // who asked is gone
}

func (n *node) why(query url.Values) (*whyAnswer, error) {
	answer := new(whyAnswer)
	from, to := query.Get("from"), query.Get("to")
	if uid := query.Get("connection"); uid != "" {
		var err error
		if answer.Connection, err = findLine(n.config.AccessLog, uid); err != nil {
			return nil, err
		}
		if from, to, err = pastQuestion(answer.Connection); err != nil {
			answer.NotNow = err.Error()
			return answer, nil
		}
	}
	if n.mesh == nil {
		if answer.Connection == nil {
			return nil, errors.New("there is no mesh: connections go where they are sent to")
		}
		answer.NotNow = "there is no mesh: connections go where they are sent to"
		return answer, nil
	}
	now, err := n.mesh.explain(n.cgroup, from, to)
	if err != nil && answer.Connection != nil { // who it was is gone
		answer.NotNow, err = "what would become of it now is not known: "+err.Error(), nil
	}
	answer.Now = now
	return answer, err
}

// mostSearched is how much of the end of an access log is searched for a line.
const mostSearched = 256 << 20

// findLine looks for the line of a connection in the access log: of its two ends the client's, which is where most is decided.
func findLine(file, uid string) (json.RawMessage, error) {
	f, err := openLog(file)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("access_log is %q, which is no file that can be searched; ask with --from and --to", file)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("search the access log: %w", err)
	}
	if _, err := f.Seek(max(0, info.Size()-mostSearched), io.SeekStart); err != nil {
		return nil, fmt.Errorf("search the access log: %w", err)
	}
	wanted := `"log.record.uid":"` + uid + `"`
	lines := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		if strings.Contains(line, wanted) {
			return json.RawMessage(strings.TrimSpace(line)), nil
		}
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("no line of %s has the log.record.uid %q; it may have been rotated away", file, uid)
		}
		if err != nil {
			return nil, fmt.Errorf("search the access log: %w", err)
		}
	}
}

// pastQuestion asks for a connection as there was one.
func pastQuestion(line json.RawMessage) (from, to string, err error) {
	var past struct {
		Role        string `json:"sidelight.role"`
		Cgroup      string `json:"process.linux.cgroup"`
		Client      string `json:"client.address"`
		Server      string `json:"server.address"`
		ServerPort  uint16 `json:"server.port"`
		Destination string `json:"sidelight.original_destination"`
	}
	if err := json.Unmarshal(line, &past); err != nil {
		return "", "", fmt.Errorf("read the line: %w", err)
	}
	from = past.Client
	if past.Role == "client" && past.Cgroup != "" {
		from = strings.TrimPrefix(past.Cgroup, "0::") // as /proc/PID/cgroup has it
	}
	if past.Destination != "" && past.Role == "client" {
		return from, past.Destination, nil
	}
	server, err := netip.ParseAddr(past.Server)
	if err != nil {
		return "", "", errors.New("what was dialled is not on the line")
	}
	return from, netip.AddrPortFrom(server, past.ServerPort).String(), nil
}

// explain asks for everything that a question can mean.
func (m *meshSide) explain(root datapath.Cgroup, from, to string) ([]*maps.Explanation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reconciler == nil || m.kernel == nil {
		return nil, errors.New("the agent stops")
	}
	q := maps.Question{Node: m.snapshot.Node, Out: make(map[model.Name]string)}
	for name, cause := range m.outliers.Out() {
		q.Out[name] = cause.String()
	}
	if err := m.askFrom(&q, root, from); err != nil {
		return nil, err
	}
	dialled, err := m.askTo(to)
	if err != nil {
		return nil, err
	}
	var all []*maps.Explanation
	for _, q.Dialled = range dialled {
		e, err := m.reconciler.Explain(&q)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// askFrom finds out who --from is.
func (m *meshSide) askFrom(q *maps.Question, root datapath.Cgroup, from string) error {
	cgroup := ""
	switch {
	case from == "":
		return nil
	case strings.HasPrefix(from, "pid:"):
		pid, err := strconv.ParseUint(strings.TrimPrefix(from, "pid:"), 10, 32)
		if err != nil {
			return fmt.Errorf("--from %s: a process is pid:NUMBER", from)
		}
		if cgroup, err = cgroupOfProcess(pid); err != nil {
			return fmt.Errorf("--from %s: %w", from, err)
		}
	case strings.HasPrefix(from, "/"):
		cgroup = path.Clean(from)
	default:
		if address, err := netip.ParseAddr(from); err == nil {
			q.Address = address.Unmap()
			return nil
		}
		for i := range m.snapshot.Workloads {
			w := &m.snapshot.Workloads[i]
			if w.Name.String() != from {
				continue
			}
			// One whose cgroup is not there does not run here now.
			if _, _, err := root.Resolve(w.Cgroup); w.Cgroup != "" && (err == nil || len(w.Addresses) == 0) {
				cgroup = w.Cgroup
			} else if len(w.Addresses) > 0 {
				q.Address = w.Addresses[0]
			}
			break
		}
		if cgroup == "" && !q.Address.IsValid() {
			return fmt.Errorf("--from %s: there is no such workload, or it has neither a cgroup nor an address; use NAMESPACE/NAME, /CGROUP, pid:N or an address", from)
		}
		if cgroup == "" {
			return nil
		}
	}
	for at := cgroup; ; at = path.Dir(at) {
		id, _, err := root.Resolve(at)
		switch {
		case err == nil:
			q.Cgroups = append(q.Cgroups, id)
		case at == cgroup:
			return fmt.Errorf("--from %s: %w", from, err)
		}
		if at == "/" || at == "." {
			return nil
		}
	}
}

// cgroupOfProcess reads /proc/PID/cgroup.
func cgroupOfProcess(pid uint64) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return at, nil
		}
	}
	return "", errors.New("it is in no cgroup v2")
}

// askTo finds out what --to is: of a service all of its addresses, at one port or at all.
func (m *meshSide) askTo(to string) ([]netip.AddrPort, error) {
	if address, err := netip.ParseAddrPort(to); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(address.Addr().Unmap(), address.Port())}, nil
	}
	name, port, hasPort := strings.Cut(to, ":")
	var dialled []netip.AddrPort
	for i := range m.snapshot.Services {
		s := &m.snapshot.Services[i]
		if s.Name.String() != name {
			continue
		}
		for _, p := range s.Ports {
			if hasPort && port != strconv.Itoa(int(p.Port)) && port != p.Name {
				continue
			}
			for _, a := range s.Addresses {
				dialled = append(dialled, netip.AddrPortFrom(a, p.Port))
			}
		}
		if len(dialled) == 0 {
			return nil, fmt.Errorf("--to %s: the service has no such port, or no address", to)
		}
		return dialled, nil
	}
	return nil, fmt.Errorf("--to %s: it is neither ADDRESS:PORT nor a service, NAMESPACE/NAME or NAMESPACE/NAME:PORT", to)
}
