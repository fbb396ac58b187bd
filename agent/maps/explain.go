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
	Address netip.Addr // of the client; the zero value: not known
	Dialled netip.AddrPort
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
	// Policy is that of who is dialled where no service was. With a service each endpoint has its own.
	Destination string         `json:"destination,omitempty"`
	Policy      *ExplainPolicy `json:"policy,omitempty"`
	Limits      []ExplainLimit `json:"limits,omitempty"`
	// Outcome is "ok", or the reason of a refusal. Of several endpoints whose policies differ it is "depends".
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
	// Open says that a rule asks for the client's address, which is not known.
	Open bool `json:"open,omitempty"`
}

// ExplainLimit is a limit that the connection counts against.
type ExplainLimit struct {
	Name          string `json:"name"`
	Open          uint64 `json:"open"`
	MaxOpen       uint32 `json:"max_open,omitempty"`
	Connecting    uint64 `json:"connecting"`
	MaxConnecting uint32 `json:"max_connecting,omitempty"`
	PerSecond     uint32 `json:"per_second,omitempty"`
	Refuses       string `json:"refuses,omitempty"` // the reason, if it would now
}

// What Explanation.Outcome can be, beside "ok" and "depends": as the reasons of connections.
const (
	outcomeOK         = "ok"
	outcomeDepends    = "depends"
	outcomeDenied     = "denied"
	outcomeNoEndpoint = "no_endpoint"
	outcomeCircuit    = "circuit_open"
)

// Explain tells what the kernel's programs would do, as its maps are now.
func (r *Reconciler) Explain(q *Question) (*Explanation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &Explanation{Dialled: q.Dialled.String()}
	self, class, err := r.explainClient(q, &e.Client)
	if err != nil {
		return nil, err
	}
	if e.Client.Bypass {
		e.Outcome, e.Because = outcomeOK, "the client is bypassed: the mesh leaves its connections alone"
		return e, nil
	}
	limits := []uint32{self.Limit}
	pool, found, err := r.explainFrontend(q.Dialled, e)
	if err != nil {
		return nil, err
	}
	if found {
		table, err := r.explainService(pool, q, class, e)
		if err != nil {
			return nil, err
		}
		limits = append(limits, table.Limit)
	} else if err := r.explainDirect(q, class, e); err != nil {
		return nil, err
	}
	return e, r.explainLimits(limits, e)
}

// explainClient finds out who it is: by the nearest cgroup that a workload has, else by its address.
func (r *Reconciler) explainClient(q *Question, c *ExplainClient) (self bpf.Workload, class uint32, err error) {
	var index uint32
	c.KnownBy = "nothing: neither its cgroup nor its address is a workload's"
	for _, id := range q.Cgroups {
		at, ok, err := r.m.Cgroups.Get(id)
		if err != nil {
			return self, 0, err
		}
		if ok {
			index, c.KnownBy = at, fmt.Sprintf("its cgroup (%d)", id)
			break
		}
	}
	// An address says nothing of a client on this node, whose cgroup says who it is: else anybody could bind to another's.
	if index == 0 && len(q.Cgroups) == 0 && q.Address.IsValid() {
		at, ok, err := r.m.Addresses.Get(bpf.Address{Addr: as16(q.Address)})
		if err != nil {
			return self, 0, err
		}
		if ok {
			index, c.KnownBy = at, "its address"
		}
	}
	if index == 0 || int(index) >= len(r.m.Workloads) {
		return self, 0, nil
	}
	self = loadWorkload(&r.m.Workloads[index])
	c.Workload, c.Bypass = r.workloadName(index), self.Flags&bpf.WorkloadBypass != 0
	if name, ok := r.names.Workload(index); ok {
		c.Identity = name.Identity
	}
	return self, self.Source, nil
}

func (r *Reconciler) workloadName(index uint32) string {
	if index == 0 {
		return ""
	}
	if name, ok := r.names.Workload(index); ok {
		return name.Name.String()
	}
	return fmt.Sprint("workload ", index)
}

