package demo

import (
	"context"
	"maps"
	"strings"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/collector/attribute"
)

// Sink is the end of the pipeline: a collector exporter that keeps what came over OTLP. Safe for concurrent use.
type Sink struct {
	mu       sync.Mutex
	received Received
	uids     map[string]struct{}
	spanIDs  map[pcommon.SpanID]struct{}
}

// Received is what came. OTLP sends again what was not answered in time, so some of it can have come twice.
type Received struct {
	Logs        int `json:"log_records"`
	UniqueLogs  int `json:"unique_log_records"` // by log.record.uid
	Spans       int `json:"spans"`
	UniqueSpans int `json:"unique_spans"` // by span id
	DataPoints  int `json:"data_points"`

	Lines    []Line          `json:"-"` // the newest, oldest first
	Refusals []Line          `json:"-"` // the newest that the mesh refused
	Decided  Decisions       `json:"-"` // counts of what the mesh decided
	OwnSpans []string        `json:"-"` // names of spans of the agent itself, which are in no count
	Own      []Line          `json:"-"` // log records of the agent itself, which are in no count
	Metrics  pmetric.Metrics `json:"-"` // the newest report
	Previous pmetric.Metrics `json:"-"` // the one before it
}

// Line is one access log record, as it came.
type Line struct {
	Workload   string
	Attributes map[string]any
	At         pcommon.Timestamp
}

const lines = 8

// NewSink returns an empty sink.
func NewSink() *Sink {
	return &Sink{uids: make(map[string]struct{}), spanIDs: make(map[pcommon.SpanID]struct{}), received: Received{
		Metrics: pmetric.NewMetrics(), Previous: pmetric.NewMetrics(), Decided: make(Decisions),
	}}
}

// Received returns what came so far.
func (s *Sink) Received() Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.received
	r.UniqueLogs, r.UniqueSpans = len(s.uids), len(s.spanIDs)
	r.Lines, r.Own = append([]Line(nil), r.Lines...), append([]Line(nil), r.Own...)
	r.Refusals, r.Decided = append([]Line(nil), r.Refusals...), maps.Clone(r.Decided)
	r.OwnSpans = append([]string(nil), r.OwnSpans...)
	return r
}

// SinkType is the sink's name in a collector's YAML.
var SinkType = component.MustNewType("terminal")

// Factory returns the exporter's factory.
func (s *Sink) Factory() exporter.Factory {
	type config struct{}
	direct := exporterhelper.WithCapabilities(consumer.Capabilities{})
	return exporter.NewFactory(SinkType, func() component.Config { return &config{} },
		exporter.WithLogs(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Logs, error) {
			return exporterhelper.NewLogs(ctx, set, cfg, s.logs, direct)
		}, component.StabilityLevelDevelopment),
		exporter.WithTraces(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Traces, error) {
			return exporterhelper.NewTraces(ctx, set, cfg, s.traces, direct)
		}, component.StabilityLevelDevelopment),
		exporter.WithMetrics(func(ctx context.Context, set exporter.Settings, cfg component.Config) (exporter.Metrics, error) {
			return exporterhelper.NewMetrics(ctx, set, cfg, s.metrics, direct)
		}, component.StabilityLevelDevelopment),
	)
}

func (s *Sink) logs(_ context.Context, logs plog.Logs) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range logs.ResourceLogs().All() {
		workload, _ := resource.Resource().Attributes().Get("service.name")
		for _, scope := range resource.ScopeLogs().All() {
			for _, record := range scope.LogRecords().All() {
				if record.EventName() != attribute.EventName {
					s.received.Own = append(s.received.Own, Line{
						Workload: workload.Str(), Attributes: record.Attributes().AsRaw(), At: record.Timestamp(),
					})
					continue
				}
				s.received.Logs++
				uid, _ := record.Attributes().Get("log.record.uid")
				s.uids[uid.Str()] = struct{}{}
				line := Line{Workload: workload.Str(), Attributes: record.Attributes().AsRaw(), At: record.Timestamp()}
				s.received.Lines = append(s.received.Lines, line)
				s.received.Decided.add(&line)
				if line.Attributes["sidelight.refused_by_mesh"] == true {
					s.received.Refusals = append(s.received.Refusals, line)
				}
			}
		}
	}
	s.received.Lines, s.received.Refusals = newest(s.received.Lines), newest(s.received.Refusals)
	return nil
}

func newest(all []Line) []Line {
	if over := len(all) - lines; over > 0 {
		return append([]Line(nil), all[over:]...)
	}
	return all
}

func (s *Sink) traces(_ context.Context, traces ptrace.Traces) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range traces.ResourceSpans().All() {
		for _, scope := range resource.ScopeSpans().All() {
			if strings.HasSuffix(scope.Scope().Name(), "/meshreceiver") {
				s.received.Spans += scope.Spans().Len()
				for _, span := range scope.Spans().All() {
					s.spanIDs[span.SpanID()] = struct{}{}
				}
				continue
			}
			for _, span := range scope.Spans().All() {
				s.received.OwnSpans = append(s.received.OwnSpans, span.Name())
			}
		}
	}
	return nil
}

func (s *Sink) metrics(_ context.Context, metrics pmetric.Metrics) error {
	kept := pmetric.NewMetrics()
	metrics.CopyTo(kept)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received.DataPoints += metrics.DataPointCount()
	s.received.Previous, s.received.Metrics = s.received.Metrics, kept
	return nil
}
