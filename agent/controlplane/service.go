package controlplane

import (
	"net/netip"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

func (r *reader) service(name model.Name, spec value) {
	o, ok := spec.object("hostname", "addresses", "ports", "loadBalancing", "sessionAffinity", "limits", "outlierDetection", "healthCheck", "drainTimeout", "waypoint")
	if !ok {
		return
	}
	addresses := o.at("addresses").addresses()
	s := model.Service{
		Name:         name,
		Hostname:     o.at("hostname").text(),
		Addresses:    addrsOf(addresses),
		Ports:        o.at("ports").servicePorts(),
		Limits:       o.at("limits").limits(),
		Outlier:      o.at("outlierDetection").outlierDetection(),
		Health:       o.at("healthCheck").healthCheck(),
		DrainTimeout: o.at("drainTimeout").duration(0, 0, 24*time.Hour),
	}
	s.Balancer, s.LocalityMode, s.LocalityScope = o.at("loadBalancing").loadBalancing()
	s.Balancer = o.at("sessionAffinity").affinity(o.at("loadBalancing"), s.Balancer)
	o.at("waypoint").waypoint()
	if o.at("addresses").none() {
		spec.fault("a service without addresses; add addresses with at least one")
	}
	if o.at("ports").none() {
		spec.fault("a service without ports; add ports with at least one, such as {port: 80}, or {port: 0} for any")
	}
	if name.Name == "" {
		return
	}
	r.claimFrontends(&s, addresses)
	r.mesh.Services = append(r.mesh.Services, s)
	r.services[name] = &s
}

// claimFrontends makes sure that an address and port lead to one service only.
func (r *reader) claimFrontends(s *model.Service, addresses []address) {
	own := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		if own[a.addr] {
			a.fault("%v is given twice; remove one", a.addr)
			continue
		}
		own[a.addr] = true
		for _, port := range s.Ports {
			key := netip.AddrPortFrom(a.addr, port.Port)
			if first, taken := r.frontends[key]; taken {
				a.fault("%v port %d also leads to Service %v at %v; an address and port lead to one service", a.addr, port.Port, first.name, first.place)
				continue
			}
			r.frontends[key] = claim{s.Name, a.place}
		}
	}
}

func (v value) servicePorts() []model.Port {
	items, _ := v.list()
	var ports []model.Port
	numbers, names := make(map[uint16]bool, len(items)), make(map[string]bool, len(items))
	for _, item := range items {
		o, ok := item.object("name", "port", "targetPort")
		if !ok {
			continue
		}
		port := o.at("port")
		if !port.given() {
			port.fault("missing; write a number from 1 to 65535, or 0 for any")
			continue
		}
		const none = 1 << 16
		n := port.number(none, 0, 65535)
		if n == none {
			continue
		}
		p := model.Port{Name: o.at("name").text(), Port: uint16(n), TargetPort: o.at("targetPort").port()}
		if target := o.at("targetPort"); p.Port == 0 && target.given() {
			target.fault("port 0 is any, and the endpoint's is the one that is dialled; remove targetPort, or give a port")
		}
		if p.Name != "" && names[p.Name] {
			o.at("name").fault("%q is given twice; rename one", p.Name)
		}
		names[p.Name] = true
		if numbers[p.Port] {
			port.fault("%d is given twice; remove one", p.Port)
			continue
		}
		numbers[p.Port] = true
		ports = append(ports, p)
	}
	return ports
}

func (v value) loadBalancing() (model.Balancer, model.LocalityMode, model.Scope) {
	o, _ := v.object("policy", "locality", "scope")
	balancer := []model.Balancer{model.Random, model.RoundRobin, model.LeastConnections, model.Maglev}[o.at("policy").choice(
		"random", "roundRobin", "leastConnections", "maglev")]
	mode := []model.LocalityMode{model.LocalityNone, model.LocalityFailover, model.LocalityStrict}[o.at("locality").choice("none", "failover", "strict")]
	scope := o.at("scope")
	switch {
	case mode != model.LocalityStrict && scope.given():
		scope.fault("only strict locality has a scope; write locality: strict, or remove scope")
		return balancer, mode, 0
	case mode != model.LocalityStrict:
		return balancer, mode, 0
	case !scope.given():
		o.at("locality").fault("strict needs a scope; add scope with one of node, subzone, zone, region")
		return balancer, mode, 0
	}
	return balancer, mode, []model.Scope{model.ScopeNode, model.ScopeSubzone, model.ScopeZone, model.ScopeRegion}[scope.choice(
		"node", "subzone", "zone", "region")]
}

// affinity is as of a Service of Kubernetes: the same client goes to the same endpoint, which is what Maglev does.
func (v value) affinity(balancing value, balancer model.Balancer) model.Balancer {
	if v.choice("None", "ClientIP") == 0 {
		return balancer
	}
	if o, ok := balancing.object("policy", "locality", "scope"); ok && o.at("policy").given() && balancer != model.Maglev {
		v.fault("ClientIP chooses by the client, and loadBalancing.policy says otherwise; remove one, or write policy: maglev")
	}
	return model.Maglev
}

// outlierDetection is off without the block, and has the defaults of Envoy for what the block leaves out.
func (v value) outlierDetection() model.OutlierDetection {
	o, ok := v.object("consecutiveFailures", "baseEjectionTime", "maxEjectionTime", "maxEjectionPercent")
	if !ok {
		return model.OutlierDetection{}
	}
	const least, most = time.Millisecond, 24 * time.Hour
	base := o.at("baseEjectionTime").duration(30*time.Second, least, most)
	d := model.OutlierDetection{
		ConsecutiveFailures: o.at("consecutiveFailures").number(5, 1, 1_000_000),
		BaseEjectionTime:    base,
		MaxEjectionTime:     o.at("maxEjectionTime").duration(max(300*time.Second, base), least, most),
		MaxEjectionPercent:  o.at("maxEjectionPercent").number(10, 0, 100),
	}
	if d.BaseEjectionTime > d.MaxEjectionTime {
		o.at("maxEjectionTime").fault("%v is less than baseEjectionTime, %v; raise it, or lower that", d.MaxEjectionTime, d.BaseEjectionTime)
	}
	return d
}

// healthCheck is off without the block.
func (v value) healthCheck() model.HealthCheck {
	o, ok := v.object("interval", "timeout", "unhealthyThreshold", "healthyThreshold")
	if !ok {
		return model.HealthCheck{}
	}
	return model.HealthCheck{
		Interval:           o.at("interval").duration(10*time.Second, 10*time.Millisecond, 24*time.Hour),
		Timeout:            o.at("timeout").duration(time.Second, time.Millisecond, time.Hour),
		UnhealthyThreshold: o.at("unhealthyThreshold").number(3, 1, 1_000_000),
		HealthyThreshold:   o.at("healthyThreshold").number(1, 1, 1_000_000),
	}
}
