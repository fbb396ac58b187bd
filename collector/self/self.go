// Package self has the metrics that the agent tells of itself: one list of values, which /metrics and the mesh receiver both read.
// Names and meanings stand in collector/meshreceiver/metadata.yaml; a test holds the two together.
package self

import (
	"slices"
	"time"
)

// Metric is what its values have in common.
type Metric struct {
	Name        string // of OTLP
	Prometheus  string
	Counter     bool // it only grows; otherwise it goes up and down
	Double      bool
	Unit        string
	Description string
	Attributes  []string
	// Lasting says of attributes whether what they are of is counted in a place that outlives the agent, as the kernel's maps do, and the one agent's count
	// goes on from the other's. nil: nothing of it is.
	Lasting func(attributes []string) bool
}

// Value is one number of a metric.
type Value struct {
	Metric     *Metric
	Number     float64  // whole numbers are exact up to 2^53
	Attributes []string // in the order of the metric's
}

// Of makes a value.
func (m *Metric) Of(number float64, attributes ...string) Value {
	return Value{Metric: m, Number: number, Attributes: attributes}
}

// Reading is all values at one moment.
type Reading struct {
	Since time.Time // when the agent's own counters began
	// LastingSince is when those began that outlive it; the same for each agent that goes on with them. Zero: not known.
	LastingSince time.Time
	Values       []Value
	// Err says why some are missing.
	Err error
}

// Began is when a value of a counter was 0; zero: not known. A lasting one that began with the agent would look as if it had been reset, and as if all of its
// sum had come since.
func (r *Reading) Began(v *Value) time.Time {
	if v.Metric.Lasting != nil && v.Metric.Lasting(v.Attributes) {
		return r.LastingSince
	}
	return r.Since
}

// Metrics returns every metric there is.
func Metrics() []*Metric { return all }

var all []*Metric

func define(m Metric) *Metric {
	all = append(all, &m)
	return &m
}

func counter(name, prometheus, unit, description string, attributes ...string) *Metric {
	return define(Metric{Name: name, Prometheus: prometheus, Counter: true, Unit: unit, Description: description, Attributes: attributes})
}

// lasting has a counter counted where it outlives the agent.
func lasting(m *Metric) *Metric {
	m.Lasting = func([]string) bool { return true }
	return m
}

// The kernel counts what these stages lose, and the ledger that agents leave each other what could not be decoded; others are the process's.
var lastingStages = []string{"ring", "decode", "listeners", "storage"}

func gauge(name, prometheus, unit, description string, attributes ...string) *Metric {
	return define(Metric{Name: name, Prometheus: prometheus, Unit: unit, Description: description, Attributes: attributes})
}

func ratio(name, prometheus, description string, attributes ...string) *Metric {
	return define(Metric{Name: name, Prometheus: prometheus, Double: true, Unit: "1", Description: description, Attributes: attributes})
}

