package demo

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	"github.com/sidelight-mesh/sidelight/agent/model"
)

// meshYAML is an example too.
//
//go:embed mesh.yaml
var meshYAML string

// meshCgroup stands in it for the cgroup that a world has.
const meshCgroup = "/sidelight-demo/"

// NodeLocality is where the demo's node is, as mesh.yaml says.
var NodeLocality = model.Locality{Region: "demo", Zone: "near"}

// What mesh.yaml has for each part of the demo.
var (
	failoverService = ofDemo("api")
	deniedService   = ofDemo("shop")
	deniedPolicy    = ofDemo("no-intruders")
	limitedService  = ofDemo("narrow")
	ejectedService  = ofDemo("flaky")
	ejectedEndpoint = ofDemo("flaky-3")
)

// And who connects.
const (
	webName      = "web"
	intruderName = "intruder"
	greedyName   = "greedy"
)

var clientNames = []string{webName, intruderName, greedyName}

func ofDemo(name string) model.Name { return model.Name{Namespace: "demo", Name: name} }

// MeshWorld is a world that is made of a mesh.
type MeshWorld struct {
	*World
	// File is the mesh, with the world's cgroup in it.
	File string

	mesh *model.Snapshot
}

// NewMesh makes cgroups and namespaces below a cgroup2 mount for all that mesh.yaml has, and writes it to a directory. No process runs yet.
func NewMesh(cgroup2, mount, directory string) (*MeshWorld, error) {
	m := &MeshWorld{World: newWorld(cgroup2), File: filepath.Join(directory, "mesh.yaml")}
	path, err := filepath.Rel(mount, m.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("find the demo's cgroup: %w", err)
	}
	if err := os.WriteFile(m.File, []byte(strings.ReplaceAll(meshYAML, meshCgroup, "/"+path+"/")), 0o600); err != nil {
		return nil, fmt.Errorf("write mesh: %w", err)
	}
	if m.mesh, err = controlplane.Parse(m.File); err != nil {
		return nil, err
	}
	m.cast()
	return m, m.make(cgroup2)
}

// cast gives workloads their processes: those that are endpoints listen, the others connect.
func (m *MeshWorld) cast() {
	workloads := make(map[model.Name]*model.Workload)
	for i := range m.mesh.Workloads {
		workloads[m.mesh.Workloads[i].Name] = &m.mesh.Workloads[i]
	}
	for i := range m.mesh.Endpoints {
		e := &m.mesh.Endpoints[i]
		w := workloads[e.Workload]
		if w == nil { // nobody listens there, but the address is there
			m.scene.addresses = append(m.scene.addresses, e.Addresses...)
			continue
		}
		m.scene.addresses = append(m.scene.addresses, w.Addresses...)
		args := []string{MeshServiceCommand, e.Name.String()}
		for _, a := range w.Addresses {
			args = append(args, netip.AddrPortFrom(a, m.service(e.Service).Ports[0].TargetPort).String())
		}
		m.scene.services = append(m.scene.services, actor{filepath.Base(w.Cgroup), args})
	}
	orders := m.orders()
	for _, name := range clientNames {
		cgroup := filepath.Base(workloads[ofDemo(name)].Cgroup)
		m.scene.clients = append(m.scene.clients, actor{cgroup, []string{MeshClientCommand, encodeOrders(orders[name])}})
	}
}

// orders say what each client does. The numbers are small enough for a slow machine, and large enough to be seen.
func (m *MeshWorld) orders() map[string][]Order {
	most := int(m.Limit())
	return map[string][]Order{
		webName: {
			{Service: failoverService.String(), To: m.dialled(failoverService), Every: 20 * time.Millisecond},
			{Service: ejectedService.String(), To: m.dialled(ejectedService), Every: 20 * time.Millisecond},
			{Service: deniedService.String(), To: m.dialled(deniedService), Every: 100 * time.Millisecond},
		},
		intruderName: {{Service: deniedService.String(), To: m.dialled(deniedService), Every: 100 * time.Millisecond}},
		greedyName: {{
			Service: limitedService.String(), To: m.dialled(limitedService), Every: time.Second, AtOnce: most + most/2, Held: 400 * time.Millisecond,
		}},
	}
}

func encodeOrders(orders []Order) string {
	text, err := json.Marshal(orders)
	if err != nil {
		panic(err) // it has only texts and numbers
	}
	return string(text)
}

func (m *MeshWorld) service(name model.Name) *model.Service {
	i := slices.IndexFunc(m.mesh.Services, func(s model.Service) bool { return s.Name == name })
	return &m.mesh.Services[i]
}

// dialled are the addresses of a service, with its port.
func (m *MeshWorld) dialled(name model.Name) []netip.AddrPort {
	s := m.service(name)
	var all []netip.AddrPort
	for _, a := range s.Addresses {
		all = append(all, netip.AddrPortFrom(a, s.Ports[0].Port))
	}
	return all
}

// Limit is how many connections may be open to the service with a circuit breaker.
func (m *MeshWorld) Limit() uint32 { return m.service(limitedService).Limits.MaxConnections }

// near are the endpoints of the service with failover that are in the node's zone.
func (m *MeshWorld) near() []model.Name {
	zones := make(map[model.Name]string)
	for i := range m.mesh.Workloads {
		zones[m.mesh.Workloads[i].Name] = m.mesh.Workloads[i].Locality.Zone
	}
	var near []model.Name
	for i := range m.mesh.Endpoints {
		if e := &m.mesh.Endpoints[i]; e.Service == failoverService && zones[e.Workload] == NodeLocality.Zone {
			near = append(near, e.Name)
		}
	}
	return near
}

// StopNear ends the processes of the near endpoints: nobody listens there any more.
func (m *MeshWorld) StopNear() error {
	var errs []error
	for _, name := range m.near() {
		i := slices.IndexFunc(m.processes, func(p *process) bool { return p.Args[2] == name.String() })
		if i < 0 {
			continue
		}
		errs = append(errs, m.end(m.processes[i]))
		m.processes = slices.Delete(m.processes, i, i+1)
	}
	return errors.Join(errs...)
}

// Tallies returns what the clients say that came of their connects, by client and service. It is known once they have ended.
func (m *MeshWorld) Tallies() (map[string]map[string]Tally, error) {
	tallies := make(map[string]map[string]Tally)
	for i, name := range clientNames {
		text, ended := m.said[m.scene.clients[i].name]
		if !ended {
			continue // the demo was interrupted before it began
		}
		var of map[string]Tally
		if err := json.Unmarshal(text, &of); err != nil {
			return nil, fmt.Errorf("read what %s says: %w", name, err)
		}
		tallies[name] = of
	}
	return tallies, nil
}
