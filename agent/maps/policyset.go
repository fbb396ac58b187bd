package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// PolicySet is a list of policies, as the workloads have it that all of them select. What it says of sources depends on who there is, and is
// asked for by class; the rest is here.
type PolicySet struct {
	Rules                          []RuleName // by bit
	Deny, Allow, DryDeny, DryAllow bpf.Rules
	// ByAddress are those that ask for an address: who connects has none yet, unless it is bound.
	ByAddress             bpf.Rules
	HasAllow, HasDryAllow bool
	Other                 bpf.Rules // of sources without an entry
	Blocks                []BlockRules
	Ports                 []PortRules
	key                   string // of its policies; sets with the same are the same
	atoms                 []*atom

	// unknown is of one that was found in the maps and is none of a mesh that we have seen: its bits have no names.
	unknown bool

	mu      sync.Mutex
	classes map[Class]bpf.Rules // those that were asked for
}

// RuleName is what a bit of a set stands for.
type RuleName struct {
	Policy model.Name
	Rule   int // index of the rule in the policy
	Action model.Action
	DryRun bool
}

func (r RuleName) String() string {
	action := "allow"
	if r.Action == model.Deny {
		action = "deny"
	}
	if r.DryRun {
		action = "dry-run " + action
	}
	return fmt.Sprintf("%s %v rule %d", action, r.Policy, r.Rule)
}

// BlockRules are the rules that may match addresses of which this is the longest prefix that a set names. That of no bits of IPv6 is for all
// others, of both families.
type BlockRules struct {
	Block netip.Prefix
	Rules bpf.Rules
}

// PortRules are the rules that may match a port; port 0 is all others.
type PortRules struct {
	Port  uint16
	Rules bpf.Rules
}

// value is what the map has of a set.
func (s *PolicySet) value(generation uint64) bpf.PolicySet {
	return bpf.PolicySet{
		Generation: generation, Deny: s.Deny, Allow: s.Allow, DryDeny: s.DryDeny, DryAllow: s.DryAllow, Blocks: s.ByAddress,
		HasAllow: toWord(s.HasAllow), HasDryAllow: toWord(s.HasDryAllow),
	}
}

func setBit(r *bpf.Rules, bit int) { r.Words[bit/64] |= 1 << (bit % 64) }

// newPolicySet makes a set of policies, which are sorted by name, for a workload that the error names.
func newPolicySet(policies []*policy, workload model.Name) (*PolicySet, error) {
	s := &PolicySet{classes: make(map[Class]bpf.Rules)}
	var key strings.Builder
	bits := 0
	for _, p := range policies {
		key.Write(p.key[:])
		bits += len(p.atoms)
	}
	s.key = key.String()
	if bits > bpf.RulesPerSet {
		var names []string
		for _, p := range policies {
			names = append(names, fmt.Sprintf("%v with %d", p.Name, len(p.atoms)))
		}
		return nil, fmt.Errorf("workload %v has %d pairs of a source and an operation in the rules of the policies that select it (%s), and can have %d; "+
			"put several identities, blocks or ports into one source or operation, or select fewer workloads",
			workload, bits, strings.Join(names, ", "), bpf.RulesPerSet)
	}
	for _, p := range policies {
		if p.Action == model.Allow {
			s.HasAllow = s.HasAllow || !p.DryRun
			s.HasDryAllow = s.HasDryAllow || p.DryRun
		}
		for i := range p.atoms {
			a := &p.atoms[i]
			bit := len(s.Rules)
			setBit(s.action(p), bit)
			if a.matchesOther() {
				setBit(&s.Other, bit)
			}
			if len(a.source.IPBlocks)+len(a.source.NotIPBlocks) > 0 {
				setBit(&s.ByAddress, bit)
			}
			s.atoms = append(s.atoms, a)
			s.Rules = append(s.Rules, RuleName{Policy: p.Name, Rule: a.rule, Action: p.Action, DryRun: p.DryRun})
		}
	}
	for _, b := range s.blocks() {
		s.Blocks = append(s.Blocks, BlockRules{b, s.which(func(a *atom) bool { return a.matchesBlock(b) })})
	}
	for _, port := range s.ports() {
		s.Ports = append(s.Ports, PortRules{port, s.which(func(a *atom) bool { return a.matchesPort(port) })})
	}
	return s, nil
}

// action returns the rules of the policy's kind.
func (s *PolicySet) action(p *policy) *bpf.Rules {
	switch {
	case p.DryRun && p.Action == model.Deny:
		return &s.DryDeny
	case p.DryRun:
		return &s.DryAllow
	case p.Action == model.Deny:
		return &s.Deny
	default:
		return &s.Allow
	}
}

func (s *PolicySet) which(match func(*atom) bool) (r bpf.Rules) {
	for bit, a := range s.atoms {
		if match(a) {
			setBit(&r, bit)
		}
	}
	return r
}

var (
	everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	allIPv4    = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	mapped     = netip.MustParseAddr("::ffff:0:0") // where the kernel has IPv4
)

// blocks are those that rules name, and everything. A prefix of IPv6 says nothing of IPv4, which lies within ::/80 and what is wider: where
// one of these is named, all of IPv4 is too.
func (s *PolicySet) blocks() []netip.Prefix {
	named := []netip.Prefix{everything}
	for _, a := range s.atoms {
		for _, b := range slices.Concat(a.source.IPBlocks, a.source.NotIPBlocks) {
			named = append(named, b)
			if b.Addr().Is6() && b.Bits() <= 96 && covers16(b, mapped) {
				named = append(named, allIPv4)
			}
		}
	}
	slices.SortFunc(named, netip.Prefix.Compare)
	return slices.Compact(named)
}

// covers16 compares bits: Contains takes an IPv4-mapped address for one of IPv4.
func covers16(b netip.Prefix, a netip.Addr) bool {
	x, y := b.Addr().As16(), a.As16()
	for i := range b.Bits() {
		if (x[i/8]^y[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

func (s *PolicySet) ports() []uint16 {
	named := []uint16{0}
	for _, a := range s.atoms {
		named = append(named, a.operation.Ports...)
		named = append(named, a.operation.NotPorts...)
	}
	slices.Sort(named)
	return slices.Compact(named)
}

// Source returns the rules that may match a class of sources. Safe for concurrent use.
func (s *PolicySet) Source(c Class) bpf.Rules {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.classes[c]
	if !ok {
		r = s.which(func(a *atom) bool { return a.matchesClass(c) })
		s.classes[c] = r
	}
	return r
}

// sources returns the classes that need an entry: those of which Other is not true. That of nobody is always looked at.
func (s *PolicySet) sources(classes []Class) map[Class]bpf.Rules {
	entries := make(map[Class]bpf.Rules)
	for _, c := range append([]Class{{}}, classes...) {
		if r := s.Source(c); r != s.Other {
			entries[c] = r
		}
	}
	return entries
}

// forget drops what Source keeps when most of it is of classes that are gone.
func (s *PolicySet) forget(classes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.classes) > 2*classes+64 {
		clear(s.classes)
	}
}
