package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// buildVersion is set by the linker: -X main.buildVersion=...
var buildVersion = "dev"

func version() string { return buildVersion }

func goVersion() string { return runtime.Version() }

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "sidelight %s %s %s/%s\n", version(), goVersion(), runtime.GOOS, runtime.GOARCH)
		},
	}
}
