package dashboards

import (
	"math"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	agentmaps "github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/outlier"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/promview"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

const (
	meshLength = 30 * time.Minute
	meshScrape = 15 * time.Second
	meshSweep  = 10 * time.Second
	// In the last ten minutes the budget is broken, the ring was full for a while, the newest mesh is refused, and an endpoint is out.
	meshTrouble = 20 * time.Minute
	noTrouble   = time.Duration(math.MaxInt64)
)

var meshStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// agent is what there is of a node between the kernel and /metrics: the real pipeline, edges and view, and readings of itself as
// agent/cmd/sidelight makes them, of what it was fed with.
type agent struct {
	table    *edge.Table
	pipeline *pipeline.Pipeline
	identity map[connection.Key]enrich.Identity
	open     map[connection.Key]told // the last that was told of them
	now      time.Duration
	started  time.Duration
	trouble  time.Duration // when it begins
	closes   uint64

	*dataPath
}

// dataPath is what outlives an agent.
type dataPath struct {
	since        time.Time
	agents       uint64
	alone        time.Duration
	kernel       account.Kernel
	endpoints    map[endpointKey]*endpointCounts
	verdicts     map[verdictKey]uint64
	rejected     map[string]uint64
	lost, spared uint64 // events without room in the ring, and ejections that were not made
}

type endpointKey struct{ service, namespace, endpoint string }

type endpointCounts struct{ picks, failed, open uint64 }

type verdictKey struct{ policy, rule, verdict, dry string }

func newAgent(finished ...pipeline.Sink) *agent {
	return newAgentOf(&dataPath{
		since: meshStart, endpoints: make(map[endpointKey]*endpointCounts), verdicts: make(map[verdictKey]uint64), rejected: make(map[string]uint64),
		kernel: account.Kernel{
			Established: make(map[string]uint64), Adopted: make(map[string]uint64), Closed: make(map[string]uint64),
			Submitted: make(map[string]uint64), Refused: make(map[string]uint64),
		},
	}, finished...)
}

// newAgentOf starts one that attends to a data path. What ends goes to finished.
func newAgentOf(d *dataPath, finished ...pipeline.Sink) *agent {
	d.agents++
	a := &agent{
		table: edge.NewTable(1000), identity: make(map[connection.Key]enrich.Identity), open: make(map[connection.Key]told),
		trouble: meshTrouble, dataPath: d,
	}
	a.pipeline = pipeline.New(pipeline.Options{
		Limit: 1 << 20, Clock: clock, Now: func() time.Time { return meshStart.Add(a.now) },
		Identify: func(e *connection.Event) enrich.Identity { return a.identity[e.Key] },
		Sinks:    []pipeline.Sink{a.table},
		Finished: finished,
	})
	a.table.Clock(func() time.Duration { return a.now })
	return a
}

// next is the agent that takes its place: one that was stopped leaves its sums, one that was killed does not.
func (a *agent) next(killed bool) *agent {
	next := newAgentOf(a.dataPath)
	next.now, next.started, next.trouble, next.identity, next.open = a.now, a.now, a.trouble, a.identity, a.open
	next.alone += 300 * time.Millisecond
	if !killed {
		next.table.Restore(a.table.Snapshot())
	}
	return next
}

func clock() connection.Clock { return connection.Clock{OffsetNS: meshStart.UnixNano()} }

// feed tells it an event.
func (a *agent) feed(e *told) {
	a.identity[e.Key] = e.identity
	a.count(e)
	a.pipeline.HandleEvent(&e.Event)
	if e.Kind == connection.Close {
		delete(a.open, e.Key)
		delete(a.identity, e.Key)
	} else {
		a.open[e.Key] = *e
	}
}

// count counts as the kernel does.
func (a *agent) count(e *told) {
	role, c := e.Role.String(), connection.ChangeOf(&e.Event)
	a.kernel.Attempts += uint64(c.Attempts)
	a.kernel.Established[role] += uint64(c.Established)
	a.kernel.Closed[role] += uint64(c.Closed)
	a.kernel.Submitted[e.Kind.String()]++
	if e.Role == connection.Client {
		a.kernel.Failed += uint64(c.Failed)
	}
	if e.Kind == connection.Close {
		a.closes++
		if e.Flags&connection.RefusedHere != 0 {
			a.kernel.Refused[role]++
		}
	}
	if d := e.identity.Decision; d != nil {
		a.countDecision(e, d)
	}
}

func (a *agent) countDecision(e *told, d *enrich.Decision) {
	if d.Service != nil && d.Endpoint != "" && e.Role == connection.Client {
		key := endpointKey{d.Service.Name, d.Service.Namespace, d.Endpoint}
		n := a.endpoints[key]
		if n == nil {
			n = new(endpointCounts)
			a.endpoints[key] = n
		}
		switch e.Kind {
		case connection.PreConnect:
			n.picks++
			n.open++
		case connection.Close:
			n.open--
			if e.EstablishedNS == 0 {
				n.failed++
			}
		}
	}
	if d.Limit != "" {
		a.rejected[d.Limit]++
	}
	// Each end is asked when the connection begins there.
	if first := e.Told == 0; first && d.Rule != nil {
		v := connection.VerdictAllow
		if e.Flags&connection.RefusedHere != 0 {
			v = connection.VerdictDeny
		}
		a.verdicts[verdictKey{d.Rule.Policy, strconv.Itoa(d.Rule.Index), v.String(), "false"}]++
	}
	if first := e.Told == 0; first && d.DryRule != nil {
		a.verdicts[verdictKey{d.DryRule.Policy, strconv.Itoa(d.DryRule.Index), connection.VerdictDeny.String(), "true"}]++
	}
}

// sweep tells of the connections that are there, as the iterator over sockets does.
func (a *agent) sweep() {
	a.pipeline.HandleSweep(false, func(_ bool, observe func(*connection.Event)) error {
		for _, e := range a.open {
			e.Kind, e.EventNS, e.Totals = connection.Sweep, uint64(a.now), connection.Totals{}
			e.Told = connection.ToldAttempt
			if e.EstablishedNS != 0 {
				e.Told |= connection.ToldEstablished
			}
			observe(&e.Event)
		}
		return nil
	})
}

// reading is what the agent tells of itself: see readSelf of agent/cmd/sidelight.
func (a *agent) reading() self.Reading {
	r := self.Reading{Since: meshStart.Add(a.started), LastingSince: a.since}
	add := func(m *self.Metric, number uint64, attributes ...string) {
		r.Values = append(r.Values, m.Of(float64(number), attributes...))
	}
	share := func(m *self.Metric, number float64, attributes ...string) {
		r.Values = append(r.Values, m.Of(number, attributes...))
	}
	seconds := uint64((a.now - a.started) / time.Second)
	trouble := uint64(max(0, a.now-a.trouble) / time.Second)

	add(self.Pending, 4096)
	add(self.Ring, 4<<20)
	for i, name := range []string{"lost", "backends"} {
		add(self.MapEntries, uint64(16*(i+1)), name)
		add(self.MapMaxEntries, 128, name)
	}
	add(self.Runs, 40*seconds, "mesh_sockops")
	share(self.RunTime, 40*float64(seconds)*500e-9, "mesh_sockops")
	add(self.BuildInfo, 1, "test", "go")
	add(self.Agents, a.agents)
	share(self.Unattended, a.alone.Seconds())
	counts := a.table.Counts()
	add(self.EdgesFolded, counts.Folded)
	add(self.EdgesEvicted, counts.Evicted)
	add(self.Edges, uint64(counts.Edges))
	add(self.EdgesLimit, 1000)
	a.budget(add, share, trouble)
	a.mesh(add, share, trouble)
	a.account(add, trouble)

	sampled := min(trouble, a.closes)
	add(self.Lines, a.closes-sampled)
	add(self.RecordsOut, sampled, "logs")
	add(self.RecordsOut, sampled, "traces")
	for _, signal := range []string{"logs", "traces", "metrics"} {
		add(self.Exported, a.closes-sampled, signal)
		add(self.Queued, trouble, signal)
		add(self.QueueCapacity, 800, signal)
	}
	for _, d := range [][2]string{{"access_log", "log"}, {"receiver_queue", "span"}, {"exporter", "data_point"}} {
		add(self.Dropped, 0, d[0], d[1])
	}
	return r
}

func (a *agent) budget(add func(*self.Metric, uint64, ...string), share func(*self.Metric, float64, ...string), trouble uint64) {
	rung := uint64(0)
	if trouble > 0 {
		rung = 2
	}
	add(self.BudgetRung, rung)
	share(self.BudgetProbability, 1/float64(1+7*rung/2))
	add(self.BudgetSteps, rung, "down")
	add(self.BudgetSteps, 0, "up")
	share(self.BudgetCPU, 0.004, "agent")
	share(self.BudgetCPU, 0.002, "programs")
	share(self.BudgetCPULimit, 0.01)
	add(self.BudgetMemory, 60<<20)
	add(self.BudgetMemoryLimit, 128<<20)
}

func (a *agent) mesh(add func(*self.Metric, uint64, ...string), share func(*self.Metric, float64, ...string), trouble uint64) {
	inForce := uint64(1)
	if trouble > 0 {
		inForce = 0
	}
	add(self.ConfigGeneration, 3)
	add(self.ConfigInputs, 3, "accepted")
	add(self.ConfigInputs, trouble/300, "rejected")
	add(self.ConfigInForce, inForce)
	share(self.ConfigLastAccepted, float64(meshStart.Unix()))
	add(self.MeshGuarded, 2)
	for key, n := range a.endpoints {
		attributes := []string{key.service, key.namespace, key.endpoint}
		add(self.MeshPicks, n.picks, attributes...)
		add(self.MeshOpen, n.open, attributes...)
		add(self.MeshFailures, n.failed, attributes...)
	}
	a.services(add, trouble)
	flaky := []string{"flaky", "shop", "shop/flaky-1"}
	if trouble > 0 {
		add(self.MeshOut, 1, append(flaky, outlier.Outlier.String())...)
		add(self.MeshEjections, 1+trouble/60, append(flaky, outlier.Outlier.String())...)
	}
	if trouble > 0 || a.spared > 0 {
		add(self.MeshSuppressed, a.spared+(trouble+119)/120, flaky...)
	}
	const limit = "service shop/narrow"
	add(self.MeshLimitOpen, 1, limit)
	add(self.MeshLimitConnecting, 0, limit)
	add(self.MeshLimitMaxOpen, 4, limit)
	add(self.MeshLimitMaxConnecting, 2, limit)
	add(self.MeshLimitMaxRate, 5, limit)
	add(self.MeshLimitBurst, 10, limit)
	add(self.MeshLimitRejections, a.rejected[limit], limit, "open")
	add(self.MeshLimitRejections, 0, limit, "connecting")
	add(self.MeshLimitRejections, 0, limit, "rate")
	for key, n := range a.verdicts {
		add(self.PolicyVerdicts, n, key.policy, key.rule, key.verdict, key.dry)
	}
}

// services have the endpoints that the flows go to; of cart one more drains and one is on standby.
func (a *agent) services(add func(*self.Metric, uint64, ...string), trouble uint64) {
	ejected := min(trouble, 1)
	for service, counts := range map[string]agentmaps.EndpointCounts{
		"cart":   {agentmaps.StateEligible: 2, agentmaps.StateStandby: 1, agentmaps.StateDraining: 1},
		"narrow": {agentmaps.StateEligible: 1},
		"flaky":  {agentmaps.StateEligible: 2 - uint32(ejected), agentmaps.StateEjected: uint32(ejected)},
		"empty":  {},
	} {
		for _, state := range agentmaps.EndpointStates() {
			add(self.MeshEndpoints, uint64(counts[state]), service, "shop", state.String())
		}
	}
}

func (a *agent) account(add func(*self.Metric, uint64, ...string), trouble uint64) {
	user := account.User{Decoded: a.kernel.Submitted}
	add(self.Unaccounted, account.New(a.kernel, a.kernel, user).Unaccounted)
	add(self.Followed, uint64(a.kernel.Live()))
	add(self.FollowedLimit, 1000)
	client, server := connection.Client.String(), connection.Server.String()
	add(self.Kernel, a.kernel.Attempts, client, "attempted")
	add(self.Kernel, a.kernel.Failed, client, "failed")
	for _, role := range []string{client, server} {
		add(self.Kernel, a.kernel.Established[role], role, "established")
		add(self.Kernel, 0, role, "adopted")
		add(self.Kernel, a.kernel.Closed[role], role, "closed")
		add(self.Refused, a.kernel.Refused[role], role)
	}
	// With everybody who answers, but for one server's a second of the first minute of trouble.
	add(self.TraceIDs, a.kernel.Established[client], "sent")
	add(self.TraceIDs, 0, "no_room")
	add(self.TraceIDs, a.kernel.Established[server], "received")
	add(self.TraceIDs, min(trouble, 60), "missing")
	add(self.Untracked, 0)
	add(self.Aggregated, min(trouble, 60), "edge")
	add(self.Aggregated, 0, "total")
	for _, kind := range connection.Kinds() {
		k := kind.String()
		add(self.Submitted, a.kernel.Submitted[k], k)
		add(self.SampledOut, 0, k)
		add(self.Decoded, a.kernel.Submitted[k], k)
		lost := a.lost
		if kind == connection.Close {
			lost += min(trouble, 60) // those of Aggregated
		}
		add(self.Dropped, lost, "ring", k)
	}
}

// target is where it is scraped.
func (a *agent) target(t *testing.T) *target {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for _, c := range []prometheus.Collector{
		promview.New(a.table.Snapshot, clock), promview.NewSelf(a.reading), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	return newTarget(registry, "node1:9464", "mesh")
}

// runMesh has an agent live through the stream of events, and scrapes it.
func runMesh(t *testing.T, s *store) *world {
	t.Helper()
	return runAgents(t, s, newAgent(), nil)
}

// runAgents has an agent live through the stream of events, and others after it from given times on.
func runAgents(t *testing.T, s *store, a *agent, ends map[time.Duration]func(*agent) *agent) *world {
	t.Helper()
	scraped := a.target(t)
	events := stream(meshLength + time.Second)
	for now := time.Second; now <= meshLength; now += time.Second {
		if end := ends[now]; end != nil {
			a = end(a)
			scraped = a.target(t)
		}
		a.now = now
		for len(events) > 0 && events[0].EventNS <= uint64(a.now) {
			a.feed(&events[0])
			events = events[1:]
		}
		a.pipeline.HandleDrained(true)
		if a.now%meshSweep == 0 {
			a.sweep()
		}
		if a.now%meshScrape == 0 {
			s.scrape(t, scraped, meshStart.Add(a.now))
		}
	}
	return &world{
		store: s, cluster: "mesh", start: meshStart, end: meshStart.Add(meshLength),
		timing: timing{step: meshScrape, scrape: meshScrape, window: meshLength},
	}
}

// worldsOf are shared: what the tests look at was scraped once.
func worldsOf(t *testing.T) (mesh, mix, loss *world) {
	t.Helper()
	s := newStore(t)
	return runMesh(t, s), replay(t, s, "mix"), replay(t, s, "loss")
}
