package main

import (
	"log/slog"
	"path/filepath"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/demo"
	"github.com/sidelight-mesh/sidelight/agent/config"
)

// meshDemo is what a demo of a mesh has beside that of any.
type meshDemo struct {
	world *demo.MeshWorld
	watch *demo.Watch
	steps demo.Steps

	failover time.Time // when the near endpoints go away; zero: they have
	state    demo.MeshState
	end      time.Time // zero: not yet
	tallies  map[string]map[string]demo.Tally
}

// meshLook is how often it looks at the kernel's maps.
const meshLook = 50 * time.Millisecond

func newMeshDemo(world *demo.MeshWorld) *meshDemo {
	return &meshDemo{world: world, watch: demo.NewWatch(world)}
}

// configure makes maps that are large enough for the demo, and quick to look through.
func (m *meshDemo) configure(c *config.Config, dir string) {
	c.StateDirectory = filepath.Join(dir, "state")
	c.PeerGroups = nil
	here := demo.NodeLocality
	c.Mesh.Path = m.world.File
	c.Mesh.Locality = config.Locality{Region: here.Region, Zone: here.Zone, Subzone: here.Subzone, Node: here.Node}
	for _, size := range []*uint32{
		&c.Mesh.MaxWorkloads, &c.Mesh.MaxAddresses, &c.Mesh.MaxFrontends, &c.Mesh.MaxPools, &c.Mesh.MaxBackends, &c.Mesh.MaxLimits,
		&c.Mesh.MaxPolicySets, &c.Mesh.MaxPolicyEntries,
	} {
		*size = 64
	}
	c.Mesh.MaxSlots = 1024
}

// logger keeps what the page shows of the node's log, and passes on what another logger wants.
func (m *meshDemo) logger(next *slog.Logger) *slog.Logger {
	m.steps = demo.NewSteps(next.Handler())
	return slog.New(m.steps)
}

func (m *meshDemo) begin(side *meshSide, duration time.Duration) error {
	m.failover = time.Now().Add(duration / 3)
	return m.read(side)
}

// look reads the maps, and has the near endpoints go away when it is time.
func (m *meshDemo) look(side *meshSide) error {
	if !m.failover.IsZero() && !time.Now().Before(m.failover) {
		m.failover = time.Time{}
		m.watch.NearStopped(time.Now())
		if err := m.world.StopNear(); err != nil {
			return err
		}
	}
	return m.read(side)
}

func (m *meshDemo) read(side *meshSide) error {
	r, err := side.report()
	if err != nil {
		return err
	}
	verdicts, err := side.reconciler.Verdicts()
	if err != nil {
		return err
	}
	m.state = demo.MeshState{Dump: r.Maps, Verdicts: verdicts, Stats: side.outliers.Stats(), Drift: r.Drift}
	m.watch.Observe(r.Maps, time.Now())
	return nil
}

// finish reads the maps and what the clients say, once these have ended.
func (m *meshDemo) finish(side *meshSide) (err error) {
	m.end = time.Now()
	if m.tallies, err = m.world.Tallies(); err != nil {
		return err
	}
	return m.read(side)
}

func (m *meshDemo) report(decided demo.Decisions) demo.MeshReport {
	r := m.watch.Report(&m.state, decided, m.tallies, m.steps.All())
	if !m.end.IsZero() {
		r.Judge(m.world, m.end)
	}
	return r
}
