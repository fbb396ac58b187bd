package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
)

// auditReport is what "sidelight audit" shows: the account, and what became of the close events that were read. Its Unaccounted is of
// all of it.
type auditReport struct {
	account.Account
	AccessLog *auditWay                 `json:"access_log,omitempty"`
	Receiver  map[string]*auditWay      `json:"receiver,omitempty"` // by signal
	Export    map[string]embedded.Stats `json:"export,omitempty"`   // by signal
}

// auditWay is what became of the close events on one way out of the agent.
type auditWay struct {
	// Written are lines of the access log, or what the pipeline took.
	Written uint64 `json:"written"`
	Waiting uint64 `json:"waiting"`
	Dropped uint64 `json:"dropped"`
	// SampledOut were left out by the overhead budget.
	SampledOut uint64 `json:"sampled_out,omitempty"`
	// Unused are records of a signal that no pipeline wants.
	Unused      uint64 `json:"unused,omitempty"`
	Unaccounted uint64 `json:"unaccounted"`
}

// newWay holds a way against the number of close events that went there. They were counted before the rest was read, and the rest in the
// order of the way: so what moves meanwhile is there twice rather than missing.
func newWay(closes uint64, w auditWay) *auditWay {
	if have := w.Written + w.Waiting + w.Dropped + w.SampledOut + w.Unused; closes > have {
		w.Unaccounted = closes - have
	}
	return &w
}

