//go:build !sidelight_other_layout

package bpf

// ABIVersion is MESH_ABI_VERSION: recorded event streams name it.
const ABIVersion = 5
