package mesh

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// sizes are those of all sets, whatever is in them: how large the maps are is not what is compared.
var sizes = maps.DefaultSizes()

// mesh is what is in the kernel's maps, and can be replaced.
type mesh struct {
	kernel     *maps.Kernel
	reconciler *maps.Reconciler
	compiler   *maps.Compiler
}

func newMesh(objects *bpf.Objects, o maps.Options) (m *mesh, err error) {
	m = &mesh{compiler: maps.NewCompiler(sizes)}
	if m.kernel, err = maps.NewKernel(objects); err != nil {
		return nil, err
	}
	o.Sizes = sizes
	if m.reconciler, err = maps.NewReconciler(&m.kernel.Maps, o); err != nil {
		return nil, errors.Join(err, m.kernel.Close())
	}
	return m, nil
}

// apply does what the agent does with a snapshot.
func (m *mesh) apply(s *model.Snapshot) (maps.Changes, error) {
	compiled, err := m.compiler.Compile(s, nil)
	if err != nil {
		return maps.Changes{}, err
	}
	return m.reconciler.Apply(compiled)
}

// picks is how many connections got an endpoint.
func (m *mesh) picks() (n uint64) {
	for i := range m.kernel.Loads {
		n += m.kernel.Loads[i].Picks
	}
	return n
}

// set is the agent's programs on a cgroup, with a mesh in their maps or without.
type set struct {
	datapath *datapath.Datapath
	ring     *ringbuf.Reader
	mesh     *mesh // nil: the programs are without one
}

// ringBytes holds some thousand connections, and it is emptied after each slice.
const ringBytes = 4 << 20

// newSet loads and attaches as the agent does. s may be nil.
func newSet(cgroup datapath.Cgroup, s *model.Snapshot) (_ *set, err error) {
	o := datapath.Options{RingBytes: ringBytes, WakeupBytes: ^uint64(0), Cgroup: cgroup, FirstBytes: true}
	if s != nil {
		o.Mesh = sizes.MaxEntries()
	}
	made := new(set)
	defer func() {
		if err != nil {
			err = errors.Join(err, made.close())
		}
	}()
	if made.datapath, err = datapath.Load(o); err != nil {
		return nil, err
	}
	if made.ring, err = ringbuf.NewReader(made.datapath.Ring()); err != nil {
		return nil, fmt.Errorf("read ring: %w", err)
	}
	if s != nil {
		if made.mesh, err = newMesh(made.datapath.Objects(), maps.Options{Resolve: cgroup.Resolve, SetLevels: made.datapath.SetLevels, SetHas: made.datapath.SetHas}); err != nil {
			return nil, err
		}
		if _, err = made.mesh.apply(s); err != nil {
			return nil, err
		}
	}
	return made, made.datapath.Attach()
}

// close takes everything away again. Safe for a set that was not made whole.
func (s *set) close() error {
	var errs []error
	if s.ring != nil {
		errs = append(errs, s.ring.Close())
	}
	if s.mesh != nil {
		errs = append(errs, s.mesh.kernel.Close())
	}
	if s.datapath != nil {
		errs = append(errs, s.datapath.Close())
	}
	return errors.Join(errs...)
}

// drain empties the ring.
func (s *set) drain() error { return drain(s.ring) }

func drain(ring *ringbuf.Reader) error {
	var record ringbuf.Record
	ring.SetDeadline(time.Now())
	for {
		switch err := ring.ReadInto(&record); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("read ring: %w", err)
		}
	}
}

// check is an error when not exactly these connections were seen, or an event was lost: then it was something else that was measured.
func (s *set) check(connections uint64) error {
	a, err := s.datapath.Account()
	if err != nil {
		return err
	}
	for _, n := range a.ReserveFailed {
		if n != 0 {
			return fmt.Errorf("the ring was full: %d events were lost", n)
		}
	}
	if a.Attempts != connections || a.Established[bpf.Client] != connections || a.Established[bpf.Server] != connections {
		return fmt.Errorf("%d connections were made, and %d attempts, %d clients and %d servers were seen",
			connections, a.Attempts, a.Established[bpf.Client], a.Established[bpf.Server])
	}
	return nil
}
