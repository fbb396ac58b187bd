package demo

import (
	"maps"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	meshmaps "github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/outlier"
)

// MeshState is the mesh at one moment: what the kernel's maps hold, and what the agent knows.
type MeshState struct {
	Dump     *meshmaps.Dump
	Verdicts []meshmaps.VerdictCount
	Stats    []outlier.Stats
	Drift    []string
}

// EndpointRow is an endpoint of a service over all of its addresses.
type EndpointRow struct {
	Service   string  `json:"service"`
	Endpoint  string  `json:"endpoint"`
	Share     float64 `json:"share"` // of the choices, 0 to 1
	Picks     uint64  `json:"picks"`
	PicksIPv6 uint64  `json:"picks_ipv6"` // of these
	Open      uint64  `json:"open"`
	Failed    uint64  `json:"failed"`
	Ejections uint64  `json:"ejections"`
	// PicksOut are those of Picks that came while no table had the endpoint: an ejected one, or a far one while a near one serves.
	PicksOut uint64 `json:"picks_while_out"`
	Records  int    `json:"records"` // of the access log, by clients
	Answers  int    `json:"answers"` // as clients count them, at the end
}

// PolicyRow is how often a rule decided.
type PolicyRow struct {
	Policy  string `json:"policy,omitempty"` // empty: no rule did
	Rule    int64  `json:"rule"`
	Verdict string `json:"verdict"`
	Records int    `json:"records"`
	// Kernel is of both ends: what the client's lets pass the server's judges again.
	Kernel uint64 `json:"kernel"`
}

// LimitRow is a limit and what it refused.
type LimitRow struct {
	Limit    string `json:"limit"`
	Bound    uint32 `json:"bound"` // open connections
	Open     uint64 `json:"open"`
	MostOpen uint64 `json:"most_open"` // that was seen
	Rejected uint64 `json:"rejected"`
	Records  int    `json:"records"`
}

// Watch follows a mesh from state to state.
type Watch struct {
	mesh     *MeshWorld
	last     *meshmaps.Dump
	picksOut map[string]uint64 // by endpoint
	mostOpen map[string]uint64 // by limit

	stopped time.Time // the near ones; zero: not yet
	over    time.Time // when it was seen that no table has them
}

// NewWatch returns one that has seen nothing.
func NewWatch(mesh *MeshWorld) *Watch {
	return &Watch{mesh: mesh, picksOut: make(map[string]uint64), mostOpen: make(map[string]uint64)}
}

// NearStopped says that nobody listens at the near endpoints any more.
func (w *Watch) NearStopped(at time.Time) { w.stopped = at }

// Observe takes the next state.
func (w *Watch) Observe(d *meshmaps.Dump, at time.Time) {
	for _, l := range d.Limits {
		w.mostOpen[l.Name] = max(w.mostOpen[l.Name], l.Counts.Open)
	}
	if w.last != nil {
		for i := range d.Services {
			w.observeOut(d, &d.Services[i])
		}
	}
	w.last = d
	if !w.stopped.IsZero() && w.over.IsZero() && w.failedOver(d) {
		w.over = at
	}
}

// observeOut counts connections to endpoints that no table of a service had, before or now, where the tables are the same: in between they had none
// either, because the index of a table is used again late.
func (w *Watch) observeOut(d *meshmaps.Dump, now *meshmaps.DumpService) {
	i := slices.IndexFunc(w.last.Services, func(s meshmaps.DumpService) bool { return s.ID == now.ID })
	if i < 0 || !slices.EqualFunc(w.last.Services[i].Pools, now.Pools, func(a, b meshmaps.DumpPool) bool {
		return a.Index == b.Index && a.Table == b.Table
	}) {
		return
	}
	in := make(map[uint32]bool)
	for _, p := range now.Pools {
		for _, e := range p.Endpoints {
			in[e.Backend] = true
		}
	}
	before := make(map[uint32]uint64)
	for _, b := range w.last.Backends {
		before[b.Index] = b.Picks
	}
	for _, b := range d.Backends {
		if b.Service == now.Name && !in[b.Index] {
			w.picksOut[b.Endpoint] += b.Picks - before[b.Index]
		}
	}
}

