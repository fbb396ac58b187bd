package promview

import (
	"cmp"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/edge"
)

// This file is the one place where edges get Istio's names. Everywhere else it is client and server, local and peer. The values are those of Istio's
// description of its standard metrics, and where that is silent of its proxies: Envoy's filter istio_stats, and ztunnel.
//
//   - reporter is source in what the client's end tells, and destination in what the server's end tells. Whichever tells, source is the client
//     and destination the server.
//   - Sent is the response and received the request, whichever end tells: Istio defines istio_tcp_sent_bytes_total as "total bytes sent during
//     response", from the server to the client, and istio_tcp_received_bytes_total as "total bytes received during request". So what a
//     client's socket received is sent here, and what it sent is received.
//   - Opened are connections whose handshake was done, and those that were open when the agent came: as many as closed and open. A connect that
//     failed opened nothing, and is in none of the four; Istio's own proxies have accepted a connection by then, and count it.
//   - response_flags tell how a connection ended, so only closed has other values than "-", as with ztunnel. Sum over it before comparing with opened.
//   - The canonical service of a workload without a label for it is the workload, as with Istio; so is that of one that is none of the mesh. The app
//     and the version are those labels and nothing else.
//   - A workload is in the cluster that the mesh names, or else in the one that the configuration does. Kiali throws away what has a namespace and the
//     cluster "unknown".
//   - The service of a server's end is the one that the server is an endpoint of, which is how Istio's proxies know it. Kiali takes what both ends tell for
//     one only where they agree on it. Where there is no service its namespace is the server's, as with Envoy.
//   - Principals are what mutual TLS has proved. Identities here come from a cgroup and from an address, and prove nothing to anybody else: they are not
//     shown. So no connection is in mutual TLS: "none" at the server's end, and "unknown" at the client's, where Istio never knows.
//
// What nobody knows is "unknown", as in Istio.
//
// Series are told apart by istioKey, which has names only. All else is a function of these names, looked up at the scrape, and none of it can make one
// series of two. When the mesh gives a workload other labels, its series end and others begin, with the whole of their sums: nothing falls, nothing is
// there twice at any moment, and a rate counts nothing twice, unless the mesh goes forth and back within its range. That would not be so with the time since
// when they count, from which Prometheus can make a zero before the first sample: the past would be an increase once more. So Istio's names have none, as
// with Istio.

const (
	istioUnknown = "unknown"
	istioNoFlags = "-"
)

// istioLabels vary between series, in the order of istioSeries.values and then the flags.
var istioLabels = []string{
	"reporter", "connection_security_policy",
	"source_workload", "source_workload_namespace",
	"source_app", "source_version", "source_canonical_service", "source_canonical_revision", "source_cluster",
	"destination_workload", "destination_workload_namespace",
	"destination_app", "destination_version", "destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"response_flags",
}

// istioConstants are the rest of Istio's labels.
var istioConstants = prometheus.Labels{
	"source_principal": istioUnknown, "destination_principal": istioUnknown,
	"request_protocol": "tcp",
}

// istioName is of a workload or a service. No field is empty.
type istioName struct{ namespace, name string }

// istioNoService is the service where none is known: in an istioKey of a server's end always, which does not know what was dialled.
var istioNoService = istioName{istioUnknown, istioUnknown}

// istioKey is what tells one series of Istio's from another, but for its flags.
type istioKey struct {
	reporter                     string
	source, destination, service istioName
}

// istioKeyOf drops the network type, for which Istio has no label: edges that differ by it only are one.
func istioKeyOf(k edge.Key) istioKey {
	local, peer := known(k.LocalNamespace, k.LocalWorkload), known(k.PeerNamespace, k.PeerWorkload)
	if k.PeerWorkload == enrich.External && k.PeerNamespace == "" {
		peer.name = istioUnknown // it is the name of those without one
	}
	if k.Role == connection.Client {
		service := known(k.ServiceNamespace, k.Service)
		if service.name == istioUnknown {
			service = istioNoService // a namespace of it would not be shown
		}
		return istioKey{"source", local, peer, service}
	}
	return istioKey{"destination", peer, local, istioNoService}
}

// IstioName is for edge.Table.KeepAliases: edges of one name are one to Istio.
func IstioName(k edge.Key) any { return istioKeyOf(k) }

func known(namespace, name string) istioName {
	return istioName{cmp.Or(namespace, istioUnknown), cmp.Or(name, istioUnknown)}
}

// istioEnd is what a series says of one of its ends beside its name.
type istioEnd struct {
	app, version, service, revision, cluster string

	dialled istioName // the service that it is an endpoint of
}

