// Package bpfcount builds counters of executed instructions into BPF programs.
package bpfcount

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// A counted program adds, at the head of each of its basic blocks, how many instructions the block has to a number in a map. So it counts what it
// executes, whatever the machine and its load: a figure without noise. What the kernel's helpers execute is not in it.

// counters is where one program's count goes.
type counters struct{ fd int }

// instrument returns the instructions of a program with its counter built in.
func instrument(insns asm.Instructions, to counters) (asm.Instructions, error) {
	var all asm.Instructions
	starts := functionStarts(insns)
	arguments := functionArguments(insns, starts)
	for i, start := range starts {
		end := len(insns)
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		counted, err := instrumentFunction(insns[start:end], arguments, to)
		if err != nil {
			return nil, fmt.Errorf("function %s: %w", insns[start].Symbol(), err)
		}
		all = append(all, counted...)
	}
	return all, nil
}

func functionStarts(insns asm.Instructions) []int {
	var starts []int
	for i := range insns {
		if i == 0 || insns[i].Symbol() != "" {
			starts = append(starts, i)
		}
	}
	return starts
}

// functionArguments returns how many registers each function reads that BTF describes.
func functionArguments(insns asm.Instructions, starts []int) map[string]int {
	arguments := make(map[string]int)
	for _, start := range starts {
		f := btf.FuncMetadata(&insns[start])
		if f == nil {
			continue
		}
		if proto, ok := f.Type.(*btf.FuncProto); ok {
			arguments[insns[start].Symbol()] = len(proto.Params)
		}
	}
	return arguments
}

// instrumentFunction does so for one function, which a jump leaves by a call or an exit only.
func instrumentFunction(f asm.Instructions, arguments map[string]int, to counters) (asm.Instructions, error) {
	name := f[0].Symbol()
	targets, err := jumpTargets(f)
	if err != nil {
		return nil, err
	}
	heads, err := blockHeads(f, targets)
	if err != nil {
		return nil, err
	}
	live, err := liveness(f, targets, arguments)
	if err != nil {
		return nil, err
	}
	spill := -(deepestStack(f) + 8)
	label := func(i int) string { return fmt.Sprintf("%s.%d", name, i) }
	var counted asm.Instructions
	for n, head := range heads {
		end := len(f)
		if n+1 < len(heads) {
			end = heads[n+1]
		}
		block := slices.Clone(f[head:end])
		for i := range block {
			if target, ok := targets[head+i]; ok {
				block[i] = block[i].WithReference(label(target))
				block[i].Offset = -1
			}
		}
		if head == 0 {
			// The symbol and what BTF knows of the function belong to its first instruction.
			if f[0].OpCode.Class().IsJump() {
				return nil, errors.New("begins with a jump")
			}
			counted = append(counted, block[0])
			counted = append(counted, countBlock(live[1], len(block), spill, to)...)
			counted = append(counted, block[1:]...)
			continue
		}
		count := countBlock(live[head], len(block), spill, to)
		count[0] = count[0].WithSymbol(label(head))
		counted = append(counted, count...)
		counted = append(counted, block...)
	}
	return counted, nil
}

// countBlock adds n to the counter. It works in two registers that nobody reads any more, or else puts them back.
func countBlock(live registers, n int, spill int16, to counters) asm.Instructions {
	var free, saved []asm.Register
	for r := asm.R0; r <= asm.R9 && len(free) < 2; r++ {
		if !live.has(r) {
			free = append(free, r)
		}
	}
	for r := asm.R9; len(free)+len(saved) < 2; r-- {
		if live.has(r) {
			saved = append(saved, r)
		}
	}
	var insns asm.Instructions
	for i, r := range saved {
		insns = append(insns, asm.StoreMem(asm.R10, spill-int16(8*i), r, asm.DWord))
	}
	work := append(free, saved...)
	insns = append(insns,
		asm.LoadMapValue(work[0], to.fd, 0),
		asm.Mov.Imm(work[1], int32(n)),
		asm.AddAtomic.Mem(work[0], work[1], asm.DWord, 0),
	)
	for i, r := range saved {
		insns = append(insns, asm.LoadMem(r, asm.R10, spill-int16(8*i), asm.DWord))
	}
	return insns
}

