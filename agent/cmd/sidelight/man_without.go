//go:build !sidelight_man

package main

import "github.com/spf13/cobra"

// manCommand is in builds with the tag sidelight_man: what makes man pages takes memory of every agent.
func manCommand() *cobra.Command { return nil }
