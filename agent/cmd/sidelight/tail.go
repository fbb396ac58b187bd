package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/agent/status"
	"github.com/sidelight-mesh/sidelight/collector/filter"
	"github.com/sidelight-mesh/sidelight/collector/tail"
)

type tailFlags struct {
	asking
	text  bool
	count uint64
}

func tailCommand() *cobra.Command {
	var flags tailFlags
	cmd := &cobra.Command{
		Use:   "tail [FILTER]",
		Short: "Follow the access log of a running agent, whether it writes one or not",
		Long: `Follow the access log of a running agent, whether it writes one or not: a line for each connection that ends, as text on a terminal and
else as JSON, which is the same line as that of the log. What the agent's budget leaves out of its log is left out here.

Who reads slower than lines come loses some, and the agent never waits; who reads nothing for half a minute is cut. How many were lost is said where they are
missing, as text or as

  {"event.name":"` + tail.LostEvent + `","sidelight.lost":N}

A filter is of comparisons FIELD OPERATOR VALUE with && || ! and parentheses, such as

  reason != ok && peer.workload == "cart"

  connect > 10ms || received >= 1MiB || peer.address in (10.0.0.0/8)

Operators are == != < <= > >= =~ !~ and in (A, B). Fields are

` + filter.Describe(tail.Fields()) + `
What a connection lacks is absent: then == < =~ and in are false, and != and !~ are true. A field alone says that it is there.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			expression := ""
			if len(args) > 0 {
				expression = args[0]
			}
			return flags.run(cmd.Context(), cmd.OutOrStdout(), expression)
		},
	}
	flags.flags(cmd, "print JSON on a terminal, too")
	cmd.Flags().BoolVar(&flags.text, "text", false, "print text, wherever it goes")
	cmd.Flags().Uint64Var(&flags.count, "count", 0, "end after `N` lines; 0: go on until a signal")
	return cmd
}

func (f *tailFlags) run(ctx context.Context, out io.Writer, expression string) error {
	if f.text && f.json {
		return inputError{errors.New("--text and --json: choose one")}
	}
	if expression != "" {
		if _, err := filter.Compile(expression, tail.Fields()); err != nil {
			return inputError{err}
		}
	}
	terminal := isTerminal(os.Stdout)
	paint, err := look.PaintFor(f.colour, terminal, os.LookupEnv)
	if err != nil {
		return inputError{err}
	}
	query := url.Values{}
	if expression != "" {
		query.Set(tailFilter, expression)
	}
	asText := f.text || terminal && !f.json
	if asText {
		query.Set(tailNames, "1")
	}
	stream, err := status.FollowControl(ctx, f.socket(), tailPath+"?"+query.Encode())
	if err != nil {
		return inputError{err}
	}
	defer stream.Close()
	show := func(line []byte) []byte { return line }
	if asText {
		text := look.LogText{Paint: paint}
		show = func(line []byte) []byte { return append([]byte(text.Line(line)), '\n') }
	}
	err = copyLines(out, stream, show, f.count)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// copyLines writes what show makes of each line, as soon as it is there, until so many were written; 0: until there are no more, which is an error.
func copyLines(out io.Writer, from io.Reader, show func([]byte) []byte, most uint64) error {
	lines, to := bufio.NewReaderSize(from, 64<<10), bufio.NewWriterSize(out, 64<<10)
	for n := uint64(0); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if flushErr := to.Flush(); flushErr != nil {
				return flushErr
			}
			if errors.Is(err, io.EOF) {
				return errors.New("the agent has ended")
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("the agent hung up: it was killed, or nothing was read for %v", tailPatience)
			}
			return fmt.Errorf("follow the agent's log: %w", err)
		}
		if _, err := to.Write(show(line)); err != nil {
			return err
		}
		if !isLost(line) {
			n++
		}
		if n == most && most > 0 {
			return to.Flush()
		}
		if lines.Buffered() == 0 {
			if err := to.Flush(); err != nil {
				return err
			}
		}
	}
}

func isLost(line []byte) bool {
	var l struct {
		Event string `json:"event.name"`
	}
	return bytes.Contains(line, []byte(tail.LostEvent)) && json.Unmarshal(line, &l) == nil && l.Event == tail.LostEvent
}
