package mesh

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// All is within 127/8, which a loopback device has without being told.
const (
	firstService   = 127<<24 | 100<<16 | 1 // 127.100.0.1
	firstEndpoint  = 127<<24 | 1<<16 | 1   // 127.1.0.1
	otherEndpoints = 127<<24 | 50<<16 | 1  // 127.50.0.1: where endpoints move to
	servicePort    = 80
	listenPort     = 8080
	moved          = otherEndpoints - firstEndpoint
)

func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// shape is how large a mesh is.
type shape struct {
	services, endpoints int // endpoints of each service
}

var (
	namespace = "bench"
	client    = model.Name{Namespace: namespace, Name: "client"}
)

// snapshot is a mesh: a client that is known by its cgroup, services, and workloads that are their endpoints.
func snapshot(s shape, cgroup string) *model.Snapshot {
	mesh := &model.Snapshot{Generation: 1}
	mesh.Workloads = append(mesh.Workloads, model.Workload{Name: client, Identity: "client", Cgroup: cgroup})
	for i := range s.services {
		service := model.Name{Namespace: namespace, Name: fmt.Sprintf("service-%05d", i)}
		mesh.Services = append(mesh.Services, model.Service{
			Name: service, Addresses: []netip.Addr{address(firstService + i)}, Ports: []model.Port{{Name: "tcp", Port: servicePort, TargetPort: listenPort}},
		})
		for j := range s.endpoints {
			n := i*s.endpoints + j
			workload := model.Name{Namespace: namespace, Name: fmt.Sprintf("server-%05d", n)}
			mesh.Workloads = append(mesh.Workloads, model.Workload{
				Name: workload, Identity: "server", Addresses: []netip.Addr{address(firstEndpoint + n)}, Labels: map[string]string{"app": "server"},
			})
			mesh.Endpoints = append(mesh.Endpoints, model.Endpoint{
				Name: model.Name{Namespace: namespace, Name: fmt.Sprintf("endpoint-%05d", n)}, Service: service, Workload: workload, Weight: 1,
			})
		}
	}
	return mesh
}

// denying is the same with a policy that denies the client the servers.
func denying(mesh *model.Snapshot) *model.Snapshot {
	mesh.Policies = append(mesh.Policies, model.AuthorizationPolicy{
		Name: model.Name{Namespace: namespace, Name: "nobody"}, Selector: map[string]string{"app": "server"}, Action: model.Deny,
		Rules: []model.Rule{{From: []model.Source{{Identities: []string{"client"}}}}},
	})
	return mesh
}

// moving is a mesh of which n workloads that are endpoints have another address, as when they were started anew; those that moved move back.
func moving(mesh *model.Snapshot, n int) *model.Snapshot {
	next := *mesh
	next.Generation++
	next.Workloads = slices.Clone(mesh.Workloads)
	servers := next.Workloads[1:] // the first is the client
	for i := range n {
		w := &servers[i*len(servers)/n]
		b := w.Addresses[0].As4()
		at := int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		if at < otherEndpoints {
			at += moved
		} else {
			at -= moved
		}
		w.Addresses = []netip.Addr{address(at)}
	}
	return &next
}