// The metrics, in the order of the table.
var (
	Dropped = define(Metric{
		Name: "sidelight.dropped", Prometheus: "sidelight_dropped_total", Counter: true, Unit: "{item}",
		Description: "What was lost, by the stage that lost it.", Attributes: []string{"stage", "kind"},
		Lasting: func(attributes []string) bool { return slices.Contains(lastingStages, attributes[0]) },
	})
	Unaccounted = gauge("sidelight.accounting.unaccounted", "sidelight_accounting_unaccounted", "{item}",
		"Connections and events that the kernel counted and user space never saw, and records that went into a way out and are nowhere on it; losses that were counted aside. Must be 0.")
	BuildInfo = gauge("sidelight.build.info", "sidelight_build_info", "",
		"Always 1.", "version", "go.version")
	Kernel = lasting(counter("sidelight.self.kernel.connections", "sidelight_self_kernel_connections_total", "{connection}",
		"The kernel's own count.", "role", "step"))
	TraceIDs = lasting(counter("sidelight.self.trace_ids", "sidelight_self_trace_ids_total", "{connection}",
		"Connections with peers that trace ids are exchanged with: sent in a client's SYN, or no room there; received by a server, or missing.", "outcome"))
	Submitted = lasting(counter("sidelight.self.events.submitted", "sidelight_self_events_submitted_total", "{event}",
		"Events that the kernel put into the ring.", "kind"))
	SampledOut = lasting(counter("sidelight.self.events.sampled_out", "sidelight_self_events_sampled_out_total", "{event}",
		"Events that were not asked for; what they would have told is in the sums.", "kind"))
	Decoded = lasting(counter("sidelight.self.events.decoded", "sidelight_self_events_decoded_total", "{event}",
		"Events that were read from the ring and decoded.", "kind"))
	Followed = gauge("sidelight.self.connections.followed", "sidelight_self_connections_followed", "{connection}",
		"Connections that are open or connecting now, by the kernel's count.")
	FollowedLimit = gauge("sidelight.self.connections.limit", "sidelight_self_connections_limit", "{connection}",
		"Connections whose ends the agent remembers at a time, max_connections; of those above it looks them up at each event.")
	Untracked = lasting(counter("sidelight.self.untracked.closed", "sidelight_self_untracked_closed_total", "{connection}",
		"Closed sockets that the kernel programs had not seen open."))
	Aggregated = lasting(counter("sidelight.self.aggregated.closes", "sidelight_self_aggregated_closes_total", "{event}",
		"Close events that found no room in the ring or were not asked for, and whose sums the kernel kept: by edge, or by role and reason only.", "by"))
	EdgesFolded = counter("sidelight.self.edges.folded", "sidelight_self_edges_folded_total", "{record}",
		"Records that went to the overflow edge, because max_edges was reached and no edge was idle. The sums of the overflow edge are exact.")
	EdgesEvicted = counter("sidelight.self.edges.evicted", "sidelight_self_edges_evicted_total", "{edge}",
		"Edges that went into the overflow edge with all their sums, because nothing happened to them for long and another one needed the room.")
	Edges = gauge("sidelight.self.edges", "sidelight_self_edges", "{edge}",
		"Edges that have metrics of their own now, of max_edges at most.")
	EdgesLimit = gauge("sidelight.self.edges.limit", "sidelight_self_edges_limit", "{edge}",
		"Edges that can have metrics of their own: max_edges.")
	Lines = counter("sidelight.self.access_log.lines", "sidelight_self_access_log_lines_total", "{line}",
		"Lines written to the access log.")
	Exported = counter("sidelight.self.exported", "sidelight_self_exported_total", "{item}",
		"What OTLP backends took and kept: log records, spans, data points.", "signal")
	Queued = gauge("sidelight.self.export.queue", "sidelight_self_export_queue", "{item}",
		"What waits for OTLP backends.", "signal")
	QueueCapacity = gauge("sidelight.self.export.queue.capacity", "sidelight_self_export_queue_capacity", "{item}",
		"What can wait for OTLP backends, where their exporters have a queue.", "signal")
	RecordsOut = counter("sidelight.self.records.sampled_out", "sidelight_self_records_sampled_out_total", "{record}",
		"Connections that ended without a log record or a span, because of the overhead budget; what they add up to is in the sums.", "signal")
	BudgetRung = gauge("sidelight.budget.rung", "sidelight_budget_rung", "",
		"The rung of the overhead budget's ladder: 0 full, 1 spans off, 2 log sampling, 3 close events only, 4 counters only.")
	BudgetProbability = ratio("sidelight.budget.sampling.probability", "sidelight_budget_sampling_probability",
		"With which probability a connection that neither failed nor was slow has a log line.")
	BudgetSteps = counter("sidelight.budget.steps", "sidelight_budget_steps_total", "{step}",
		"Steps on the ladder of the overhead budget.", "direction")
	BudgetCPU = ratio("sidelight.budget.cpu.ratio", "sidelight_budget_cpu_ratio",
		"What the agent takes of all CPUs of the node, by itself (agent) and in its kernel programs (programs), at the last measurement.", "component")
	BudgetCPULimit = ratio("sidelight.budget.cpu.limit.ratio", "sidelight_budget_cpu_limit_ratio",
		"What it may take.")
	BudgetMemory = gauge("sidelight.budget.memory", "sidelight_budget_memory_bytes", "By",
		"Resident memory of the agent, at the last measurement.")
	BudgetMemoryLimit = gauge("sidelight.budget.memory.limit", "sidelight_budget_memory_limit_bytes", "By",
		"What it may take.")
	Ring = gauge("sidelight.bpf.ring", "sidelight_bpf_ring_bytes", "By",
		"Size of the event ring.")
	Pending = gauge("sidelight.bpf.ring.pending", "sidelight_bpf_ring_pending_bytes", "By",
		"What waits in the event ring to be read.")
	MapEntries = gauge("sidelight.bpf.map.entries", "sidelight_bpf_map_entries", "{entry}",
		"Entries of a map of the kernel programs that are in use, of those maps that are filled by and by and that the agent counts anyway.", "map")
	MapMaxEntries = gauge("sidelight.bpf.map.max_entries", "sidelight_bpf_map_max_entries", "{entry}",
		"Entries that it has room for. Of the mesh's maps half is for what takes the place of something that is still used.", "map")
	Runs = counter("sidelight.bpf.program.runs", "sidelight_bpf_program_runs_total", "{run}",
		"Runs of a program, counted while the kernel measures: while kernel.bpf_stats_enabled is set, and a hundredth of the time for the budget.", "program")
	RunTime = define(Metric{
		Name: "sidelight.bpf.program", Prometheus: "sidelight_bpf_program_seconds_total", Counter: true, Double: true, Unit: "s",
		Description: "Time in a program, measured as its runs are counted.", Attributes: []string{"program"},
	})
	Agents = lasting(counter("sidelight.datapath.agents", "sidelight_datapath_agents_total", "{agent}",
		"Agents that have attended to the kernel programs since these were attached, this one included."))
	Unattended = lasting(define(Metric{
		Name: "sidelight.datapath.unattended", Prometheus: "sidelight_datapath_unattended_seconds_total", Counter: true, Double: true, Unit: "s",
		Description: "For how long the kernel programs have run without an agent, in all. After an agent that was killed it is up to a report interval too much.",
	}))
	ConfigGeneration = gauge("sidelight.config.generation", "sidelight_config_generation", "",
		"The generation of the mesh in force. Each one that is put in force has the next number, and the first has 1.")
	ConfigInputs = counter("sidelight.config.inputs", "sidelight_config_inputs_total", "{input}",
		"What was read as a mesh, by what became of it: accepted or rejected.", "result")
	ConfigInForce = gauge("sidelight.config.in_force", "sidelight_config_in_force", "",
		"1 while the newest input is in force; 0 while it is refused and an older one stays.")
	ConfigLastAccepted = define(Metric{
		Name: "sidelight.config.last_accepted.timestamp", Prometheus: "sidelight_config_last_accepted_timestamp_seconds", Double: true, Unit: "s",
		Description: "When the mesh in force was accepted, in Unix time.",
	})
	MeshPicks = lasting(counter("sidelight.mesh.picks", "sidelight_mesh_picks_total", "{connection}",
		"Connections of this node's that an endpoint was chosen for. An endpoint that had none yet has no series.", "service", "service.namespace", "endpoint"))
	MeshOpen = gauge("sidelight.mesh.endpoint.open", "sidelight_mesh_endpoint_open", "{connection}",
		"Those of them that are open or connecting.", "service", "service.namespace", "endpoint")
	MeshFailures = lasting(counter("sidelight.mesh.endpoint.failures", "sidelight_mesh_endpoint_failures_total", "{connection}",
		"Those of them whose handshake failed.", "service", "service.namespace", "endpoint"))
	MeshEndpoints = gauge("sidelight.mesh.service.endpoints", "sidelight_mesh_service_endpoints", "{endpoint}",
		"Endpoints of a service by what they are on this node: eligible gets new connections, standby would if others did not, draining and unhealthy by their own health, ejected out of service for now, excluded never gets any from here. Of services that an endpoint was chosen for, and of those that lack one.",
		"service", "service.namespace", "state")
	MeshOut = gauge("sidelight.mesh.endpoint.out", "sidelight_mesh_endpoint_out", "",
		"1 while an endpoint gets no connections: its own failed (outlier), or it does not answer (health_check).", "service", "service.namespace", "endpoint", "cause")
	MeshEjections = lasting(counter("sidelight.mesh.ejections", "sidelight_mesh_ejections_total", "{ejection}",
		"How often an endpoint was put out of service. It begins anew when the endpoint leaves the mesh and comes again.", "service", "service.namespace", "endpoint", "cause"))
	MeshSuppressed = lasting(counter("sidelight.mesh.ejections.suppressed", "sidelight_mesh_ejections_suppressed_total", "{ejection}",
		"How often an endpoint was not, because too many of its service were out already.", "service", "service.namespace", "endpoint"))
	MeshLimitOpen = gauge("sidelight.mesh.limit.open", "sidelight_mesh_limit_open", "{connection}",
		"Connections that count against a limit of a service or a workload: open ones and those that connect.", "limit")
	MeshLimitConnecting = gauge("sidelight.mesh.limit.connecting", "sidelight_mesh_limit_connecting", "{connection}",
		"Those of them that connect.", "limit")
	MeshLimitMaxOpen = gauge("sidelight.mesh.limit.max_open", "sidelight_mesh_limit_max_open", "{connection}",
		"How many may be open or connecting under a limit. Without such a bound there is no series.", "limit")
	MeshLimitMaxConnecting = gauge("sidelight.mesh.limit.max_connecting", "sidelight_mesh_limit_max_connecting", "{connection}",
		"How many of them may connect. Without such a bound there is no series.", "limit")
	MeshLimitMaxRate = gauge("sidelight.mesh.limit.max_rate", "sidelight_mesh_limit_max_rate_per_second", "{connection}/s",
		"How many may begin in a second. Without such a bound there is no series.", "limit")
	MeshLimitBurst = gauge("sidelight.mesh.limit.burst", "sidelight_mesh_limit_burst", "{connection}",
		"How many may begin at once after a rest, where there is a bound of those in a second.", "limit")
	MeshLimitRejections = lasting(counter("sidelight.mesh.limit.rejections", "sidelight_mesh_limit_rejections_total", "{connection}",
		"Connections that a limit refused, by what was at its bound: open, connecting or rate.", "limit", "cause"))
	PolicyVerdicts = lasting(counter("sidelight.policy.verdicts", "sidelight_policy_verdicts_total", "{verdict}",
		"What policies said, by the rule that decided; where none did both are empty. Each end of a connection on this node is asked, and a revocation asks again.", "policy", "rule", "verdict", "dry_run"))
	MeshGuarded = gauge("sidelight.mesh.guarded_namespaces", "sidelight_mesh_guarded_namespaces", "{namespace}",
		"Network namespaces whose inbound connections are judged.")
	Refused = lasting(counter("sidelight.self.refused", "sidelight_self_refused_total", "{connection}",
		"Connections that the mesh refused, by the kernel's count; those of clients are among its attempted and failed ones.", "role"))
)

// BudgetStep is a step on the ladder of the overhead budget, for the log.
type BudgetStep struct {
	At          time.Time
	From, To    string // rungs
	Rung        int64  // the number of To
	Probability float64
	Cause       string
	Down        bool

	CPU, CPULimit       float64 // of all CPUs
	Memory, MemoryLimit int64   // bytes
}
