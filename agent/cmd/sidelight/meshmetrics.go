package main

import (
	"errors"
	"strconv"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/agent/outlier"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// meshReading is what metrics tell of the mesh.
type meshReading struct {
	source    controlplane.Status
	loads     maps.Loads
	verdicts  []maps.VerdictCount
	endpoints []outlier.Stats
	services  []*maps.Service // in force
	guards    int
}

// reading reads counts only, and compares nothing. On an error what could be read is there.
func (m *meshSide) reading() (meshReading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := meshReading{source: m.file.Status(), endpoints: m.outliers.Stats(), services: m.mesh.Services, guards: m.guards}
	if m.kernel == nil { // released
		return r, nil
	}
	loads, err := m.reconciler.Loads()
	if err == nil {
		r.loads = *loads
	}
	var verdictsErr error
	r.verdicts, verdictsErr = m.reconciler.Verdicts()
	return r, errors.Join(err, verdictsErr)
}

// addMesh adds nothing when there is no mesh.
func (v *values) addMesh(n *node) {
	if n.mesh == nil {
		return
	}
	r, err := n.mesh.reading()
	v.Err = errors.Join(v.Err, err)
	v.addSource(&r.source)
	v.add(self.MeshGuarded, uint64(r.guards))
	v.addLoads(&r.loads)
	v.addServices(r.services, r.loads.Endpoints)
	v.addOutliers(r.endpoints)
	v.addVerdicts(r.verdicts)
}

func (v *values) addSource(s *controlplane.Status) {
	v.add(self.ConfigGeneration, s.Generation)
	v.add(self.ConfigInputs, s.Accepted, "accepted")
	v.add(self.ConfigInputs, s.Rejected, "rejected")
	var inForce uint64
	if s.Generation > 0 && s.LastError == "" {
		inForce = 1
	}
	v.add(self.ConfigInForce, inForce)
	if !s.LastAccepted.IsZero() {
		v.Values = append(v.Values, self.ConfigLastAccepted.Of(float64(s.LastAccepted.UnixMilli())/1000))
	}
}

func (v *values) addLoads(l *maps.Loads) {
	for i := range l.Endpoints {
		e := &l.Endpoints[i]
		attributes := endpointAttributes(e.Service, e.Endpoint)
		v.add(self.MeshPicks, e.Picks, attributes...)
		v.add(self.MeshOpen, e.Open, attributes...)
		v.add(self.MeshFailures, e.Failed, attributes...)
	}
	for i := range l.Limits {
		limit := &l.Limits[i]
		v.add(self.MeshLimitOpen, limit.Open, limit.Limit)
		v.add(self.MeshLimitConnecting, limit.Connecting, limit.Limit)
		v.addBound(self.MeshLimitMaxOpen, limit.Bounds.MaxOpen, limit.Limit)
		v.addBound(self.MeshLimitMaxConnecting, limit.Bounds.MaxConnecting, limit.Limit)
		v.addBound(self.MeshLimitMaxRate, limit.Bounds.PerSecond, limit.Limit)
		v.addBound(self.MeshLimitBurst, limit.Bounds.Burst, limit.Limit)
		v.add(self.MeshLimitRejections, limit.RejectedOpen, limit.Limit, "open")
		v.add(self.MeshLimitRejections, limit.RejectedConnecting, limit.Limit, "connecting")
		v.add(self.MeshLimitRejections, limit.RejectedRate, limit.Limit, "rate")
	}
}

// addBound adds nothing where nothing is bounded: a bound of 0 would be one that is always reached.
func (v *values) addBound(m *self.Metric, bound uint32, limit string) {
	if bound != 0 {
		v.add(m, uint64(bound), limit)
	}
}

// addServices tells of services that an endpoint was chosen for, as loads do, so that a mesh of which the node uses little has few series; and of those
// that lack an endpoint, used or not.
func (v *values) addServices(services []*maps.Service, loads []maps.EndpointLoad) {
	used := make(map[model.Name]bool, len(loads))
	for i := range loads {
		used[loads[i].Service] = true
	}
	for _, s := range services {
		if !used[s.Name] && !s.Endpoints.Lacks() {
			continue
		}
		for _, state := range maps.EndpointStates() {
			v.add(self.MeshEndpoints, uint64(s.Endpoints[state]), s.Name.Name, s.Name.Namespace, state.String())
		}
	}
}

// endpointAttributes are those of the service apart, as on edges; the endpoint's namespace may be another.
func endpointAttributes(service, endpoint model.Name, more ...string) []string {
	return append([]string{service.Name, service.Namespace, endpoint.String()}, more...)
}

func (v *values) addOutliers(endpoints []outlier.Stats) {
	for i := range endpoints {
		e := &endpoints[i]
		if e.Cause != outlier.None {
			v.add(self.MeshOut, 1, endpointAttributes(e.Service, e.Endpoint, e.Cause.String())...)
		}
		if e.Ejections > 0 {
			v.add(self.MeshEjections, e.Ejections, endpointAttributes(e.Service, e.Endpoint, outlier.Outlier.String())...)
		}
		if e.CheckEjections > 0 {
			v.add(self.MeshEjections, e.CheckEjections, endpointAttributes(e.Service, e.Endpoint, outlier.HealthCheck.String())...)
		}
		if e.Suppressed > 0 {
			v.add(self.MeshSuppressed, e.Suppressed, endpointAttributes(e.Service, e.Endpoint)...)
		}
	}
}

func (v *values) addVerdicts(verdicts []maps.VerdictCount) {
	for i := range verdicts {
		c := &verdicts[i]
		policy, rule := "", "" // none decided
		if c.Rule != nil {
			policy, rule = c.Rule.Policy.String(), strconv.Itoa(c.Rule.Rule)
		}
		v.add(self.PolicyVerdicts, c.Count, policy, rule, connection.Verdict(c.Verdict).String(), strconv.FormatBool(c.Dry))
	}
}
