package outlier

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// maxSteps is how many steps wait for the log at most.
const maxSteps = 4096

// Options of a State.
type Options struct {
	// Now is the clock of outlier detection, by which times given to Observe are judged. nil is time.Now.
	Now    func() time.Time
	Dial   Dial // nil is Connect
	Checks int  // that run at a time; 0 is DefaultChecks
	Logger *slog.Logger
}

// State is which endpoints are out, for whatever reason. Methods are safe for concurrent use.
type State struct {
	now      func() time.Time
	detector *Detector
	checker  *Checker
	logger   *slog.Logger
	changed  chan struct{}
	wake     chan struct{}

	mu     sync.Mutex // of all below; taken with that of detector or checker held
	steps  []Step     // that the log does not have yet
	missed int        // that it will never have
}

// NewState returns the state of an empty mesh.
func NewState(options Options) *State {
	s := &State{now: options.Now, logger: options.Logger, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	if s.now == nil {
		s.now = time.Now
	}
	s.detector = NewDetector(s.now, s.step)
	s.checker = NewChecker(options.Dial, options.Checks, s.step, options.Logger)
	return s
}

// SetSnapshot puts another mesh in force. See Detector and Checker for what endpoints keep.
func (s *State) SetSnapshot(snapshot *model.Snapshot) {
	s.detector.SetSnapshot(snapshot)
	s.checker.SetSnapshot(snapshot)
}

// Observe takes the outcome of a connect, as Detector.Observe does. It never waits for the log.
func (s *State) Observe(endpoint, service model.Name, failed bool, at time.Time) {
	s.detector.Observe(endpoint, service, failed, at)
}

// Run checks endpoints, ends ejections and logs steps, until the context ends. It is called once.
func (s *State) Run(ctx context.Context) {
	var checker sync.WaitGroup
	checker.Go(func() { s.checker.Run(ctx) })
	defer func() {
		checker.Wait()
		s.log()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := s.detector.Advance()
		s.log()
		var over <-chan time.Time
		if !next.IsZero() {
			timer.Reset(next.Sub(s.now()))
			over = timer.C
		}
		select {
		case <-over:
		case <-s.wake: // an ejection may end before the one that is waited for
		case <-ctx.Done():
			return
		}
	}
}

// Out returns which endpoints get no connections now. The map is the caller's.
func (s *State) Out() map[model.Name]Cause {
	ejected, ill := s.detector.Out(), s.checker.Out()
	out := make(map[model.Name]Cause, len(ejected)+len(ill))
	for _, name := range ejected {
		out[name] = Outlier
	}
	for _, name := range ill {
		out[name] = HealthCheck
	}
	return out
}

// Changed has a value when Out may be another than when the last one was taken. Many changes may be one value. It is never closed.
func (s *State) Changed() <-chan struct{} { return s.changed }

// Next returns when the next endpoint is back by itself; zero if none is.
func (s *State) Next() time.Time { return s.detector.Next() }

// Stats returns what is known of the endpoints that failed since they came into the mesh, by service and name. Counts begin with 0 where the endpoint
// left and came again, or detection was off.
func (s *State) Stats() []Stats {
	stats := s.detector.Stats()
	at := make(map[model.Name]int, len(stats))
	for i := range stats {
		at[stats[i].Endpoint] = i
	}
	for _, checked := range s.checker.Stats() {
		i, both := at[checked.Endpoint]
		if !both {
			stats = append(stats, checked)
			continue
		}
		merged := &stats[i]
		merged.CheckEjections, merged.FailingChecks = checked.CheckEjections, checked.FailingChecks
		if checked.Cause != None {
			merged.Cause, merged.Until = checked.Cause, checked.Until
		}
	}
	slices.SortFunc(stats, func(a, b Stats) int { return cmp.Or(compare(a.Service, b.Service), compare(a.Endpoint, b.Endpoint)) })
	return stats
}

func compare(a, b model.Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// step keeps a step for the log, and says that there was one.
func (s *State) step(step Step) {
	s.mu.Lock()
	if len(s.steps) < maxSteps {
		s.steps = append(s.steps, step)
	} else {
		s.missed++
	}
	s.mu.Unlock()
	signal(s.changed)
	signal(s.wake)
}

func (s *State) log() {
	s.mu.Lock()
	steps, missed := s.steps, s.missed
	s.steps, s.missed = nil, 0
	s.mu.Unlock()
	for _, step := range steps {
		keys := []any{"endpoint", step.Endpoint.String(), "service", step.Service.String(), "cause", step.Cause.String()}
		switch step.Change {
		case Ejected:
			if step.Cause == Outlier {
				keys = append(keys, "until", step.Until)
			} else {
				keys = append(keys, "error", step.Err)
			}
			s.logger.Info("endpoint ejected", keys...)
		case Back:
			s.logger.Info("endpoint back", keys...)
		case Dropped:
			s.logger.Info("ejection dropped with a change of the mesh", keys...)
		}
	}
	if missed > 0 {
		s.logger.Warn("more endpoints were ejected or came back than the log could take", "steps", missed)
	}
}

// signal fills a channel of one, if it is empty.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
