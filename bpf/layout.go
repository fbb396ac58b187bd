//go:build !sidelight_other_layout

package bpf

// ABIVersion is MESH_ABI_VERSION: recorded event streams name it.
const ABIVersion = 6

// OldestABIVersion is the oldest whose records this program reads: since then there was only more.
const OldestABIVersion = 5
