package maps

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// policy is an AuthorizationPolicy taken apart: an atom for each source with each operation of each rule, which gets one bit.
type policy struct {
	model.AuthorizationPolicy
	key   [sha256.Size]byte // of all that a set depends on
	atoms []atom
}

// atom matches when all of its conditions do. It has one of each kind, which are looked up apart from each other.
type atom struct {
	rule      int // index in the policy
	source    model.Source
	operation model.Operation
}

func newPolicy(p model.AuthorizationPolicy) *policy {
	c := &policy{AuthorizationPolicy: p}
	hash := sha256.New()
	fmt.Fprintf(hash, "%q %q %d %t", p.Name.Namespace, p.Name.Name, p.Action, p.DryRun)
	for i, r := range p.Rules {
		from, to := r.From, r.To
		if len(from) == 0 {
			from = []model.Source{{}}
		}
		if len(to) == 0 {
			to = []model.Operation{{}}
		}
		for _, s := range from {
			s.IPBlocks, s.NotIPBlocks = normalBlocks(s.IPBlocks), normalBlocks(s.NotIPBlocks)
			for _, o := range to {
				c.atoms = append(c.atoms, atom{i, s, o})
				fmt.Fprintf(hash, "|%d %q %q %q %q %s %s %d %d", i, s.Identities, s.NotIdentities, s.Namespaces, s.NotNamespaces,
					s.IPBlocks, s.NotIPBlocks, o.Ports, o.NotPorts)
			}
		}
	}
	hash.Sum(c.key[:0])
	return c
}

// normalBlocks masks prefixes, and makes those of IPv4-mapped addresses of IPv4.
func normalBlocks(blocks []netip.Prefix) []netip.Prefix {
	normal := make([]netip.Prefix, len(blocks))
	for i, b := range blocks {
		if b.Addr().Is4In6() && b.Bits() >= 96 {
			b = netip.PrefixFrom(b.Addr().Unmap(), b.Bits()-96)
		}
		normal[i] = b.Masked()
	}
	return normal
}

// sameRules tells whether two policies are the same in all that the kernel hears of.
func sameRules(a, b *model.AuthorizationPolicy) bool {
	return a.Name == b.Name && a.Mesh == b.Mesh && a.Action == b.Action && a.DryRun == b.DryRun && sameLabels(a.Selector, b.Selector) &&
		slices.EqualFunc(a.Rules, b.Rules, func(a, b model.Rule) bool {
			return slices.EqualFunc(a.From, b.From, sameSource) && slices.EqualFunc(a.To, b.To, func(a, b model.Operation) bool {
				return slices.Equal(a.Ports, b.Ports) && slices.Equal(a.NotPorts, b.NotPorts)
			})
		})
}

func sameSource(a, b model.Source) bool {
	return slices.Equal(a.Identities, b.Identities) && slices.Equal(a.NotIdentities, b.NotIdentities) &&
		slices.Equal(a.Namespaces, b.Namespaces) && slices.Equal(a.NotNamespaces, b.NotNamespaces) &&
		slices.Equal(a.IPBlocks, b.IPBlocks) && slices.Equal(a.NotIPBlocks, b.NotIPBlocks)
}

func sameLabels(a, b map[string]string) bool {
	return len(a) == len(b) && selects(a, b)
}

// selects tells whether labels have all that a selector asks for.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// selects tells whether a policy is for a workload.
func (p *policy) selects(w *model.Workload) bool {
	return (p.Mesh || p.Name.Namespace == w.Name.Namespace) && selects(p.Selector, w.Labels)
}

// matches tells whether a pattern names a value: as it is, by its beginning (a*), by its end (*a), or * for any that is known.
func matches(pattern, value string) bool {
	switch {
	case value == "":
		return false
	case pattern == "*":
		return true
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(value, pattern[:len(pattern)-1])
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(value, pattern[1:])
	default:
		return pattern == value
	}
}

// anyMatches tells whether a list is empty or names a value; noneMatches whether it does not name it.
func anyMatches(patterns []string, value string) bool {
	return len(patterns) == 0 || !noneMatches(patterns, value)
}

func noneMatches(patterns []string, value string) bool {
	return !slices.ContainsFunc(patterns, func(p string) bool { return matches(p, value) })
}

func (a *atom) matchesClass(c Class) bool {
	return anyMatches(a.source.Identities, c.Identity) && noneMatches(a.source.NotIdentities, c.Identity) &&
		anyMatches(a.source.Namespaces, c.Namespace) && noneMatches(a.source.NotNamespaces, c.Namespace)
}

// matchesOther is of a source that is known, and that no list names but by *.
func (a *atom) matchesOther() bool {
	known := func(positive, negative []string) bool {
		return (len(positive) == 0 || slices.Contains(positive, "*")) && !slices.Contains(negative, "*")
	}
	return known(a.source.Identities, a.source.NotIdentities) && known(a.source.Namespaces, a.source.NotNamespaces)
}

// matchesBlock is of the addresses in a block that is one of those that the set names, and in no narrower one.
func (a *atom) matchesBlock(b netip.Prefix) bool {
	covers := func(q netip.Prefix) bool { return q.Bits() <= b.Bits() && q.Contains(b.Addr()) }
	return (len(a.source.IPBlocks) == 0 || slices.ContainsFunc(a.source.IPBlocks, covers)) && !slices.ContainsFunc(a.source.NotIPBlocks, covers)
}

// matchesPort is of one that the set names, and with port 0 of all that it does not.
func (a *atom) matchesPort(port uint16) bool {
	return (len(a.operation.Ports) == 0 || port != 0 && slices.Contains(a.operation.Ports, port)) &&
		(port == 0 || !slices.Contains(a.operation.NotPorts, port))
}
