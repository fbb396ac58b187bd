//go:build sidelight_other_programs

package bpf

import (
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// vary makes other programs that do the same. Each has one instruction more, after its first, which keeps its symbol and what BTF says of it; r0 is nobody's
// there.
func vary(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		p.Instructions = slices.Insert(p.Instructions, 1, asm.Mov.Imm(asm.R0, 0))
	}
}
