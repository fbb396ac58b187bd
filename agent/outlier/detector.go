package outlier

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Detector ejects endpoints to which connects fail, as Envoy's outlier detection does for consecutive errors.
//
// After ConsecutiveFailures in a row an endpoint is out for a multiple of BaseEjectionTime, at most MaxEjectionTime (0: no bound). The multiple is
// 1 at first and one more at each next ejection, as long as that makes it longer; it is one less, down to none, for each whole BaseEjectionTime that
// the endpoint was in service between two ejections. Envoy takes one off at each of its own intervals, which the model does not have.
// An ejection lasts as long as it did when it began, whatever the settings are then.
//
// At most MaxEjectionPercent of the service's endpoints, rounded down, are out at a time, and one always may be. All endpoints of the service count,
// those too that are out for other reasons. An ejection beyond that is counted and not made, and failures are counted from 0 again. When a change of
// the mesh makes the share smaller than what is out, those that would be back first are back at once.
//
// What fails or succeeds while the endpoint is out says nothing, nor does what is older than its return.
//
// Detection is off with ConsecutiveFailures or BaseEjectionTime 0; then nothing of the endpoint is kept. Methods are safe for concurrent use.
type Detector struct {
	now     func() time.Time
	stepped func(Step)

	setting sync.Mutex // held during SetSnapshot, for one at a time
	members atomic.Pointer[map[model.Name]member]

	// mu is held only for a few steps by Observe, and by others for what is out or has failed, never for the whole mesh: the event reader waits.
	mu     sync.Mutex // of members' store and all below
	out    map[model.Name]*endpoint
	failed []*endpoint // those with something to tell
}

// member is an endpoint with the settings that are in force for it.
type member struct {
	*endpoint
	of *service
}

type service struct {
	name      model.Name
	settings  model.OutlierDetection
	endpoints int
	out       int
}

// allowed returns how many may be out at a time.
func (s *service) allowed() int {
	return max(1, s.endpoints*int(min(s.settings.MaxEjectionPercent, 100))/100)
}

// endpoint is what is kept from one snapshot to the next.
type endpoint struct {
	name    model.Name
	service model.Name
	place   place
	inARow  atomic.Uint32 // failures; stored with mu held

	// With mu held:
	ejections  uint64
	suppressed uint64
	multiple   int64     // of BaseEjectionTime, at the last ejection
	until      time.Time // zero: in service
	back       time.Time // the end of the last ejection
	failedOnce bool
}

// NewDetector returns a detector for a mesh without endpoints. stepped hears of each step; it must not block, nor call the detector.
func NewDetector(now func() time.Time, stepped func(Step)) *Detector {
	d := &Detector{now: now, stepped: stepped, out: make(map[model.Name]*endpoint)}
	d.members.Store(new(map[model.Name]member))
	return d
}

func detects(s *model.Service) bool {
	return s.Outlier.ConsecutiveFailures > 0 && s.Outlier.BaseEjectionTime > 0
}

// SetSnapshot puts another mesh in force. An endpoint that is in both, in the same service and at the same address and port, keeps its state.
func (d *Detector) SetSnapshot(snapshot *model.Snapshot) {
	d.setting.Lock()
	defer d.setting.Unlock()
	old := *d.members.Load()
	next := make(map[model.Name]member, len(old))
	services := make(map[model.Name]*service)
	visit(snapshot, detects, func(e *model.Endpoint, s *model.Service, at place) {
		if _, twice := next[e.Name]; twice {
			return
		}
		of := services[s.Name]
		if of == nil {
			of = &service{name: s.Name, settings: s.Outlier}
			services[s.Name] = of
		}
		of.endpoints++
		kept := old[e.Name].endpoint
		if kept == nil || kept.service != s.Name || kept.place != at {
			kept = &endpoint{name: e.Name, service: s.Name, place: at}
		}
		next[e.Name] = member{kept, of}
	})

	d.mu.Lock()
	defer d.mu.Unlock()
	d.members.Store(&next)
	d.failed = slices.DeleteFunc(d.failed, func(e *endpoint) bool { return next[e.name].endpoint != e })
	for _, e := range d.byEnd() {
		if m := next[e.name]; m.endpoint == e {
			m.of.out++
			continue
		}
		delete(d.out, e.name)
		d.stepped(Step{Endpoint: e.name, Service: e.service, Cause: Outlier, Change: Dropped})
	}
	for _, e := range d.byEnd() {
		if m := next[e.name]; m.of.out > m.of.allowed() {
			d.end(m, d.now(), Dropped)
		}
	}
}

