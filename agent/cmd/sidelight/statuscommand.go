package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/collector/accesslog"
	"github.com/sidelight-mesh/sidelight/collector/embedded"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
)

func statusCommand() *cobra.Command {
	var flags asking
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Ask a running agent how it is: versions, programs, maps, mesh, budget, queues and account in one screen",
		Long: `Ask a running agent how it is: versions, programs with where they are attached, maps with how much of them is in use, the mesh in force, the budget,
what waits on the way out, and the account, in one screen. --json has more of it.
The exit code is 1 when something is unaccounted, or when the newest mesh is not in force.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			paint, err := look.PaintFor(flags.colour, isTerminal(os.Stdout), os.LookupEnv)
			if err != nil {
				return inputError{err}
			}
			s := new(look.Status)
			if err := flags.ask(cmd.Context(), statusPath, s); err != nil {
				return inputError{err}
			}
			return flags.show(cmd.OutOrStdout(), s, paint)
		},
	}
	flags.flags(cmd, "print JSON")
	return cmd
}

func (a *asking) show(out io.Writer, s *look.Status, paint look.Paint) (err error) {
	if a.json {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(s)
	} else {
		err = printLines(out, s.Lines(paint))
	}
	switch {
	case err != nil:
		return err
	case s.Account.Error != "":
		return errors.New("the account is not known: " + s.Account.Error)
	case s.Account.Unaccounted != 0:
		return fmt.Errorf("%d are unaccounted", s.Account.Unaccounted)
	case s.Mesh != nil && s.Mesh.LastError != "":
		return errors.New("the newest mesh is not in force")
	}
	return nil
}

// status is how the agent is now. Safe for concurrent use while run runs.
func (n *node) status(ctx context.Context) (*look.Status, error) {
	s := &look.Status{
		Version: version(), Go: goVersion(), Kernel: kernelRelease(), PID: os.Getpid(), At: time.Now(), Started: n.started, Cgroup: n.cgroup.Dir,
		Metrics: n.server.Address(), StateDirectory: n.config.StateDirectory, Budget: n.budget.status(), Mesh: n.mesh.status(n.config.Mesh.Path),
	}
	agents, alone := n.datapath.Ledger().Attended()
	s.Datapath = look.DatapathStatus{Pins: n.config.PinDirectory, Agents: agents, UnattendedSeconds: alone.Seconds()}
	// Before the account, which drains it.
	pending := uint64(n.reader.Pending())
	inventory, err := n.datapath.Inventory()
	if err != nil {
		return nil, err
	}
	s.Inventory = *inventory
	counts := n.edges.Counts()
	s.Edges = look.EdgesStatus{Edges: counts.Edges, Most: n.config.MaxEdges, Folded: counts.Folded, Evicted: counts.Evicted}
	ctx, cancel := context.WithTimeout(ctx, auditTime)
	defer cancel()
	report, err := n.report(ctx)
	if err != nil {
		s.Account.Error = err.Error()
		report = new(auditReport)
	} else {
		k := &report.Kernel
		s.Account = look.AccountStatus{
			Attempts: k.Attempts, Failed: k.Failed, Established: k.Established, Adopted: k.Adopted, Closed: k.Closed, Live: k.Live(),
			Unaccounted: report.Unaccounted,
		}
	}
	s.Account.MostLive = n.config.MaxConnections
	s.Queues = n.queues(pending, report)
	s.Readers, _ = n.tail.Readers()
	n.countEntries(s, pending)
	return s, nil
}

// queues are those on the way out, in the order of the way.
func (n *node) queues(pending uint64, report *auditReport) []look.Queue {
	lost := uint64(0)
	for _, failed := range report.Kernel.ReserveFailed {
		lost += failed
	}
	queues := []look.Queue{{Name: "event ring", Waiting: pending, Room: uint64(n.datapath.Ring().MaxEntries()), Lost: lost, Unit: "bytes, events"}}
	if n.log != nil {
		queues = append(queues, look.Queue{
			Name: "access log", Waiting: uint64(n.log.Waiting()), Room: accesslog.QueueRecords, Lost: n.log.Dropped(), Unit: "lines",
		})
	}
	_, missed := n.tail.Readers()
	queues = append(queues, look.Queue{Name: "tail", Lost: missed, Unit: "lines"})
	if n.collector == nil {
		return queues
	}
	queues = append(queues,
		look.Queue{
			Name: "receiver logs", Waiting: uint64(n.records.logs.Waiting()), Room: recordQueue, Unit: "records",
			Lost: n.records.logs.Dropped() + meshreceiver.Dropped.Logs.Load(),
		},
		look.Queue{
			Name: "receiver traces", Waiting: uint64(n.records.traces.Waiting()), Room: recordQueue, Unit: "records",
			Lost: n.records.traces.Dropped() + meshreceiver.Dropped.Spans.Load(),
		})
	stats := n.collector.Stats()
	for _, signal := range []string{"logs", "traces", "metrics"} {
		if of, exported := stats[signal]; exported {
			queues = append(queues, exporterQueue(signal, of))
		}
	}
	return queues
}

func exporterQueue(signal string, of embedded.Stats) look.Queue {
	return look.Queue{Name: "exporter " + signal, Waiting: uint64(max(of.Queued, 0)), Lost: uint64(max(of.Rejected+of.Failed, 0)), Unit: "items"}
}

// countEntries fills in what the datapath does not know of its maps.
func (n *node) countEntries(s *look.Status, pending uint64) {
	counted := n.mesh.occupancy()
	if n.mesh != nil { // at the same indices
		counted["loads"], counted["turns"], counted["limit_states"] = counted["backends"], counted["pools"], counted["limits"]
	}
	counted["events"] = pending
	if live := s.Account.Live; live >= 0 && s.Account.Error == "" {
		counted["connections"] = uint64(live)
	}
	for i := range s.Maps {
		if used, known := counted[s.Maps[i].Name]; known {
			s.Maps[i].Entries = &used
		}
	}
}

// rung is the name of the budget's; empty without one.
func (b *budgetSide) rung() string {
	if keeper := b.keeper.Load(); keeper != nil {
		return keeper.State().Detail.Rung.String()
	}
	return ""
}

func (b *budgetSide) status() *look.BudgetStatus {
	keeper := b.keeper.Load()
	if keeper == nil {
		return nil
	}
	s := keeper.State()
	return &look.BudgetStatus{
		Rung: int(s.Detail.Rung), Name: s.Detail.Rung.String(), Probability: s.Detail.Probability(), CPULimit: b.limits.CPU, MemoryLimit: b.limits.Memory,
		Measured: s.Measured, CPU: s.Measurement.Agent + s.Measurement.Programs, Memory: s.Measurement.Memory, Down: s.Down, Up: s.Up,
	}
}

// status is nil without a mesh.
func (m *meshSide) status(path string) *look.MeshStatus {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	source := m.file.Status()
	s := &look.MeshStatus{
		Path: path, Generation: m.snapshot.Generation, Accepted: source.Accepted, Rejected: source.Rejected, LastError: source.LastError, Guarded: m.guards,
		Out: make(map[string]string),
	}
	for name, cause := range m.outliers.Out() {
		s.Out[name.String()] = cause.String()
	}
	return s
}

// occupancy counts entries of the mesh's maps.
func (m *meshSide) occupancy() map[string]uint64 {
	used := make(map[string]uint64)
	if m == nil {
		return used
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kernel == nil {
		return used
	}
	return m.reconciler.Occupancy()
}

func kernelRelease() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return "of an unknown version"
	}
	release, _, _ := strings.Cut(string(name.Release[:]), "\x00")
	return release
}