// explainFrontend looks for the service that was dialled.
func (r *Reconciler) explainFrontend(dialled netip.AddrPort, e *Explanation) (pool uint32, found bool, err error) {
	for _, port := range []uint16{dialled.Port(), 0} {
		at := netip.AddrPortFrom(dialled.Addr(), port)
		pool, found, err = r.m.Frontends.Get(frontendKey(at))
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

// explainService looks at each endpoint of the service, and at what the table in force has of it.
func (r *Reconciler) explainService(pool uint32, q *Question, class uint32, e *Explanation) (table bpf.Table, err error) {
	if int(pool) < len(r.m.Pools) {
		if at := atomic.LoadUint32(&r.m.Pools[pool].Table); at != 0 && int(at) < len(r.m.Tables) {
			table = r.m.Tables[at]
		}
	}
	e.Generation, e.Algorithm = table.Generation, algorithmText(table.Algorithm)
	var service *serviceState
	for _, s := range r.services {
		if s.id == table.Service {
			service = s
		}
	}
	if service != nil {
		e.Service = service.name.String()
	}
	have := make(map[string]DumpEndpoint) // by endpoint and address
	for _, d := range r.dumpEndpoints(&table) {
		have[d.Endpoint+" "+d.Address] = d
	}
	if service != nil && service.compiled != nil && service.compiled.inputs != nil {
		r.explainEndpoints(service.compiled.inputs, q, e)
	}
	for i := range e.Endpoints {
		known := &e.Endpoints[i]
		for key, d := range have {
			if d.Endpoint != known.Endpoint {
				continue
			}
			known.Address, known.Share, known.Eligible = d.Address, d.Share, true
			known.Because = ""
			if err := r.explainBackend(d.Backend, q, class, known); err != nil {
				return table, err
			}
			delete(have, key)
			break
		}
		if known.Share == 0 && known.Eligible { // a change is under way
			known.Eligible, known.Because = false, "the table in force does not have it"
		}
	}
	for _, d := range have { // what the kernel has and the mesh does not
		more := ExplainEndpoint{Endpoint: d.Endpoint, Address: d.Address, Share: d.Share, Eligible: true}
		if err := r.explainBackend(d.Backend, q, class, &more); err != nil {
			return table, err
		}
		e.Endpoints = append(e.Endpoints, more)
	}
	slices.SortFunc(e.Endpoints, func(a, b ExplainEndpoint) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	e.outcomeOfEndpoints()
	return table, nil
}

// explainEndpoints says of each endpoint whether it is one to choose, in the order in which eligible asks.
func (r *Reconciler) explainEndpoints(in *serviceInputs, q *Question, e *Explanation) {
	family, familyName := ipv4, "IPv4"
	if familyOf(q.Dialled.Addr()) == ipv6 {
		family, familyName = ipv6, "IPv6"
	}
	chosen := make(map[int]bool)
	for _, i := range eligible(&in.service, in.endpoints, q.Node, family) {
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
			known.Because = endpoint.whyNot(&in.service, q, family, familyName)
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

// explainBackend adds what the maps have of an endpoint, and what the policies of its workload say.
func (r *Reconciler) explainBackend(index uint32, q *Question, class uint32, known *ExplainEndpoint) error {
	if index == 0 || int(index) >= len(r.m.Backends) {
		return nil
	}
	b := loadBackend(&r.m.Backends[index])
	known.Open = atomic.LoadUint64(&r.m.Loads[index].Open)
	address, port := netip.AddrFrom16(b.Addr).Unmap(), b.Port
	if port == 0 {
		port = q.Dialled.Port()
	}
	destination := b.Workload
	if destination == 0 {
		at, ok, err := r.m.Addresses.Get(bpf.Address{Addr: b.Addr})
		if err != nil {
			return err
		}
		if ok {
			destination = at
		}
	}
	known.Address = netip.AddrPortFrom(address, port).String()
	if name := r.workloadName(destination); name != "" {
		known.Workload = name
	}
	var err error
	known.Policy, err = r.explainPolicy(destination, class, q.Address, port)
	return err
}

func (e *Explanation) outcomeOfEndpoints() {
	denied, allowed := 0, 0
	rule := ""
	for _, known := range e.Endpoints {
		switch {
		case !known.Eligible:
		case known.Policy != nil && known.Policy.Verdict == verdictText(bpf.VerdictDeny):
			denied++
			rule = known.Policy.because()
		default:
			allowed++
		}
	}
	switch {
	case denied+allowed == 0:
		e.Outcome, e.Because = outcomeNoEndpoint, "no endpoint of the service can be chosen"
	case denied == 0:
		e.Outcome, e.Because = outcomeOK, fmt.Sprintf("one of %d endpoints is chosen (%s)", allowed, e.Algorithm)
	case allowed == 0:
		e.Outcome, e.Because = outcomeDenied, rule
	default:
		e.Outcome, e.Because = outcomeDepends, fmt.Sprintf("of %d endpoints that can be chosen %d deny it: an endpoint is chosen first, then its policies are asked", denied+allowed, denied)
	}
}

func (r *Reconciler) explainDirect(q *Question, class uint32, e *Explanation) error {
	index, ok, err := r.m.Addresses.Get(bpf.Address{Addr: as16(q.Dialled.Addr())})
	if err != nil {
		return err
	}
	e.Outcome, e.Because = outcomeOK, "no service has this address and port: the connection goes there as it is"
	if !ok {
		return nil
	}
	e.Destination = r.workloadName(index)
	if e.Policy, err = r.explainPolicy(index, class, q.Address, q.Dialled.Port()); err != nil || e.Policy == nil {
		return err
	}
	if e.Policy.Verdict == verdictText(bpf.VerdictDeny) {
		e.Outcome, e.Because = outcomeDenied, e.Policy.because()
	}
	return nil
}

// explainPolicy does what policy_decide does; nil: no policy is about the workload.
func (r *Reconciler) explainPolicy(workload, class uint32, client netip.Addr, port uint16) (*ExplainPolicy, error) {
	if workload == 0 || int(workload) >= len(r.m.Workloads) {
		return nil, nil
	}
	set := loadWorkload(&r.m.Workloads[workload]).PolicySet
	if set == 0 || int(set) >= len(r.m.PolicySets) {
		return nil, nil
	}
	p := &ExplainPolicy{Verdict: verdictText(bpf.VerdictDeny)}
	sources, ok, err := r.m.PolicySources.Get(bpf.PolicySource{Set: set, Source: class})
	if err == nil && !ok {
		sources, ok, err = r.m.PolicySources.Get(bpf.PolicySource{Set: set, Source: bpf.SourceOther})
	}
	if err != nil || !ok {
		return p, err
	}
	ports, ok, err := r.m.PolicyPorts.Get(bpf.PolicyPort{Set: set, Port: uint32(port)})
	if err == nil && !ok {
		ports, ok, err = r.m.PolicyPorts.Get(bpf.PolicyPort{Set: set})
	}
	if err != nil || !ok {
		return p, err
	}
	matched := intersect(sources, ports)
	s := &r.m.PolicySets[set]
	denied := matched
	if client.IsValid() {
		blocks, err := r.longestBlock(set, client)
		if err != nil {
			return p, err
		}
		matched = intersect(matched, blocks)
		denied = matched
	} else {
		p.Open = intersect(matched, s.Blocks) != bpf.Rules{}
		for i := range denied.Words {
			denied.Words[i] &^= s.Blocks.Words[i]
		}
	}
	name := func(bit uint16) string {
		if rule, ok := r.names.Rule(set, bit); ok {
			return rule.String()
		}
		return fmt.Sprint("rule ", bit)
	}
	verdict, bit := decideBits(intersect(denied, s.Deny), intersect(matched, s.Allow), s.HasAllow != 0)
	p.Verdict = verdictText(verdict)
	if bit != bpf.NoRule {
		p.Rule = name(bit)
	}
	if dry, bit := decideBits(intersect(denied, s.DryDeny), intersect(matched, s.DryAllow), s.HasDryAllow != 0); bit != bpf.NoRule || s.HasDryAllow != 0 {
		p.DryRun = verdictText(dry)
		if bit != bpf.NoRule {
			p.DryRun += " by " + name(bit)
		}
	}
	return p, nil
}

// decideBits is policy_verdict of bpf/lib/policy.h.
func decideBits(denied, allowed bpf.Rules, hasAllow bool) (verdict uint8, bit uint16) {
	if bits := bitsOf(denied); len(bits) > 0 {
		return bpf.VerdictDeny, bits[0]
	}
	if !hasAllow {
		return bpf.VerdictAllow, bpf.NoRule
	}
	if bits := bitsOf(allowed); len(bits) > 0 {
		return bpf.VerdictAllow, bits[0]
	}
	return bpf.VerdictDeny, bpf.NoRule
}

// longestBlock are the rules of the longest prefix that a set has of an address.
func (r *Reconciler) longestBlock(set uint32, a netip.Addr) (bpf.Rules, error) {
	address := netip.AddrFrom16(as16(a))
	for bits := 128; bits >= 0; bits-- {
		block, err := address.Prefix(bits)
		if err != nil {
			return bpf.Rules{}, err
		}
		rules, ok, err := r.m.PolicyBlocks.Get(bpf.PolicyBlock{PrefixBits: 32 + uint32(bits), Set: set, Addr: block.Addr().As16()})
		if ok || err != nil {
			return rules, err
		}
	}
	return bpf.Rules{}, nil
}

func intersect(a, b bpf.Rules) bpf.Rules {
	for i := range a.Words {
		a.Words[i] &= b.Words[i]
	}
	return a
}

func verdictText(v uint8) string {
	if v == bpf.VerdictDeny {
		return "deny"
	}
	return "allow"
}

func (p *ExplainPolicy) because() string {
	if p.Rule != "" {
		return p.Rule
	}
	return "there are allow policies, and none of their rules matches"
}

// explainLimits looks at what stands against limits, the client's own first. What a bucket of tokens has is not looked at: it is another a moment later.
func (r *Reconciler) explainLimits(indices []uint32, e *Explanation) error {
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
		if name, ok := r.names.Limit(index); ok {
			x.Name = *name
		}
		if l.MaxOpen != 0 && x.Open >= uint64(l.MaxOpen) || l.MaxConnecting != 0 && x.Connecting >= uint64(l.MaxConnecting) {
			x.Refuses = outcomeCircuit
			if e.Outcome == outcomeOK {
				e.Outcome, e.Because = outcomeCircuit, x.Name+" is reached"
			}
		}
		e.Limits = append(e.Limits, x)
	}
	return nil
}