// Observe takes the outcome of a connect to an endpoint of a service, and when it was known. Of what is not in the mesh, or not under detection, it
// takes nothing. Failed is what the way or the other end refused or left unanswered; what the mesh refused, or the client gave up, is no outcome.
//
// It does not allocate but for the first failure of an endpoint and for an ejection, and waits for nothing that takes long. Times should have Go's
// monotonic reading, so that no step of the wall clock makes an ejection longer.
func (d *Detector) Observe(endpoint, service model.Name, failed bool, at time.Time) {
	if !failed {
		if m := (*d.members.Load())[endpoint]; m.endpoint == nil || m.inARow.Load() == 0 {
			return
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := (*d.members.Load())[endpoint]
	if m.endpoint == nil || m.service != service {
		return
	}
	if !m.until.IsZero() {
		if at.Before(m.until) {
			return
		}
		d.end(m, m.until, Back)
	}
	if at.Before(m.back) {
		return
	}
	if !failed {
		m.inARow.Store(0)
		return
	}
	d.fail(m, at)
}

func (d *Detector) fail(m member, at time.Time) {
	if !m.failedOnce {
		m.failedOnce = true
		d.failed = append(d.failed, m.endpoint)
	}
	if m.inARow.Add(1) < m.of.settings.ConsecutiveFailures {
		return
	}
	m.inARow.Store(0)
	if m.of.out >= m.of.allowed() {
		m.suppressed++
		return
	}
	m.until = at.Add(m.nextEjection(at))
	m.ejections++
	m.of.out++
	d.out[m.name] = m.endpoint
	d.stepped(Step{Endpoint: m.name, Service: m.service, Cause: Outlier, Change: Ejected, Until: m.until})
}

// nextEjection returns how long one lasts that begins at a time.
func (m member) nextEjection(at time.Time) time.Duration {
	base, most := m.of.settings.BaseEjectionTime, m.of.settings.MaxEjectionTime
	if m.ejections > 0 {
		m.multiple -= min(m.multiple, int64(at.Sub(m.back)/base))
	}
	if most <= 0 {
		m.multiple++
		return base * time.Duration(m.multiple)
	}
	if m.multiple == 0 || base*time.Duration(m.multiple) < most {
		m.multiple++
	}
	return min(base*time.Duration(m.multiple), most)
}

func (d *Detector) end(m member, at time.Time, change Change) {
	delete(d.out, m.name)
	m.of.out--
	m.until, m.back = time.Time{}, at
	d.stepped(Step{Endpoint: m.name, Service: m.service, Cause: Outlier, Change: change})
}

// Advance ends the ejections whose time is over, and returns when the next one is, as Next does.
func (d *Detector) Advance() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if next := d.next(); next.IsZero() || now.Before(next) {
		return next
	}
	for _, e := range d.byEnd() {
		if now.Before(e.until) {
			return e.until
		}
		d.end((*d.members.Load())[e.name], e.until, Back)
	}
	return time.Time{}
}

// Next returns when the next ejection is over; zero if nothing is out.
func (d *Detector) Next() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.next()
}

func (d *Detector) next() time.Time {
	var next time.Time
	for _, e := range d.out {
		if next.IsZero() || e.until.Before(next) {
			next = e.until
		}
	}
	return next
}

// byEnd returns what is out, in the order in which it will be back.
func (d *Detector) byEnd() []*endpoint {
	out := make([]*endpoint, 0, len(d.out))
	for _, e := range d.out {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *endpoint) int {
		return cmp.Or(a.until.Compare(b.until), compare(a.name, b.name))
	})
	return out
}

// Out returns which endpoints are out, in no order.
func (d *Detector) Out() []model.Name {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]model.Name, 0, len(d.out))
	for name := range d.out {
		out = append(out, name)
	}
	return out
}

// Stats returns what is known of the endpoints that ever failed, in no order.
func (d *Detector) Stats() []Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := make([]Stats, 0, len(d.failed))
	for _, e := range d.failed {
		s := Stats{
			Endpoint: e.name, Service: e.service, Ejections: e.ejections, Suppressed: e.suppressed, Failing: e.inARow.Load(), Until: e.until,
		}
		if !e.until.IsZero() {
			s.Cause = Outlier
		}
		stats = append(stats, s)
	}
	return stats
}
