// Package model is the mesh as values: what a control plane says, before it is turned into what the kernel reads. It knows neither files
// nor kernels.
package model

import (
	"net/netip"
	"time"
)

// Name is how things of the mesh are called, as in Kubernetes.
type Name struct {
	Namespace string
	Name      string
}

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Locality is a place. Of two places the more parts are equal, from the region on, the nearer they are.
type Locality struct {
	Region  string
	Zone    string
	Subzone string
	Node    string
}

// Workload is a process or a group of them with one identity.
type Workload struct {
	Name     Name
	Cluster  string
	Identity string // as in SPIFFE, or anything else that policies name; empty: none
	// Cgroup is a path below the root of cgroup v2, as in /proc/PID/cgroup; it and everything below it are the workload. Empty: the workload is known by
	// its addresses only, as one on another node is.
	Cgroup    string
	Addresses []netip.Addr
	Locality  Locality
	Labels    map[string]string
	Limits    Limits // of the connections that it opens
	Waypoint  string // namespace/name of a Service
}

// Balancer is how a service's endpoints are chosen.
type Balancer uint8

// The balancers.
const (
	Random           Balancer = iota // weighted
	RoundRobin                       // weighted, one order for the node
	LeastConnections                 // of two at random, the one with fewer open connections for its weight
	Maglev                           // by the client's address: the same client goes to the same endpoint
)

// LocalityMode is what the place of an endpoint means.
type LocalityMode uint8

// The locality modes.
const (
	LocalityNone     LocalityMode = iota // nothing
	LocalityFailover                     // the nearest that can be had
	LocalityStrict                       // only those within Service.LocalityScope
)

// Scope is how much of two places must be equal.
type Scope uint8

// The scopes, from wide to narrow.
const (
	ScopeRegion Scope = iota + 1
	ScopeZone
	ScopeSubzone
	ScopeNode
)

// Limits are of connections. 0 is no limit.
type Limits struct {
	MaxConnections       uint32 // open ones and those that connect
	MaxConnecting        uint32 // those that connect
	ConnectionsPerSecond uint32 // token bucket: its rate
	Burst                uint32 // and its size; 0: that of the rate
}

// OutlierDetection takes an endpoint out of service for some time when connects to it fail.
type OutlierDetection struct {
	ConsecutiveFailures uint32        // 0: off
	BaseEjectionTime    time.Duration // the first time; each next one lasts longer by as much
	MaxEjectionTime     time.Duration
	MaxEjectionPercent  uint32 // of the service's endpoints; at least one may be ejected
}

// HealthCheck connects to each endpoint now and then. Interval 0: off.
type HealthCheck struct {
	Interval           time.Duration
	Timeout            time.Duration
	UnhealthyThreshold uint32
	HealthyThreshold   uint32
}

// Port is one that a service listens on.
type Port struct {
	Name string
	Port uint16 // 0: any, and the endpoint's is the one dialled
	// TargetPort is that of endpoints which do not say otherwise; 0: Port.
	TargetPort uint16
}

// Service is a name and addresses for endpoints.
type Service struct {
	Name          Name
	Hostname      string
	Addresses     []netip.Addr
	Ports         []Port
	Balancer      Balancer
	LocalityMode  LocalityMode
	LocalityScope Scope // of LocalityStrict
	Limits        Limits
	Outlier       OutlierDetection
	Health        HealthCheck
	DrainTimeout  time.Duration // of connections to an endpoint that was removed; 0: they end by themselves
	Waypoint      string        // namespace/name of a Service
}

// Health is what the control plane says of an endpoint.
type Health uint8

// The healths.
const (
	Healthy Health = iota
	Unhealthy
	Draining // no new connections
)

// Endpoint is where a service's connections go.
type Endpoint struct {
	Name      Name
	Service   Name
	Workload  Name         // the zero value: none
	Addresses []netip.Addr // those of Workload if empty; at most one of each family is used, the first
	Port      uint16       // instead of the service's TargetPort for all of its ports; 0: TargetPort
	Ports     map[string]uint16
	Weight    uint32 // 0 is none of the connections; Default 1
	Priority  uint32 // of those with healthy endpoints the lowest serves
	Health    Health
	Locality  Locality // that of Workload if zero
}

// Action of an AuthorizationPolicy.
type Action uint8

// The actions.
const (
	Allow Action = iota
	Deny
)

// AuthorizationPolicy says who may connect to the workloads that it selects, with the semantics of Istio: what any Deny matches is denied; else where
// there is an Allow, what no Allow matches is denied.
type AuthorizationPolicy struct {
	Name Name
	// Mesh says that it is for all namespaces, as one in Istio's root namespace is.
	Mesh     bool
	Selector map[string]string // labels of workloads; empty: all in the namespace, or in the mesh
	Action   Action
	DryRun   bool
	Rules    []Rule // none: matches nothing, so that an Allow without rules denies everything
}

// Rule matches a connection when one of From and one of To do. An empty list matches.
type Rule struct {
	From []Source
	To   []Operation
}

// Source matches when each of its lists does that is not empty. Identities and namespaces may begin or end with *, or be * for any that is known.
type Source struct {
	Identities    []string
	NotIdentities []string
	Namespaces    []string
	NotNamespaces []string
	IPBlocks      []netip.Prefix
	NotIPBlocks   []netip.Prefix
}

// Operation is the destination.
type Operation struct {
	Ports    []uint16
	NotPorts []uint16
}

// Bypass leaves the connections of a cgroup alone: no services, no policies, no limits for what it opens. It is still observed.
type Bypass struct {
	Name     Name
	Cgroup   string            // as Workload.Cgroup
	Selector map[string]string // labels of workloads
}

// Snapshot is a whole mesh at one moment. It is not changed once it was handed on.
type Snapshot struct {
	Generation uint64 // larger for each snapshot that was put in force; begins with 1
	Node       Locality
	Workloads  []Workload
	Services   []Service
	Endpoints  []Endpoint
	Policies   []AuthorizationPolicy
	Bypasses   []Bypass
}