var istioNobody = istioEnd{istioUnknown, istioUnknown, istioUnknown, istioUnknown, istioUnknown, istioNoService}

// end describes a workload. About is nil where it is none of the mesh.
func (v *istio) end(of istioName, about *enrich.About) istioEnd {
	if of.name == istioUnknown {
		return istioNobody
	}
	// As Istio has it for a workload without labels.
	e := istioEnd{istioUnknown, istioUnknown, of.name, "latest", v.cluster, istioNoService}
	if about == nil {
		return e
	}
	e.app = cmp.Or(about.Label("app"), e.app)
	e.version = cmp.Or(about.Label("version"), e.version)
	e.service = cmp.Or(about.Label("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"), e.service)
	e.revision = cmp.Or(about.Label("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"), e.revision)
	e.cluster = cmp.Or(about.Cluster, e.cluster)
	if about.Service != nil {
		e.dialled = known(about.Service.Namespace, about.Service.Name)
	}
	return e
}

// istioSeries is all that a series says but for its flags.
type istioSeries struct {
	*istioKey
	from, to istioEnd
	policy   string
	service  istioName
	host     string
}

func (s *istioSeries) values() []string {
	return []string{
		s.reporter, s.policy,
		s.source.name, s.source.namespace, s.from.app, s.from.version, s.from.service, s.from.revision, s.from.cluster,
		s.destination.name, s.destination.namespace, s.to.app, s.to.version, s.to.service, s.to.revision, s.to.cluster,
		s.host, s.service.name, s.service.namespace,
	}
}

// istioHost is the name that a service has in Istio unless the mesh gives it another: that of one of Kubernetes.
func istioHost(service istioName) string {
	if service.name == istioUnknown || service.namespace == istioUnknown {
		return service.name
	}
	return service.name + "." + service.namespace + ".svc.cluster.local"
}

// istioSaid is what the last scrape said of names. It goes on to be said of those that are gone from the mesh, for as long as there are edges of theirs:
// they come to an end with all that a workload was, rather than as another one.
type istioSaid struct {
	ends  map[istioName]istioEnd
	hosts map[istioName]string
}

// label looks up all that series of these keys say.
func (v *istio) label(all map[istioKey]*istioSums) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := istioSaid{make(map[istioName]istioEnd), make(map[istioName]string)}
	end := func(of istioName) istioEnd {
		if e, looked := now.ends[of]; looked {
			return e
		}
		about := v.mesh.Workload(of.namespace, of.name)
		e, said := v.said.ends[of]
		if about != nil || !said {
			e = v.end(of, about)
		}
		now.ends[of] = e
		return e
	}
	host := func(of istioName) string {
		if h, looked := now.hosts[of]; looked {
			return h
		}
		h, known := v.mesh.Host(of.namespace, of.name)
		if !known {
			h = v.said.hosts[of]
		}
		h = cmp.Or(h, istioHost(of))
		now.hosts[of] = h
		return h
	}
	for key, sums := range all {
		s := istioSeries{istioKey: &key, from: end(key.source), to: end(key.destination), policy: istioUnknown, service: key.service}
		if key.reporter == "destination" {
			s.policy, s.service = "none", s.to.dialled
		}
		s.host = host(s.service)
		if s.service.name == istioUnknown {
			s.service.namespace = key.destination.namespace
		}
		sums.labels = s.values()
	}
	v.said = now
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
	opened, sent, received uint64
	closed                 map[string]uint64 // by response flags
	labels                 []string          // but for the flags
}

func (s *istioSums) add(role connection.Role, e *edge.Sums) {
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
type istio struct {
	opened, closed, sent, received *prometheus.Desc

	cluster string
	mesh    *enrich.Catalog
	mu      sync.Mutex
	said    istioSaid
}

func newIstio(cluster string, mesh *enrich.Catalog) *istio {
	if mesh == nil {
		mesh = enrich.NewCatalog()
	}
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("istio_tcp_"+name, help, istioLabels, istioConstants)
	}
	return &istio{
		cluster: cluster, mesh: mesh,
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
			s = &istioSums{closed: map[string]uint64{istioNoFlags: 0}}
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
	v.label(all)
	for _, s := range all {
		counter := func(d *prometheus.Desc, value uint64, flags string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), append(s.labels[:len(s.labels):len(s.labels)], flags)...)
		}
		counter(v.opened, s.opened, istioNoFlags)
		counter(v.sent, s.sent, istioNoFlags)
		counter(v.received, s.received, istioNoFlags)
		for flags, n := range s.closed {
			counter(v.closed, n, flags)
		}
	}
}
