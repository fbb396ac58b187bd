package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/collector/filter"
)

type topFlags struct {
	asking
	interval time.Duration
	sort     string
	once     bool
}

func topCommand() *cobra.Command {
	var flags topFlags
	cmd := &cobra.Command{
		Use:   "top [FILTER]",
		Short: "Watch the edges of a running agent: who connects to whom, how often, how fast, and how that ends",
		Long: `Watch the edges of a running agent: who connects to whom, how often, how fast, and how that ends.

Rates and latencies are those between two looks at the agent. A connection begins when its client attempts it and when its server accepts it; not ok is
what failed, was reset, or timed out, at either end. Press ? for the keys.

A filter is of comparisons FIELD OPERATOR VALUE with && || ! and parentheses, such as

  failures > 0 && peer =~ "^shop" || connect > 10ms

Operators are == != < <= > >= =~ !~ and in (A, B). Fields are

` + filter.Describe(look.EdgeFields()) + `
where rate, failures, sent and received are by the second, and connect and first_byte the 99th percentile. What an edge lacks is
absent: then == < =~ and in are false.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := ""
			if len(args) > 0 {
				text = args[0]
			}
			return flags.run(cmd.Context(), cmd.OutOrStdout(), text)
		},
	}
	flags.flags(cmd, "print a line of JSON for each interval")
	cmd.Flags().DurationVar(&flags.interval, "interval", 2*time.Second, "`TIME` between two looks")
	cmd.Flags().StringVar(&flags.sort, "sort", string(look.ByRate), "`ORDER`: rate, bytes, failures, latency, open, name")
	cmd.Flags().BoolVar(&flags.once, "once", false, "print one interval, and end")
	var orders []string
	for _, s := range look.Sorts {
		orders = append(orders, string(s))
	}
	complete(cmd, "sort", orders...)
	return cmd
}

func (f *topFlags) run(ctx context.Context, out io.Writer, text string) error {
	sort, err := look.ParseSort(f.sort)
	if err != nil {
		return inputError{err}
	}
	if f.interval < look.LeastInterval || f.interval > look.MostInterval {
		return inputError{fmt.Errorf("--interval %v: use %v to %v", f.interval, look.LeastInterval, look.MostInterval)}
	}
	keep, err := look.CompileEdges(text)
	if err != nil {
		return inputError{err}
	}
	terminal := isTerminal(os.Stdout)
	paint, err := look.PaintFor(f.colour, terminal, os.LookupEnv)
	if err != nil {
		return inputError{err}
	}
	if !f.json && !f.once && (!terminal || !isTerminal(os.Stdin)) {
		return inputError{errors.New("there is no terminal to show it on; use --once or --json")}
	}
	before, err := f.edges(ctx)
	if err != nil {
		return inputError{err}
	}
	if !f.json && !f.once {
		return look.RunTop(ctx, f.edges, look.TopOptions{First: before, Interval: f.interval, Sort: sort, Filter: text, Paint: paint})
	}
	tick := time.NewTicker(f.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		after, err := f.edges(ctx)
		if err != nil {
			return err
		}
		report := look.Compare(before, after)
		report.Keep(keep)
		report.Order(sort)
		if err := f.print(out, report, paint); err != nil || f.once {
			return err
		}
		before = after
	}
}

func (f *topFlags) print(out io.Writer, report *look.Report, paint look.Paint) error {
	if f.json {
		return json.NewEncoder(out).Encode(report)
	}
	return printLines(out, append([]string{report.Summary()}, report.Lines(paint, 0)...))
}

func printLines(out io.Writer, lines []string) error {
	for _, line := range lines {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

func (f *topFlags) edges(ctx context.Context) (*look.Edges, error) {
	edges := new(look.Edges)
	return edges, f.ask(ctx, edgesPath, edges)
}

func isTerminal(file *os.File) bool {
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
