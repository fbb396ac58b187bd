// Package bpf is the kernel side of Sidelight and its Go binding: the programs of mesh.bpf.c as one embedded object, and the Go
// twins of the types in abi.h. It knows how to load nothing: that is agent/datapath.
//
// The object and the generated Go file are committed, so a plain go build needs no clang. "make generate" makes them anew. One
// little-endian object serves x86-64 and arm64. A second one, with other places for the same fields, is for tests of upgrades: a build with the tag
// sidelight_other_layout has it instead.
package bpf

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

//go:generate -command object go tool bpf2go -cc clang-19 -strip llvm-strip-19 -no-global-types -target bpfel -type mesh_event -type mesh_close_event -type mesh_account -type mesh_lost_key -type mesh_lost -type mesh_decision -type mesh_frontend -type mesh_table -type mesh_backend -type mesh_load -type mesh_workload -type mesh_limit -type mesh_limit_state -type mesh_rules -type mesh_policy_set -type mesh_policy_source -type mesh_policy_block -type mesh_policy_port -type mesh_trace_block -type mesh_trace_outcome -type mesh_verdict_key -type mesh_address -type mesh_listen -type mesh_listener -type mesh_ledger -type mesh_counted -type mesh_logged -type mesh_watchdog -type mesh_verdict -type mesh_algorithm -type mesh_workload_flags -type mesh_told -type mesh_flags -type mesh_kind -type mesh_role -type mesh_reason
//go:generate object -tags !sidelight_other_layout mesh mesh.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu
//go:generate object -tags sidelight_other_layout -output-stem other mesh mesh.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -DMESH_OTHER_LAYOUT
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -no-global-types -target bpfel carry carry.bpf.c -- -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu

type (
	// Event is struct mesh_event of abi.h, as bpf2go derives it from the object's BTF; so are the next two.
	Event = meshMeshEvent
	// CloseEvent is struct mesh_close_event.
	CloseEvent = meshMeshCloseEvent
	// Account is struct mesh_account.
	Account = meshMeshAccount
	// LostKey is struct mesh_lost_key.
	LostKey = meshMeshLostKey
	// Lost is struct mesh_lost.
	Lost = meshMeshLost
	// Decision is struct mesh_decision, which follows an event with the flag Decided.
	Decision = meshMeshDecision
	// Ledger is struct mesh_ledger.
	Ledger = meshMeshLedger
	// Counted is struct mesh_counted.
	Counted = meshMeshCounted
	// Logged is struct mesh_logged.
	Logged = meshMeshLogged
	// Watchdog is struct mesh_watchdog.
	Watchdog = meshMeshWatchdog
	// Objects are the programs and maps, once loaded.
	Objects = meshObjects
)

// Sizes of the ring's records in bytes.
const (
	EventSize      = int(unsafe.Sizeof(Event{}))
	CloseEventSize = int(unsafe.Sizeof(CloseEvent{}))
	DecisionSize   = int(unsafe.Sizeof(Decision{}))
)

// Kinds of events, as in enum mesh_kind.
const (
	PreConnect  = uint8(meshMeshKindMESH_PRE_CONNECT)
	Established = uint8(meshMeshKindMESH_ESTABLISHED)
	Close       = uint8(meshMeshKindMESH_CLOSE)
	Sweep       = uint8(meshMeshKindMESH_SWEEP)
	KindCount   = uint8(meshMeshKindMESH_KIND_COUNT)
)

// Roles of the local socket, as in enum mesh_role.
const (
	Client = uint8(meshMeshRoleMESH_CLIENT)
	Server = uint8(meshMeshRoleMESH_SERVER)
)

// What user space was told, as in enum mesh_told.
const (
	ToldAttempt     = uint32(meshMeshToldMESH_TOLD_ATTEMPT)
	ToldEstablished = uint32(meshMeshToldMESH_TOLD_ESTABLISHED)
	ToldEnd         = uint32(meshMeshToldMESH_TOLD_END)
)

