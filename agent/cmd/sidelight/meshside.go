package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/agent/outlier"
)

// meshSide is the way of the mesh: from the file to the kernel's maps, and back as names on connections. Nil without a mesh.
type meshSide struct {
	file     *controlplane.File
	outliers *outlier.State
	names    *enrich.Mesh
	catalog  *enrich.Catalog // nil: nobody asks
	logger   *slog.Logger
	memory   meshMemory
	outs     outlierMemory
	tasks    sync.WaitGroup

	datapath   *datapath.Datapath
	kernel     *maps.Kernel
	reconciler *maps.Reconciler

	mu       sync.Mutex // one change at a time
	compiler *maps.Compiler
	snapshot *model.Snapshot // in force
	mesh     *maps.Mesh      // what was made of it
	sizes    maps.Sizes
	begun    uint64          // the generation of a mesh that may not be in force whole; 0: none
	applied  *model.Snapshot // what the mesh was made of; nil: the maps have none yet
	guards   int             // network namespaces whose inbound connections are judged
	looks    uint64
	late     map[[2]uint32]*drained // by index and tag of a backend
	renewed  bool                   // who is a workload may have changed since listeners were looked for
	uncut    bool                   // it was said that this kernel cannot end open connections
	scanErr  string                 // of the last look around, so that it is logged once
}

func sizesOf(c *config.Mesh) maps.Sizes {
	return maps.Sizes{
		Workloads: c.MaxWorkloads, Addresses: c.MaxAddresses, Frontends: c.MaxFrontends, Pools: c.MaxPools, Backends: c.MaxBackends,
		Slots: c.MaxSlots, Limits: c.MaxLimits, PolicySets: c.MaxPolicySets, PolicyEntries: c.MaxPolicyEntries,
	}
}

func localityOf(c *config.Locality) model.Locality {
	return model.Locality{Region: c.Region, Zone: c.Zone, Subzone: c.Subzone, Node: c.Node}
}

// newMeshSide reads the mesh and checks whether it fits, touching no kernel. It returns nil when there is none.
func newMeshSide(c *config.Mesh, state, boot string, logger *slog.Logger) (*meshSide, error) {
	if c.Path == "" {
		return nil, nil
	}
	sizes := sizesOf(c)
	file, err := controlplane.NewFile(c.Path, localityOf(&c.Locality), logger)
	if err != nil {
		return nil, err
	}
	m := &meshSide{
		file: file, logger: logger, memory: meshMemory{filepath.Join(state, "mesh")}, outs: outlierMemory{filepath.Join(state, "outliers.json"), boot},
		sizes: sizes, compiler: maps.NewCompiler(sizes), outliers: outlier.NewState(outlier.Options{Logger: logger}),
	}
	m.snapshot = file.Snapshot()
	if m.mesh, err = m.compiler.Compile(m.snapshot, nil); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	return m, nil
}

// mapSizes are those that the datapath is loaded with.
func (m *meshSide) mapSizes(c *config.Mesh) map[string]uint32 {
	if m == nil {
		return nil
	}
	sizes := sizesOf(c).MaxEntries()
	sizes["tickets"], sizes["listeners"], sizes["listens"] = ticketRoom, listenerRoom, sizes["workloads"]
	return sizes
}

// ticketRoom is how many SYNs may be on their way at a time between two ends on this node, of which one has policies.
const ticketRoom = 1 << 16

// listenerRoom is how many listeners of workloads are known by where they listen.
const listenerRoom = 1 << 16

// retireTime covers a SYN that waits for a CPU on this machine, and its first three repetitions (after 1, 3 and 7 s).
const retireTime = 10 * time.Second

// fill puts the mesh into the maps of a datapath that was loaded for it and is not attached yet: the first connection finds all of it.
func (m *meshSide) fill(d *datapath.Datapath, cgroup datapath.Cgroup, c *config.Mesh, enricher *enrich.Enricher) (err error) {
	if m == nil {
		return nil
	}
	m.datapath = d
	if m.kernel, err = maps.NewKernel(d.Objects()); err != nil {
		return err
	}
	if m.reconciler, err = maps.NewReconciler(&m.kernel.Maps, maps.Options{
		Sizes: sizesOf(c), Resolve: cgroup.Resolve, SetLevels: d.SetLevels, SetHas: d.SetHas, Retire: retireTime,
	}); err != nil {
		return err
	}
	m.names = enrich.NewMesh(meshNames{m.reconciler.Names()})
	enricher.Use(m.names)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reconciler.Hold(d.Carries())
	if d.Resumed() {
		if err := m.recoverLocked(); err != nil {
			return err
		}
	}
	return m.applyLocked(m.snapshot)
}

// settled is called when maps that took the place of others have all that these had.
func (m *meshSide) settled() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reconciler.Hold(false)
	m.lookAroundLocked()
	if len(m.mesh.Sets) > 0 {
		m.cutLocked(datapath.Cut{Denied: true})
	}
}

