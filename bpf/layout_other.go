//go:build sidelight_other_layout

package bpf

// ABIVersion is MESH_ABI_VERSION: recorded event streams name it, and no released program takes those of this layout.
const ABIVersion = 999

// OldestABIVersion is the oldest whose records this program reads.
const OldestABIVersion = ABIVersion
