package outlier

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origin is when simulated time begins.
var origin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time { return origin.Add(time.Duration(seconds * float64(time.Second))) }

func name(s string) model.Name { return model.Name{Namespace: "shop", Name: s} }

// endpoints returns n endpoints of a service, called a, b, c and so on, or service-0, service-1 if there are many.
func endpoints(service string, n int) []model.Endpoint {
	all := make([]model.Endpoint, n)
	for i := range all {
		called := string(rune('a' + i))
		if n > 26 {
			called = fmt.Sprintf("%s-%d", service, i)
		}
		all[i] = model.Endpoint{
			Name: name(called), Service: name(service), Port: 8080,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})},
		}
	}
	return all
}

func mesh(s model.Service, e []model.Endpoint) *model.Snapshot {
	return &model.Snapshot{Services: []model.Service{s}, Endpoints: e}
}

func detecting(o model.OutlierDetection) model.Service {
	return model.Service{Name: name("cart"), Outlier: o}
}

// bench is a detector in simulated time, and what it said.
type bench struct {
	*Detector
	clock time.Time
	steps []Step
}

func newBench(snapshot *model.Snapshot) *bench {
	b := &bench{clock: origin}
	b.Detector = NewDetector(func() time.Time { return b.clock }, func(s Step) { b.steps = append(b.steps, s) })
	b.SetSnapshot(snapshot)
	return b
}

// observe gives outcomes of connects to an endpoint of the cart service, f for a failure and s for a success, all at one time.
func (b *bench) observe(endpoint string, outcomes string, seconds float64) {
	for _, o := range outcomes {
		b.Observe(name(endpoint), name("cart"), o == 'f', at(seconds))
	}
}

func (b *bench) advance(seconds float64) time.Time {
	b.clock = at(seconds)
	return b.Advance()
}

// stats returns what is known of an endpoint.
func (b *bench) stats(endpoint string) Stats {
	for _, s := range b.Stats() {
		if s.Endpoint == name(endpoint) {
			return s
		}
	}
	return Stats{}
}

// outUntil returns how many seconds after the origin an endpoint is back; 0: it is in service.
func (b *bench) outUntil(endpoint string) float64 {
	s := b.stats(endpoint)
	if s.Cause == None {
		return 0
	}
	return s.Until.Sub(origin).Seconds()
}
