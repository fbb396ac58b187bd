package kernel

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bench/bpfcount"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// hooked are the programs that run in the life of a connection.
var hooked = []struct {
	name   string
	attach ebpf.AttachType
}{
	{"mesh_sockops", ebpf.AttachCGroupSockOps},
	{"mesh_connect4", ebpf.AttachCGroupInet4Connect},
	{"mesh_connect6", ebpf.AttachCGroupInet6Connect},
}

const sweepProgram = "mesh_sweep"

// options of a session.
type options struct {
	noFirstBytes bool // without the times of the first bytes
	traced       bool // with trace ids in SYNs, to and from everybody
	counted      bool // count instructions; else times mean something
	beside       bool // attach programs that do nothing beside ours
	silent       bool // no events: closes are summed in the kernel
	burn         int  // instructions that mesh_sockops wastes in each run: the gate's own test
}

// attached are the programs on a cgroup.
type attached struct {
	collection *ebpf.Collection
	counts     map[string]*ebpf.Map
	empty      []*ebpf.Program
	links      []link.Link
	sockops    string // the program of that hook
}

// name is what the program at a hook is called in this session.
func (a *attached) name(hooked string) string {
	if hooked == "mesh_sockops" {
		return a.sockops
	}
	return hooked
}

func (a *attached) close() {
	for _, l := range a.links {
		l.Close()
	}
	for _, p := range a.empty {
		p.Close()
	}
	if a.collection != nil {
		a.collection.Close()
	}
	for _, m := range a.counts {
		m.Close()
	}
}

// attachMesh attaches ours.
func attachMesh(cgroup string, o options) (*attached, error) {
	a := new(attached)
	if err := a.mesh(cgroup, o); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *attached) mesh(cgroup string, o options) error {
	spec, err := bpf.Spec()
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Stat(cgroup, &stat); err != nil {
		return fmt.Errorf("stat cgroup: %w", err)
	}
	for name, value := range map[string]any{
		bpf.WakeupBytes: ^uint64(0), bpf.AttachedCgroup: stat.Ino, bpf.FirstBytes: !o.noFirstBytes, bpf.TraceOption: o.traced,
		bpf.Silent: map[bool]uint32{true: ^uint32(0)}[o.silent],
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	a.sockops = hooked[0].name
	if o.traced {
		a.sockops = "mesh_sockops_traced"
	}
	bpfcount.Waste(spec.Programs[a.sockops], o.burn)
	if o.counted {
		names := []string{sweepProgram}
		for _, p := range hooked {
			names = append(names, a.name(p.name))
		}
		if a.counts, err = bpfcount.Spec(spec, names...); err != nil {
			return err
		}
	}
	if a.collection, err = ebpf.NewCollection(spec); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	if o.traced {
		if err := a.collection.Maps["trace_blocks"].Put(bpf.TraceBlock{}, uint32(1)); err != nil {
			return fmt.Errorf("exchange trace ids with everybody: %w", err)
		}
	}
	for _, p := range hooked {
		if o.beside {
			if err := a.nothing(cgroup, p.attach, spec.Programs[a.name(p.name)].Type); err != nil {
				return err
			}
		}
		if err := a.attach(cgroup, p.attach, a.collection.Programs[a.name(p.name)]); err != nil {
			return err
		}
	}
	return nil
}

func (a *attached) attach(cgroup string, hook ebpf.AttachType, program *ebpf.Program) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: hook, Program: program})
	if err != nil {
		return fmt.Errorf("attach to %v of %s: %w", hook, cgroup, err)
	}
	a.links = append(a.links, l)
	return nil
}

// nothing attaches a program that does nothing, of the same type, so that the kernel does for it what it does for ours.
func (a *attached) nothing(cgroup string, hook ebpf.AttachType, of ebpf.ProgramType) error {
	return a.small(cgroup, hook, of, asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()})
}

func (a *attached) small(cgroup string, hook ebpf.AttachType, of ebpf.ProgramType, insns asm.Instructions) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "small", Type: of, AttachType: hook, License: "GPL", Instructions: insns})
	if err != nil {
		return fmt.Errorf("load a program of %d instructions: %w", len(insns), err)
	}
	a.empty = append(a.empty, program)
	return a.attach(cgroup, hook, program)
}

// floor is what programs at these hooks cost that look at nothing and tell nothing.
type floor int

const (
	floorHooks     floor = iota // attached: the kernel calls them where it asks everybody
	floorCallbacks              // and asks for STATE_CB, without which neither failures nor ends are seen
	floorState                  // and has state with each socket, of the size of ours: no program that follows connections can do without
)

func attachFloor(f floor) func(cgroup string) (*attached, error) {
	return func(cgroup string) (*attached, error) {
		a := &attached{counts: make(map[string]*ebpf.Map)}
		if err := a.floor(cgroup, f); err != nil {
			a.close()
			return nil, err
		}
		return a, nil
	}
}

// Offsets in struct bpf_sock_ops, and values of include/uapi/linux/bpf.h.
const (
	offsetOp      = 0
	offsetSock    = 184
	opConnect     = 3
	opPassive     = 5
	flagState     = 4
	createStorage = 1
)

func (a *attached) floor(cgroup string, f floor) error {
	for _, p := range hooked[1:] {
		if err := a.nothing(cgroup, p.attach, ebpf.CGroupSockAddr); err != nil {
			return err
		}
	}
	if f == floorHooks {
		return a.nothing(cgroup, hooked[0].attach, ebpf.SockOps)
	}
	program := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, offsetOp, asm.Word),
		asm.JEq.Imm(asm.R2, opConnect, "begin"),
		asm.JEq.Imm(asm.R2, opPassive, "begin"),
		asm.Mov.Imm(asm.R0, 1),
		asm.Return(),
		asm.Mov.Reg(asm.R6, asm.R1).WithSymbol("begin"),
		asm.Mov.Imm(asm.R2, flagState),
		asm.FnSockOpsCbFlagsSet.Call(),
	}
	if f == floorState {
		spec, err := bpf.Spec()
		if err != nil {
			return err
		}
		storage, err := ebpf.NewMap(spec.Maps["connections"])
		if err != nil {
			return fmt.Errorf("make storage: %w", err)
		}
		a.counts["storage"] = storage // to be closed
		program = append(program,
			asm.LoadMem(asm.R2, asm.R6, offsetSock, asm.DWord),
			asm.JEq.Imm(asm.R2, 0, "end"),
			asm.LoadMapPtr(asm.R1, storage.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, createStorage),
			asm.FnSkStorageGet.Call())
	}
	return a.small(cgroup, hooked[0].attach, ebpf.SockOps, append(program, asm.Mov.Imm(asm.R0, 1).WithSymbol("end"), asm.Return()))
}
