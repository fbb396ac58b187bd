// Package enrich names the two ends of a connection: the process, the workload it belongs to, and the peer.
package enrich

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// Workload is one running instance of something: a systemd unit, a container, or any other cgroup.
type Workload struct {
	Name        string // never empty
	Namespace   string // empty without a mesh
	Cgroup      string // path below the cgroup2 root, "/" for the root; empty when unknown
	ContainerID string // 64 hexadecimal digits, or empty
	SystemdUnit string
	PodUID      string
}

// Process is the owner of a socket.
type Process struct {
	PID        uint32
	Executable string // base name of the executable; empty when unknown
}

// Identity is who is at the two ends of a connection. Its parts are shared between connections and must not be changed.
type Identity struct {
	Local   *Workload // never nil
	Peer    *Workload // never nil
	Process *Process  // nil when unknown
	// Decision has the names of what the mesh decided; nil if it had no say.
	Decision *Decision
}

// Record is a connection's record with its two ends named.
type Record = connection.Record[Identity]

// Loss is a connection.Loss with the ends of its edge named. Identity is zero where the kernel had no room for its facts.
type Loss struct {
	connection.Loss
	Identity Identity
	At       time.Time // when it was read
}

// NewLoss names the ends of a loss as those of an event of the same edge.
func NewLoss(loss *connection.Loss, at time.Time, identify func(*connection.Event) Identity) Loss {
	named := Loss{Loss: *loss, At: at}
	if loss.Peer.IsValid() {
		e := connection.Event{CgroupID: loss.CgroupID, Peer: netip.AddrPortFrom(loss.Peer, 0), Role: loss.Role}
		if loss.Service != 0 || loss.Destination != 0 {
			e.Flags = connection.Decided
			e.Decision = connection.Decision{Service: loss.Service, Destination: loss.Destination, Rule: connection.NoRule, DryRule: connection.NoRule}
		}
		if loss.Refused {
			e.Flags |= connection.RefusedHere
		}
		named.Identity = identify(&e)
	}
	return named
}

// label makes a name that a workload chose fit for labels and protobuf strings: one that is no UTF-8 would make a strict backend
// refuse the whole batch that it is in, and /metrics fail. A long one is cut: names are repeated in every series.
func label(name string) string {
	name = strings.ToValidUTF8(name, "\uFFFD")
	const most = 256
	if len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return strings.ToValidUTF8(name[:most-20], "") + "..." + hex.EncodeToString(sum[:8])
}

// Enricher answers who is at the ends of a connection. Not safe for concurrent use.
type Enricher struct {
	cgroups   *cgroups
	processes *processes
	peers     *Peers
	mesh      *Mesh // nil without
}

// New returns an enricher that finds cgroups below the given cgroup2 mount point.
func New(cgroup2 string, peers *Peers) (*Enricher, error) {
	c, err := newCgroups(cgroup2)
	if err != nil {
		return nil, err
	}
	return &Enricher{cgroups: c, processes: newProcesses("/proc"), peers: peers}, nil
}

// Close releases the handle on the cgroup file system. Safe twice.
func (e *Enricher) Close() error { return e.cgroups.close() }

// Identify names the ends of an event's connection. It may read files the first time that it sees a cgroup or a process.
func (e *Enricher) Identify(event *connection.Event) Identity {
	id := Identity{
		Local:   e.cgroups.workload(event.CgroupID),
		Peer:    e.peers.Find(event.Peer.Addr()),
		Process: e.processes.process(event.Owner),
	}
	if e.mesh != nil {
		e.mesh.identify(event, &id)
	}
	return id
}

// Use puts names of a mesh on connections. It is called before the first Identify.
func (e *Enricher) Use(m *Mesh) { e.mesh = m }
