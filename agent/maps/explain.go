package maps

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Question is a connection that somebody could make.
type Question struct {
	// Cgroups are the ids of the client's cgroup and of those above it, the nearest first. Empty: it is known by its address, or not at all, as one on another
	// node is.
	Cgroups []uint64
	// Addresses are the client's, at most one of each family: what it connects from, if that is not its own machine. Empty: not known.
	Addresses []netip.Addr
	// Netns is the cookie of the client's network namespace; 0: not known.
	Netns   uint64
	Dialled netip.AddrPort
	// NowNS is CLOCK_MONOTONIC: what is in the buckets of rate limits is as of then.
	NowNS uint64
	// Node is where this is, and Out is why endpoints are out of service, by their names.
	Node model.Locality
	Out  map[model.Name]string
}

// Explanation says what would come of it, from the same maps that programs read, one step after the other.
type Explanation struct {
	Dialled string        `json:"dialled"`
	Client  ExplainClient `json:"client"`
	// Service is "" where none was dialled: then the connection goes where it was sent to.
	Service    string            `json:"service,omitempty"`
	Frontend   string            `json:"frontend,omitempty"`
	Generation uint64            `json:"generation,omitempty"` // of the service's table
	Algorithm  string            `json:"algorithm,omitempty"`
	Endpoints  []ExplainEndpoint `json:"endpoints,omitempty"`
	// Destination and Policy are who is dialled where no service was, and what its policies say. With a service each endpoint has its own.
	Destination string         `json:"destination,omitempty"`
	Policy      *ExplainPolicy `json:"policy,omitempty"`
	Limits      []ExplainLimit `json:"limits,omitempty"`
	// Outcome is "ok", the reason of a refusal, or "depends" on what is not known here, or on which of several endpoints is chosen.
	Outcome string `json:"outcome"`
	Because string `json:"because"`
}

// ExplainClient is who connects.
type ExplainClient struct {
	Workload string `json:"workload,omitempty"` // "": nobody that the mesh knows
	Identity string `json:"identity,omitempty"`
	KnownBy  string `json:"known_by"`
	Bypass   bool   `json:"bypass,omitempty"`
}

// ExplainEndpoint is an endpoint of the service.
type ExplainEndpoint struct {
	Endpoint string         `json:"endpoint"`
	Address  string         `json:"address,omitempty"`
	Workload string         `json:"workload,omitempty"`
	Eligible bool           `json:"eligible"`
	Because  string         `json:"because,omitempty"` // it is not
	Share    float64        `json:"share,omitempty"`   // of the choices
	Open     uint64         `json:"open,omitempty"`    // connections
	Policy   *ExplainPolicy `json:"policy,omitempty"`
}

// ExplainPolicy is what policies say.
type ExplainPolicy struct {
	Verdict string `json:"verdict"`        // allow or deny
	Rule    string `json:"rule,omitempty"` // that decided; "": none matched
	DryRun  string `json:"dry_run,omitempty"`
	// Open says that a rule asks for the client's address, which is not known: who allows it here leaves it to the server's side.
	Open bool `json:"open,omitempty"`
	// Perhaps says that it is not known whether this is about who is connected to: somebody listens at that port, in a network namespace that may not be meant.
	Perhaps bool `json:"perhaps,omitempty"`
}

// ExplainLimit is a limit that the connection counts against.
type ExplainLimit struct {
	Name          string `json:"name"`
	Open          uint64 `json:"open"`
	MaxOpen       uint32 `json:"max_open,omitempty"`
	Connecting    uint64 `json:"connecting"`
	MaxConnecting uint32 `json:"max_connecting,omitempty"`
	PerSecond     uint32 `json:"per_second,omitempty"`
	Burst         uint32 `json:"burst,omitempty"`
	// Tokens are those in the bucket of the rate, of Burst at most: a connection takes one, and PerSecond come back in a second.
	Tokens  uint32 `json:"tokens,omitempty"`
	Refuses string `json:"refuses,omitempty"` // the reason, if it would now
}

// What Explanation.Outcome can be: as the reasons of connections, and depends.
const (
	outcomeOK         = "ok"
	outcomeDepends    = "depends"
	outcomeDenied     = "denied"
	outcomeNoEndpoint = "no_endpoint"
	outcomeCircuit    = "circuit_open"
	outcomeRate       = "rate_limited"
)

