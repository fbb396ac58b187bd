package demo

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// MeshReport is what the demo of a mesh saw.
type MeshReport struct {
	Endpoints []EndpointRow `json:"endpoints"`
	Policies  []PolicyRow   `json:"policies"`
	Limits    []LimitRow    `json:"limits"`
	// Clients are what they say themselves, by client and service; at the end only.
	Clients map[string]map[string]Tally `json:"clients,omitempty"`
	Steps   []Step                      `json:"steps"`
	// NearStopped is when nobody listened at the near endpoints any more, FailedOver when no table was seen to have them.
	NearStopped time.Time `json:"near_stopped,omitzero"`
	FailedOver  time.Time `json:"failed_over,omitzero"`
	Seen        []Seen    `json:"seen,omitempty"` // at the end only
	Drift       []string  `json:"drift,omitempty"`
}

// Seen is something that must be.
type Seen struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// Report sums up what is known by now. tallies is nil while the clients run.
func (w *Watch) Report(s *MeshState, decided Decisions, tallies map[string]map[string]Tally, steps []Step) MeshReport {
	return MeshReport{
		Endpoints: w.rows(s, decided, tallies), Policies: policyRows(s, decided), Limits: w.limitRows(s, decided), Clients: tallies, Steps: steps,
		NearStopped: w.stopped, FailedOver: w.over, Drift: s.Drift,
	}
}

// Judge fills in Seen, with numbers that must agree to the last connection. end is when the demo ended.
func (r *MeshReport) Judge(m *MeshWorld, end time.Time) {
	r.Seen = []Seen{r.failover(m), r.denied(), r.limited(m), r.ejected(end), r.agreed()}
}

// Missing lists what was not seen.
func (r *MeshReport) Missing() []string {
	var missing []string
	for _, s := range r.Seen {
		if !s.OK {
			missing = append(missing, s.What)
		}
	}
	return missing
}

func (r *MeshReport) failover(m *MeshWorld) Seen {
	near := make(map[string]bool)
	for _, name := range m.near() {
		near[name.String()] = true
	}
	ok := !r.FailedOver.IsZero()
	var before, refused, far, farFailed uint64
	for _, e := range r.Endpoints {
		switch {
		case e.Service != failoverService.String():
			continue
		case near[e.Endpoint]:
			before += e.Picks - e.Failed
			refused += e.Failed
			ok = ok && e.Answers > 0 && e.Ejections > 0
		default:
			far += e.Picks
			farFailed += e.Failed
			ok = ok && e.Answers > 0
		}
		ok = ok && e.PicksOut == 0
	}
	t := r.Clients[webName][failoverService.String()]
	ok = ok && refused > 0 && farFailed == 0 && t.Refused() == int(refused)
	text := fmt.Sprintf("%d connects to the near endpoints of %v, then these went away", before, failoverService)
	if r.FailedOver.IsZero() {
		return Seen{"failover", false, fmt.Sprintf("%s; %d were refused, and the endpoints are not out of service", text, refused)}
	}
	return Seen{"failover", ok, fmt.Sprintf("%s; after %d refused connects and %v they are out of service; %d connects to the far one, %d failed",
		text, refused, r.FailedOver.Sub(r.NearStopped).Round(10*time.Millisecond), far, farFailed)}
}

func (r *MeshReport) denied() Seen {
	t, other := r.Clients[intruderName][deniedService.String()], r.Clients[webName][deniedService.String()]
	var row PolicyRow
	for _, p := range r.Policies {
		if p.Policy == deniedPolicy.String() && p.Verdict == "deny" {
			row = p
		}
	}
	n := t.Dialled
	ok := n > 0 && t.IPv6 > 0 && t.Errors["EPERM"] == n && t.Answered() == 0 && row.Records == n && row.Kernel == uint64(n) &&
		other.Answered() > 0 && other.Answered() == other.Dialled
	return Seen{"denied client", ok, fmt.Sprintf("%d connects of %s to %v, %d answered, %d got EPERM; %d lines say denied, policy %s, rule %d; %d connects of %s, %d answered",
		n, intruderName, deniedService, t.Answered(), t.Errors["EPERM"], row.Records, row.Policy, row.Rule, other.Dialled, webName, other.Answered())}
}