// What is special about a connection, as in enum mesh_flags.
const (
	Adopted     = uint32(meshMeshFlagsMESH_ADOPTED)
	AdoptedOpen = uint32(meshMeshFlagsMESH_ADOPTED_OPEN)
	Stateless   = uint32(meshMeshFlagsMESH_STATELESS)
	Decided     = uint32(meshMeshFlagsMESH_DECIDED)
	RefusedHere = uint32(meshMeshFlagsMESH_REFUSED_HERE)
	Revoked     = uint32(meshMeshFlagsMESH_REVOKED)
	TraceTold   = uint32(meshMeshFlagsMESH_TRACE_TOLD)
	TraceDue    = uint32(meshMeshFlagsMESH_TRACE_DUE)
)

// What became of trace ids in options of TCP, as in enum mesh_trace_outcome.
const (
	TraceSent     = uint32(meshMeshTraceOutcomeMESH_TRACE_SENT)
	TraceNoRoom   = uint32(meshMeshTraceOutcomeMESH_TRACE_NO_ROOM)
	TraceReceived = uint32(meshMeshTraceOutcomeMESH_TRACE_RECEIVED)
	TraceMissing  = uint32(meshMeshTraceOutcomeMESH_TRACE_MISSING)
)

// RoleCount is the number of values in enum mesh_role.
const RoleCount = uint8(meshMeshRoleMESH_ROLE_COUNT)

// ReasonCount is the number of values in enum mesh_reason.
const ReasonCount = uint8(meshMeshReasonMESH_REASON_COUNT)

// NoRTT is min_rtt_us of a connection that never measured a round trip.
const NoRTT = ^uint32(0)

// Names inside the object that a loader sets before loading.
const (
	EventsMap      = meshMapEvents
	ConnectionsMap = meshMapConnections
	WakeupBytes    = meshVarWakeupBytes
	AttachedCgroup = meshVarAttachedCgroup
	FirstBytes     = meshVarFirstBytes
	TraceOption    = meshVarTraceOption
	SweepAll       = meshVarSweepAll
	ReaderAsleep   = meshVarReaderAsleep
	Silent         = meshVarSilent
	CgroupLevels   = meshVarCgroupLevels
	CutDenied      = meshVarCutDenied
	CutBackend     = meshVarCutBackend
	CutTag         = meshVarCutTag
	AgentPID       = meshVarAgentPid
	AgentStart     = meshVarAgentStartTicks
	FailClosed     = meshVarFailClosedNs
	ReadPosition   = meshVarReadPosition
	MeshHas        = meshVarMeshHas
	RefuseBytes    = meshVarRefuseBytes
	LookupNetns    = meshVarLookupNetns
)

// flagsOffset is where enum mesh_flags is in a record.
const flagsOffset = unsafe.Offsetof(Event{}.Flags)

// SweepSize returns how long the record is that b begins with, as a sweep writes them one after the other; 0: it is not whole.
func SweepSize(b []byte) int {
	if len(b) < CloseEventSize {
		return 0
	}
	size := CloseEventSize
	if uint32(binary.LittleEndian.Uint16(b[flagsOffset:]))&Decided != 0 {
		size += DecisionSize
	}
	if len(b) < size {
		return 0
	}
	return size
}

// WithMesh puts the programs of a mesh into an object that is not yet loaded, and makes room in a connection's state for what it decides.
func WithMesh(spec *ebpf.CollectionSpec) error {
	if err := spec.Variables[meshVarMesh].Set(true); err != nil {
		return fmt.Errorf("set %s: %w", meshVarMesh, err)
	}
	var state *btf.Struct
	if err := spec.Types.TypeByName("mesh_connection_in_mesh", &state); err != nil {
		return fmt.Errorf("size map %s: %w", ConnectionsMap, err)
	}
	connections := spec.Maps[ConnectionsMap]
	connections.Value, connections.ValueSize = state, state.Size
	return nil
}

// Spec returns the embedded object, not yet loaded. Each call returns a copy of its own.
func Spec() (*ebpf.CollectionSpec, error) {
	spec, err := loadMesh()
	if err == nil {
		vary(spec)
	}
	return spec, err
}
