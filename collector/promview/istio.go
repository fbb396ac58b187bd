package promview

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

// This file is the one place where edges get Istio's names. Everywhere else it is client and server, local and peer.
//
//   - reporter is source in what the client's end tells, and destination in what the server's end tells. Whichever tells, source is the client
//     and destination the server.
//   - Sent is the response and received the request, whichever end tells: Istio defines istio_tcp_sent_bytes_total as "total bytes sent during
//     response", from the server to the client, and istio_tcp_received_bytes_total as "total bytes received during request". So what a
//     client's socket received is sent here, and what it sent is received.
//   - Opened are connections whose handshake was done, and those that were open when the agent came: as many as closed and open. A connect that
//     failed opened nothing, and is in none of the four; Istio's own proxies have accepted a connection by then, and count it.
//   - response_flags tell how a connection ended, so only closed has other values than "-". Sum over it before comparing with opened.
//
// What an edge does not say is "unknown", as in Istio.

const (
	istioUnknown = "unknown"
	istioNoFlags = "-"
)

// istioLabels vary between series, in the order of istioKey.values and then the flags.
var istioLabels = []string{
	"reporter",
	"source_workload", "source_workload_namespace",
	"destination_workload", "destination_workload_namespace",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"response_flags",
}

// istioConstants are the rest of Istio's labels. An edge has neither labels, cluster nor identity of its workloads. That nothing is encrypted cannot be
// said either: what an application does to its own bytes is not looked at.
var istioConstants = prometheus.Labels{
	"source_principal": istioUnknown, "destination_principal": istioUnknown,
	"source_app": istioUnknown, "destination_app": istioUnknown,
	"source_version": istioUnknown, "destination_version": istioUnknown,
	"source_canonical_service": istioUnknown, "destination_canonical_service": istioUnknown,
	"source_canonical_revision": istioUnknown, "destination_canonical_revision": istioUnknown,
	"source_cluster": istioUnknown, "destination_cluster": istioUnknown,
	"connection_security_policy": istioUnknown,
	"request_protocol":           "tcp",
}

// istioKey is what tells one series of Istio's from another, but for its flags. No field is empty.
type istioKey struct {
	reporter                              string
	sourceWorkload, sourceNamespace       string
	destWorkload, destNamespace           string
	destServiceName, destServiceNamespace string
}

// istioKeyOf drops the network type, for which Istio has no label: edges that differ by it only are one.
func istioKeyOf(k edge.Key) istioKey {
	local, peer := known(k.LocalWorkload), known(k.PeerWorkload)
	if k.PeerWorkload == enrich.External && k.PeerNamespace == "" {
		peer = istioUnknown // it is the name of those without one
	}
	localNamespace, peerNamespace := known(k.LocalNamespace), known(k.PeerNamespace)
	service, serviceNamespace := known(k.Service), known(k.ServiceNamespace)
	if k.Role == connection.Client {
		return istioKey{"source", local, localNamespace, peer, peerNamespace, service, serviceNamespace}
	}
	return istioKey{"destination", peer, peerNamespace, local, localNamespace, service, serviceNamespace}
}

// IstioName is for edge.Table.KeepAliases: edges of one name are one to Istio.
func IstioName(k edge.Key) any { return istioKeyOf(k) }

func known(name string) string {
	if name == "" {
		return istioUnknown
	}
	return name
}

func (k *istioKey) values() []string {
	return []string{
		k.reporter, k.sourceWorkload, k.sourceNamespace, k.destWorkload, k.destNamespace, k.service(), k.destServiceName, k.destServiceNamespace,
	}
}

// service is the name that a Kubernetes service has in Istio by default. An edge knows neither a host name of its own nor another domain.
func (k *istioKey) service() string {
	if k.destServiceName == istioUnknown || k.destServiceNamespace == istioUnknown {
		return k.destServiceName
	}
	return k.destServiceName + "." + k.destServiceNamespace + ".svc.cluster.local"
}

