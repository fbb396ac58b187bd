package maps

import (
	"errors"

	"github.com/sidelight-mesh/sidelight/bpf"
)

// meddled is a hash whose changes somebody sees before they are made, and may let fail after some of their elements.
type meddled[K comparable, V any] struct {
	Hash[K, V]
	before meddler
}

// meddler is told how many elements are about to change; of a change that is to fail it returns how many do. An error errKilled ends who made the
// change there and then.
type meddler func(elements int) (done int, err error)

var (
	errInjected = errors.New("injected")
	errKilled   = errors.New("killed")
)

func (h meddled[K, V]) Put(keys []K, values []V) error {
	done, err := h.before(len(keys))
	if err == nil {
		return h.Hash.Put(keys, values)
	}
	_ = h.Hash.Put(keys[:done], values[:done])
	return dead(err)
}

func (h meddled[K, V]) Delete(keys []K) error {
	done, err := h.before(len(keys))
	if err == nil {
		return h.Hash.Delete(keys)
	}
	_ = h.Hash.Delete(keys[:done])
	return dead(err)
}

func dead(err error) error {
	if errors.Is(err, errKilled) {
		panic(err)
	}
	return err
}

// meddle has all changes of hashes seen, and the waits for programs as changes of nothing.
func meddle(m *Maps, before meddler) {
	m.Frontends = meddled[bpf.Frontend, uint32]{m.Frontends, before}
	m.Addresses = meddled[bpf.Address, uint32]{m.Addresses, before}
	m.Cgroups = meddled[uint64, uint32]{m.Cgroups, before}
	m.PolicySources = meddled[bpf.PolicySource, bpf.Rules]{m.PolicySources, before}
	m.PolicyBlocks = meddled[bpf.PolicyBlock, bpf.Rules]{m.PolicyBlocks, before}
	m.PolicyPorts = meddled[bpf.PolicyPort, bpf.Rules]{m.PolicyPorts, before}
	m.Verdicts = meddled[bpf.VerdictKey, uint64]{m.Verdicts, before}
	m.LimitStates = meddled[uint32, bpf.LimitState]{m.LimitStates, before}
	m.Grace = func() error {
		_, err := before(0)
		return dead(err)
	}
}
