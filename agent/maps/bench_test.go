package maps

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

func many(services, endpoints int) *model.Snapshot {
	s := &model.Snapshot{Generation: 1}
	for i := range services {
		s.Services = append(s.Services, model.Service{
			Name:      model.Name{Namespace: "ns", Name: fmt.Sprintf("s%05d", i)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
			Ports:     []model.Port{{Name: "http", Port: 80, TargetPort: 8080}},
		})
	}
	for i := range endpoints {
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Name: model.Name{Namespace: "ns", Name: fmt.Sprintf("e%05d", i)}, Service: s.Services[i%services].Name, Weight: 1,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})},
		})
	}
	return s
}

// changed is the same with other weights and addresses for n endpoints.
func changed(s *model.Snapshot, n int) *model.Snapshot {
	c := *s
	c.Generation++
	c.Endpoints = append([]model.Endpoint(nil), s.Endpoints...)
	for i := range n {
		e := &c.Endpoints[i*len(c.Endpoints)/n]
		e.Addresses = []netip.Addr{e.Addresses[0].Next()}
		b := e.Addresses[0].As4()
		b[0] ^= 1
		e.Addresses[0] = netip.AddrFrom4(b)
	}
	return &c
}

func benchmarkApply(b *testing.B, m *Maps, s *model.Snapshot, n int) {
	r := reconcilerOf(b, m, DefaultSizes(), nil)
	c := NewCompiler(DefaultSizes())
	step := func() Changes {
		mesh, err := c.Compile(s, nil)
		if err != nil {
			b.Fatal(err)
		}
		changes, err := r.Apply(mesh)
		if err != nil {
			b.Fatal(err)
		}
		return changes
	}
	step()
	for b.Loop() {
		b.StopTimer()
		s = changed(s, n)
		b.StartTimer()
		if changes := step(); changes.Backends != n || changes.Tables > n || changes.Puts > 0 {
			b.Fatalf("%d endpoints changed, and this was written: %+v", n, changes)
		}
	}
}

// BenchmarkApply is of Compile and Apply together, with the grace period, of a change of 1,000 endpoints.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct {
		name                string
		services, endpoints int
	}{{"of_50000_services", 50000, 50000}, {"of_50000_in_1000_services", 1000, 50000}, {"in_one_service", 1, 1000}} {
		b.Run(c.name+"/memory", func(b *testing.B) { benchmarkApply(b, NewMemory(DefaultSizes()), many(c.services, c.endpoints), 1000) })
		b.Run(c.name+"/kernel", func(b *testing.B) {
			k, _ := load(b, DefaultSizes())
			benchmarkApply(b, &k.Maps, many(c.services, c.endpoints), 1000)
		})
	}
}

// BenchmarkFirst is of a whole mesh of 50,000 services.
func BenchmarkFirst(b *testing.B) {
	s := many(50000, 50000)
	for b.Loop() {
		b.StopTimer()
		r := reconcilerOf(b, NewMemory(DefaultSizes()), DefaultSizes(), nil)
		b.StartTimer()
		mesh, err := Compile(s, nil, DefaultSizes())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Apply(mesh); err != nil {
			b.Fatal(err)
		}
	}
}
