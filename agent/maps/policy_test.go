package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// peer is a connection as policies see it.
type peer struct {
	identity, namespace string
	address             netip.Addr
	port                uint16
}

// The semantics of Istio, as its reference says them, and by no other way than reading the policy.

func istioRule(r model.Rule, p peer) bool {
	name := func(patterns []string, value string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool {
			if value == "" {
				return false
			}
			if rest, ok := strings.CutPrefix(pattern, "*"); ok {
				return strings.HasSuffix(value, rest)
			}
			if rest, ok := strings.CutSuffix(pattern, "*"); ok {
				return strings.HasPrefix(value, rest)
			}
			return pattern == value
		})
	}
	block := func(blocks []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(blocks, func(b netip.Prefix) bool {
			if b.Addr().Is4In6() {
				b = netip.PrefixFrom(b.Addr().Unmap(), b.Bits()-96)
			}
			return b.Contains(a)
		})
	}
	from := len(r.From) == 0 || slices.ContainsFunc(r.From, func(s model.Source) bool {
		return (len(s.Identities) == 0 || name(s.Identities, p.identity)) && !name(s.NotIdentities, p.identity) &&
			(len(s.Namespaces) == 0 || name(s.Namespaces, p.namespace)) && !name(s.NotNamespaces, p.namespace) &&
			(len(s.IPBlocks) == 0 || block(s.IPBlocks, p.address)) && !block(s.NotIPBlocks, p.address)
	})
	to := len(r.To) == 0 || slices.ContainsFunc(r.To, func(o model.Operation) bool {
		return (len(o.Ports) == 0 || slices.Contains(o.Ports, p.port)) && !slices.Contains(o.NotPorts, p.port)
	})
	return from && to
}

// istio returns the verdict of those policies that are dry-run, or of those that are not.
func istio(policies []model.AuthorizationPolicy, w *model.Workload, p peer, dry bool) uint8 {
	verdict := bpf.VerdictNone
	for _, a := range policies {
		if a.DryRun != dry || !a.Mesh && a.Name.Namespace != w.Name.Namespace {
			continue
		}
		selected := true
		for k, v := range a.Selector {
			selected = selected && w.Labels[k] == v
		}
		if !selected {
			continue
		}
		matched := slices.ContainsFunc(a.Rules, func(r model.Rule) bool { return istioRule(r, p) })
		switch {
		case a.Action == model.Deny && matched:
			return bpf.VerdictDeny
		case a.Action == model.Allow && matched && verdict != bpf.VerdictAllow:
			verdict = bpf.VerdictAllow
		case a.Action == model.Allow && verdict == bpf.VerdictNone:
			verdict = bpf.VerdictDeny // unless another allows it
		}
	}
	return verdict
}

// judge does what the kernel does with a set.
func judge(m *Maps, set, source uint32, p peer, dry bool) uint8 {
	if set == 0 {
		return bpf.VerdictNone
	}
	rules := look(m, set, source, p)
	s := &m.PolicySets[set]
	deny, allow, has := s.Deny, s.Allow, s.HasAllow
	if dry {
		deny, allow, has = s.DryDeny, s.DryAllow, s.HasDryAllow
	}
	switch {
	case both(rules, deny):
		return bpf.VerdictDeny
	case has == 0:
		return bpf.VerdictNone
	case both(rules, allow):
		return bpf.VerdictAllow
	default:
		return bpf.VerdictDeny
	}
}

func both(a, b bpf.Rules) bool {
	for i := range a.Words {
		if a.Words[i]&b.Words[i] != 0 {
			return true
		}
	}
	return false
}

