// Command sidelight observes the TCP connections of a cgroup from inside the kernel and exports metrics, access logs and traces.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes; 0 is success, also of what a signal ended.
const (
	exitFailed = 1 // it was done, and came out badly or did not come to its end
	exitInput  = 2 // it was not done: a fault of what was given, or of the machine, or no agent; nothing was attached
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	if err == nil || errors.Is(err, context.Canceled) { // the latter: a signal before there was anything to end in order
		return
	}
	fmt.Fprintln(os.Stderr, "sidelight:", err)
	var input inputError
	if errors.As(err, &input) {
		os.Exit(exitInput)
	}
	os.Exit(exitFailed)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sidelight",
		Short: "A sidecarless service mesh data plane that tells what every connection did",
		Long: `A sidecarless service mesh data plane that tells what every connection did.

Exit codes: 0, it was done, or ended by a signal; 1, it was done and came out badly, as each command says, or did not come to its end; 2, it was not done,
because of what was given, or of the machine, or because no agent answers: nothing was attached or changed.
NO_COLOR in the environment turns colours off where --color is auto.`,
		// cobra's own answer to an unknown command has no type to tell it by.
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := "see sidelight --help"
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				hint = "did you mean " + like[0] + "?"
			}
			return inputError{fmt.Errorf("unknown command %q; %s", args[0], hint)}
		},
		SuggestionsMinimumDistance: 2,
		// main prints the error, and usage is for those who ask.
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return inputError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(runCommand(), recordCommand(), replayCommand(), demoCommand(), topCommand(), tailCommand(), statusCommand(), auditCommand(), meshCommand(),
		whyCommand(), checkCommand(), uninstallCommand(), versionCommand())
	root.AddCommand(demoCommands()...)
	if man := manCommand(); man != nil {
		root.AddCommand(man)
	}
	for _, cmd := range root.Commands() {
		cmd.Args = input(cmd.Args)
	}
	return root
}

// input makes a wrong number of arguments an inputError.
func input(args cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if args == nil {
			return nil
		}
		if err := args(cmd, given); err != nil {
			return inputError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}

func newLogger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
