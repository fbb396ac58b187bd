package enrich

import "github.com/sidelight-mesh/sidelight/agent/connection"

// Facts name the ends of connections by what an Enricher found out elsewhere, or earlier: they look at no file. Not safe for
// concurrent use.
type Facts struct {
	cgroups   map[uint64]*Workload
	processes map[connection.Owner]*Process
	peers     *Peers
}

// NewFacts returns facts that know peers only.
func NewFacts(peers *Peers) *Facts {
	return &Facts{cgroups: make(map[uint64]*Workload), processes: make(map[connection.Owner]*Process), peers: peers}
}

// AddCgroup says which path a cgroup has, as in Workload.Cgroup.
func (f *Facts) AddCgroup(id uint64, path string) { f.cgroups[id] = workloadOf(path) }

// AddProcess says what a process runs, as in Process.Executable.
func (f *Facts) AddProcess(owner connection.Owner, executable string) {
	f.processes[owner] = &Process{PID: owner.PID, Executable: label(executable)}
}

// Identify names the ends of an event's connection. Of what it was not told it says what an Enricher says of a cgroup and a process
// that are gone.
func (f *Facts) Identify(event *connection.Event) Identity {
	id := Identity{Local: f.cgroups[event.CgroupID], Peer: f.peers.Find(event.Peer.Addr())}
	if id.Local == nil {
		f.AddCgroup(event.CgroupID, "")
		id.Local = f.cgroups[event.CgroupID]
	}
	if event.Owner.PID == 0 {
		return id
	}
	if id.Process = f.processes[event.Owner]; id.Process == nil {
		f.AddProcess(event.Owner, commOf(event.Owner))
		id.Process = f.processes[event.Owner]
	}
	return id
}
