package config

import (
	"fmt"
	"net/netip"
)

// Traces is how the two ends of a connection come to one trace.
type Traces struct {
	// Propagate is off or tcp_option. With the former they name it by what both see of it, and come to the same unless something between them translates
	// addresses or sequence numbers. With the latter the client's SYN carries the name as a TCP option.
	Propagate string `yaml:"propagate"`
	// Peers are the blocks of addresses that the option is sent to and taken from.
	Peers []netip.Prefix `yaml:"peers"`
}

// PropagateTCPOption is what Propagate can be beside Off.
const PropagateTCPOption = "tcp_option"

// MostTracePeers is one less than the kernel's map has room for.
const MostTracePeers = 255

// With returns the blocks to exchange trace ids with; nil: none are exchanged.
func (t *Traces) With() []netip.Prefix {
	if t.Propagate != PropagateTCPOption {
		return nil
	}
	return t.Peers
}

func (t *Traces) validate() []error {
	var errs []error
	switch t.Propagate {
	case Off, PropagateTCPOption:
	default:
		errs = append(errs, fmt.Errorf("traces.propagate: %q is neither %s nor %s", t.Propagate, Off, PropagateTCPOption))
	}
	switch {
	case t.Propagate == PropagateTCPOption && len(t.Peers) == 0:
		errs = append(errs, fmt.Errorf("traces.peers: empty; give the ranges of addresses whose SYNs may carry the option, such as 10.0.0.0/8: on the way to others it may be taken "+
			"for an attack"))
	case len(t.Peers) > MostTracePeers:
		errs = append(errs, fmt.Errorf("traces.peers: %d ranges; use at most %d, wider ones", len(t.Peers), MostTracePeers))
	}
	for i, block := range t.Peers {
		switch {
		case !block.IsValid(): // an empty text is read as one
			errs = append(errs, fmt.Errorf("traces.peers[%d]: empty; give a range, such as 10.0.0.0/8", i))
		case block.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("traces.peers[%d]: %v is IPv4 in IPv6; write it as IPv4, such as 10.0.0.0/8", i, block))
		}
	}
	return errs
}
