package controlplane

import "github.com/sidelight-mesh/sidelight/agent/model"

func (r *reader) endpoint(name model.Name, spec value) {
	o, ok := spec.object("service", "workload", "addresses", "port", "ports", "weight", "priority", "health", "locality")
	if !ok {
		return
	}
	e := model.Endpoint{
		Name:      name,
		Addresses: addrsOf(o.at("addresses").addresses()),
		Port:      o.at("port").port(),
		Weight:    o.at("weight").number(1, 0, 65535),
		Priority:  o.at("priority").number(0, 0, 127),
		Health:    []model.Health{model.Healthy, model.Unhealthy, model.Draining}[o.at("health").choice("healthy", "unhealthy", "draining")],
		Locality:  o.at("locality").locality(),
	}
	ports, _ := o.at("ports").pairs()
	for _, p := range ports {
		if e.Ports == nil {
			e.Ports = make(map[string]uint16, len(ports))
		}
		e.Ports[p.key] = p.port()
	}
	service, workload := o.at("service"), o.at("workload")
	if !service.given() {
		service.fault("missing; name the Service that it is an endpoint of")
	}
	if o.at("addresses").none() && !workload.given() {
		spec.fault("an endpoint without address; add addresses, or a workload that has some")
	}
	e.Service = service.reference(name)
	if workload.given() {
		e.Workload = workload.reference(name)
	}
	if name.Name == "" {
		return
	}
	r.mesh.Endpoints = append(r.mesh.Endpoints, e)
	of, by, bare := e.Service, e.Workload, o.at("addresses").none()
	r.later = append(r.later, func() { // of many endpoints at once, so that each is to hold little
		r.checkService(service, of, ports)
		r.checkWorkload(workload, by, bare)
	})
}

// checkService looks for the service of an endpoint, and for those of its ports that the endpoint names.
func (r *reader) checkService(v value, name model.Name, ports []pair) {
	if !v.isText() {
		return
	}
	service := r.services[name]
	if service == nil {
		v.fault("no Service %v; add it, or correct the name", name)
		return
	}
	for _, p := range ports {
		if !hasPort(service, p.key) {
			p.fault("Service %v has no port of that name; use one of its names, or remove it", name)
		}
	}
}

func hasPort(s *model.Service, name string) bool {
	for _, p := range s.Ports {
		if p.Name == name && name != "" {
			return true
		}
	}
	return false
}

// checkWorkload looks for the workload of an endpoint, and for its addresses where the endpoint is bare of them.
func (r *reader) checkWorkload(v value, name model.Name, bare bool) {
	if !v.isText() {
		return
	}
	workload := r.workloads[name]
	if workload == nil {
		v.fault("no Workload %v; add it, or correct the name", name)
		return
	}
	if bare && len(workload.Addresses) == 0 {
		v.fault("Workload %v has no addresses; add some to it, or to the endpoint", name)
	}
}