func (r *MeshReport) limited(m *MeshWorld) Seen {
	t, bound := r.Clients[greedyName][limitedService.String()], int(m.Limit())
	var row LimitRow
	for _, l := range r.Limits {
		if l.Limit == "service "+limitedService.String() {
			row = l
		}
	}
	refused := t.Refused()
	// One errno for all: which one depends on the kernel.
	ok := t.Rounds > 0 && t.FewestHeld == bound && t.MostHeld == bound && refused > 0 && refused == t.Dialled-t.Rounds*bound && len(t.Errors) == 1 &&
		row.Rejected == uint64(refused) && row.Records == refused && row.Bound == uint32(bound) && row.MostOpen <= uint64(bound)
	perRound := 0
	if t.Rounds > 0 {
		perRound = t.Dialled / t.Rounds
	}
	return Seen{"circuit breaker", ok, fmt.Sprintf("%d times %d connects to %v at once, at most %d and at least %d passed; %d got %s; %d lines say circuit_open, limit of %s, %d",
		t.Rounds, perRound, limitedService, t.MostHeld, t.FewestHeld, refused, strings.Join(slices.Sorted(maps.Keys(t.Errors)), " "), row.Records, row.Limit, row.Bound)}
}

// backSlack is how late the log may say that an ejection is over.
const backSlack = 2 * time.Second

func (r *MeshReport) ejected(end time.Time) Seen {
	var out, backs, due int
	for _, s := range r.Steps {
		if s.Endpoint != ejectedEndpoint.String() {
			continue
		}
		if s.What == stepBack {
			backs++
			continue
		}
		out++
		if s.Until.Add(backSlack).Before(end) {
			due++
		}
	}
	ok := out > 0 && backs >= due
	var row EndpointRow
	others := uint64(0)
	for _, e := range r.Endpoints {
		switch {
		case e.Service != ejectedService.String():
		case e.Endpoint == ejectedEndpoint.String():
			row = e
			ok = ok && e.Ejections == uint64(out) && e.PicksOut == 0 && e.Answers == 0 && e.Failed == e.Picks
		default:
			others += e.Picks
			ok = ok && e.Answers > 0 && e.Failed == 0 && e.Ejections == 0
		}
	}
	return Seen{"ejected endpoint", ok, fmt.Sprintf("%s refused %d connects, was ejected %d times and came back %d times; while it was out it got %d; the others of %v got %d",
		row.Endpoint, row.Failed, out, backs, row.PicksOut, ejectedService, others)}
}

// agreed holds what the kernel counted against the log's records and what the clients say.
func (r *MeshReport) agreed() Seen {
	ok := len(r.Drift) == 0
	var picks, failed uint64
	var records, answers, cut, dialled, refusedByMesh, v6 int
	for _, e := range r.Endpoints {
		picks, failed, records, answers = picks+e.Picks, failed+e.Failed, records+e.Records, answers+e.Answers
		ok = ok && e.Open == 0 && e.Picks == uint64(e.Records)
	}
	for _, services := range r.Clients {
		for _, t := range services {
			cut, dialled, v6 = cut+t.Cut, dialled+t.Dialled, v6+t.IPv6
		}
	}
	for _, l := range r.Limits {
		refusedByMesh += int(l.Rejected)
		ok = ok && l.Open == 0
	}
	for _, p := range r.Policies {
		if p.Verdict == "deny" {
			refusedByMesh += p.Records
		}
	}
	ok = ok && picks > 0 && v6 > 0 && dialled == int(picks)+refusedByMesh && int(picks) == answers+int(failed)+cut
	return Seen{"exact counts", ok, fmt.Sprintf("clients made %d connects, %d of them over IPv6; the kernel has %d picks + %d refused; %d answered + %d failed + %d cut; %d lines of picks",
		dialled, v6, picks, refusedByMesh, answers, failed, cut, records)}
}
