package outlier

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Saved is what one process leaves the next: the endpoints of which there is something to tell. Times are of the wall clock.
type Saved struct {
	At        time.Time       `json:"at"` // when it was saved
	Endpoints []SavedEndpoint `json:"endpoints"`
}

// SavedEndpoint is one endpoint's part of it.
type SavedEndpoint struct {
	Endpoint model.Name     `json:"endpoint"`
	Service  model.Name     `json:"service"`
	V4       netip.AddrPort `json:"v4"`
	V6       netip.AddrPort `json:"v6"`
	Detected *SavedDetected `json:"detected,omitempty"`
	Checked  *SavedChecked  `json:"checked,omitempty"`
}

// SavedDetected is what outlier detection knows of an endpoint that failed.
type SavedDetected struct {
	InARow     uint32    `json:"in_a_row"`
	Ejections  uint64    `json:"ejections"`
	Suppressed uint64    `json:"suppressed"`
	Multiple   int64     `json:"multiple"`
	Until      time.Time `json:"until"`
	Back       time.Time `json:"back"`
}

// SavedChecked is what health checks know of an endpoint that failed one.
type SavedChecked struct {
	Out       bool   `json:"out"`
	Failures  uint32 `json:"failures"`
	Successes uint32 `json:"successes"`
	Ejections uint64 `json:"ejections"`
}

// Save returns what there is to leave.
func (s *State) Save() Saved {
	saved := Saved{At: s.now().Round(0)}
	at := make(map[model.Name]int)
	for _, e := range append(s.detector.save(), s.checker.save()...) {
		i, both := at[e.Endpoint]
		if !both {
			at[e.Endpoint] = len(saved.Endpoints)
			saved.Endpoints = append(saved.Endpoints, e)
		} else if e.Checked != nil {
			saved.Endpoints[i].Checked = e.Checked
		}
	}
	slices.SortFunc(saved.Endpoints, func(a, b SavedEndpoint) int { return compare(a.Endpoint, b.Endpoint) })
	return saved
}

// Restore takes over what another process saved of those endpoints that are still the same: in the same service, and at the same addresses and ports. It is
// called after the first SetSnapshot and before Run. That an endpoint is still out is no step.
func (s *State) Restore(saved Saved) {
	s.detector.restore(saved)
	s.checker.restore(saved)
	signal(s.changed)
}

func (p place) of(e *SavedEndpoint) bool { return p.v4 == e.V4 && p.v6 == e.V6 }

func (d *Detector) save() []SavedEndpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var saved []SavedEndpoint
	for _, e := range d.failed {
		saved = append(saved, SavedEndpoint{Endpoint: e.name, Service: e.service, V4: e.place.v4, V6: e.place.v6, Detected: &SavedDetected{
			InARow: e.inARow.Load(), Ejections: e.ejections, Suppressed: e.suppressed, Multiple: e.multiple,
			Until: e.until.Round(0), Back: e.back.Round(0), // without the monotonic reading, which is of this process
		}})
	}
	return saved
}

func (d *Detector) restore(saved Saved) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// With the monotonic reading of this process, so that no step of the wall clock makes an ejection longer.
	now := d.now()
	here := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return now.Add(t.Sub(now.Round(0)))
	}
	members := *d.members.Load()
	for i := range saved.Endpoints {
		e := &saved.Endpoints[i]
		m := members[e.Endpoint]
		if e.Detected == nil || m.endpoint == nil || m.service != e.Service || !m.place.of(e) || m.failedOnce {
			continue
		}
		m.failedOnce = true
		d.failed = append(d.failed, m.endpoint)
		m.inARow.Store(e.Detected.InARow)
		m.ejections, m.suppressed, m.multiple = e.Detected.Ejections, e.Detected.Suppressed, e.Detected.Multiple
		m.back = here(e.Detected.Back)
		if until := here(e.Detected.Until); !until.IsZero() {
			m.until = until
			m.of.out++
			d.out[m.name] = m.endpoint
		}
	}
	for _, e := range d.byEnd() {
		switch m := members[e.name]; {
		case !now.Before(m.until):
			d.end(m, m.until, Back)
		case m.of.out > m.of.allowed():
			d.end(m, now, Dropped)
		}
	}
}

func (c *Checker) save() []SavedEndpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var saved []SavedEndpoint
	for _, t := range c.targets {
		if !t.out && t.failures == 0 && t.ejections == 0 {
			continue
		}
		saved = append(saved, SavedEndpoint{Endpoint: t.name, Service: t.service, V4: t.place.v4, V6: t.place.v6, Checked: &SavedChecked{
			Out: t.out, Failures: t.failures, Successes: t.successes, Ejections: t.ejections,
		}})
	}
	return saved
}

func (c *Checker) restore(saved Saved) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range saved.Endpoints {
		e := &saved.Endpoints[i]
		t := c.targets[e.Endpoint]
		if e.Checked == nil || t == nil || t.service != e.Service || !t.place.of(e) {
			continue
		}
		t.out, t.failures, t.successes, t.ejections = e.Checked.Out, e.Checked.Failures, e.Checked.Successes, e.Checked.Ejections
	}
}