// explaining is one Explanation in the making.
type explaining struct {
	*Explanation
	r         *Reconciler
	q         *Question
	class     uint32                      // of the client
	policies  map[asked]*ExplainPolicy    // that were looked up
	listeners map[bpf.Listen]bpf.Listener // nil: not read yet
}

// Explain tells what the kernel's programs would do, as its maps are now.
func (r *Reconciler) Explain(q *Question) (*Explanation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &explaining{Explanation: &Explanation{Dialled: q.Dialled.String()}, r: r, q: q, policies: make(map[asked]*ExplainPolicy)}
	dialled := q.Dialled
	if dialled.Addr().IsUnspecified() { // as decide_unspecified of bpf/lib/decide.h
		here := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if dialled.Addr().Is6() {
			here = netip.IPv6Loopback()
		}
		dialled = netip.AddrPortFrom(here, dialled.Port())
		e.Dialled += ", which is " + dialled.String()
	}
	self, err := e.client()
	if err != nil {
		return nil, err
	}
	if e.Client.Bypass {
		if err := e.direct(dialled); err != nil {
			return nil, err
		}
		e.Because = "the client is bypassed: services, limits and its own side's policies are passed over, the server's side judges; " + e.Because
		return e.Explanation, nil
	}
	limits := []uint32{self.Limit}
	pool, found, err := e.frontend(dialled)
	if err != nil {
		return nil, err
	}
	if found {
		table := r.tableOf(pool)
		if err := e.service(&table, dialled); err != nil {
			return nil, err
		}
		limits = append(limits, table.Limit)
	} else if err := e.direct(dialled); err != nil {
		return nil, err
	}
	return e.Explanation, e.limits(limits)
}

// client finds out who it is: by the nearest cgroup that a workload has, else by its address.
func (e *explaining) client() (self bpf.Workload, err error) {
	r, c := e.r, &e.Client
	var index uint32
	c.KnownBy = "nothing: neither its cgroup nor its address is a workload's"
	for _, id := range e.q.Cgroups {
		at, ok, err := r.m.Cgroups.Get(id)
		if err != nil {
			return self, err
		}
		if ok {
			index, c.KnownBy = at, fmt.Sprintf("its cgroup (%d)", id)
			break
		}
	}
	// An address says nothing of a client on this node, whose cgroup says who it is: else anybody could bind to another's.
	if index == 0 && len(e.q.Cgroups) == 0 {
		for _, a := range e.q.Addresses {
			at, ok, err := r.m.Addresses.Get(bpf.Address{Addr: as16(a)})
			if err != nil {
				return self, err
			}
			if ok {
				index, c.KnownBy = at, "its address"
				break
			}
		}
	}
	if index == 0 || int(index) >= len(r.m.Workloads) {
		return self, nil
	}
	self = loadWorkload(&r.m.Workloads[index])
	e.class = self.Source
	c.Workload, c.Bypass = r.workloadName(index), self.Flags&bpf.WorkloadBypass != 0
	if name, ok := r.names.Workload(index); ok {
		c.Identity = name.Identity
	}
	return self, nil
}

func (r *Reconciler) workloadName(index uint32) string {
	if name, ok := r.names.Workload(index); ok {
		return name.Name.String()
	}
	return fmt.Sprint("workload ", index)
}

// frontend looks for the service that is dialled.
func (e *explaining) frontend(dialled netip.AddrPort) (pool uint32, found bool, err error) {
	for _, port := range []uint16{dialled.Port(), 0} {
		at := netip.AddrPortFrom(dialled.Addr(), port)
		pool, found, err = e.r.m.Frontends.Get(frontendKey(at))
		if err != nil {
			return 0, false, err
		}
		if found {
			e.Frontend = at.String()
			if port == 0 {
				e.Frontend = at.Addr().String() + ", any port"
			}
			return pool, true, nil
		}
	}
	return 0, false, nil
}

// tableOf is what a pool leads to; the zero value: nothing.
func (r *Reconciler) tableOf(pool uint32) (t bpf.Table) {
	if int(pool) < len(r.m.Pools) {
		if at := atomic.LoadUint32(&r.m.Pools[pool].Table); at != 0 && int(at) < len(r.m.Tables) {
			t = r.m.Tables[at]
		}
	}
	return t
}