// recoverLocked makes the reconciler know what an earlier agent left. Generations go on from there.
func (m *meshSide) recoverLocked() error {
	m.snapshot = m.file.Continue(m.datapath.Ledger().GenerationBefore())
	mesh, err := m.compiler.Compile(m.snapshot, nil)
	if err != nil {
		return err
	}
	m.outliers.SetSnapshot(m.snapshot)
	if err := m.outs.restore(m.datapath.ID(), m.outliers); err != nil {
		m.logger.Warn("endpoints that were out of service come back", "error", err)
	}
	remembered, err := m.memory.recall()
	if err != nil {
		m.logger.Warn("connects may be judged by policies that do not know who connects, for the moment that the mesh takes", "error", err)
	}
	var before []*maps.Mesh
	for _, s := range remembered {
		// One that does not fit any more was put in force with other sizes, by another layout.
		if mesh, err := maps.Compile(s, nil, m.sizes); err == nil {
			before = append(before, mesh)
		}
	}
	return m.reconciler.Recover(mesh, before...)
}

// inForceLocked is called when a mesh is in force whole.
func (m *meshSide) inForceLocked(s *model.Snapshot) {
	if m.begun != s.Generation {
		return
	}
	m.begun = 0
	if err := m.memory.done(s.Generation); err != nil {
		m.logger.Warn("not all is well for the next agent", "error", err)
	}
}

// apply puts a snapshot in force, or says why the last one stays.
func (m *meshSide) apply(s *model.Snapshot) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s == m.snapshot && m.names != nil { // the first, which fill put in force
		return nil
	}
	return m.applyLocked(s)
}

func (m *meshSide) applyLocked(s *model.Snapshot) error {
	out := make(maps.Health)
	for name := range m.outliers.Out() {
		out[name] = struct{}{}
	}
	mesh, err := m.compiler.Compile(s, out)
	if err != nil {
		return err
	}
	first := m.applied == nil
	if first || s != m.snapshot {
		m.datapath.Ledger().SetGeneration(s.Generation)
		m.begun = s.Generation
		if err := m.memory.begin(s); err != nil {
			m.logger.Warn("policies may not know who connects while the next agent starts", "error", err)
		}
	}
	changes, err := m.reconciler.Apply(mesh)
	if err != nil && !errors.Is(err, maps.ErrPartly) {
		return err
	}
	m.mesh, m.applied = mesh, s
	m.renewed = m.renewed || changes.Workloads+changes.Puts+changes.Deletes > 0
	if err != nil {
		// What is missing comes with the next look around.
		m.logger.Warn("not all of the mesh is in force yet", "error", err)
	} else if !m.datapath.Carries() { // else the one before is still in force, in other maps
		m.inForceLocked(s)
	}
	if s != m.snapshot || first {
		m.names.SetSnapshot(s)
		if m.catalog != nil {
			m.catalog.SetSnapshot(s)
		}
		m.outliers.SetSnapshot(s)
	}
	// After an agent before this one, policies may be others than what is open was allowed by.
	renewed := s.Generation != m.snapshot.Generation || first && m.datapath.Resumed()
	m.snapshot = s
	if !m.datapath.Carries() { // else when all state of sockets is there
		m.lookAroundLocked()
		if renewed && len(mesh.Sets) > 0 {
			m.cutLocked(datapath.Cut{Denied: true}) // when it is known again who listens where
		}
	}
	m.logger.Debug("maps written", "generation", s.Generation, "tables", changes.Tables, "backends", changes.Backends,
		"references", changes.References, "puts", changes.Puts, "deletes", changes.Deletes)
	return nil
}

// lookInterval is how often it is looked for cgroups and network namespaces of workloads that came since, and for what has drained.
const lookInterval = time.Second

// start does everything that goes on while the agent runs, until the context ends; wait for tasks then.
func (m *meshSide) start(ctx context.Context) {
	if m == nil {
		return
	}
	m.mu.Lock()
	m.lookAroundLocked()
	m.mu.Unlock()
	m.tasks.Go(staged("mesh", func() {
		if err := m.file.Run(ctx, m.apply); err != nil {
			m.logger.Error("changes of the mesh are not seen any more; what is in force stays", "error", err)
		}
	}))
	m.tasks.Go(staged("mesh", func() { m.outliers.Run(ctx) }))
	m.tasks.Go(staged("mesh", func() { m.keep(ctx) }))
}

func (m *meshSide) wait() {
	if m != nil {
		m.tasks.Wait()
	}
}

func (m *meshSide) keep(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.saveOutliers()
			return
		case <-tick.C:
			m.mu.Lock()
			m.lookAroundLocked()
			m.mu.Unlock()
		case <-m.outliers.Changed():
			m.saveOutliers() // before it is in force, so that nobody puts back what was out
			m.mu.Lock()
			if err := m.applyLocked(m.snapshot); err != nil {
				m.logger.Error("endpoints that fail stay in service", "error", err)
			}
			m.mu.Unlock()
		}
	}
}

// guard puts the programs of network namespaces in the place of those of an earlier agent, right after others were.
func (m *meshSide) guard() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guardLocked()
}

