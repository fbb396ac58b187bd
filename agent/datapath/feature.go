package datapath

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Feature is something of the kernel that Sidelight uses. It is probed, never derived from the kernel's version.
type Feature struct {
	Name        string
	Required    bool
	Consequence string // of not having it
	Err         error  // nil when it is there
}

// Features probes the running kernel. It needs the privileges that loading needs; without them a row says so.
func Features() []Feature {
	helper := func(t ebpf.ProgramType, f asm.BuiltinFunc) error { return features.HaveProgramHelper(t, f) }
	required := []Feature{
		{Name: "BTF of the kernel (CONFIG_DEBUG_INFO_BTF)", Consequence: "use a kernel that has /sys/kernel/btf/vmlinux (5.15 or newer as distributions build it)", Err: kernelBTF()},
		{Name: "sockops programs (CONFIG_CGROUP_BPF)", Consequence: "use a kernel built with CONFIG_CGROUP_BPF", Err: features.HaveProgramType(ebpf.SockOps)},
		{Name: "cgroup/connect programs", Consequence: "use a kernel built with CONFIG_CGROUP_BPF", Err: features.HaveProgramType(ebpf.CGroupSockAddr)},
		{Name: "cgroup links", Consequence: "use kernel 5.7 or newer", Err: haveCgroupLink()},
		{Name: "ring buffer maps", Consequence: "use kernel 5.8 or newer", Err: features.HaveMapType(ebpf.RingBuf)},
		{Name: "socket storage maps", Consequence: "use kernel 5.2 or newer", Err: features.HaveMapType(ebpf.SkStorage)},
		{Name: "socket storage in cgroup/connect", Consequence: "use kernel 5.8 or newer", Err: helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet)},
		{Name: "socket storage in sockops", Consequence: "use kernel 5.2 or newer", Err: helper(ebpf.SockOps, asm.FnSkStorageGet)},
		{Name: "current task in cgroup/connect", Consequence: "use kernel 5.11 or newer", Err: helper(ebpf.CGroupSockAddr, asm.FnGetCurrentTaskBtf)},
		{Name: "current task in sockops", Consequence: "use kernel 5.11 or newer", Err: helper(ebpf.SockOps, asm.FnGetCurrentTaskBtf)},
		{Name: "TCP socket fields in sockops", Consequence: "use kernel 5.9 or newer", Err: helper(ebpf.SockOps, asm.FnSkcToTcpSock)},
		{Name: "iterators over sockets and files", Consequence: "use kernel 5.15 or newer", Err: haveIterators()},
		{Name: "tracepoint inet_sock_set_state", Consequence: "use kernel 5.5 or newer", Err: haveTracepoint("inet_sock_set_state")},
	}
	for i := range required {
		required[i].Required = true
	}
	return append(required,
		Feature{Name: "programs pass this kernel's verifier", Consequence: "nothing can be observed; please report the kernel", Err: verify()},
		Feature{Name: "bpffs at " + BPFFS, Consequence: "it is mounted at start", Err: haveBPFFS()},
		Feature{
			Name: "callbacks on behalf of other sockets (TCP_BPF_SOCK_OPS_CB_FLAGS)", Err: haveEnumerator("TCP_BPF_SOCK_OPS_CB_FLAGS"),
			Consequence: "the end of adopted connections is seen by a tracepoint that runs for every TCP socket, while there are any",
		},
		Feature{Name: "sk_lookup programs", Consequence: "no inbound policy", Err: features.HaveProgramType(ebpf.SkLookup)},
		Feature{Name: "errno of a refused connect (bpf_set_retval)", Consequence: "a refused connect() always says EPERM", Err: helper(ebpf.CGroupSockAddr, asm.FnSetRetval)},
		Feature{Name: "cutting open connections (bpf_sock_destroy)", Consequence: "a revoked policy leaves open connections alone", Err: haveKfunc("bpf_sock_destroy")},
	)
}

func kernelBTF() error {
	_, err := btf.LoadKernelSpec()
	return err
}

func haveKfunc(name string) error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var f *btf.Func
	return spec.TypeByName(name, &f)
}

// haveTracepoint looks for the type that the kernel declares for programs of a tracepoint.
func haveTracepoint(name string) error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var t *btf.Typedef
	return spec.TypeByName("btf_trace_"+name, &t)
}

// haveEnumerator looks for a value of an enum, which may be without a name.
func haveEnumerator(name string) error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	for t, err := range spec.All() {
		if err != nil {
			return fmt.Errorf("read types of the kernel: %w", err)
		}
		enum, ok := t.(*btf.Enum)
		if ok && slices.ContainsFunc(enum.Values, func(v btf.EnumValue) bool { return v.Name == name }) {
			return nil
		}
	}
	return fmt.Errorf("no %s: %w", name, ebpf.ErrNotSupported)
}

// haveIterators asks for what the kernel declares for each kind of iterator that it has.
func haveIterators() error {
	return errors.Join(haveKfunc("bpf_iter_tcp"), haveKfunc("bpf_iter_task_file"), haveKfunc("bpf_iter_bpf_sk_storage_map"))
}

// haveCgroupLink makes a link on a file that is no cgroup: a kernel that knows the command says EBADF, an older one EINVAL.
func haveCgroupLink() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetIngress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	_, err = link.AttachRawLink(link.RawLinkOptions{Target: int(null.Fd()), Program: program, Attach: ebpf.AttachCGroupInetIngress})
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	return err
}

func haveBPFFS() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(BPFFS, &fs); err != nil {
		return err
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return errors.New("not mounted")
	}
	return nil
}

// verify loads the programs with the smallest ring and throws them away.
func verify() error {
	spec, err := bpf.Spec()
	if err != nil {
		return err
	}
	spec.Maps[bpf.EventsMap].MaxEntries = uint32(unix.Getpagesize())
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	collection.Close()
	return nil
}
