//go:build sidelight_man

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand is what "make man" runs.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write a man page for each command into a directory", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return inputError{fmt.Errorf("make directory: %w", err)}
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // the same pages whenever they are made
			return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "Sidelight " + version(), Manual: "Sidelight"}, args[0])
		},
	}
}
