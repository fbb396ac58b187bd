package bpfcount

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// registers is a set of them.
type registers uint16

func (s registers) has(r asm.Register) bool { return s&(1<<r) != 0 }

func set(all ...asm.Register) (s registers) {
	for _, r := range all {
		s |= 1 << r
	}
	return s
}

// helperArguments is how many registers the helpers read that the programs call (include/uapi/linux/bpf.h).
var helperArguments = map[asm.BuiltinFunc]int{
	asm.FnMapLookupElem: 2, asm.FnMapUpdateElem: 4, asm.FnMapDeleteElem: 2, asm.FnKtimeGetNs: 0, asm.FnKtimeGetCoarseNs: 0, asm.FnGetSocketCookie: 1,
	asm.FnGetCurrentTaskBtf: 0, asm.FnProbeReadKernel: 3, asm.FnRingbufQuery: 2, asm.FnRingbufReserve: 3, asm.FnRingbufSubmit: 2, asm.FnRingbufDiscard: 2,
	asm.FnRingbufOutput: 4, asm.FnSeqWrite: 3, asm.FnSetsockopt: 5, asm.FnSkStorageDelete: 2, asm.FnSkStorageGet: 4, asm.FnSkcToTcpSock: 1,
	asm.FnSockFromFile: 1, asm.FnSockOpsCbFlagsSet: 2, asm.FnGetCurrentPidTgid: 0, asm.FnGetPrandomU32: 0, asm.FnGetSmpProcessorId: 0, asm.FnMapLookupPercpuElem: 3,
	asm.FnSpinLock: 1, asm.FnSpinUnlock: 1, asm.FnGetNetnsCookie: 1, asm.FnSetRetval: 1,
	asm.FnGetsockopt: 5, asm.FnLoadHdrOpt: 4, asm.FnStoreHdrOpt: 4, asm.FnReserveHdrOpt: 3,
}

// effect returns which registers an instruction reads and writes. arguments are those of the program's own functions.
func effect(ins *asm.Instruction, arguments map[string]int) (reads, writes registers, err error) {
	class := ins.OpCode.Class()
	switch {
	case class.IsALU():
		writes = set(ins.Dst)
		switch ins.OpCode.ALUOp() {
		case asm.Mov:
		default:
			reads = set(ins.Dst)
		}
		if ins.OpCode.Source() == asm.RegSource && ins.OpCode.ALUOp() != asm.Neg && ins.OpCode.ALUOp() != asm.Swap {
			reads |= set(ins.Src)
		}
	case class == asm.LdClass: // a 64-bit constant
		writes = set(ins.Dst)
	case class == asm.LdXClass:
		reads, writes = set(ins.Src), set(ins.Dst)
	case class == asm.StClass:
		reads = set(ins.Dst)
	case class == asm.StXClass:
		reads = set(ins.Dst, ins.Src)
		// What one that fetches writes is left out: then that register passes for live a little longer.
		if ins.OpCode.Mode() == asm.AtomicMode && ins.OpCode.AtomicOp() == asm.CmpXchg {
			reads |= set(asm.R0)
		}
	case class.IsJump():
		switch ins.OpCode.JumpOp() {
		case asm.Exit:
			reads = set(asm.R0)
		case asm.Ja:
		case asm.Call:
			n := 5
			if ins.IsBuiltinCall() {
				known, ok := helperArguments[asm.BuiltinFunc(ins.Constant)]
				if !ok {
					return 0, 0, fmt.Errorf("helper %v is not in helperArguments", asm.BuiltinFunc(ins.Constant))
				}
				n = known
			} else if ins.IsFunctionCall() {
				known, ok := arguments[ins.Reference()]
				if !ok {
					return 0, 0, fmt.Errorf("nothing is known of the arguments of function %q", ins.Reference())
				}
				n = known
			}
			for r := asm.R1; r < asm.R1+asm.Register(n); r++ {
				reads |= set(r)
			}
			writes = set(asm.R0, asm.R1, asm.R2, asm.R3, asm.R4, asm.R5)
		default:
			reads = set(ins.Dst)
			if ins.OpCode.Source() == asm.RegSource {
				reads |= set(ins.Src)
			}
		}
	}
	return reads &^ set(asm.R10), writes, nil
}

// liveness returns for each instruction which registers may be read from there on before they are written.
func liveness(f asm.Instructions, targets map[int]int, arguments map[string]int) ([]registers, error) {
	live := make([]registers, len(f)+1)
	for changed := true; changed; {
		changed = false
		for i := len(f) - 1; i >= 0; i-- {
			reads, writes, err := effect(&f[i], arguments)
			if err != nil {
				return nil, err
			}
			var after registers
			op, jump := f[i].OpCode.JumpOp(), f[i].OpCode.Class().IsJump()
			if !jump || (op != asm.Exit && op != asm.Ja) {
				after = live[i+1]
			}
			if to, ok := targets[i]; ok {
				after |= live[to]
			}
			if now := reads | after&^writes; now != live[i] {
				live[i], changed = now, true
			}
		}
	}
	return live, nil
}