// jumpTargets returns where each jump of a function goes, both as indices.
func jumpTargets(f asm.Instructions) (map[int]int, error) {
	at := make(map[int]int) // index by raw offset: an instruction can be two wide
	raw := make([]int, len(f))
	offset := 0
	for i := range f {
		at[offset], raw[i] = i, offset
		offset += int(f[i].Width())
	}
	targets := make(map[int]int)
	for i := range f {
		if !jumps(&f[i]) {
			continue
		}
		if f[i].Reference() != "" {
			return nil, fmt.Errorf("jump to %s is not relative", f[i].Reference())
		}
		distance := int(f[i].Offset)
		if f[i].OpCode.JumpOp() == asm.Ja && f[i].OpCode.Class() == asm.Jump32Class { // a long one
			distance = int(f[i].Constant)
		}
		target, ok := at[raw[i]+1+distance]
		if !ok {
			return nil, fmt.Errorf("instruction %d jumps out of its function", i)
		}
		targets[i] = target
	}
	return targets, nil
}

// jumps says whether an instruction has a target in its function.
func jumps(ins *asm.Instruction) bool {
	op := ins.OpCode.JumpOp()
	return ins.OpCode.Class().IsJump() && op != asm.Call && op != asm.Exit
}

// blockHeads returns where control can come to or go on after a jump, in order.
func blockHeads(f asm.Instructions, targets map[int]int) ([]int, error) {
	head := map[int]bool{0: true}
	for from, to := range targets {
		if to == 0 {
			return nil, errors.New("has a jump to its beginning")
		}
		head[to] = true
		head[from+1] = true
	}
	for i := range f {
		if f[i].OpCode.JumpOp() == asm.Exit && f[i].OpCode.Class().IsJump() {
			head[i+1] = true
		}
	}
	var heads []int
	for i := range f {
		if head[i] {
			heads = append(heads, i)
		}
	}
	return heads, nil
}

// stackSize is what the kernel gives a program, in bytes (MAX_BPF_STACK).
const stackSize = 512

// deepestStack returns how much stack a function uses, in bytes, a multiple of 8, or a little more.
func deepestStack(f asm.Instructions) int16 {
	deepest := int16(0)
	for i := range f {
		ins := &f[i]
		switch {
		case ins.OpCode.Class().IsStore() && ins.Dst == asm.R10, ins.OpCode.Class().IsLoad() && ins.Src == asm.R10:
			deepest = min(deepest, ins.Offset)
		case ins.OpCode.Class().IsALU() && ins.OpCode.ALUOp() == asm.Add && ins.OpCode.Source() == asm.ImmSource &&
			ins.Constant < 0 && ins.Constant >= -stackSize:
			deepest = min(deepest, int16(ins.Constant)) // perhaps of a copy of r10
		}
	}
	return (-deepest + 7) &^ 7
}

// Spec builds a counter into each named program of a spec, and returns the maps that hold the counts, a 64-bit number at index 0, by the names of
// the programs. They are the caller's to close, also after an error.
func Spec(spec *ebpf.CollectionSpec, programs ...string) (map[string]*ebpf.Map, error) {
	counts := make(map[string]*ebpf.Map)
	for _, name := range programs {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "executed", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
		if err != nil {
			return counts, fmt.Errorf("make counter: %w", err)
		}
		counts[name] = m
		p := spec.Programs[name]
		if p == nil {
			return counts, fmt.Errorf("no program %s", name)
		}
		if p.Instructions, err = instrument(p.Instructions, counters{m.FD()}); err != nil {
			return counts, fmt.Errorf("count instructions of %s: %w", name, err)
		}
	}
	return counts, nil
}

// Waste makes a program slower by so many instructions a run: what tests of a gate inject.
func Waste(p *ebpf.ProgramSpec, instructions int) {
	if instructions == 0 {
		return
	}
	// r0 is nobody's at the beginning; what stands there keeps its symbol and what BTF says of it.
	wasted := asm.Instructions{p.Instructions[0]}
	wasted = append(wasted, asm.Mov.Imm(asm.R0, 0))
	for range instructions - 1 {
		wasted = append(wasted, asm.Add.Imm(asm.R0, 1))
	}
	p.Instructions = append(wasted, p.Instructions[1:]...)
}
