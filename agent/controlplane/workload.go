package controlplane

import "github.com/sidelight-mesh/sidelight/agent/model"

func (r *reader) workload(name model.Name, labels map[string]string, spec value) {
	o, ok := spec.object("identity", "cgroup", "addresses", "cluster", "locality", "limits", "waypoint")
	if !ok {
		return
	}
	addresses := o.at("addresses").addresses()
	w := model.Workload{
		Name:      name,
		Cluster:   o.at("cluster").text(),
		Identity:  o.at("identity").text(),
		Cgroup:    o.at("cgroup").cgroup(),
		Addresses: addrsOf(addresses),
		Locality:  o.at("locality").locality(),
		Labels:    labels,
		Limits:    o.at("limits").limits(),
	}
	o.at("waypoint").waypoint()
	if name.Name == "" {
		return
	}
	for _, a := range addresses {
		if first, taken := r.addresses[a.addr]; taken {
			a.fault("%v is also an address of Workload %v at %v; an address is of one workload", a.addr, first.name, first.place)
			continue
		}
		r.addresses[a.addr] = claim{name, a.place}
	}
	if cgroup := o.at("cgroup"); w.Cgroup != "" {
		if first, taken := r.cgroups[w.Cgroup]; taken {
			cgroup.fault("%s is also the cgroup of Workload %v at %v; a cgroup is of one workload", w.Cgroup, first.name, first.place)
		} else {
			r.cgroups[w.Cgroup] = claim{name, cgroup.place}
		}
	}
	r.mesh.Workloads = append(r.mesh.Workloads, w)
	r.workloads[name] = &w
}

func (r *reader) bypass(name model.Name, spec value) {
	o, ok := spec.object("cgroup", "selector")
	if !ok {
		return
	}
	b := model.Bypass{Name: name, Cgroup: o.at("cgroup").cgroup(), Selector: o.at("selector").matchLabels()}
	if !o.at("cgroup").given() && len(b.Selector) == 0 {
		spec.fault("a bypass of nothing; add cgroup, or selector with matchLabels")
	}
	r.mesh.Bypasses = append(r.mesh.Bypasses, b)
}