// failedOver says that connections to the service go to the far endpoint, over both families.
func (w *Watch) failedOver(d *meshmaps.Dump) bool {
	near := make(map[string]bool)
	for _, name := range w.mesh.near() {
		near[name.String()] = true
	}
	for _, s := range d.Services {
		if s.Name != failoverService.String() {
			continue
		}
		for _, p := range s.Pools {
			if len(p.Endpoints) == 0 || slices.ContainsFunc(p.Endpoints, func(e meshmaps.DumpEndpoint) bool { return near[e.Endpoint] }) {
				return false
			}
		}
	}
	return true
}

// rows sums up by endpoint, sorted.
func (w *Watch) rows(s *MeshState, decided Decisions, tallies map[string]map[string]Tally) []EndpointRow {
	rows := make(map[string]*EndpointRow)
	for i := range s.Dump.Backends {
		b := &s.Dump.Backends[i]
		row := rows[b.Endpoint]
		if row == nil {
			row = &EndpointRow{Service: b.Service, Endpoint: b.Endpoint, PicksOut: w.picksOut[b.Endpoint]}
			rows[b.Endpoint] = row
		}
		row.Picks += b.Picks
		if b.Address[0] == '[' {
			row.PicksIPv6 += b.Picks
		}
		row.Open += b.Open
		row.Failed += b.Failed
	}
	for _, service := range s.Dump.Services {
		for _, p := range service.Pools {
			for _, e := range p.Endpoints {
				if row := rows[e.Endpoint]; row != nil {
					row.Share += e.Share / float64(len(service.Pools))
				}
			}
		}
	}
	for i := range s.Stats {
		if row := rows[s.Stats[i].Endpoint.String()]; row != nil {
			row.Ejections = s.Stats[i].Ejections
		}
	}
	for d, n := range decided {
		if row := rows[d.Endpoint]; row != nil {
			// Of a refusal by policy or limit the endpoint that was chosen is told too.
			if !d.refused() {
				row.Records += n
			}
		}
	}
	for _, services := range tallies {
		for _, t := range services {
			for endpoint, n := range t.Answers {
				if row := rows[endpoint]; row != nil {
					row.Answers += n
				}
			}
		}
	}
	var sorted []EndpointRow
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		sorted = append(sorted, *rows[name])
	}
	return sorted
}

func policyRows(s *MeshState, decided Decisions) []PolicyRow {
	type key struct {
		policy  string
		rule    int64
		verdict string
	}
	rows := make(map[key]*PolicyRow)
	row := func(k key) *PolicyRow {
		if rows[k] == nil {
			rows[k] = &PolicyRow{Policy: k.policy, Rule: k.rule, Verdict: k.verdict}
		}
		return rows[k]
	}
	for _, v := range s.Verdicts {
		if v.Dry {
			continue
		}
		k := key{verdict: connection.Verdict(v.Verdict).String()}
		if v.Rule != nil {
			k.policy, k.rule = v.Rule.Policy.String(), int64(v.Rule.Rule)
		}
		row(k).Kernel += v.Count
	}
	for d, n := range decided {
		if d.Verdict != "" {
			row(key{d.Policy, d.Rule, d.Verdict}).Records += n
		}
	}
	sorted := make([]PolicyRow, 0, len(rows))
	for _, r := range rows {
		sorted = append(sorted, *r)
	}
	slices.SortFunc(sorted, func(a, b PolicyRow) int {
		return slices.Compare([]string{a.Policy, a.Verdict}, []string{b.Policy, b.Verdict})
	})
	return sorted
}

func (w *Watch) limitRows(s *MeshState, decided Decisions) []LimitRow {
	var rows []LimitRow
	for _, l := range s.Dump.Limits {
		rows = append(rows, LimitRow{
			Limit: l.Name, Bound: l.MaxOpen, Open: l.Counts.Open, MostOpen: max(w.mostOpen[l.Name], l.Counts.Open),
			Rejected: l.Counts.RejectedOpen + l.Counts.RejectedConnecting + l.Counts.RejectedRate,
			Records:  decided.count(func(d *Decision) bool { return d.Limit == l.Name }),
		})
	}
	return rows
}
