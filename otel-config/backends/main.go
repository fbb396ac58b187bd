// Program backends is what tests of the collector's examples send to, where no real one can be had or is too large: a Kafka that is in memory, and the
// way that remote write takes into Prometheus. It also reads a compose file with the library of Docker's own command line.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage:
  backends kafka HOST:PORT TOPIC...   writes a line of JSON for each message that arrives
  backends prometheus HOST:PORT       takes remote write at /api/v1/write, and tells series with their last values at /series
  backends prometheus-config FILE     checks a configuration of Prometheus, with what it names
  backends compose FILE               checks a compose file, and writes it in full as JSON`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%s", usage)
	}
	switch args[0] {
	case "kafka":
		return runKafka(ctx, args[1], args[2:])
	case "prometheus":
		return runPrometheus(ctx, args[1])
	case "prometheus-config":
		return checkPrometheus(args[1])
	case "compose":
		return checkCompose(ctx, args[1])
	}
	return fmt.Errorf("%s", usage)
}