func look(m *Maps, set, source uint32, p peer) bpf.Rules {
	sources, ok, _ := m.PolicySources.Get(bpf.PolicySource{Set: set, Source: source})
	if !ok {
		sources, ok, _ = m.PolicySources.Get(bpf.PolicySource{Set: set, Source: bpf.SourceOther})
	}
	var blocks bpf.Rules
	found := false
	for bits := 128; bits >= 0 && !found; bits-- { // the longest prefix
		b, _ := netip.AddrFrom16(p.address.As16()).Prefix(bits)
		if p.address.Is4() {
			b = prefix16(p.address, bits)
		}
		blocks, found, _ = m.PolicyBlocks.Get(bpf.PolicyBlock{PrefixBits: 32 + uint32(bits), Set: set, Addr: b.Addr().As16()})
	}
	ports, portOK, _ := m.PolicyPorts.Get(bpf.PolicyPort{Set: set, Port: uint32(p.port)})
	if !portOK {
		ports, portOK, _ = m.PolicyPorts.Get(bpf.PolicyPort{Set: set})
	}
	if !ok || !found || !portOK {
		panic(fmt.Sprintf("set %d lacks an entry", set))
	}
	for i := range sources.Words {
		sources.Words[i] &= blocks.Words[i] & ports.Words[i]
	}
	return sources
}

// prefix16 masks an address as the kernel has it: of 16 bytes.
func prefix16(a netip.Addr, bits int) netip.Prefix {
	b := a.As16()
	for i := bits; i < 128; i++ {
		b[i/8] &^= 0x80 >> (i % 8)
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), bits)
}

var peerAddresses = []string{
	"10.0.0.5", "10.0.0.6", "10.0.0.200", "10.1.0.1", "192.168.3.4", "8.8.8.8",
	"fd00::5", "fd00::6", "fd01::1", "::1", "2001:db8::1",
}

// TestPoliciesAreIstios compares the three look-ups with a reading of the policies, over random policies and all kinds of peers.
func TestPoliciesAreIstios(t *testing.T) {
	cases, verdicts := 0, map[uint8]int{}
	for seed := range uint64(300) {
		w := newWorld(seed)
		for i := range someWorkloads {
			w.workloads[i] = w.workload(i)
		}
		for i := range w.IntN(somePolicies) + 1 {
			w.policies[i] = w.policy(i)
		}
		s := w.snapshot()
		m, r := newTest(t, w.sizes(), nil)
		mesh := apply(t, r, s, nil)
		for range 40 {
			server := &s.Workloads[w.IntN(len(s.Workloads))]
			p := peer{address: netip.MustParseAddr(peerAddresses[w.IntN(len(peerAddresses))]), port: []uint16{80, 443, 8080, 9000, 22}[w.IntN(5)]}
			var source uint32
			if w.IntN(4) > 0 {
				client := &s.Workloads[w.IntN(len(s.Workloads))]
				p.identity, p.namespace = client.Identity, client.Name.Namespace
				source = m.Workloads[r.workloads[workloadKey{name: client.Name}].index].Source
			}
			set := m.Workloads[r.workloads[workloadKey{name: server.Name}].index].PolicySet
			for _, dry := range []bool{false, true} {
				want, have := istio(s.Policies, server, p, dry), judge(m, set, source, p, dry)
				if want != have {
					t.Fatalf("seed %d, %v to %v, dry %t: verdict %d, want %d\n%+v", seed, p, server.Name, dry, have, want, s.Policies)
				}
				cases++
				verdicts[have]++
			}
			explained(t, r, seed, server, set, source, p)
		}
		noDrift(t, r, mesh)
	}
	for v := range bpf.VerdictDeny + 1 {
		if verdicts[v] < cases/20 {
			t.Errorf("of %d cases %d had verdict %d: too few to say anything", cases, verdicts[v], v)
		}
	}
}

// explained holds what is explained against what is judged.
func explained(t *testing.T, r *Reconciler, seed uint64, server *model.Workload, set, source uint32, p peer) {
	t.Helper()
	have, err := r.explainPolicy(r.workloads[workloadKey{name: server.Name}].index, source, p.address, p.port)
	switch want := judge(r.m, set, source, p, false); {
	case err != nil:
		t.Fatal(err)
	case set == 0 && have == nil:
	case have == nil || have.Open || (have.Verdict == "deny") != (want == bpf.VerdictDeny):
		t.Fatalf("seed %d, %v to %v: verdict %d, explained as %+v", seed, p, server.Name, want, have)
	case want == bpf.VerdictAllow && have.Rule == "":
		t.Fatalf("seed %d, %v to %v: allowed by a rule, explained as %+v", seed, p, server.Name, have)
	}
}

