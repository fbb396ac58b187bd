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
)

// auditReport is what "sidelight audit" shows: the account, and what became of the close events that were read.
type auditReport struct {
	account.Account
	AccessLog *auditLog                 `json:"access_log,omitempty"`
	Export    map[string]embedded.Stats `json:"export,omitempty"` // by signal
}

type auditLog struct {
	Lines   uint64 `json:"lines"`
	Dropped uint64 `json:"dropped"`
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
	for _, kind := range connection.Kinds() {
		name := kind.String()
		fmt.Fprintf(out, "%-13s %d submitted, %d without room; %d decoded\n", name, k.Submitted[name], k.ReserveFailed[name], u.Decoded[name])
	}
	fmt.Fprintf(out, "without room  %d closes kept as sums of their edge, %d as totals\n", k.Aggregated, k.Totalled)
	fmt.Fprintf(out, "end only      %d for want of storage\n", k.StorageFailed[client]+k.StorageFailed[server])
	fmt.Fprintf(out, "not followed  %d that began before and were not adopted\n", k.AdoptFailed+k.UntrackedClosed)
	if r.AccessLog != nil {
		fmt.Fprintf(out, "access log    %d lines, %d dropped\n", r.AccessLog.Lines, r.AccessLog.Dropped)
	}
	for _, signal := range []string{"logs", "traces", "metrics"} {
		if s, ok := r.Export[signal]; ok {
			fmt.Fprintf(out, "%-13s %d exported, %d queued, %d rejected\n", signal, s.Sent, s.Queued, s.Failed)
		}
	}
	fmt.Fprintf(out, "unaccounted   %d\n", r.Unaccounted)
}

func (n *node) serveAudit(w http.ResponseWriter, request *http.Request) {
	ctx, cancel := context.WithTimeout(request.Context(), auditTime)
	defer cancel()
	a, err := n.audit(ctx)
	if err != nil {
		http.Error(w, errors.Join(errors.New("audit"), err).Error(), http.StatusServiceUnavailable)
		return
	}
	report := auditReport{Account: a}
	if n.log != nil {
		report.AccessLog = &auditLog{Lines: n.log.Lines(), Dropped: n.log.Dropped()}
	}
	if n.collector != nil {
		report.Export = n.collector.Stats()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report) // who asked is gone
}

func (n *node) audit(ctx context.Context) (account.Account, error) {
	return n.kernelSide.audit(ctx, n.pipeline.Connections())
}

func kernelAccount(a datapath.Account) account.Kernel {
	k := account.Kernel{
		Attempts: a.Attempts, Failed: a.Failed, UntrackedClosed: a.UntrackedClosed, StatelessEstablished: a.StatelessEstablished,
		AdoptedConnecting: a.AdoptedConnecting, AdoptFailed: a.AdoptFailed,
		Aggregated: a.Aggregated, Totalled: a.Totalled,
		Established: make(map[string]uint64), Adopted: make(map[string]uint64), Closed: make(map[string]uint64),
		StorageFailed: make(map[string]uint64),
		Submitted:     make(map[string]uint64), ReserveFailed: make(map[string]uint64),
	}
	for _, role := range []connection.Role{connection.Client, connection.Server} {
		k.Established[role.String()] = a.Established[role]
		k.Adopted[role.String()] = a.Adopted[role]
		k.Closed[role.String()] = a.Closed[role]
		k.StorageFailed[role.String()] = a.StorageFailed[role]
	}
	for _, kind := range connection.Kinds() {
		k.Submitted[kind.String()] = a.Submitted[kind]
		k.ReserveFailed[kind.String()] = a.ReserveFailed[kind]
	}
	return k
}
