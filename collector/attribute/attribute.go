// Package attribute has the names that logs, spans and metrics carry, and what a record says under each of them. Names and
// meanings stand in collector/meshreceiver/metadata.yaml; a test holds the two together.
package attribute

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// EventName is the event name of an access log record.
const EventName = "sidelight.connection"

// Sink takes attributes one by one. What has to be made before it is text is given in parts: a sink may have a way without a string for
// each.
type Sink interface {
	String(name, value string)
	// Prefixed is a String of both together.
	Prefixed(name, prefix, value string)
	// Qualified is a String of namespace/value.
	Qualified(name, namespace, value string)
	// Address is a String of its text, as is AddrPort.
	Address(name string, value netip.Addr)
	AddrPort(name string, value netip.AddrPort)
	Int(name string, value int64)
	Bool(name string, value bool)
	Double(name string, value float64)
}

// Boot names this boot of the machine, so that records of different boots cannot be taken for each other.
type Boot string

// NewBoot takes the text of /proc/sys/kernel/random/boot_id.
func NewBoot(bootID string) Boot {
	return Boot(strings.ReplaceAll(strings.TrimSpace(bootID), "-", ""))
}

// MostUID is the length of the longest UID.
const MostUID = 16 + 1 + 16 + 1 + 16

// UID is the unique id of a connection's record: boot, socket, and start.
func (b Boot) UID(key connection.Key) string {
	var buf [MostUID]byte
	return string(b.AppendUID(buf[:0], key))
}

// AppendUID appends the same to a buffer.
func (b Boot) AppendUID(buf []byte, key connection.Key) []byte {
	buf = append(buf, b[:min(len(b), 16)]...)
	buf = strconv.AppendUint(append(buf, '-'), key.Cookie, 16)
	return strconv.AppendUint(append(buf, '-'), key.StartNS, 16)
}

// Connection gives the attributes of a finished connection to a sink, in the order of the access log. What is not known is left
// out. The record must be of a connection.Close.
func Connection(r *enrich.Record, to Sink) {
	e := &r.Event
	to.String("network.transport", "tcp")
	to.String("network.type", NetworkType(e.Peer.Addr()))
	// A client that was refused before its SYN has no address yet.
	local := e.Local.Port() != 0 || e.Flags&connection.RefusedHere == 0
	if local {
		to.Address("network.local.address", e.Local.Addr())
		to.Int("network.local.port", int64(e.Local.Port()))
	}
	to.Address("network.peer.address", e.Peer.Addr())
	to.Int("network.peer.port", int64(e.Peer.Port()))
	client, server := e.Client(), e.Server()
	if local {
		to.Address("client.address", client.Addr())
		to.Int("client.port", int64(client.Port()))
	}
	to.Address("server.address", server.Addr())
	to.Int("server.port", int64(server.Port()))
	to.String("sidelight.role", e.Role.String())
	to.String("sidelight.reason", e.Reason.String())
	if e.Reason != connection.OK {
		to.String("error.type", e.Reason.String())
	}
	if e.Flags&connection.Adopted != 0 {
		to.Bool("sidelight.adopted", true)
	}
	if e.StartKnown() {
		to.Int("sidelight.duration_ns", int64(e.EventNS-e.Key.StartNS))
	}
	sent := e.Role == connection.Client && e.ConnectNS != 0
	if sent && e.EstablishedNS != 0 {
		to.Int("sidelight.connect_ns", int64(e.EstablishedNS-e.ConnectNS))
	}
	if e.Flags&connection.Decided != 0 {
		to.Int("sidelight.decision_ns", int64(e.Decision.DecisionNS))
	} else if sent && e.ConnectNS > e.Key.StartNS {
		to.Int("sidelight.decision_ns", int64(e.ConnectNS-e.Key.StartNS))
	}
	if e.OpenKnown() {
		if at := e.Totals.FirstSentNS; at != 0 {
			to.Int("sidelight.first_sent_ns", int64(at-e.EstablishedNS))
		}
		if at := e.Totals.FirstReceivedNS; at != 0 {
			to.Int("sidelight.first_received_ns", int64(at-e.EstablishedNS))
		}
	}
	to.Int("sidelight.sent_bytes", int64(e.Totals.SentBytes))
	to.Int("sidelight.received_bytes", int64(e.Totals.ReceivedBytes))
	to.Int("sidelight.retransmits", int64(e.Totals.Retransmits))
	to.Int("sidelight.syn_retransmits", int64(e.Totals.SYNRetransmits))
	if e.Totals.RTTUS != 0 {
		to.Int("sidelight.rtt_us", int64(e.Totals.RTTUS))
	}
	if e.Totals.MinRTTUS != 0 {
		to.Int("sidelight.min_rtt_us", int64(e.Totals.MinRTTUS))
	}
	if p, sampled := r.Sampling.Probability(); sampled {
		to.Double("sidelight.sampling_probability", p)
	}
	if p := r.Identity.Process; p != nil {
		to.Int("process.pid", int64(p.PID))
		if p.Executable != "" {
			to.String("process.executable.name", p.Executable)
		}
	}
	if w := r.Identity.Local; w.Cgroup != "" {
		// The form of /proc/PID/cgroup, as semantic conventions have it.
		to.Prefixed("process.linux.cgroup", "0::", w.Cgroup)
		if w.ContainerID != "" {
			to.String("container.id", w.ContainerID)
		}
		if w.PodUID != "" {
			to.String("k8s.pod.uid", w.PodUID)
		}
	}
	if e.Flags&connection.Decided != 0 {
		decision(&e.Decision, r.Identity.Decision, e.Flags, to)
	}
}

// Names gives the names of both ends to a sink, which are those of the edge. They are no part of the access log: they are for who looks at it.
func Names(id *enrich.Identity, to Sink) {
	to.String("local.workload", id.Local.Name)
	if id.Local.Namespace != "" {
		to.String("local.namespace", id.Local.Namespace)
	}
	to.String("peer.workload", id.Peer.Name)
	if id.Peer.Namespace != "" {
		to.String("peer.namespace", id.Peer.Namespace)
	}
}

// NetworkType is what the packets are, whatever the family of the socket.
func NetworkType(peer netip.Addr) string {
	if peer.Is4() {
		return "ipv4"
	}
	return "ipv6"
}
