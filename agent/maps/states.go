package maps

import "github.com/sidelight-mesh/sidelight/agent/model"

// EndpointState is what an endpoint is to its service on this node: each is in one.
type EndpointState uint8

// The states. The others than StateExcluded make up who could serve: so a share of them is not less for who never gets anything.
const (
	StateEligible  EndpointState = iota // it gets new connections, of one family at least
	StateStandby                        // it is in service, and others that are have a lower priority or are nearer
	StateDraining                       // its health says so
	StateUnhealthy                      // its health says so
	StateEjected                        // it is out of service for now: see Health
	// StateExcluded gets none from here, however it is: its weight is 0, it has no address of the service's families, or it is beyond a strict locality.
	StateExcluded
	endpointStates
)

var endpointStateNames = [endpointStates]string{
	StateEligible: "eligible", StateStandby: "standby", StateDraining: "draining", StateUnhealthy: "unhealthy", StateEjected: "ejected",
	StateExcluded: "excluded",
}

func (s EndpointState) String() string { return endpointStateNames[s] }

// EndpointStates are all states.
func EndpointStates() []EndpointState {
	all := make([]EndpointState, endpointStates)
	for i := range all {
		all[i] = EndpointState(i)
	}
	return all
}

// EndpointCounts are numbers of endpoints by EndpointState.
type EndpointCounts [endpointStates]uint32

// Lacks tells whether there is an endpoint that does not serve and should, or none at all.
func (c *EndpointCounts) Lacks() bool {
	return c[StateDraining]+c[StateUnhealthy]+c[StateEjected] > 0 || *c == EndpointCounts{}
}

// stateOf asks what eligible asks, of an endpoint that it has chosen in some family or in none. has says which families the service has.
func (e *endpoint) stateOf(s *model.Service, node model.Locality, has [2]bool, chosen bool) EndpointState {
	reached := has[ipv4] && e.address[ipv4].IsValid() || has[ipv6] && e.address[ipv6].IsValid()
	switch {
	case chosen:
		return StateEligible
	case e.weight == 0, !reached, s.LocalityMode == model.LocalityStrict && !within(node, e.locality, s.LocalityScope):
		return StateExcluded
	case e.health == model.Draining:
		return StateDraining
	case e.health != model.Healthy:
		return StateUnhealthy
	case e.out:
		return StateEjected
	default:
		return StateStandby
	}
}
