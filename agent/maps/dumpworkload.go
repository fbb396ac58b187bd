package maps

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/sidelight-mesh/sidelight/bpf"
)

func (r *Reconciler) dumpWorkloads(d *Dump, have held) {
	cgroups, addresses := make(map[uint32][]uint64), make(map[uint32][]string)
	for id, index := range have.cgroups {
		cgroups[index] = append(cgroups[index], id)
	}
	for key, index := range have.addresses {
		addresses[index] = append(addresses[index], addressText(key.Addr))
	}
	for _, s := range r.workloads {
		w := loadWorkload(&r.m.Workloads[s.index])
		slices.Sort(cgroups[s.index])
		slices.Sort(addresses[s.index])
		dump := DumpWorkload{
			Name: s.compiled.Name.String(), Identity: s.compiled.Identity, Index: s.index, Cgroups: cgroups[s.index], Addresses: addresses[s.index],
			PolicySet: w.PolicySet, Source: w.Source, Bypass: w.Flags&bpf.WorkloadBypass != 0,
		}
		if s.compiled.Alone {
			dump.Name = "bypass " + dump.Name
		}
		if limit, ok := r.names.Limit(w.Limit); ok {
			dump.Limit = *limit
		}
		d.Workloads = append(d.Workloads, dump)
	}
	slices.SortFunc(d.Workloads, func(a, b DumpWorkload) int { return cmp.Compare(a.Name, b.Name) })
}

func (r *Reconciler) dumpSets(d *Dump, have held) {
	classes := map[uint32]string{0: "unknown", bpf.SourceOther: "other"}
	for c, i := range r.classes {
		classes[i] = fmt.Sprintf("%s in %s", c.Identity, c.Namespace)
		if c.Identity == "" {
			classes[i] = "no identity in " + c.Namespace
		}
	}
	sets := make(map[uint32]*DumpPolicySet)
	for _, s := range r.sets {
		p := &r.m.PolicySets[s.index]
		set := &DumpPolicySet{
			Index: s.index, Generation: p.Generation, HasAllow: p.HasAllow != 0, HasDry: p.HasDryAllow != 0,
			Sources: make(map[string][]uint16), Blocks: make(map[string][]uint16), Ports: make(map[string][]uint16),
		}
		for _, rule := range s.set.Rules {
			set.Rules = append(set.Rules, rule.String())
		}
		sets[s.index] = set
	}
	// of makes one that should not be there.
	of := func(index uint32) *DumpPolicySet {
		if sets[index] == nil {
			sets[index] = &DumpPolicySet{
				Index: index, Sources: make(map[string][]uint16), Blocks: make(map[string][]uint16), Ports: make(map[string][]uint16),
			}
		}
		return sets[index]
	}
	for key, rules := range have.sources {
		name, ok := classes[key.Source]
		if !ok {
			name = fmt.Sprint(key.Source)
		}
		of(key.Set).Sources[name] = bitsOf(rules)
	}
	for key, rules := range have.blocks {
		of(key.Set).Blocks[blockText(key)] = bitsOf(rules)
	}
	for key, rules := range have.ports {
		name := "other"
		if key.Port != 0 {
			name = fmt.Sprint(key.Port)
		}
		of(key.Set).Ports[name] = bitsOf(rules)
	}
	for _, s := range sets {
		d.PolicySets = append(d.PolicySets, *s)
	}
	slices.SortFunc(d.PolicySets, func(a, b DumpPolicySet) int { return cmp.Compare(a.Index, b.Index) })
}

// bitsOf lists the bits that are set.
func bitsOf(r bpf.Rules) []uint16 {
	set := []uint16{}
	for word, w := range r.Words {
		for ; w != 0; w &= w - 1 {
			set = append(set, uint16(word*64+bits.TrailingZeros64(w)))
		}
	}
	return set
}