func (m *meshSide) guardLocked() (err error) {
	if len(m.mesh.Sets) > 0 {
		m.guards, err = m.datapath.GuardNamespaces()
		return err
	}
	// Also what an earlier agent left, whose mesh had policies.
	m.guards = 0
	return m.datapath.Unguard()
}

func (m *meshSide) saveOutliers() {
	if err := m.outs.save(m.datapath.ID(), m.outliers); err != nil {
		m.logger.Warn("endpoints that are out of service come back when the next agent starts", "error", err)
	}
}

func (m *meshSide) lookAroundLocked() {
	m.looks++
	found, err := m.reconciler.Rescan()
	if err == nil {
		m.inForceLocked(m.snapshot)
	}
	if found || m.renewed {
		m.renewed = false
		err = errors.Join(err, m.datapath.AdoptListeners())
	}
	_, reapErr := m.reconciler.Reap()
	err = errors.Join(err, reapErr, m.datapath.ReapListeners())
	err = errors.Join(err, m.guardLocked())
	m.cutDrainedLocked()
	said := ""
	if err != nil {
		said = err.Error()
		if said != m.scanErr {
			m.logger.Warn("not all of the mesh is in force", "error", err)
		}
	}
	m.scanErr = said
}

// drained is a backend whose time to drain is over, and when its connections are looked for next.
type drained struct {
	next  time.Time
	pause time.Duration
}

// mostCuts is how many backends' connections are looked for at a time: each is a walk over all sockets.
const mostCuts = 8

// cutDrainedLocked ends connections to endpoints whose time to drain is over. Where some stay, such as one that a process in no namespace of the mesh
// has, it looks less and less often.
func (m *meshSide) cutDrainedLocked() {
	late := make(map[[2]uint32]*drained)
	cuts := 0
	for _, d := range m.reconciler.Draining() {
		if d.Timeout == 0 || d.Open == 0 || time.Since(d.Since) < d.Timeout {
			continue
		}
		key := [2]uint32{d.Index, d.Tag}
		of := m.late[key]
		if of == nil {
			of = &drained{pause: lookInterval}
		}
		late[key] = of
		if cuts == mostCuts || time.Now().Before(of.next) {
			continue
		}
		cuts++
		m.cutLocked(datapath.Cut{Backend: d.Index, Tag: d.Tag})
		of.next, of.pause = time.Now().Add(of.pause), min(2*of.pause, time.Minute)
	}
	m.late = late
}

// cutLocked ends open connections, where the kernel can.
func (m *meshSide) cutLocked(what datapath.Cut) {
	err := m.datapath.Cut(what)
	var lacks *datapath.FeatureError
	switch {
	case err == nil:
	case errors.As(err, &lacks):
		if !m.uncut {
			m.logger.Warn("open connections stay", "error", err)
		}
		m.uncut = true
	default:
		m.logger.Error("open connections stay", "error", err)
	}
}

// release undoes fill. Safe twice, and before the datapath is closed.
func (m *meshSide) release() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kernel == nil {
		return
	}
	if err := m.kernel.Close(); err != nil {
		m.logger.Debug("unmap the mesh", "error", err)
	}
	m.kernel = nil
}

// Consume hears how connects to endpoints of services came out. It is a pipeline.Sink, of the reader's goroutine.
func (m *meshSide) Consume(batch []enrich.Record) {
	for i := range batch {
		r := &batch[i]
		e := &r.Event
		if e.Flags&(connection.Decided|connection.RefusedHere) != connection.Decided || e.Decision.Backend == 0 {
			continue
		}
		failed := r.Change.Failed != 0
		if failed {
			switch e.Reason {
			case connection.Refused, connection.ResetByPeer, connection.Timeout, connection.Unreachable:
			default: // the client's own doing
				continue
			}
		} else if r.Change.Established == 0 {
			continue
		}
		if name, known := m.reconciler.Names().Backend(e.Decision.Backend, e.Decision.BackendTag); known {
			m.outliers.Observe(name.Endpoint, name.Service, failed, time.Now())
		}
	}
}

// meshNames gives enrich the names that it wants.
type meshNames struct{ names *maps.Names }

func (n meshNames) Service(id uint32) (model.Name, bool) {
	if name, known := n.names.Service(id); known {
		return *name, true
	}
	return model.Name{}, false
}

func (n meshNames) Backend(index, tag uint32) (endpoint, workload model.Name, known bool) {
	if name, known := n.names.Backend(index, tag); known {
		return name.Endpoint, name.Workload, true
	}
	return model.Name{}, model.Name{}, false
}

func (n meshNames) Workload(index uint32) (model.Name, bool) {
	if name, known := n.names.Workload(index); known {
		return name.Name, true
	}
	return model.Name{}, false
}

func (n meshNames) Rule(set uint32, bit uint16) (policy model.Name, rule int, known bool) {
	if name, known := n.names.Rule(set, bit); known {
		return name.Policy, name.Rule, true
	}
	return model.Name{}, 0, false
}

func (n meshNames) Limit(index uint32) (string, bool) {
	if name, known := n.names.Limit(index); known {
		return *name, true
	}
	return "", false
}
