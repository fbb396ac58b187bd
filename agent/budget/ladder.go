// Package budget keeps the agent within what it may take of the node: it measures what the agent costs, and over budget goes down a
// ladder of rungs, each of which tells less and costs less. Sums stay exact on every rung.
package budget

import "math"

// Rung is how much is told. Each rung leaves out what those above it do, too.
type Rung uint8

// The rungs, from the top.
const (
	Full         Rung = iota
	SpansOff          // no spans
	LogSampling       // of the connections that are neither failed nor slow, a part has log lines
	ClosesOnly        // the kernel sends the ends of connections only
	CountersOnly      // the kernel sends nothing: sums are read from it
)

var rungNames = [...]string{
	Full: "full", SpansOff: "spans_off", LogSampling: "log_sampling", ClosesOnly: "closes_only", CountersOnly: "counters_only",
}

func (r Rung) String() string {
	if int(r) < len(rungNames) {
		return rungNames[r]
	}
	return "unknown"
}

// Detail is one place on the ladder: a rung, and how much of the log is left there. A rung may have several.
type Detail struct {
	Rung Rung
	// Halvings say with which probability an ordinary connection has a log line: 2^-Halvings.
	Halvings uint8
}

// Probability is that with which an ordinary connection has a log line.
func (d Detail) Probability() float64 {
	if d.Rung == CountersOnly {
		return 0
	}
	return math.Ldexp(1, -int(d.Halvings))
}

// How much of the log is left: few places make a short way, and at 1 in 8 most of what sampling saves is saved.
const (
	firstHalvings = 3
	moreHalvings  = 6
)

// Telling is what an agent tells, by its configuration.
type Telling struct {
	Spans, Logs bool
	// AllEvents says that the kernel sends more than the ends of connections, AnyEvents that it sends any.
	AllEvents, AnyEvents bool
}

// Details are the places of an agent's ladder, from the top: those that save it nothing are left out.
func Details(t Telling) []Detail {
	details := []Detail{{Rung: Full}}
	if !t.AnyEvents {
		return details
	}
	var halvings uint8
	if t.Spans {
		details = append(details, Detail{Rung: SpansOff})
	}
	if t.Logs {
		halvings = moreHalvings
		details = append(details, Detail{LogSampling, firstHalvings}, Detail{LogSampling, halvings})
	}
	if t.AllEvents {
		details = append(details, Detail{ClosesOnly, halvings})
	}
	return append(details, Detail{CountersOnly, halvings})
}

// Limits are what the agent may take; 0 is no limit.
type Limits struct {
	CPU    float64 // of all CPUs of the node
	Memory uint64  // bytes
}

// Reading is what it took: of CPUs since the reading before, of memory now.
type Reading struct {
	CPU    float64
	Memory uint64
}

// Cause is what a step was made for.
type Cause uint8

// The causes.
const (
	Room Cause = iota // there is room again
	CPU
	Memory
)

var causeNames = [...]string{Room: "room", CPU: "cpu", Memory: "memory"}

func (c Cause) String() string { return causeNames[c] }

// Below these parts of its limit a reading leaves room for more. Memory is given back slowly and does not jump.
const (
	clearCPU    = 0.6
	clearMemory = 0.85
)

// over returns what a reading exceeds.
func (l Limits) over(r Reading) Cause {
	switch {
	case l.CPU > 0 && r.CPU > l.CPU:
		return CPU
	case l.Memory > 0 && r.Memory > l.Memory:
		return Memory
	}
	return Room
}

func (l Limits) clear(r Reading) bool {
	return (l.CPU == 0 || r.CPU < clearCPU*l.CPU) && (l.Memory == 0 || float64(r.Memory) < clearMemory*float64(l.Memory))
}

// Pace is how many readings in a row make a step.
type Pace struct {
	Down int // over budget
	Up   int // clearly below it
	// MostUp bounds what Up grows to: it doubles each time a step up has to be taken back.
	MostUp int
}

// DefaultPace is for a reading every DefaultInterval: down within 20 seconds, up after a minute, and after an hour at most.
var DefaultPace = Pace{Down: 2, Up: 6, MostUp: 360}

// Step is from one place to the next.
type Step struct {
	From, To Detail
	Cause    Cause // Room on the way up
	Reading  Reading
	Limits   Limits
}

// Down says in which direction.
func (s *Step) Down() bool { return s.Cause != Room }

// Ladder decides. It is pure: what it does depends on the readings alone. Not safe for concurrent use.
type Ladder struct {
	details []Detail
	limits  Limits
	pace    Pace

	at          int
	over, clear int     // readings in a row
	low         int     // those of the clear ones, in a row, that take less than half of failed
	most        float64 // CPU of those that are clear
	since       int     // readings since the last step
	climbed     bool    // the last step was up
	left        float64 // the CPU that was taken where the last step up began
	patience    int     // clear readings that the next step up wants
	failed      float64 // the CPU that was taken where the last step up began that had to be taken back; 0 for none
}

// NewLadder returns a ladder at its top.
func NewLadder(details []Detail, limits Limits, pace Pace) *Ladder {
	return &Ladder{details: details, limits: limits, pace: pace, patience: pace.Up}
}

// At returns the place.
func (l *Ladder) At() Detail { return l.details[l.at] }

// Observe takes a reading and says whether it makes a step.
func (l *Ladder) Observe(r Reading) (Step, bool) {
	cause := l.limits.over(r)
	l.since++
	switch {
	case cause != Room:
		l.over++
		l.clear, l.low, l.most = 0, 0, 0
	case l.limits.clear(r):
		l.over = 0
		l.clear++
		l.low++
		if r.CPU >= l.failed/2 {
			l.low = 0
		}
		l.most = max(l.most, r.CPU)
	default: // neither: where it is to settle
		l.over, l.clear, l.low, l.most = 0, 0, 0, 0
	}
	step := Step{From: l.At(), Cause: cause, Reading: r, Limits: l.limits}
	switch {
	case l.over >= l.pace.Down && l.at < len(l.details)-1:
		l.stepDown(cause)
	case l.room() && l.at > 0:
		l.stepUp()
	default:
		return Step{}, false
	}
	l.over, l.clear, l.low, l.most, l.since = 0, 0, 0, 0, 0
	step.To = l.At()
	return step, true
}

// heldFor is how many times the patience that led to it a step up must last to count as right.
const heldFor = 4

func (l *Ladder) stepDown(cause Cause) {
	if l.climbed && l.since <= heldFor*l.patience {
		l.patience = min(2*l.patience, l.pace.MostUp)
		l.failed = 0
		if cause == CPU {
			l.failed = l.left
		}
	}
	l.climbed = false
	l.at++
}

func (l *Ladder) stepUp() {
	if l.climbed { // and the step before this one was right
		l.patience, l.failed = l.pace.Up, 0
	}
	l.climbed, l.left = true, l.most
	l.at--
}

// room says whether it is time for a step up. The load that one failed under is gone when the same place costs half of what it did: then
// there is nothing to be patient for.
func (l *Ladder) room() bool { return l.clear >= l.patience || l.low >= l.pace.Up }
