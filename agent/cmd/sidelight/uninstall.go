package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

func uninstallCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take off everything that agents left: programs, maps, and the bpffs if they mounted it",
		Long: `Take off everything that agents left: programs, maps, and the bpffs if they mounted it. Nothing else is touched; the state directory and access logs
stay. An agent that runs has to be stopped first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := datapath.Uninstall(dir)
			if err != nil {
				return inputError{err}
			}
			if found {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", dir)
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing is pinned in", dir)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "pin-directory", config.Default().PinDirectory, "`DIR` of the agents")
	return cmd
}
