package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	"github.com/sidelight-mesh/sidelight/agent/maps"
)

// meshReport is what "sidelight mesh dump" shows.
type meshReport struct {
	Generation uint64              `json:"generation"`
	Source     controlplane.Status `json:"source"`
	Guarded    int                 `json:"guarded_namespaces"` // network namespaces whose inbound connections are judged
	Looks      uint64              `json:"looks"`              // for cgroups, namespaces and listeners, since the start
	Out        map[string]string   `json:"out"`                // endpoints that get no connections, with the cause
	Draining   []maps.Draining     `json:"draining"`
	Drift      []string            `json:"drift"`
	Maps       *maps.Dump          `json:"maps"`
}

func meshCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mesh",
		Short: "Check a mesh file, or see what the kernel has of a mesh",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(meshValidateCommand(), meshDumpCommand())
	for _, sub := range cmd.Commands() {
		sub.Args = input(sub.Args)
	}
	return cmd
}

func meshValidateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "validate PATH",
		Short: "Check a mesh file, or a directory of them, as run would; needs no privileges",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := config.Default()
			if file != "" {
				if err := config.Load(file, &c); err != nil {
					return inputError{err}
				}
			}
			snapshot, err := controlplane.Parse(args[0])
			if err != nil {
				return inputError{err}
			}
			snapshot.Node = localityOf(&c.Mesh.Locality)
			mesh, err := maps.Compile(snapshot, nil, sizesOf(&c.Mesh))
			if err != nil {
				return inputError{fmt.Errorf("%s: %w", args[0], err)}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d workloads, %d services, %d endpoints, %d policies, %d bypasses: valid\n",
				len(snapshot.Workloads), len(snapshot.Services), len(snapshot.Endpoints), len(snapshot.Policies), len(snapshot.Bypasses))
			for _, s := range withoutEndpoint(mesh) {
				fmt.Fprintln(cmd.OutOrStdout(), "warning:", s)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `FILE` (YAML): its mesh section has sizes and the node's locality")
	return cmd
}

// withoutEndpoint tells of services whose connections are all refused.
func withoutEndpoint(mesh *maps.Mesh) []string {
	var said []string
	for _, s := range mesh.Services {
		for _, p := range s.Pools {
			if p.Size == 0 {
				family := "IPv4"
				if p.IPv6 {
					family = "IPv6"
				}
				said = append(said, fmt.Sprintf("service %s, port %d: no endpoint over %s that this node may use: connections are refused", s.Name, p.Port, family))
			}
		}
	}
	return said
}

func meshDumpCommand() *cobra.Command {
	var directory string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Ask a running agent what the kernel's maps have of the mesh, and whether it is what they should have",
		Long: `Ask a running agent what the kernel's maps have of the mesh, decoded, and whether it is what they should have.
The exit code is 1 when there is drift.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := fetchMesh(cmd.Context(), directory)
			if err != nil {
				return inputError{err}
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				err = encoder.Encode(report)
			} else {
				err = printMesh(cmd.OutOrStdout(), report)
			}
			if err != nil {
				return err
			}
			if n := len(report.Drift); n > 0 {
				return fmt.Errorf("%d differences between the mesh and the kernel's maps", n)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&directory, "state-directory", config.Default().StateDirectory, "`DIR` of the agent")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func fetchMesh(ctx context.Context, directory string) (*meshReport, error) {
	report := new(meshReport)
	a := asking{directory: directory}
	return report, a.ask(ctx, meshPath, report)
}

func printMesh(out io.Writer, r *meshReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "generation %d in force, %d inputs rejected\n", r.Generation, r.Source.Rejected)
	if r.Source.LastError != "" {
		fmt.Fprintf(w, "the newest input is not in force: %s\n", r.Source.LastError)
	}
	if r.Maps == nil {
		return w.Flush()
	}
	fmt.Fprintln(w, "\nSERVICE\tDIALLED AS\tCHOOSES BY\tENDPOINT\tADDRESS\tSHARE\tOPEN\tPICKS\tFAILED\t")
	loads := make(map[uint32]maps.DumpBackend, len(r.Maps.Backends))
	for _, b := range r.Maps.Backends {
		loads[b.Index] = b
	}
	for _, s := range r.Maps.Services {
		for _, p := range s.Pools {
			if len(p.Endpoints) == 0 {
				fmt.Fprintf(w, "%s\t%s\t%s\tnone: refused\t\t\t\t\t\t\n", s.Name, strings.Join(p.Frontends, " "), p.Algorithm)
			}
			for _, e := range p.Endpoints {
				b := loads[e.Backend]
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.1f %%\t%d\t%d\t%d\t\n",
					s.Name, strings.Join(p.Frontends, " "), p.Algorithm, e.Endpoint, e.Address, 100*e.Share, b.Open, b.Picks, b.Failed)
			}
		}
	}
	for name, cause := range r.Out {
		fmt.Fprintf(w, "out of service: %s (%s)\n", name, cause)
	}
	for _, d := range r.Draining {
		fmt.Fprintf(w, "draining: %s of %s, %d open\n", d.Endpoint, d.Service, d.Open)
	}
	if len(r.Maps.Limits) > 0 {
		fmt.Fprintln(w, "\nLIMIT OF\tOPEN\tMOST\tCONNECTING\tMOST\tPER SECOND\tREFUSED\t")
	}
	for _, l := range r.Maps.Limits {
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\t%d\t\n", l.Name, l.Counts.Open, bound(l.MaxOpen), l.Counts.Connecting, bound(l.MaxConnecting),
			bound(l.PerSecond), l.Counts.RejectedOpen+l.Counts.RejectedConnecting+l.Counts.RejectedRate)
	}
	fmt.Fprintln(w, "\nWORKLOAD\tIDENTITY\tPOLICIES\t")
	rules := make(map[uint32][]string)
	for _, p := range r.Maps.PolicySets {
		rules[p.Index] = p.Rules
	}
	for _, l := range r.Maps.Workloads {
		what := strings.Join(rules[l.PolicySet], "; ")
		switch {
		case l.Bypass:
			what = "bypassed"
		case l.PolicySet == 0:
			what = "none: everybody may connect"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t\n", l.Name, l.Identity, what)
	}
	for _, d := range r.Drift {
		fmt.Fprintln(w, "drift:", d)
	}
	return w.Flush()
}

func bound(n uint32) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// report reads the kernel's maps back.
func (m *meshSide) report() (*meshReport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kernel == nil {
		return nil, errors.New("the agent stops")
	}
	r := &meshReport{Generation: m.snapshot.Generation, Source: m.file.Status(), Guarded: m.guards, Looks: m.looks, Out: make(map[string]string)}
	for name, cause := range m.outliers.Out() {
		r.Out[name.String()] = cause.String()
	}
	r.Draining = m.reconciler.Draining()
	var err, driftErr error
	r.Maps, err = m.reconciler.Dump()
	r.Drift, driftErr = m.reconciler.Drift(m.mesh)
	return r, errors.Join(err, driftErr)
}
