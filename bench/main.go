// Command bench measures what Sidelight costs and holds it against budgets.yaml. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/gate"
	"github.com/sidelight-mesh/sidelight/bench/kernel"
	"github.com/sidelight-mesh/sidelight/bench/live"
	"github.com/sidelight-mesh/sidelight/bench/mesh"
	"github.com/sidelight-mesh/sidelight/bench/report"
	"github.com/sidelight-mesh/sidelight/bench/restart"
	"github.com/sidelight-mesh/sidelight/bench/userspace"
	"github.com/sidelight-mesh/sidelight/bench/workload"
)

// The exit codes besides 0.
const (
	exitBroken = 1 // a budget is broken
	exitFailed = 2 // there is no measurement
)

type options struct {
	figure.Options
	sources, only          []string
	budgets, results, name string
}

// all are the sources that there are, in the order in which they run.
func (o *options) all() []figure.Source {
	return []figure.Source{
		live.Source{Only: o.only},
		kernel.Source{},
		userspace.Source{},
		&mesh.Source{},
		&restart.Source{},
	}
}

func main() {
	if err := process(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		if errors.Is(err, errBroken) {
			os.Exit(exitBroken)
		}
		os.Exit(exitFailed)
	}
}

// process runs the command, or what the command starts of itself.
func process(arguments []string) error {
	if len(arguments) > 0 {
		switch arguments[0] {
		case workload.Argument:
			return workload.Main(arguments[1:])
		case live.ReceiverArgument:
			return live.ReceiverMain()
		case kernel.Argument:
			return kernel.Main()
		case mesh.Argument:
			return mesh.Main(arguments[1:])
		case restart.Argument:
			return restart.Main()
		}
	}
	o, err := parse(arguments)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return bench(ctx, o)
}

func parse(arguments []string) (*options, error) {
	o := &options{Options: figure.Options{Log: os.Stderr}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	list := func(into *[]string) func(string) error {
		return func(s string) error {
			*into = strings.Split(s, ",")
			return nil
		}
	}
	f.BoolVar(&o.Quick, "quick", false, "fewer rounds: under five minutes")
	f.Uint64Var(&o.Seed, "seed", rand.Uint64()>>32, "seed of the order of slices and of the bootstrap")
	f.StringVar(&o.Agent, "agent", "bin/sidelight", "the built agent")
	f.StringVar(&o.budgets, "budgets", "bench/budgets.yaml", "the limits")
	f.StringVar(&o.results, "results", "bench/results", "directory of results")
	f.StringVar(&o.name, "name", "", "name of the results (default: date and time)")
	f.Func("sources", "comma-separated sources of figures (default: all)", list(&o.sources))
	f.Func("only", "comma-separated workloads of the source live; budgets of others are not asked for", list(&o.only))
	if err := f.Parse(arguments); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q; see -help", f.Arg(0))
	}
	if o.name == "" {
		o.name = time.Now().UTC().Format("2006-01-02T150405")
	}
	if len(o.sources) == 0 {
		for _, s := range o.all() {
			o.sources = append(o.sources, s.Name())
		}
	}
	var err error
	if o.Agent, err = filepath.Abs(o.Agent); err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.Agent); err != nil {
		return nil, fmt.Errorf("the agent: %w; run make build", err)
	}
	return o, nil
}

var errBroken = errors.New("budgets are broken")

func bench(ctx context.Context, o *options) error {
	budgets, err := o.load()
	if err != nil {
		return err
	}
	about := report.Describe(o.name, o.Seed, o.Quick)
	fmt.Fprintf(o.Log, "seed %d\n", o.Seed)
	sources, err := o.picked()
	if err != nil {
		return err
	}
	var figures []figure.Figure
	for _, s := range sources {
		some, err := s.Measure(ctx, o.Options)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
		figures = append(figures, some...)
	}
	budgets, absent := present(budgets, sources)
	if o.Quick {
		budgets = gate.ForAnyMachine(budgets, figures)
	}
	results, err := gate.Judge(figures, budgets, o.sources, o.Seed)
	if err != nil {
		return err
	}
	more, err := o.again(ctx, sources, results, figures)
	if err != nil {
		return err
	}
	if more {
		if results, err = gate.Judge(figures, budgets, o.sources, o.Seed); err != nil {
			return err
		}
	}
	dir := filepath.Join(o.results, o.name)
	if err := report.Write(dir, about, results); err != nil {
		return err
	}
	if err := note(filepath.Join(dir, "table.md"), absent); err != nil {
		return err
	}
	fmt.Print(report.Table(about, results), absent)
	fmt.Fprintf(o.Log, "\nall of it: %s\n", dir)
	var broken []string
	for _, r := range results {
		if r.Verdict == gate.Broken {
			broken = append(broken, r.Figure.Name)
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("%w: %s", errBroken, strings.Join(broken, ", "))
	}
	return nil
}

// present leaves out budgets of what cannot be measured on this machine, and says what that is: never in silence, and never as a number.
func present(budgets []gate.Budget, sources []figure.Source) (left []gate.Budget, absent string) {
	reasons := make(map[string]string)
	for _, s := range sources {
		if lacking, ok := s.(interface{ Absent() map[string]string }); ok {
			maps.Copy(reasons, lacking.Absent())
		}
	}
	for _, prefix := range slices.Sorted(maps.Keys(reasons)) {
		absent += fmt.Sprintf("\nNot on this kernel: %s* (%s)\n", prefix, reasons[prefix])
		budgets = slices.DeleteFunc(budgets, func(b gate.Budget) bool { return strings.HasPrefix(b.Figure, prefix) })
	}
	return budgets, absent
}

// note adds text to a file.
func note(path, text string) error {
	if text == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// picked are the sources that were asked for.
func (o *options) picked() ([]figure.Source, error) {
	var sources []figure.Source
	for _, name := range o.sources {
		i := slices.IndexFunc(o.all(), func(s figure.Source) bool { return s.Name() == name })
		if i < 0 {
			return nil, fmt.Errorf("no source %q; leave --sources out for all", name)
		}
		sources = append(sources, o.all()[i])
	}
	return sources, nil
}

// again measures once more what is broken by so little that it may be chance, and adds it to the figures.
func (o *options) again(ctx context.Context, sources []figure.Source, results []gate.Result, figures []figure.Figure) (more bool, err error) {
	for _, s := range sources {
		source, ok := s.(figure.Again)
		if !ok {
			continue
		}
		var names []string
		for _, r := range results {
			if r.Source() == s.Name() && r.Doubtful() {
				names = append(names, r.Figure.Name)
			}
		}
		if len(names) == 0 {
			continue
		}
		fmt.Fprintf(o.Log, "once more, since broken by little: %s\n", strings.Join(names, ", "))
		some, err := source.MeasureAgain(ctx, o.Options, names)
		if err != nil {
			return more, fmt.Errorf("%s: %w", s.Name(), err)
		}
		figure.Pool(figures, some)
		more = true
	}
	return more, nil
}

// load reads the budgets that this run can hold figures against.
func (o *options) load() ([]gate.Budget, error) {
	f, err := os.Open(o.budgets)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	budgets, err := gate.Load(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.budgets, err)
	}
	return slices.DeleteFunc(budgets, func(b gate.Budget) bool {
		parts := strings.Split(b.Figure, ".")
		return len(o.only) > 0 && parts[0] == "live" && len(parts) > 1 && !slices.Contains(o.only, parts[1])
	}), nil
}
