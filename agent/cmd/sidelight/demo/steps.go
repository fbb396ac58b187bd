package demo

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Step is a line of the agent's log: an endpoint was ejected, or is back.
type Step struct {
	At       time.Time `json:"at"`
	What     string    `json:"what"`
	Endpoint string    `json:"endpoint"`
	Service  string    `json:"service"`
	Cause    string    `json:"cause"`
	Until    time.Time `json:"until,omitzero"` // of an ejection
}

// What steps are called in the log (agent/outlier).
const (
	stepEjected = "endpoint ejected"
	stepBack    = "endpoint back"
)

// Steps is a log handler that keeps the steps and passes on what the next one wants. Safe for concurrent use.
type Steps struct {
	slog.Handler

	kept *keptSteps
}

type keptSteps struct {
	mu    sync.Mutex
	steps []Step
}

// NewSteps returns a handler before another.
func NewSteps(next slog.Handler) Steps { return Steps{next, new(keptSteps)} }

// All returns the steps so far, oldest first.
func (s Steps) All() []Step {
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	return slices.Clone(s.kept.steps)
}

// Enabled is a slog.Handler's.
func (s Steps) Enabled(ctx context.Context, level slog.Level) bool {
	return level == slog.LevelInfo || s.Handler.Enabled(ctx, level)
}

// Handle is a slog.Handler's.
func (s Steps) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == stepEjected || r.Message == stepBack {
		step := Step{At: r.Time, What: r.Message}
		r.Attrs(func(a slog.Attr) bool {
			switch a.Key {
			case "endpoint":
				step.Endpoint = a.Value.String()
			case "service":
				step.Service = a.Value.String()
			case "cause":
				step.Cause = a.Value.String()
			case "until":
				step.Until, _ = a.Value.Any().(time.Time)
			}
			return true
		})
		s.kept.mu.Lock()
		s.kept.steps = append(s.kept.steps, step)
		s.kept.mu.Unlock()
	}
	if !s.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs is a slog.Handler's.
func (s Steps) WithAttrs(attrs []slog.Attr) slog.Handler {
	return Steps{s.Handler.WithAttrs(attrs), s.kept}
}

// WithGroup is a slog.Handler's.
func (s Steps) WithGroup(name string) slog.Handler { return Steps{s.Handler.WithGroup(name), s.kept} }
