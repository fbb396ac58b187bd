package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/sidelight-mesh/sidelight/agent/budget"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// budgetSide keeps the node within its overhead budget.
type budgetSide struct {
	keeper   atomic.Pointer[budget.Keeper] // nil without a budget, and before the node is attached
	limits   budget.Limits
	profiles *budget.Profiles
	steps    chan self.BudgetStep // for the log; never waited for
	pace     budget.Pace
	interval time.Duration
	tasks    sync.WaitGroup
}

// stepsRoom is how many steps may wait for a collector that takes nothing: the ladder is not longer, and the metrics have them all.
const stepsRoom = 16

func newBudgetSide(c *config.Config) *budgetSide {
	return &budgetSide{
		limits:   budget.Limits{CPU: float64(c.Budget.CPU), Memory: uint64(c.Budget.Memory)},
		profiles: budget.NewProfiles(filepath.Join(c.StateDirectory, "profiles")),
		steps:    make(chan self.BudgetStep, stepsRoom),
		pace:     budget.DefaultPace,
		interval: budget.DefaultInterval,
	}
}

// keepBudget starts to measure and to keep the budget, until the context ends. The node is attached.
func (n *node) keepBudget(ctx context.Context) {
	if !n.config.Budget.Enabled() {
		return
	}
	b := n.budget
	meter := budget.NewMeter(budget.Source{
		Now: time.Now, Sleep: budget.Sleep, CPUs: budget.NodeCPUs(), Own: budget.OwnTime, Memory: budget.OwnMemory,
		Programs: n.datapath.HookTime, Measure: datapath.Measure, Measuring: datapath.Measuring, Work: n.datapath.Work,
	})
	keeper := budget.NewKeeper(budget.Options{
		Limits: b.limits, Pace: b.pace, Interval: b.interval, Logger: n.logger,
		Details: budget.Details(budget.Telling{
			Spans: n.collector != nil, Logs: n.collector != nil || n.log != nil,
			AllEvents: n.config.Events == config.EventsAll, AnyEvents: n.config.Events != config.EventsNone,
		}),
		Measure: meter.Measure, Apply: n.applyDetail, Stepped: n.stepped,
		Breached: func(cause budget.Cause) { b.tasks.Go(func() { n.profileBreach(ctx, cause) }) },
	})
	b.keeper.Store(keeper) // for reports, which began before
	b.tasks.Go(staged("budget", func() { keeper.Run(ctx) }))
}

// applyDetail makes a place on the ladder so, within what the configuration asks for.
func (n *node) applyDetail(d budget.Detail) error {
	if n.gate != nil {
		n.gate.Set(d)
	}
	return n.datapath.SetSilent(silentOn(d.Rung, n.config.Events))
}

// silentOn are the kinds that the kernel is not to send.
func silentOn(rung budget.Rung, events string) []connection.Kind {
	lower := config.EventsAll
	switch rung {
	case budget.ClosesOnly:
		lower = config.EventsCloses
	case budget.CountersOnly:
		lower = config.EventsNone
	}
	kinds := silentKinds(events)
	for _, kind := range silentKinds(lower) {
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// stepped tells of a step.
func (n *node) stepped(s budget.Step) {
	if s.Cause == budget.Memory {
		debug.FreeOSMemory() // what the step saved counts only when the kernel has it back
	}
	step := self.BudgetStep{
		At: time.Now(), From: s.From.Rung.String(), To: s.To.Rung.String(), Rung: int64(s.To.Rung), Probability: s.To.Probability(),
		Cause: s.Cause.String(), Down: s.Down(),
		CPU: s.Reading.CPU, CPULimit: s.Limits.CPU, Memory: int64(s.Reading.Memory), MemoryLimit: int64(s.Limits.Memory),
	}
	_, span := n.tracing.Start(context.Background(), spanStep)
	if span.IsRecording() {
		span.SetAttributes(attribute.String("sidelight.budget.to", step.To), attribute.String("sidelight.budget.cause", step.Cause))
	}
	span.End()
	level, message := slog.LevelInfo, "within the overhead budget: telling more"
	if step.Down {
		level, message = slog.LevelWarn, "over the overhead budget: telling less; sums stay exact"
	}
	n.logger.Log(context.Background(), level, message, "from", step.From, "to", step.To, "cause", step.Cause,
		"sampling_probability", step.Probability, "cpu_ratio", step.CPU, "cpu_limit_ratio", step.CPULimit,
		"memory_bytes", step.Memory, "memory_limit_bytes", step.MemoryLimit)
	if n.collector == nil {
		return
	}
	select {
	case n.budget.steps <- step:
	default:
	}
}

// profileBreach takes a profile of what costs too much, so that it can be looked at afterwards.
func (n *node) profileBreach(ctx context.Context, cause budget.Cause) {
	files, err := n.budget.profiles.Capture(ctx, cause)
	if err != nil {
		n.logger.Warn("no profile of what is over the overhead budget", "error", err)
	}
	for _, file := range files {
		n.logger.Info("wrote a profile of what is over the overhead budget", "file", file)
	}
}

// addBudget tells what the agent costs, and what it does about that.
func (v *values) addBudget(n *node) {
	b := n.budget
	keeper := b.keeper.Load()
	if keeper == nil {
		return
	}
	s := keeper.State()
	v.add(self.BudgetRung, uint64(s.Detail.Rung))
	v.Values = append(v.Values, self.BudgetProbability.Of(s.Detail.Probability()))
	v.add(self.BudgetSteps, s.Down, "down")
	v.add(self.BudgetSteps, s.Up, "up")
	if s.Measured {
		v.Values = append(v.Values, self.BudgetCPU.Of(s.Measurement.Agent, "agent"))
		if s.Measurement.ProgramsErr == nil {
			v.Values = append(v.Values, self.BudgetCPU.Of(s.Measurement.Programs, "programs"))
		}
		v.add(self.BudgetMemory, s.Measurement.Memory)
	}
	if b.limits.CPU > 0 {
		v.Values = append(v.Values, self.BudgetCPULimit.Of(b.limits.CPU))
	}
	if b.limits.Memory > 0 {
		v.add(self.BudgetMemoryLimit, b.limits.Memory)
	}
}

// limitMemory has the garbage collector work harder before the budget is reached, unless the environment says otherwise: a quarter is
// for what is not the collector's, such as the program itself and the ring.
func limitMemory(c *config.Config) {
	if c.Budget.Memory > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(c.Budget.Memory) / 4 * 3)
	}
}