// service looks at each endpoint of the service, and at what the table in force has of it.
func (e *explaining) service(table *bpf.Table, dialled netip.AddrPort) error {
	e.Generation, e.Algorithm = table.Generation, algorithmText(table.Algorithm)
	have := make(map[string][]DumpEndpoint)
	for _, d := range e.r.dumpEndpoints(table) {
		have[d.Endpoint] = append(have[d.Endpoint], d)
	}
	if name, ok := e.r.names.Service(table.Service); ok {
		e.Service = name.String()
		if s := e.r.services[*name]; s != nil && s.compiled != nil && s.compiled.inputs != nil {
			e.considered(s.compiled.inputs, dialled)
		}
	}
	for i := range e.Endpoints {
		known := &e.Endpoints[i]
		if all := have[known.Endpoint]; len(all) > 0 {
			have[known.Endpoint] = all[1:]
			if err := e.chosen(&all[0], dialled, known); err != nil {
				return err
			}
		} else if known.Eligible { // a change is under way
			known.Eligible, known.Because = false, "the table in force does not have it"
		}
	}
	for _, all := range have { // what the kernel has and the mesh does not
		for i := range all {
			more := ExplainEndpoint{Endpoint: all[i].Endpoint}
			if err := e.chosen(&all[i], dialled, &more); err != nil {
				return err
			}
			e.Endpoints = append(e.Endpoints, more)
		}
	}
	slices.SortFunc(e.Endpoints, func(a, b ExplainEndpoint) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	e.outcomeOfEndpoints()
	return nil
}

// considered says of each endpoint whether it is one to choose, by what eligible asks.
func (e *explaining) considered(in *serviceInputs, dialled netip.AddrPort) {
	family, familyName := ipv4, "IPv4"
	if familyOf(dialled.Addr()) == ipv6 {
		family, familyName = ipv6, "IPv6"
	}
	chosen := make(map[int]bool)
	for _, i := range eligible(&in.service, in.endpoints, e.q.Node, family) {
		chosen[i] = true
	}
	for i := range in.endpoints {
		endpoint := &in.endpoints[i]
		known := ExplainEndpoint{Endpoint: endpoint.name.String(), Eligible: chosen[i]}
		if endpoint.workload != (model.Name{}) {
			known.Workload = endpoint.workload.String()
		}
		if endpoint.address[family].IsValid() {
			known.Address = endpoint.address[family].String()
		}
		if !chosen[i] {
			known.Because = endpoint.whyNot(&in.service, e.q, family, familyName)
		}
		e.Endpoints = append(e.Endpoints, known)
	}
}

func (e *endpoint) whyNot(s *model.Service, q *Question, family int, familyName string) string {
	switch {
	case e.health == model.Draining:
		return "it drains, as its own health says"
	case e.health != model.Healthy:
		return "it is unhealthy, as its own health says"
	case e.out:
		if why := q.Out[e.name]; why != "" {
			return "it is out of service: " + why
		}
		return "it is out of service"
	case e.weight == 0:
		return "its weight is 0"
	case !e.address[family].IsValid():
		return "it has no address of " + familyName
	case s.LocalityMode == model.LocalityStrict && !within(q.Node, e.locality, s.LocalityScope):
		return "it is not near enough, and the service's locality is strict"
	case s.LocalityMode == model.LocalityFailover:
		return fmt.Sprintf("others have a lower priority than its %d, or are nearer", e.priority)
	default:
		return fmt.Sprintf("others have a lower priority than its %d", e.priority)
	}
}

// chosen adds what the maps have of an endpoint, and what the policies of its workload say.
func (e *explaining) chosen(d *DumpEndpoint, dialled netip.AddrPort, known *ExplainEndpoint) error {
	known.Eligible, known.Because, known.Share = true, "", d.Share
	if d.Backend == 0 || int(d.Backend) >= len(e.r.m.Backends) {
		return nil
	}
	b := loadBackend(&e.r.m.Backends[d.Backend])
	known.Open = atomic.LoadUint64(&e.r.m.Loads[d.Backend].Open)
	to := netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), cmp.Or(b.Port, dialled.Port()))
	known.Address = to.String()
	workload, policy, err := e.destination(b.Workload, to)
	if err != nil {
		return err
	}
	known.Policy = policy
	if workload != "" {
		known.Workload = workload
	}
	return nil
}

