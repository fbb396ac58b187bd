package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
)

func whyCommand() *cobra.Command {
	var from, to string
	var asked asking
	cmd := &cobra.Command{
		Use:   "why [CONNECTION | --from WHO --to WHERE]",
		Short: "Explain what the mesh decides of a connection, one that there was or one that there could be",
		Long: `Explain what the mesh decides of a connection: which service was dialled, which of its endpoints can be chosen and why the others cannot, which
policy and rule matches, and which limits stand against it. The answer comes from the maps that the kernel's programs read.

CONNECTION is the log.record.uid of a line of the access log: it is shown what was decided then, and what would be now.
WHO is a workload (NAMESPACE/NAME), a cgroup (/PATH below the root of cgroup v2), a process (pid:N) or an address.
WHERE is an address with a port, or a service (NAMESPACE/NAME or NAMESPACE/NAME:PORT).

What rests on something that is not known here (the client's address, whose network namespace is meant, which endpoint is chosen) has the outcome
"depends". Sockets of MPTCP are not asked for: workloads of a mesh get none.

The exit code is 0 if the connection may be made, and 1 if it would be refused.`,
		Example: `  sidelight why --from demo/web --to 10.96.0.1:80
  sidelight why --from pid:4711 --to demo/cart
  sidelight why 5f0c2d51a7c3e801-00000000000a2f1c`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{}
			switch {
			case len(args) == 1 && from == "" && to == "":
				query.Set(whyConnection, args[0])
			case len(args) == 0 && to != "":
				query.Set(whyFrom, from)
				query.Set(whyTo, to)
			default:
				return inputError{errors.New("say which connection: its log.record.uid, or --from WHO --to WHERE")}
			}
			paint, err := look.PaintFor(asked.colour, isTerminal(os.Stdout), os.LookupEnv)
			if err != nil {
				return inputError{err}
			}
			var answer look.Why
			if err := asked.ask(cmd.Context(), whyPath+"?"+query.Encode(), &answer); err != nil {
				return inputError{err}
			}
			if asked.json {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				err = encoder.Encode(&answer)
			} else {
				var lines []string
				if lines, err = answer.Lines(paint); err == nil {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(lines, "\n"))
				}
			}
			if err != nil {
				return err
			}
			if because := answer.Refused(); because != "" {
				return fmt.Errorf("it would be refused: %s", because)
			}
			return nil
		},
	}
	asked.flags(cmd, "print JSON")
	cmd.Flags().StringVar(&from, "from", "", "`WHO` connects; nothing: somebody that the mesh does not know")
	cmd.Flags().StringVar(&to, "to", "", "`WHERE` to")
	return cmd
}
