package outlier

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// DefaultChecks is how many checks run at a time if nothing else is said.
const DefaultChecks = 64

// jitter is by which part an interval is shorter or longer at most, so that the checks of many agents do not come together.
const jitter = 0.1

// Checker connects to the endpoints of services with a health check now and then.
//
// An endpoint is in service until UnhealthyThreshold checks in a row failed, and out until HealthyThreshold in a row did not; 0 is 1. It begins in
// service: the control plane said that it is there, and with the other choice each start of the agent and each replacement of all endpoints
// would refuse connections that would have been served. How many may be out is not bounded: what does not answer serves nobody.
//
// The first check is at random within the first Interval, so that not all come at once; then each begins an Interval after the last one began, give
// or take a tenth, or when that is over if it takes longer. Timeout is of each address; 0 is Interval. While as many checks run as may, others are
// late: an endpoint that answers nothing takes one of them for a Timeout.
//
// A check that was not made for want of descriptors, memory or permission changes nothing. Methods are safe for concurrent use.
type Checker struct {
	dial    Dial
	slots   chan struct{} // one for each check that runs
	stepped func(Step)
	logger  *slog.Logger
	random  func() float64 // in [0, 1)
	wake    chan struct{}

	mu      sync.Mutex // of all below
	targets map[model.Name]*target
	due     dueHeap // targets that are not being checked
	blind   int     // endpoints without a place to connect to; the log has it
	unmade  bool    // the last check was not made; the log has it
}

// target is an endpoint that is checked.
type target struct {
	name     model.Name
	service  model.Name
	place    place
	settings model.HealthCheck

	at        time.Time // of the next check
	checking  bool
	gone      bool // no longer in the mesh
	out       bool
	failures  uint32 // in a row
	successes uint32 // in a row
	ejections uint64
}

// NewChecker returns a checker of an empty mesh, that runs at most checks at a time; 0 is DefaultChecks. A nil dial is Connect. stepped hears of each
// step; it must not block, nor call the checker.
func NewChecker(dial Dial, checks int, stepped func(Step), logger *slog.Logger) *Checker {
	if dial == nil {
		dial = Connect
	}
	if checks <= 0 {
		checks = DefaultChecks
	}
	return &Checker{
		dial: dial, slots: make(chan struct{}, checks), stepped: stepped, logger: logger, random: rand.Float64, wake: make(chan struct{}, 1),
		targets: make(map[model.Name]*target),
	}
}

// SetSnapshot puts another mesh in force. An endpoint that is in both, in the same service and at the same address and port, keeps its state, and
// the time of its next check unless its interval is another.
func (c *Checker) SetSnapshot(snapshot *model.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next, blind, example, now := make(map[model.Name]*target, len(c.targets)), 0, model.Name{}, time.Now()
	checked := func(s *model.Service) bool { return s.Health.Interval > 0 }
	visit(snapshot, checked, func(e *model.Endpoint, s *model.Service, at place) {
		if !at.checkable() {
			if blind == 0 {
				example = e.Name
			}
			blind++
			return
		}
		if next[e.Name] != nil {
			return // of two with one name the first is checked
		}
		t := c.targets[e.Name]
		if t == nil || t.service != s.Name || t.place != at {
			t = &target{name: e.Name, service: s.Name, place: at}
		}
		if t.settings.Interval != s.Health.Interval {
			t.at = now.Add(time.Duration(c.random() * float64(s.Health.Interval)))
		}
		t.settings = s.Health
		next[e.Name] = t
	})
	for name, t := range c.targets {
		if next[name] == t {
			continue
		}
		t.gone = true
		if t.out {
			c.stepped(Step{Endpoint: t.name, Service: t.service, Cause: HealthCheck, Change: Dropped})
		}
	}
	c.targets, c.due = next, c.due[:0]
	for _, t := range next {
		if !t.checking {
			c.due = append(c.due, t)
		}
	}
	heap.Init(&c.due)
	if blind > 0 && blind != c.blind {
		c.logger.Warn("endpoints have no address or no port to check, they count as healthy", "endpoints", blind, "endpoint", example.String())
	}
	c.blind = blind
	signal(c.wake)
}

// Run checks until the context ends, and the checks under way with it. It is called once.
func (c *Checker) Run(ctx context.Context) {
	var checks sync.WaitGroup
	defer checks.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		t := c.next(ctx, timer)
		if t == nil {
			return
		}
		checks.Go(func() {
			c.checkOne(ctx, t)
			<-c.slots
		})
	}
}

// next waits for a target to be due, and takes it; nil when the context ends.
func (c *Checker) next(ctx context.Context, timer *time.Timer) *target {
	for ctx.Err() == nil {
		t, wait := c.take()
		if t != nil {
			return t
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-due:
		case <-c.wake:
		case <-ctx.Done():
		}
	}
	return nil
}

// take returns a target that is due, or how long it takes until one is; nil and 0 if there is none.
func (c *Checker) take() (*target, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.due) == 0 {
		return nil, 0
	}
	if wait := time.Until(c.due[0].at); wait > 0 {
		return nil, wait
	}
	t := heap.Pop(&c.due).(*target)
	t.checking = true
	return t, 0
}

func (c *Checker) checkOne(ctx context.Context, t *target) {
	c.mu.Lock()
	settings, began := t.settings, time.Now()
	c.mu.Unlock()
	timeout := settings.Timeout
	if timeout <= 0 {
		timeout = settings.Interval
	}
	said, err := check(ctx, c.dial, t.place, timeout)
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	first := said == unknown && !c.unmade
	c.unmade = said == unknown
	t.checking = false
	if !t.gone {
		c.count(t, said, err)
		t.at = began.Add(time.Duration(float64(t.settings.Interval) * (1 - jitter + 2*jitter*c.random())))
		heap.Push(&c.due, t)
	}
	c.mu.Unlock()
	signal(c.wake)
	if first {
		c.logger.Warn("health checks cannot be made, endpoints stay what they are", "endpoint", t.name.String(), "error", err)
	}
}

// count takes the result of a check. Called with mu held.
func (c *Checker) count(t *target, said verdict, err error) {
	switch said {
	case answered:
		t.failures, t.successes = 0, t.successes+1
		if t.out && t.successes >= t.settings.HealthyThreshold {
			t.out = false
			c.stepped(Step{Endpoint: t.name, Service: t.service, Cause: HealthCheck, Change: Back})
		}
	case silent:
		t.failures, t.successes = t.failures+1, 0
		if !t.out && t.failures >= t.settings.UnhealthyThreshold {
			t.out = true
			t.ejections++
			c.stepped(Step{Endpoint: t.name, Service: t.service, Cause: HealthCheck, Change: Ejected, Err: err})
		}
	}
}

// Out returns which endpoints are out, in no order.
func (c *Checker) Out() []model.Name {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []model.Name
	for _, t := range c.targets {
		if t.out {
			out = append(out, t.name)
		}
	}
	return out
}

// Stats returns what is known of the endpoints that fail or were out, in no order.
func (c *Checker) Stats() []Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stats []Stats
	for _, t := range c.targets {
		if t.ejections == 0 && t.failures == 0 {
			continue
		}
		s := Stats{Endpoint: t.name, Service: t.service, CheckEjections: t.ejections, FailingChecks: t.failures}
		if t.out {
			s.Cause = HealthCheck
		}
		stats = append(stats, s)
	}
	return stats
}

// dueHeap has the target that is due first at its top.
type dueHeap []*target

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(t any)        { *h = append(*h, t.(*target)) }

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return t
}
