package datapath

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// otherMap is a pinned map that may be of another layout, with what its keys and values are made of.
type otherMap struct {
	*ebpf.Map
	path       string
	info       *ebpf.MapInfo
	key, value btf.Type // nil: the kernel was not told
}

func openOther(path string) (_ *otherMap, err error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w; if it is damaged, take all off with: sidelight uninstall", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("look at pinned map %s: %w", path, err), m.Close())
		}
	}()
	o := &otherMap{Map: m, path: path}
	if o.info, err = m.Info(); err != nil {
		return nil, err
	}
	if o.key, o.value, err = typesOf(m); err != nil {
		return nil, err
	}
	return o, nil
}

// describe is what layoutOf has of a map.
func (m *otherMap) describe() string {
	return describeMap(m.info.Type, m.info.KeySize, m.key, m.info.ValueSize, m.value, m.info.MaxEntries, m.info.Flags)
}

// mapTypes is the part of struct bpf_map_info that says what a map is made of, which the library does not hand out.
type mapTypes struct {
	_          [64]byte
	btf        uint32
	key, value uint32
	_          uint32
	_          [64]byte // room for what newer kernels add
}

// objGetInfo is BPF_OBJ_GET_INFO_BY_FD.
const objGetInfo = 15

func typesOf(m *ebpf.Map) (key, value btf.Type, err error) {
	var info mapTypes
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, objGetInfo, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
		return nil, nil, fmt.Errorf("read its types: %w", errno)
	}
	if info.btf == 0 {
		return nil, nil, nil
	}
	handle, err := btf.NewHandleFromID(btf.ID(info.btf))
	if err != nil {
		return nil, nil, fmt.Errorf("read its types, which takes CAP_SYS_ADMIN: %w", err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("read its types: %w", err)
	}
	if key, err = spec.TypeByID(btf.TypeID(info.key)); err == nil {
		value, err = spec.TypeByID(btf.TypeID(info.value))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read its types: %w", err)
	}
	return key, value, nil
}
