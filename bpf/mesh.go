package bpf

// The types of the mesh as the kernel reads it: abi.h says what they mean.
type (
	// Frontend is struct mesh_frontend.
	Frontend = meshMeshFrontend
	// Table is struct mesh_table.
	Table = meshMeshTable
	// Backend is struct mesh_backend.
	Backend = meshMeshBackend
	// Load is struct mesh_load.
	Load = meshMeshLoad
	// Workload is struct mesh_workload.
	Workload = meshMeshWorkload
	// Limit is struct mesh_limit.
	Limit = meshMeshLimit
	// LimitState is struct mesh_limit_state.
	LimitState = meshMeshLimitState
	// Rules is struct mesh_rules.
	Rules = meshMeshRules
	// PolicySet is struct mesh_policy_set.
	PolicySet = meshMeshPolicySet
	// PolicySource is struct mesh_policy_source.
	PolicySource = meshMeshPolicySource
	// PolicyBlock is struct mesh_policy_block.
	PolicyBlock = meshMeshPolicyBlock
	// PolicyPort is struct mesh_policy_port.
	PolicyPort = meshMeshPolicyPort
	// VerdictKey is struct mesh_verdict_key.
	VerdictKey = meshMeshVerdictKey
	// Listen is struct mesh_listen.
	Listen = meshMeshListen
	// Listener is struct mesh_listener.
	Listener = meshMeshListener
	// TraceBlock is struct mesh_trace_block.
	TraceBlock = meshMeshTraceBlock
	// Address is struct mesh_address.
	Address = meshMeshAddress
)

// How a table chooses, as in enum mesh_algorithm.
const (
	Random           = uint32(meshMeshAlgorithmMESH_RANDOM)
	RoundRobin       = uint32(meshMeshAlgorithmMESH_ROUND_ROBIN)
	LeastConnections = uint32(meshMeshAlgorithmMESH_LEAST_CONNECTIONS)
	Maglev           = uint32(meshMeshAlgorithmMESH_MAGLEV)
)

// What policies say, as in enum mesh_verdict.
const (
	VerdictNone  = uint8(meshMeshVerdictMESH_VERDICT_NONE)
	VerdictAllow = uint8(meshMeshVerdictMESH_VERDICT_ALLOW)
	VerdictDeny  = uint8(meshMeshVerdictMESH_VERDICT_DENY)
	// VerdictUnattended denies, because there has been no agent for longer than is allowed.
	VerdictUnattended = uint8(meshMeshVerdictMESH_VERDICT_UNATTENDED)
)

// What there is to look for, as in enum mesh_has of lib/identity.h.
const (
	HasPolicies = uint32(1)
	HasAnyPort  = uint32(2)
)

// As the macros of the same names.
const (
	NoRule         = uint16(0xffff)
	SourceOther    = uint32(0xffffffff)
	RuleWords      = 4
	RulesPerSet    = RuleWords * 64
	IdentityLevels = 8 // depths of cgroups that programs look at (lib/identity.h)
	WorkloadBypass = uint32(meshMeshWorkloadFlagsMESH_WORKLOAD_BYPASS)
)
