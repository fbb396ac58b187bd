package maps

import (
	"fmt"
	"net/netip"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// asked is what policies are looked up by, once.
type asked struct {
	workload uint32
	port     uint16
	address  netip.Addr
}

// What ExplainPolicy.Verdict can be.
const (
	allows = "allow"
	denies = "deny"
)

func verdictText(v uint8) string {
	if v == bpf.VerdictDeny {
		return denies
	}
	return allows
}

// isOpen says that the verdict rests on something that is not known here.
func (p *ExplainPolicy) isOpen() bool {
	return p != nil && (p.Perhaps && p.Verdict == denies || p.Open && p.Verdict == allows)
}

func (p *ExplainPolicy) unknown(workload string) string {
	if p.Perhaps {
		return fmt.Sprintf("%s listens at that port on this node: if it is who is meant, it is denied: %s", workload, p.because())
	}
	return "rules ask for the client's address, which is not known: name it, or a workload that has one"
}

func (p *ExplainPolicy) because() string {
	if p.Rule != "" {
		return p.Rule
	}
	return "there are allow policies, and none of their rules matches"
}

// destination finds out who is connected to, as decide_destination and inbound_judge do, and what its policies say. workload: that of a backend; 0: it has none.
// Who listens somewhere is known by the network namespace, and that only of the client: who else listens at that port may be meant, and is asked if he would deny it.
func (e *explaining) destination(workload uint32, to netip.AddrPort) (name string, _ *ExplainPolicy, err error) {
	if workload == 0 {
		at, ok, err := e.r.m.Addresses.Get(bpf.Address{Addr: as16(to.Addr())})
		if err != nil {
			return "", nil, err
		}
		if ok {
			workload = at
		}
	}
	var perhaps []uint32
	if workload == 0 && len(e.r.sets) > 0 {
		if workload, perhaps, err = e.listening(to); err != nil {
			return "", nil, err
		}
	}
	if workload != 0 {
		p, err := e.policy(workload, to)
		return e.r.workloadName(workload), p, err
	}
	for _, workload := range perhaps {
		p, err := e.policy(workload, to)
		if err != nil {
			return "", nil, err
		}
		if p != nil && p.Verdict == denies {
			unsure := *p
			unsure.Perhaps = true
			return e.r.workloadName(workload), &unsure, nil
		}
	}
	return "", nil, nil
}

// listening is who listens there for sure, and else who may.
func (e *explaining) listening(to netip.AddrPort) (sure uint32, perhaps []uint32, err error) {
	if e.listeners == nil {
		if e.listeners, err = e.r.m.Listeners.All(); err != nil {
			return 0, nil, err
		}
	}
	// As listener_find of bpf/lib/listener.h, in its order.
	own := []netip.Addr{to.Addr(), netip.IPv6Unspecified()}
	if to.Addr().Is4() {
		own = []netip.Addr{to.Addr(), netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	here := e.q.Netns != 0 && to.Addr().IsLoopback()
	for i, a := range own {
		l, ok := e.listeners[bpf.Listen{Netns: e.q.Netns, Addr: as16(a), Port: uint32(to.Port())}]
		if ok && e.q.Netns != 0 && (i == 0 || here) {
			return l.Workload, nil, nil
		}
	}
	if here { // nobody else's loopback is meant
		return 0, nil, nil
	}
	for key, l := range e.listeners {
		for _, a := range own {
			if key.Port == uint32(to.Port()) && key.Addr == as16(a) {
				perhaps = append(perhaps, l.Workload)
			}
		}
	}
	return 0, perhaps, nil
}

// clientAddress is what a connection to an address comes from, as far as that is known.
func (e *explaining) clientAddress(to netip.Addr) netip.Addr {
	if to.IsLoopback() {
		if to.Is4() {
			return netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return netip.IPv6Loopback()
	}
	for _, a := range e.q.Addresses {
		if a.Is4() == to.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// policy does what policy_decide of bpf/lib/policy.h does; nil: no policy is about the workload.
func (e *explaining) policy(workload uint32, to netip.AddrPort) (*ExplainPolicy, error) {
	key := asked{workload, to.Port(), e.clientAddress(to.Addr())}
	if p, known := e.policies[key]; known {
		return p, nil
	}
	p, err := e.r.explainPolicy(workload, e.class, key.address, key.port)
	if err == nil {
		e.policies[key] = p
	}
	return p, err
}

func (r *Reconciler) explainPolicy(workload, class uint32, client netip.Addr, port uint16) (*ExplainPolicy, error) {
	if workload == 0 || int(workload) >= len(r.m.Workloads) {
		return nil, nil
	}
	set := loadWorkload(&r.m.Workloads[workload]).PolicySet
	if set == 0 || int(set) >= len(r.m.PolicySets) {
		return nil, nil
	}
	p := &ExplainPolicy{Verdict: denies} // as what is not there although it must be
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
		blocks, ok, err := r.m.PolicyBlocks.Get(bpf.PolicyBlock{PrefixBits: 32 + 128, Set: set, Addr: as16(client)})
		if err != nil || !ok {
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
	verdict, bit := decideBits(intersect(denied, s.Deny), intersect(matched, s.Allow), s.HasAllow != 0)
	p.Verdict, p.Rule = verdictText(verdict), r.ruleName(set, bit)
	if dry, bit := decideBits(intersect(denied, s.DryDeny), intersect(matched, s.DryAllow), s.HasDryAllow != 0); bit != bpf.NoRule || s.HasDryAllow != 0 {
		p.DryRun = verdictText(dry)
		if rule := r.ruleName(set, bit); rule != "" {
			p.DryRun += " by " + rule
		}
	}
	return p, nil
}

func (r *Reconciler) ruleName(set uint32, bit uint16) string {
	if bit == bpf.NoRule {
		return ""
	}
	if rule, ok := r.names.Rule(set, bit); ok {
		return rule.String()
	}
	return fmt.Sprint("rule ", bit)
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

func intersect(a, b bpf.Rules) bpf.Rules {
	for i := range a.Words {
		a.Words[i] &= b.Words[i]
	}
	return a
}
