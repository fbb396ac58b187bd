package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// CarryObjects are the programs that carry sockets' state from maps of one layout to maps of another, once loaded.
type CarryObjects = carryObjects

// CarryVerdict is the argument of the program that adds up verdicts: struct carry_verdict of carry.bpf.c.
type CarryVerdict struct {
	KeyBefore, Key [32]byte
	Count          uint64
}

// CarryRoom is how large a state can be: CARRY_ROOM.
const CarryRoom = 400

// CarrySpec returns the object of carry.bpf.c, not yet loaded.
func CarrySpec() (*ebpf.CollectionSpec, error) {
	spec, err := loadCarry()
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	return spec, nil
}
