package main

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/promview"
)

// metrics returns the handler of /metrics: the edges, and the node itself.
func (n *node) metrics() (http.Handler, error) {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		promview.New(n.snapshot, event.MeasureClock),
		&selfMetrics{node: n},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		EnableOpenMetrics:                   true,
		EnableOpenMetricsTextCreatedSamples: true,
		MaxRequestsInFlight:                 4,
	}), nil
}

func selfDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descBuild       = selfDesc("sidelight_build_info", "Always 1.", "version", "go_version")
	descUnaccounted = selfDesc("sidelight_accounting_unaccounted", "Connections and events that the kernel counted and user space never saw, losses that were counted aside. Must be 0.")
	descKernel      = selfDesc("sidelight_self_kernel_connections_total", "The kernel's own count.", "role", "step")
	descSubmitted   = selfDesc("sidelight_self_events_submitted_total", "Events that the kernel put into the ring.", "kind")
	descDecoded     = selfDesc("sidelight_self_events_decoded_total", "Events that were read from the ring and decoded.", "kind")
	descFollowed    = selfDesc("sidelight_self_connections_followed", "Connections that are open or connecting now, by the kernel's count.")
	descUntracked   = selfDesc("sidelight_self_untracked_closed_total", "Closed sockets that the kernel programs had not seen open.")
	descAggregated  = selfDesc("sidelight_self_aggregated_closes_total", "Close events that found no room in the ring and whose sums the kernel kept: by edge, or by role and reason only.", "by")
	descLines       = selfDesc("sidelight_self_access_log_lines_total", "Lines written to the access log.")
	descExported    = selfDesc("sidelight_self_exported_total", "What OTLP backends took: log records, spans, data points.", "signal")
	descQueued      = selfDesc("sidelight_self_export_queue", "What waits for OTLP backends.", "signal")
	descRing        = selfDesc("sidelight_bpf_ring_bytes", "Size of the event ring.")
	descPending     = selfDesc("sidelight_bpf_ring_pending_bytes", "What waits in the event ring to be read.")
	descRuns        = selfDesc("sidelight_bpf_program_runs_total", "Runs of a program, counted while kernel.bpf_stats_enabled is set.", "program")
	descRunTime     = selfDesc("sidelight_bpf_program_seconds_total", "Time in a program, measured while kernel.bpf_stats_enabled is set.", "program")
)

// selfMetrics shows the node's own state, read at the scrape.
type selfMetrics struct{ node *node }

// Describe implements prometheus.Collector.
func (*selfMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descUnaccounted, descKernel, descSubmitted, descDecoded, descFollowed, descUntracked, descAggregated, descLines, descExported,
		descQueued, promview.Dropped, descRing, descPending, descRuns, descRunTime,
	} {
		ch <- d
	}
}

// auditTime bounds how long a scrape waits for the ring to be drained.
const auditTime = 2 * time.Second

// Collect implements prometheus.Collector.
func (s *selfMetrics) Collect(ch chan<- prometheus.Metric) {
	n := s.node
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	// Before the audit below, which drains it.
	gauge(descPending, float64(n.reader.Pending()))
	gauge(descRing, float64(n.config.RingBytes))
	programs, err := n.datapath.ProgramStats()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descRuns, err)
	}
	for _, p := range programs {
		if p.Runs > 0 {
			counter(descRuns, p.Runs, p.Name)
			ch <- prometheus.MustNewConstMetric(descRunTime, prometheus.CounterValue, p.Time.Seconds(), p.Name)
		}
	}
	gauge(descBuild, 1, version(), goVersion())
	ctx, cancel := context.WithTimeout(context.Background(), auditTime)
	defer cancel()
	a, err := n.audit(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descUnaccounted, err)
		return
	}
	gauge(descUnaccounted, float64(a.Unaccounted))
	s.collectAccount(&a, counter)
	gauge(descFollowed, float64(a.Kernel.Live()))
	if n.log != nil {
		counter(descLines, n.log.Lines())
		counter(promview.Dropped, n.log.Dropped(), "access_log", "log")
	}
	if n.collector == nil {
		return
	}
	counter(promview.Dropped, n.records.logs.Dropped(), "receiver_queue", "log")
	counter(promview.Dropped, n.records.traces.Dropped(), "receiver_queue", "span")
	counter(promview.Dropped, meshreceiver.Dropped.Logs.Load(), "receiver", "log")
	counter(promview.Dropped, meshreceiver.Dropped.Spans.Load(), "receiver", "span")
	counter(promview.Dropped, meshreceiver.Dropped.DataPoints.Load(), "receiver", "data_point")
	kinds := map[string]string{"logs": "log", "traces": "span", "metrics": "data_point"}
	for signal, stats := range n.collector.Stats() {
		counter(descExported, uint64(stats.Sent), signal)
		gauge(descQueued, float64(stats.Queued), signal)
		counter(promview.Dropped, uint64(stats.Rejected+stats.Failed), "exporter", kinds[signal])
	}
}

func (s *selfMetrics) collectAccount(a *account.Account, counter func(*prometheus.Desc, uint64, ...string)) {
	client, server := connection.Client.String(), connection.Server.String()
	counter(descKernel, a.Kernel.Attempts, client, "attempted")
	counter(descKernel, a.Kernel.Failed, client, "failed")
	for _, role := range []string{client, server} {
		counter(descKernel, a.Kernel.Established[role], role, "established")
		counter(descKernel, a.Kernel.Closed[role], role, "closed")
	}
	counter(descUntracked, a.Kernel.UntrackedClosed)
	counter(descAggregated, a.Kernel.Aggregated, "edge")
	counter(descAggregated, a.Kernel.Totalled, "total")
	for _, kind := range connection.Kinds() {
		k := kind.String()
		counter(descSubmitted, a.Kernel.Submitted[k], k)
		counter(descDecoded, a.User.Decoded[k], k)
		counter(promview.Dropped, a.Kernel.ReserveFailed[k], "ring", k)
	}
	counter(promview.Dropped, a.User.DecodeFailed, "decode", "event")
	counter(promview.Dropped, a.Kernel.StorageFailed, "storage", "connection")
}
