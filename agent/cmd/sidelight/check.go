package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// checkRow is one line of the check.
type checkRow struct {
	Name        string `json:"name"`
	OK          bool   `json:"ok"`
	Required    bool   `json:"required"`
	Consequence string `json:"consequence,omitempty"` // of a "no"
	Detail      string `json:"detail,omitempty"`
}

func checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what this kernel and these privileges allow",
		Long: `Tell what this kernel and these privileges allow, a row a feature, with the consequence of each "no".
Nothing is attached. The exit code is 1 when something is missing that Sidelight cannot work without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := check()
			if err != nil {
				return err
			}
			if err := printCheck(cmd.OutOrStdout(), rows, asJSON); err != nil {
				return err
			}
			for _, row := range rows {
				if row.Required && !row.OK {
					return errors.New("something required is missing")
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func check() ([]checkRow, error) {
	var rows []checkRow
	caps, err := datapath.Capabilities()
	if err != nil {
		return nil, err
	}
	for _, c := range caps {
		row := checkRow{Name: c.Name, OK: c.Held, Required: c.Required, Detail: c.Use}
		if !c.Held {
			row.Consequence = c.Without
			if c.Required {
				row.Consequence = "sidelight run does not start"
			}
		}
		rows = append(rows, row)
	}
	cgroup, err := datapath.OpenCgroup("")
	row := checkRow{Name: "cgroup2", OK: err == nil, Required: true, Detail: cgroup.Dir}
	if err != nil {
		row.Consequence, row.Detail = "name a directory with --cgroup after mounting cgroup2", err.Error()
	}
	rows = append(rows, row)
	for _, f := range datapath.Features() {
		row := checkRow{Name: f.Name, OK: f.Err == nil, Required: f.Required}
		if f.Err != nil {
			row.Consequence, row.Detail = f.Consequence, f.Err.Error()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func printCheck(out io.Writer, rows []checkRow, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(rows)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		answer := "yes"
		note := row.Detail
		if !row.OK {
			answer = "no"
			note = row.Consequence
			if row.Required {
				answer = "NO"
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", answer, row.Name, note)
	}
	return table.Flush()
}
