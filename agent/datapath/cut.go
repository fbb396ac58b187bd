package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/link"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Cut says which open connections the mesh ends.
type Cut struct {
	// Denied ends those that policies no longer allow: of clients that were steered or judged when they connected, and of servers those whose
	// client is known by his address.
	Denied bool
	// Backend and Tag end those to a backend, by its index; 0: none.
	Backend, Tag uint32
}

// Cut ends open connections of the cgroup's processes, in the network namespaces that they are in. Where the kernel lacks bpf_sock_destroy (before 6.5) it is
// a *FeatureError and does nothing. Safe for concurrent use.
func (d *Datapath) Cut(what Cut) error {
	if err := haveKfunc("bpf_sock_destroy"); err != nil {
		return &FeatureError{Feature: "cutting open connections (bpf_sock_destroy)", Remedy: "they end by themselves; use kernel 6.5 or newer"}
	}
	d.mesh.mu.Lock()
	defer d.mesh.mu.Unlock()
	if !what.Denied {
		return d.cut(what, 0)
	}
	return errors.Join(d.cut(what, uint32(bpf.Client)), d.cut(what, uint32(bpf.Server)))
}

func (d *Datapath) cut(what Cut, denied uint32) error {
	err := errors.Join(d.objects.CutDenied.Set(denied), d.objects.CutBackend.Set(what.Backend), d.objects.CutTag.Set(what.Tag))
	if err != nil {
		return fmt.Errorf("set %s, %s and %s: %w", bpf.CutDenied, bpf.CutBackend, bpf.CutTag, err)
	}
	iterator, err := link.AttachIter(link.IterOptions{Program: d.objects.MeshCut})
	if err != nil {
		return fmt.Errorf("attach iterator over TCP sockets: %w", err)
	}
	defer iterator.Close()
	all, err := namespacesOf(d.cgroup.Dir, func(uint64) bool { return false })
	return errors.Join(err, inNamespaces(iterator, all))
}