func TestPolicySets(t *testing.T) {
	name := func(n string) model.Name { return model.Name{Namespace: "shop", Name: n} }
	many := make([]model.Rule, 200)
	workload := model.Workload{Name: name("cart"), Identity: "cart"}
	policy := func(n string, action model.Action, rules ...model.Rule) model.AuthorizationPolicy {
		return model.AuthorizationPolicy{Name: name(n), Action: action, Rules: rules}
	}
	one := func(bit int) (r bpf.Rules) { setBit(&r, bit); return r }
	for _, c := range []struct {
		name     string
		policies []model.AuthorizationPolicy
		err      string
		check    func(*PolicySet) bool
	}{
		{"none", nil, "", func(s *PolicySet) bool { return s == nil }},
		{"deny without rules", []model.AuthorizationPolicy{policy("d", model.Deny)}, "", func(s *PolicySet) bool { return s == nil }},
		{"allow without rules", []model.AuthorizationPolicy{policy("a", model.Allow)}, "", func(s *PolicySet) bool {
			return s.HasAllow && s.Allow == bpf.Rules{} && len(s.Rules) == 0
		}},
		{"rule without anything", []model.AuthorizationPolicy{policy("a", model.Allow, model.Rule{})}, "", func(s *PolicySet) bool {
			return s.Allow == one(0) && s.Other == one(0) && len(s.Blocks) == 1 && s.Blocks[0].Rules == one(0) && len(s.Ports) == 1 && s.Ports[0].Rules == one(0)
		}},
		{"sources times operations", []model.AuthorizationPolicy{policy("d", model.Deny, model.Rule{}, model.Rule{
			From: []model.Source{{Identities: []string{"a"}}, {Identities: []string{"b"}}},
			To:   []model.Operation{{Ports: []uint16{1}}, {Ports: []uint16{2}}, {Ports: []uint16{3}}},
		})}, "", func(s *PolicySet) bool {
			return len(s.Rules) == 7 && s.Rules[0].Rule == 0 && s.Rules[6] == RuleName{name("d"), 1, model.Deny, false} && s.Other == one(0)
		}},
		{"blocks", []model.AuthorizationPolicy{
			policy("d", model.Deny, model.Rule{}, model.Rule{From: []model.Source{{NotIPBlocks: blocks[1:2]}}}),
		}, "", func(s *PolicySet) bool {
			return s.ByAddress == one(1) && len(s.Blocks) == 2 && s.Blocks[0].Block == blocks[1] && s.Blocks[0].Rules == one(0)
		}},
		{"other namespace", []model.AuthorizationPolicy{{Name: model.Name{Namespace: "x", Name: "a"}}}, "", func(s *PolicySet) bool { return s == nil }},
		{"mesh", []model.AuthorizationPolicy{{Name: model.Name{Namespace: "x", Name: "a"}, Mesh: true}}, "", func(s *PolicySet) bool { return s.HasAllow }},
		{"dry", []model.AuthorizationPolicy{{Name: name("a"), DryRun: true, Rules: many[:1]}}, "", func(s *PolicySet) bool {
			return !s.HasAllow && s.HasDryAllow && s.DryAllow == one(0)
		}},
		{
			"too many",
			[]model.AuthorizationPolicy{policy("b", model.Deny, many[:57]...), policy("a", model.Allow, many...)},
			"workload shop/cart has 257 pairs of a source and an operation in the rules of the policies that select it (shop/a with 200, shop/b with 57), " +
				"and can have 256; put several identities, blocks or ports into one source or operation, or select fewer workloads", nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			mesh, err := Compile(&model.Snapshot{Workloads: []model.Workload{workload}, Policies: c.policies}, nil, DefaultSizes())
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Fatalf("error %v\nwant %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(mesh.Workloads[0].Set) {
				t.Errorf("%+v", mesh.Workloads[0].Set)
			}
		})
	}
}
