package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sidelight-mesh/sidelight/agent/account"
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
	"github.com/sidelight-mesh/sidelight/collector/promview"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

// metrics returns the handler of /metrics: the edges, and the node itself.
func (n *node) metrics() (http.Handler, error) {
	registry := prometheus.NewRegistry()
	edges := promview.New(n.snapshot, event.MeasureClock)
	if n.config.Prometheus.IstioAliases {
		var mesh *enrich.Catalog
		if n.mesh != nil {
			mesh = n.mesh.catalog
		}
		edges.IstioAliases(n.config.Prometheus.IstioCluster, mesh)
	}
	for _, c := range []prometheus.Collector{
		edges,
		promview.NewSelf(n.readSelf),
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
		// On a machine without time to spare the ring cannot be drained within a scrape's time: the account is left out then, not all else.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      slog.NewLogLogger(n.logger.Handler(), slog.LevelWarn),
	}), nil
}

// auditTime bounds how long a scrape or a report waits for the ring to be drained.
const auditTime = 2 * time.Second

// values collects what the agent tells of itself.
type values struct{ self.Reading }

func (v *values) add(m *self.Metric, number uint64, attributes ...string) {
	v.Values = append(v.Values, m.Of(float64(number), attributes...))
}

// readSelf reads the node's own state, for /metrics and for OTLP alike.
func (n *node) readSelf() self.Reading {
	v := values{self.Reading{Since: n.started, LastingSince: n.datapath.Since()}}
	// Before the audit below, which drains it.
	v.add(self.Pending, uint64(n.reader.Pending()))
	v.add(self.Ring, uint64(n.datapath.Ring().MaxEntries()))
	programs, err := n.datapath.ProgramStats()
	v.Err = err
	for _, p := range programs {
		if p.Runs > 0 {
			v.add(self.Runs, p.Runs, p.Name)
			v.Values = append(v.Values, self.RunTime.Of(p.Time.Seconds(), p.Name))
		}
	}
	v.add(self.BuildInfo, 1, version(), goVersion())
	agents, alone := n.datapath.Ledger().Attended()
	v.add(self.Agents, agents)
	v.Values = append(v.Values, self.Unattended.Of(alone.Seconds()))
	edges := n.edges.Counts()
	v.add(self.EdgesFolded, edges.Folded)
	v.add(self.EdgesEvicted, edges.Evicted)
	v.add(self.Edges, uint64(edges.Edges))
	v.add(self.EdgesLimit, uint64(n.config.MaxEdges))
	v.add(self.FollowedLimit, uint64(n.config.MaxConnections))
	v.addMaps(n)
	v.addBudget(n)
	v.addMesh(n)
	ctx, cancel := context.WithTimeout(context.Background(), auditTime)
	defer cancel()
	r, err := n.report(ctx)
	if err != nil {
		v.Err = errors.Join(v.Err, err)
		return v.Reading
	}
	v.add(self.Unaccounted, r.Unaccounted)
	v.addAccount(&r.Account)
	v.Values = append(v.Values, self.Followed.Of(float64(r.Kernel.Live())))
	if n.log != nil {
		v.add(self.Lines, r.AccessLog.Written)
		v.add(self.Dropped, r.AccessLog.Dropped, "access_log", "log")
	}
	if n.gate != nil {
		v.add(self.RecordsOut, n.gate.LogsOut(), "logs")
		v.add(self.RecordsOut, n.gate.SpansOut(), "traces")
	}
	if n.collector == nil {
		return v.Reading
	}
	v.add(self.Dropped, n.records.logs.Dropped(), "receiver_queue", "log")
	v.add(self.Dropped, n.records.traces.Dropped(), "receiver_queue", "span")
	v.add(self.Dropped, meshreceiver.Dropped.Logs.Load(), "receiver", "log")
	v.add(self.Dropped, meshreceiver.Dropped.Spans.Load(), "receiver", "span")
	v.add(self.Dropped, meshreceiver.Dropped.DataPoints.Load(), "receiver", "data_point")
	for signal, capacity := range n.collector.QueueCapacity() {
		v.add(self.QueueCapacity, uint64(capacity), signal)
	}
	kinds := map[string]string{"logs": "log", "traces": "span", "metrics": "data_point"}
	for signal, stats := range r.Export {
		v.add(self.Exported, uint64(stats.Sent), signal)
		v.add(self.Queued, uint64(stats.Queued), signal)
		v.add(self.Dropped, uint64(stats.Rejected+stats.Failed), "exporter", kinds[signal])
	}
	return v.Reading
}

// addMaps tells how full maps are, as far as that takes no look at the kernel. The ring and the connections have metrics of their own.
func (v *values) addMaps(n *node) {
	room := n.datapath.MaxEntries()
	for _, entries := range []map[string]uint64{n.datapath.Entries(), n.mesh.occupancy()} {
		for name, used := range entries {
			v.add(self.MapEntries, used, name)
			v.add(self.MapMaxEntries, uint64(room[name]), name)
		}
	}
}

func (v *values) addAccount(a *account.Account) {
	client, server := connection.Client.String(), connection.Server.String()
	v.add(self.Kernel, a.Kernel.Attempts, client, "attempted")
	v.add(self.Kernel, a.Kernel.Failed, client, "failed")
	for _, role := range []string{client, server} {
		v.add(self.Kernel, a.Kernel.Established[role], role, "established")
		v.add(self.Kernel, a.Kernel.Adopted[role], role, "adopted")
		v.add(self.Kernel, a.Kernel.Closed[role], role, "closed")
		v.add(self.Refused, a.Kernel.Refused[role], role)
	}
	for outcome, connections := range a.Kernel.TraceIDs {
		v.add(self.TraceIDs, connections, outcome)
	}
	v.add(self.Untracked, a.Kernel.UntrackedClosed)
	v.add(self.Aggregated, a.Kernel.Aggregated, "edge")
	v.add(self.Aggregated, a.Kernel.Totalled, "total")
	for _, kind := range connection.Kinds() {
		k := kind.String()
		v.add(self.Submitted, a.Kernel.Submitted[k], k)
		v.add(self.SampledOut, a.Kernel.SampledOut[k], k)
		v.add(self.Decoded, a.User.Decoded[k], k)
		v.add(self.Dropped, a.Kernel.ReserveFailed[k], "ring", k)
	}
	v.add(self.Dropped, a.User.DecodeFailed, "decode", "event")
	v.add(self.Dropped, a.Kernel.ListenersFailed, "listeners", "listener")
	v.add(self.Dropped, a.Kernel.StorageFailed[client]+a.Kernel.StorageFailed[server], "storage", "connection")
}
