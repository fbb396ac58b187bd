package maps

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// Kernel is the maps of loaded objects.
type Kernel struct {
	Maps
	mapped [][]byte
	outer  *ebpf.Map // of one inner map, for grace
	inner  *ebpf.Map
}

// NewKernel maps the arrays into memory. The objects must outlive it.
func NewKernel(objects *bpf.Objects) (_ *Kernel, err error) {
	k := &Kernel{Maps: Maps{
		Cgroups:       kernelHash[uint64, uint32]{objects.Cgroups},
		Addresses:     kernelHash[bpf.Address, uint32]{objects.Addresses},
		Frontends:     kernelHash[bpf.Frontend, uint32]{objects.Frontends},
		PolicySources: kernelHash[bpf.PolicySource, bpf.Rules]{objects.PolicySources},
		PolicyBlocks:  kernelHash[bpf.PolicyBlock, bpf.Rules]{objects.PolicyBlocks},
		PolicyPorts:   kernelHash[bpf.PolicyPort, bpf.Rules]{objects.PolicyPorts},
		Verdicts:      kernelSums[bpf.VerdictKey]{kernelHash[bpf.VerdictKey, uint64]{objects.Verdicts}},
		LimitStates:   kernelHash[uint32, bpf.LimitState]{objects.LimitStates},
		Listeners:     kernelHash[bpf.Listen, bpf.Listener]{objects.Listeners},
	}}
	k.Grace = k.grace
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	for _, f := range []func() error{
		func() error { return mapArray(k, objects.Workloads, &k.Workloads) },
		func() error { return mapArray(k, objects.Pools, &k.Pools) },
		func() error { return mapArray(k, objects.Tables, &k.Tables) },
		func() error { return mapArray(k, objects.Slots, &k.Slots) },
		func() error { return mapArray(k, objects.Backends, &k.Backends) },
		func() error { return mapArray(k, objects.Loads, &k.Loads) },
		func() error { return mapArray(k, objects.Turns, &k.Turns) },
		func() error { return mapArray(k, objects.Limits, &k.Limits) },
		func() error { return mapArray(k, objects.PolicySets, &k.PolicySets) },
		k.prepareGrace,
	} {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Close undoes the mapping: no Reconciler may use it any more. It is safe twice.
func (k *Kernel) Close() error {
	var errs []error
	for _, m := range k.mapped {
		if err := unix.Munmap(m); err != nil {
			errs = append(errs, fmt.Errorf("unmap array: %w", err))
		}
	}
	k.mapped = nil
	for _, m := range []*ebpf.Map{k.outer, k.inner} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	k.outer, k.inner = nil, nil
	return errors.Join(errs...)
}

// mapArray maps a whole array: its elements are aligned to 8 bytes, and its memory to pages.
func mapArray[T any](k *Kernel, m *ebpf.Map, into *[]T) error {
	var element T
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("read size of map: %w", err)
	}
	if have := (uintptr(info.ValueSize) + 7) &^ 7; have != unsafe.Sizeof(element) {
		return fmt.Errorf("map %s has elements of %d bytes, not %d: it is of another version", info.Name, have, unsafe.Sizeof(element))
	}
	page := unix.Getpagesize()
	size := (int(unsafe.Sizeof(element))*int(info.MaxEntries) + page - 1) &^ (page - 1)
	memory, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map array %s into memory: %w", info.Name, err)
	}
	k.mapped = append(k.mapped, memory)
	*into = unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), info.MaxEntries)
	return nil
}

// prepareGrace makes a map of maps, because a change of one is what waits for programs on every kernel: membarrier() does nothing where there is one
// CPU, although a program can be preempted there, and fails where there is a CPU without ticks.
func (k *Kernel) prepareGrace() error {
	spec := &ebpf.MapSpec{Name: "sl_grace_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	var err error
	if k.inner, err = ebpf.NewMap(spec); err != nil {
		return fmt.Errorf("make inner map: %w", err)
	}
	outer := &ebpf.MapSpec{Name: "sl_grace", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec}
	if k.outer, err = ebpf.NewMap(outer); err != nil {
		return fmt.Errorf("make map of maps: %w", err)
	}
	return nil
}

// grace relies on maybe_wait_bpf_programs() of kernel/bpf/syscall.c: synchronize_rcu() after a change of a map of maps.
func (k *Kernel) grace() error {
	if err := k.outer.Put(uint32(0), k.inner); err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	return nil
}

// kernelHash is a hash, a trie or an array of the kernel.
type kernelHash[K comparable, V any] struct{ m *ebpf.Map }

func (h kernelHash[K, V]) Get(key K) (V, bool, error) {
	var value V
	err := h.m.Lookup(key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return value, false, nil
	}
	return value, err == nil, h.wrap("read", err)
}

func (h kernelHash[K, V]) Put(keys []K, values []V) error {
	if len(keys) > 1 {
		_, err := h.m.BatchUpdate(keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return h.wrap("write", err)
		}
	}
	for i := range keys {
		if err := h.m.Put(keys[i], values[i]); err != nil {
			return h.wrap("write", err)
		}
	}
	return nil
}

func (h kernelHash[K, V]) Delete(keys []K) error {
	if len(keys) > 1 {
		if _, err := h.m.BatchDelete(keys, nil); err == nil {
			return nil
		}
	}
	// Also where a batch stopped, as it does at a key that is not there.
	for _, key := range keys {
		if err := h.m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return h.wrap("delete from", err)
		}
	}
	return nil
}

func (h kernelHash[K, V]) All() (map[K]V, error) {
	all := make(map[K]V)
	var key K
	var value V
	iterator := h.m.Iterate()
	for iterator.Next(&key, &value) {
		all[key] = value
	}
	return all, h.wrap("read", iterator.Err())
}

func (h kernelHash[K, V]) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	name := "?"
	if info, infoErr := h.m.Info(); infoErr == nil {
		name = info.Name
	}
	return fmt.Errorf("%s map %s: %w", verb, name, err)
}

// kernelSums is a hash with a number for each CPU.
type kernelSums[K comparable] struct{ kernelHash[K, uint64] }

func (h kernelSums[K]) Get(key K) (uint64, bool, error) {
	var values []uint64
	err := h.m.Lookup(key, &values)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	return sum(values), err == nil, h.wrap("read", err)
}

func (h kernelSums[K]) Put([]K, []uint64) error { return errors.New("write sums: only programs do") }

func (h kernelSums[K]) All() (map[K]uint64, error) {
	all := make(map[K]uint64)
	var key K
	var values []uint64
	iterator := h.m.Iterate()
	for iterator.Next(&key, &values) {
		all[key] = sum(values)
	}
	return all, h.wrap("read", iterator.Err())
}

func sum(values []uint64) (total uint64) {
	for _, v := range values {
		total += v
	}
	return total
}