// responseFlags are Envoy's for a reason, or ztunnel's where Envoy has none for TCP. Upstream is the server and downstream the client, whichever end
// tells. The reasons of connects that failed are here so that each reason has its flags; the four counters do not have them. Envoy's NR and URX
// have no reason: a connect without a route sends no SYN and is not seen, and nothing is tried again.
func responseFlags(role connection.Role, reason connection.Reason) string {
	const (
		upstreamTerminated    = "UC"
		downstreamTerminated  = "DC"
		upstreamFailed        = "UF"
		upstreamOverflow      = "UO"
		upstreamNoneHealthy   = "UH"
		rateLimited           = "RL"
		ztunnelDeniedByPolicy = "DENY"
	)
	local, peer := downstreamTerminated, upstreamTerminated
	if role == connection.Server {
		local, peer = peer, local
	}
	switch reason {
	case connection.OK:
		return istioNoFlags
	case connection.ResetByPeer, connection.Timeout, connection.Unreachable: // the peer is gone, with or without a word
		return peer
	case connection.ResetByLocal, connection.Aborted:
		return local
	case connection.Refused:
		return upstreamFailed
	case connection.CircuitOpen:
		return upstreamOverflow
	case connection.RateLimited:
		return rateLimited
	case connection.NoEndpoint:
		return upstreamNoneHealthy
	case connection.Denied: // of one that was open: policies changed, and it was cut
		return ztunnelDeniedByPolicy
	}
	return istioUnknown
}

// istioSums are those of all edges that are one to Istio.
type istioSums struct {
	since                  int64 // of the edge that was there first
	opened, sent, received uint64
	closed                 map[string]uint64 // by response flags
}

func (s *istioSums) add(role connection.Role, e *edge.Sums) {
	s.since = min(s.since, e.SinceUnixNS)
	s.count(role, e, func(sum *uint64, n uint64) { *sum += n })
}

// less takes away what is counted elsewhere.
func (s *istioSums) less(role connection.Role, e *edge.Sums) {
	s.count(role, e, func(sum *uint64, n uint64) { *sum -= min(n, *sum) })
}

func (s *istioSums) count(role connection.Role, e *edge.Sums, with func(sum *uint64, n uint64)) {
	with(&s.opened, e.Established+e.Adopted)
	for reason, n := range e.Closed {
		if n > 0 {
			flags := responseFlags(role, connection.Reason(reason))
			closed := s.closed[flags]
			with(&closed, n)
			s.closed[flags] = closed
		}
	}
	sent, received := e.SentBytes, e.ReceivedBytes
	if role == connection.Client {
		sent, received = received, sent
	}
	with(&s.sent, sent)
	with(&s.received, received)
}

// istio shows edges under Istio's names.
type istio struct{ opened, closed, sent, received *prometheus.Desc }

func newIstio() *istio {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("istio_tcp_"+name, help, istioLabels, istioConstants)
	}
	return &istio{
		opened:   desc("connections_opened_total", "Connections opened. An alias, in Istio's labels, of sidelight_tcp_connection_established_total and _adopted_total."),
		closed:   desc("connections_closed_total", "Connections closed. An alias, in Istio's labels, of sidelight_tcp_connection_closed_total."),
		sent:     desc("sent_bytes_total", "Payload of the response, from server to client. An alias, in Istio's labels, of a sidelight_tcp counter of bytes."),
		received: desc("received_bytes_total", "Payload of the request, from client to server. An alias, in Istio's labels, of a sidelight_tcp counter of bytes."),
	}
}

func (v *istio) describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{v.opened, v.closed, v.sent, v.received} {
		ch <- d
	}
}

func (v *istio) collect(ch chan<- prometheus.Metric, of edge.Snapshot) {
	// Summed first: of two series with the same labels the whole scrape would fail.
	all := make(map[istioKey]*istioSums, len(of.Edges))
	for i := range of.Edges {
		e := &of.Edges[i]
		key := istioKeyOf(e.Key)
		s := all[key]
		if s == nil {
			// There from the beginning, so that opened less closed has a value before anything is closed.
			s = &istioSums{since: e.Sums.SinceUnixNS, closed: map[string]uint64{istioNoFlags: 0}}
			all[key] = s
		}
		s.add(e.Key.Role, &e.Sums)
	}
	// What was folded of a name that goes on stays with it, so that it does not fall. The overflow edge would count it a second time.
	for i := range of.Gone {
		e := &of.Gone[i]
		s, overflow := all[istioKeyOf(e.Key)], all[istioKeyOf(edge.OverflowOf(e.Key.Role))]
		if s != nil && overflow != nil {
			overflow.less(e.Key.Role, &e.Sums)
			s.add(e.Key.Role, &e.Sums)
		}
	}
	for key, s := range all {
		values, since := key.values(), time.Unix(0, s.since)
		counter := func(d *prometheus.Desc, value uint64, flags string) {
			ch <- prometheus.MustNewConstMetricWithCreatedTimestamp(d, prometheus.CounterValue, float64(value), since,
				append(values[:len(values):len(values)], flags)...)
		}
		counter(v.opened, s.opened, istioNoFlags)
		counter(v.sent, s.sent, istioNoFlags)
		counter(v.received, s.received, istioNoFlags)
		for flags, n := range s.closed {
			counter(v.closed, n, flags)
		}
	}
}
