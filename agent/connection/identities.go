package connection

// identities keeps each identity once, and counts how many connections have it.
type identities[I comparable] struct {
	places map[I]uint32
	kept   []kept[I] // the first is nobody's: 0 is no place
	free   []uint32
}

type kept[I any] struct {
	identity    I
	connections int
}

// idleIdentities is how many may be kept that no connection has, beside as many as connections have: most come again, and to forget and
// learn anew costs more.
const idleIdentities = 1024

func newIdentities[I comparable]() identities[I] {
	return identities[I]{places: make(map[I]uint32), kept: make([]kept[I], 1)}
}

// take returns an identity's place, for one more connection. followed is how many connections there are.
func (s *identities[I]) take(identity I, followed int) uint32 {
	at, found := s.places[identity]
	if !found {
		if len(s.places) >= 2*followed+idleIdentities {
			s.purge()
		}
		if last := len(s.free) - 1; last >= 0 {
			at, s.free = s.free[last], s.free[:last]
		} else {
			at = uint32(len(s.kept))
			s.kept = append(s.kept, kept[I]{})
		}
		s.kept[at].identity = identity
		s.places[identity] = at
	}
	s.kept[at].connections++
	return at
}

func (s *identities[I]) release(at uint32) { s.kept[at].connections-- }

// purge forgets the identities that no connection has.
func (s *identities[I]) purge() {
	for identity, at := range s.places {
		if s.kept[at].connections == 0 {
			delete(s.places, identity)
			s.kept[at] = kept[I]{}
			s.free = append(s.free, at)
		}
	}
}