func (e *explaining) outcomeOfEndpoints() {
	var denied, allowed, open int
	because, unknown := "", ""
	for _, known := range e.Endpoints {
		switch p := known.Policy; {
		case !known.Eligible:
		case p.isOpen():
			open++
			unknown = p.unknown(known.Workload)
		case p != nil && p.Verdict == denies:
			denied++
			because = p.because()
		default:
			allowed++
		}
	}
	switch all := denied + allowed + open; {
	case all == 0:
		e.Outcome, e.Because = outcomeNoEndpoint, "no endpoint of the service can be chosen"
	case allowed == all:
		e.Outcome, e.Because = outcomeOK, fmt.Sprintf("one of %d endpoints is chosen (%s)", all, e.Algorithm)
	case denied == all:
		e.Outcome, e.Because = outcomeDenied, because
	case denied > 0:
		e.Outcome, e.Because = outcomeDepends, fmt.Sprintf("of %d endpoints that can be chosen %d deny it: an endpoint is chosen first, then its policies are asked", all, denied)
	default:
		e.Outcome, e.Because = outcomeDepends, unknown
	}
}

// direct is of a connection that goes where it is sent to.
func (e *explaining) direct(dialled netip.AddrPort) (err error) {
	if e.Destination, e.Policy, err = e.destination(0, dialled); err != nil {
		return err
	}
	switch p := e.Policy; {
	case p.isOpen():
		e.Outcome, e.Because = outcomeDepends, p.unknown(e.Destination)
	case p != nil && p.Verdict == denies:
		e.Outcome, e.Because = outcomeDenied, p.because()
	default:
		e.Outcome, e.Because = outcomeOK, "no service has this address and port: the connection goes there as it is"
	}
	return nil
}

// limits looks at what stands against limits, the client's own first.
func (e *explaining) limits(indices []uint32) error {
	r := e.r
	for _, index := range indices {
		if index == 0 || int(index) >= len(r.m.Limits) {
			continue
		}
		state, _, err := r.m.LimitStates.Get(index)
		if err != nil {
			return err
		}
		l := loadLimit(&r.m.Limits[index])
		x := ExplainLimit{
			Name: fmt.Sprint("limit ", index), Open: state.Counts.Open, MaxOpen: l.MaxOpen,
			Connecting: state.Counts.Connecting, MaxConnecting: l.MaxConnecting, PerSecond: l.PerSecond,
		}
		if l.PerSecond != 0 {
			x.Burst, x.Tokens = l.Burst, tokens(&l, &state, e.q.NowNS)
		}
		if name, ok := r.names.Limit(index); ok {
			x.Name = *name
		}
		because := x.Name + " is reached"
		switch {
		case l.MaxOpen != 0 && x.Open >= uint64(l.MaxOpen), l.MaxConnecting != 0 && x.Connecting >= uint64(l.MaxConnecting):
			x.Refuses = outcomeCircuit
		case l.PerSecond != 0 && x.Tokens == 0:
			x.Refuses = outcomeRate
			because = fmt.Sprintf("%s has let in all of a burst of %d; %d a second may follow", x.Name, x.Burst, x.PerSecond)
		}
		if x.Refuses != "" && (e.Outcome == outcomeOK || e.Outcome == outcomeDepends) {
			e.Outcome, e.Because = x.Refuses, because
		}
		e.Limits = append(e.Limits, x)
	}
	return nil
}

// tokens is what a bucket has at a time, as limit_take of bpf/lib/limit.h counts them: as time.
func tokens(l *bpf.Limit, state *bpf.LimitState, now uint64) uint32 {
	const second = 1_000_000_000
	cost := second / uint64(l.PerSecond)
	if cost == 0 { // no bound, to the kernel
		return l.Burst
	}
	has := state.TokensNs
	if now > state.FilledNs {
		has += now - state.FilledNs
	}
	return uint32(min(has, cost*uint64(l.Burst)) / cost)
}
