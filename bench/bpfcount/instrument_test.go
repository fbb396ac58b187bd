package bpfcount

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestInstrument counts programs of which the number of instructions is known, those that the counter adds left out.
func TestInstrument(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("loads programs: needs root")
	}
	for name, c := range map[string]struct {
		program  asm.Instructions
		executed uint64
	}{
		"straight": {asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Add.Imm(asm.R0, 1), asm.Return()}, 3},
		"loop": {asm.Instructions{
			asm.Mov.Imm(asm.R0, 10),
			{OpCode: asm.Add.Op(asm.ImmSource), Dst: asm.R0, Constant: -1},
			{OpCode: asm.JNE.Op(asm.ImmSource), Dst: asm.R0, Constant: 0, Offset: -2},
			asm.Return(),
		}, 1 + 10*2 + 1},
		"wide instructions and a branch not taken": {asm.Instructions{
			asm.LoadImm(asm.R1, 1<<40, asm.DWord),
			{OpCode: asm.JEq.Op(asm.ImmSource), Dst: asm.R1, Constant: 0, Offset: 2},
			asm.LoadImm(asm.R0, 1<<40, asm.DWord),
			asm.Return(),
		}, 4},
		"no register free": {append(asm.Instructions{
			asm.Mov.Imm(asm.R0, 1), asm.Mov.Imm(asm.R1, 1), asm.Mov.Imm(asm.R2, 1), asm.Mov.Imm(asm.R3, 1), asm.Mov.Imm(asm.R4, 1),
			asm.Mov.Imm(asm.R5, 1), asm.Mov.Imm(asm.R6, 1), asm.Mov.Imm(asm.R7, 1), asm.Mov.Imm(asm.R8, 1), asm.Mov.Imm(asm.R9, 1),
			{OpCode: asm.JNE.Op(asm.RegSource), Dst: asm.R0, Src: asm.R1, Offset: 9},
			asm.Add.Reg(asm.R0, asm.R1), asm.Add.Reg(asm.R0, asm.R2), asm.Add.Reg(asm.R0, asm.R3), asm.Add.Reg(asm.R0, asm.R4),
			asm.Add.Reg(asm.R0, asm.R5), asm.Add.Reg(asm.R0, asm.R6), asm.Add.Reg(asm.R0, asm.R7), asm.Add.Reg(asm.R0, asm.R8),
			asm.Add.Reg(asm.R0, asm.R9),
		}, asm.Return()), 21},
	} {
		t.Run(name, func(t *testing.T) {
			plain := run(t, c.program)
			c.program[0] = c.program[0].WithSymbol("program")
			spec := &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"program": {Instructions: c.program}}}
			counts, err := Spec(spec, "program")
			if err != nil {
				t.Fatal(err)
			}
			defer counts["program"].Close()
			if got := run(t, spec.Programs["program"].Instructions); got != plain {
				t.Errorf("it returns %d, want %d as without the counter", got, plain)
			}
			var executed uint64
			if err := counts["program"].Lookup(uint32(0), &executed); err != nil || executed != c.executed {
				t.Errorf("%d instructions, %v; want %d", executed, err, c.executed)
			}
		})
	}
}

// run runs a program once on a packet.
func run(t *testing.T, insns asm.Instructions) uint32 {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: insns})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	result, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		t.Fatal(err)
	}
	return result
}
