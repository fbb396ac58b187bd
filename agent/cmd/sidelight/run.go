package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

func runCommand() *cobra.Command {
	var file string
	var options nodeOptions
	flags := config.Default()
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Attach to a cgroup, watch its connections, export what happens",
		Long: `Attach to a cgroup, watch its connections, export what happens.

What is set where: a flag wins over OTEL_EXPORTER_OTLP_* variables, those over the file of --config, that over the defaults.
SIGTERM and SIGINT export what is pending and end the agent. --on-exit says what becomes of the data path then: with "keep" it goes on as it is, and the
next start takes it over, counting and logging what happened meanwhile; "remove" takes it off. "auto" keeps a mesh and removes what only observes.
An agent that is killed leaves the data path as with "keep". SIGUSR1 opens the access log file anew.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := resolve(file, nil, &flags, cmd.Flags(), os.LookupEnv)
			if err != nil {
				return inputError{err}
			}
			return run(cmd.Context(), c, options)
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "configuration `FILE` (YAML)")
	f.StringVar(&flags.OTelConfig, "otel-config", "", "collector configuration `FILE` (YAML) instead of the built-in one")
	f.StringVar(&flags.Cgroup, "cgroup", "", "cgroup2 `DIR` to attach to (default the root of cgroup2)")
	f.StringVar(&flags.AccessLog, "access-log", flags.AccessLog, "where one JSON line for each connection goes: stdout, stderr, off or a `FILE`")
	f.StringVar(&flags.MetricsAddress, "metrics-address", flags.MetricsAddress, "`HOST:PORT` of /metrics, /healthz, /readyz and /debug/pprof")
	f.StringVar(&flags.OTLP.Endpoint, "otlp-endpoint", "", "`URL` to send metrics, logs and traces to by OTLP, such as http://127.0.0.1:4317")
	f.StringVar(&flags.Mesh.Path, "mesh", "", "`FILE` or directory (YAML) of services, endpoints and policies that connections are steered and judged by")
	f.StringVar(&flags.OnExit, "on-exit", flags.OnExit, "what becomes of the data path when the agent is told to stop: keep, remove or auto")
	f.BoolVar(&options.takeover, "takeover", false, "make an agent that runs hand over")
	f.DurationVar(&flags.UpgradeTimeout, "upgrade-timeout", flags.UpgradeTimeout, "within which an agent that takes over must work; else the programs before it are put back")
	f.StringVar(&flags.PinDirectory, "pin-directory", flags.PinDirectory, "`DIR` in a bpffs where the data path is pinned, or off: it ends with the agent")
	f.StringVar(&flags.StateDirectory, "state-directory", flags.StateDirectory, "`DIR` of what waits for a backend, of the control socket, and of what is left to the next agent")
	f.StringVar(&flags.LogLevel, "log-level", flags.LogLevel, "`LEVEL` of the agent's own log: debug, info, warn, error")
	return cmd
}

// resolve puts together file, environment and flags, and checks the result. What the file says goes through loaded, if that is set.
func resolve(
	file string, loaded func(*config.Config), flags *config.Config, set *pflag.FlagSet, lookup func(string) (string, bool),
) (config.Config, error) {
	c := config.Default()
	if file != "" {
		if err := config.Load(file, &c); err != nil {
			return c, err
		}
	}
	if loaded != nil {
		loaded(&c)
	}
	inFile := c.OTLP.Enabled()
	if err := c.OTLP.ApplyEnvironment(lookup); err != nil {
		return c, err
	}
	for name, copyFlag := range map[string]func(){
		"otel-config":     func() { c.OTelConfig = flags.OTelConfig },
		"cgroup":          func() { c.Cgroup = flags.Cgroup },
		"access-log":      func() { c.AccessLog = flags.AccessLog },
		"metrics-address": func() { c.MetricsAddress = flags.MetricsAddress },
		"otlp-endpoint":   func() { c.OTLP.Endpoint = flags.OTLP.Endpoint },
		"log-level":       func() { c.LogLevel = flags.LogLevel },
		"mesh":            func() { c.Mesh.Path = flags.Mesh.Path },
		"on-exit":         func() { c.OnExit = flags.OnExit },
		"upgrade-timeout": func() { c.UpgradeTimeout = flags.UpgradeTimeout },
		"state-directory": func() { c.StateDirectory = flags.StateDirectory },
		"pin-directory":   func() { c.PinDirectory = flags.PinDirectory },
	} {
		if set.Changed(name) {
			copyFlag()
		}
	}
	if c.OTelConfig != "" && (inFile || set.Changed("otlp-endpoint")) {
		return c, errors.New("otel_config and an OTLP endpoint are both set: the collector's file says where data goes; remove one")
	}
	if err := c.Validate(); err != nil {
		if file != "" {
			return c, fmt.Errorf("%s: %w", file, err)
		}
		return c, err
	}
	return c, nil
}

func run(ctx context.Context, c config.Config, options nodeOptions) error {
	level, err := c.Level()
	if err != nil {
		return inputError{err}
	}
	logger := newLogger(level)
	slog.SetDefault(logger)
	limitMemory(&c)
	if options.mounted, err = mountBPFFS(&c, logger); err != nil {
		return inputError{err}
	}
	n, err := newNode(ctx, c, options, logger)
	if err != nil {
		return err
	}
	if c.Profiling.Pyroscope.URL != "" {
		host, _ := os.Hostname() // without a name the tag is left out
		stop, err := pushProfiles(&c.Profiling.Pyroscope, host, uploadInterval, logger)
		if err != nil {
			n.release()
			return inputError{err}
		}
		defer stop()
	}
	reopen := make(chan os.Signal, 1)
	signal.Notify(reopen, syscall.SIGUSR1) // without a log it is no reason to die
	defer signal.Stop(reopen)
	go func() {
		for range reopen {
			if n.log == nil {
				continue
			}
			if err := n.log.Reopen(); err != nil {
				logger.Error("access log goes on into the old file", "error", err)
			}
		}
	}()
	return n.run(ctx, nil)
}

// mountBPFFS is for what outlives the agent, so only run needs it, and leaves it there. Where it cannot, an agent that only observes goes without.
func mountBPFFS(c *config.Config, logger *slog.Logger) (mounted bool, err error) {
	if !strings.HasPrefix(c.PinDirectory, datapath.BPFFS+"/") {
		return false, nil
	}
	mounted, err = datapath.MountBPFFS()
	switch {
	case err == nil:
		if mounted {
			logger.Info("mounted bpffs", "at", datapath.BPFFS)
		}
	case c.Mesh.Path != "" || c.OnExit == config.OnExitKeep:
		return false, fmt.Errorf("%w; mount it with: mount -t bpf -o mode=700 bpf %s, or say pin_directory: off, and the data path ends with the agent", err, datapath.BPFFS)
	default:
		logger.Warn("bpffs is not there, and was not mounted: the data path ends with this process", "error", err)
		c.PinDirectory = config.Off
	}
	return mounted, nil
}