func auditCommand() *cobra.Command {
	var address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Ask a running agent for its account: what the kernel counted against what became of it",
		Long: `Ask a running agent for its account: what the kernel counted against what became of it.
The exit code is 1 when something is unaccounted: lost without being counted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := fetchAudit(cmd.Context(), address)
			if err != nil {
				return inputError{err}
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				if err := encoder.Encode(report); err != nil {
					return err
				}
			} else {
				printAudit(cmd.OutOrStdout(), report)
			}
			if report.Unaccounted != 0 {
				return fmt.Errorf("%d are unaccounted", report.Unaccounted)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "metrics-address", config.Default().MetricsAddress, "`HOST:PORT` of the agent")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func fetchAudit(ctx context.Context, address string) (*auditReport, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/audit", nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w; name where it listens with --metrics-address", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return nil, fmt.Errorf("ask the agent: %s: %s", response.Status, text)
	}
	report := new(auditReport)
	if err := json.NewDecoder(response.Body).Decode(report); err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	return report, nil
}

func printAudit(out io.Writer, r *auditReport) {
	k, u := &r.Kernel, &r.User
	client, server := connection.Client.String(), connection.Server.String()
	fmt.Fprintf(out, "attempts      %d = %d established + %d failed + %d connecting\n",
		k.Attempts, k.Established[client], k.Failed, int64(k.Attempts-k.Established[client]-k.Failed))
	for _, role := range []string{client, server} {
		fmt.Fprintf(out, "%s       %d established + %d adopted = %d closed + %d open\n", role, k.Established[role], k.Adopted[role],
			k.Closed[role], int64(k.Established[role]+k.Adopted[role]-k.Closed[role]))
	}
	fmt.Fprintf(out, "refused       %d by the mesh, of the failed; %d more before they reached a server\n", k.Refused[client], k.Refused[server])
	for _, kind := range connection.Kinds() {
		name := kind.String()
		fmt.Fprintf(out, "%-13s %d submitted, %d without room, %d sampled out; %d decoded\n", name,
			k.Submitted[name], k.ReserveFailed[name], k.SampledOut[name], u.Decoded[name])
	}
	fmt.Fprintf(out, "without event %d closes kept as sums of their edge, %d as totals\n", k.Aggregated, k.Totalled)
	fmt.Fprintf(out, "end only      %d for want of storage\n", k.StorageFailed[client]+k.StorageFailed[server])
	fmt.Fprintf(out, "not followed  %d that began before and were not adopted\n", k.AdoptFailed+k.UntrackedClosed)
	if l := r.AccessLog; l != nil {
		fmt.Fprintf(out, "access log    %d ended = %d lines + %d dropped + %d waiting + %d sampled out\n",
			l.Written+l.Dropped+l.Waiting+l.SampledOut, l.Written, l.Dropped, l.Waiting, l.SampledOut)
	}
	for _, signal := range []string{"logs", "traces", "metrics"} {
		if w := r.Receiver[signal]; w != nil {
			fmt.Fprintf(out, "%-13s %d ended = %d handed to the pipeline + %d dropped + %d waiting + %d sampled out\n", signal,
				w.Written+w.Dropped+w.Waiting+w.SampledOut, w.Written, w.Dropped, w.Waiting, w.SampledOut)
		}
		if s, ok := r.Export[signal]; ok {
			earlier := ""
			if s.Carried > 0 {
				earlier = fmt.Sprintf(" + %d queued by an earlier run", s.Carried)
			}
			fmt.Fprintf(out, "%-13s %d taken%s = %d exported + %d queued + %d rejected\n", signal, s.Taken, earlier, s.Sent, s.Queued, s.Rejected+s.Failed)
		}
	}
	fmt.Fprintf(out, "unaccounted   %d\n", r.Unaccounted)
}

func (n *node) serveAudit(w http.ResponseWriter, request *http.Request) {
	ctx, cancel := context.WithTimeout(request.Context(), auditTime)
	defer cancel()
	report, err := n.report(ctx)
	if err != nil {
		http.Error(w, errors.Join(errors.New("audit"), err).Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report) // who asked is gone
}

// report is the audit with the ways out of the agent. Safe for concurrent use while run runs.
func (n *node) report(ctx context.Context) (*auditReport, error) {
	ctx, span := n.tracing.Start(ctx, spanAudit)
	r, err := n.reportOf(ctx)
	meshreceiver.End(span, err)
	return r, err
}

func (n *node) reportOf(ctx context.Context) (*auditReport, error) {
	// Before the ring is drained: what was decoded by now has been handed to the sinks when it is.
	lines, handed := n.succession.closes()
	a, err := n.audit(ctx)
	if err != nil {
		return nil, err
	}
	r := &auditReport{Account: a}
	if n.log != nil {
		waiting := uint64(n.log.Waiting())
		r.AccessLog = newWay(lines, auditWay{
			Waiting: waiting, Written: n.log.Lines(), Dropped: n.log.Dropped(), SampledOut: n.gate.LogsOut(),
		})
		r.Unaccounted += r.AccessLog.Unaccounted
	}
	if n.collector == nil {
		return r, nil
	}
	logs, spans := uint64(n.records.logs.Waiting()), uint64(n.records.traces.Waiting())
	r.Receiver = map[string]*auditWay{
		"logs": newWay(handed, auditWay{
			Waiting: logs, Written: meshreceiver.HandedOn.Logs.Load(), Unused: meshreceiver.Unused.Logs.Load(),
			Dropped: meshreceiver.Dropped.Logs.Load() + n.records.logs.Dropped(), SampledOut: n.gate.LogsOut(),
		}),
		"traces": newWay(handed, auditWay{
			Waiting: spans, Written: meshreceiver.HandedOn.Spans.Load(), Unused: meshreceiver.Unused.Spans.Load(),
			Dropped: meshreceiver.Dropped.Spans.Load() + n.records.traces.Dropped(), SampledOut: n.gate.SpansOut(),
		}),
	}
	steps := meshreceiver.Steps.Load()
	r.Export = n.collector.Stats()
	for signal, w := range r.Receiver {
		// What the receiver handed on before is what the exporters took, unless there are processors that keep, drop or divide.
		written := w.Written
		if signal == "logs" {
			written += steps
		}
		if taken := uint64(r.Export[signal].Taken); n.builtIn && written > taken {
			w.Unaccounted += written - taken
		}
		r.Unaccounted += w.Unaccounted
	}
	for _, s := range r.Export {
		r.Unaccounted += uint64(s.Unaccounted)
	}
	return r, nil
}

// audit drains the ring and compares what the kernel counted with what user space did. Safe for concurrent use while run runs.
func (n *node) audit(ctx context.Context) (account.Account, error) {
	return n.kernelSide.audit(ctx, n.pipeline.Connections())
}

func kernelAccount(a datapath.Account) account.Kernel {
	k := account.Kernel{
		Attempts: a.Attempts, Failed: a.Failed, UntrackedClosed: a.UntrackedClosed, StatelessEstablished: a.StatelessEstablished,
		AdoptedConnecting: a.AdoptedConnecting, AdoptFailed: a.AdoptFailed,
		Aggregated: a.Aggregated, Totalled: a.Totalled, ListenersFailed: a.ListenersFailed, Strays: a.Strays,
		Established: make(map[string]uint64), Adopted: make(map[string]uint64), Closed: make(map[string]uint64),
		StorageFailed: make(map[string]uint64), Refused: make(map[string]uint64),
		Submitted: make(map[string]uint64), ReserveFailed: make(map[string]uint64), SampledOut: make(map[string]uint64),
	}
	for _, role := range []connection.Role{connection.Client, connection.Server} {
		k.Established[role.String()] = a.Established[role]
		k.Adopted[role.String()] = a.Adopted[role]
		k.Closed[role.String()] = a.Closed[role]
		k.StorageFailed[role.String()] = a.StorageFailed[role]
		k.Refused[role.String()] = a.Refused[role]
	}
	if a.TraceOptions != [len(a.TraceOptions)]uint64{} {
		k.TraceIDs = make(map[string]uint64)
		for outcome, name := range datapath.TraceOutcomes {
			k.TraceIDs[name] = a.TraceOptions[outcome]
		}
	}
	for _, kind := range connection.Kinds() {
		k.Submitted[kind.String()] = a.Submitted[kind]
		k.ReserveFailed[kind.String()] = a.ReserveFailed[kind]
		k.SampledOut[kind.String()] = a.SampledOut[kind]
	}
	return k
}
