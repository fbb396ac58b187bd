//go:build !sidelight_other_programs

package bpf

import "github.com/cilium/ebpf"

// vary changes nothing, but in a build of which tests want other programs.
func vary(*ebpf.CollectionSpec) {}
