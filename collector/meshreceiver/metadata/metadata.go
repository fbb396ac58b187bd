// Package metadata reads metadata.yaml, the table of the names that Sidelight gives to what it tells. It is for tests and generators;
// the agent does without it.
package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Table is the whole file.
type Table struct {
	Type               string            `yaml:"type"`
	Status             Status            `yaml:"status"`
	Scope              string            `yaml:"scope"`
	Requirements       map[string]string `yaml:"requirements"`
	ResourceAttributes []Attribute       `yaml:"resource_attributes"`
	LogLine            []LineField       `yaml:"log_line"`
	LogEventName       string            `yaml:"log_event_name"`
	LogAttributes      []Attribute       `yaml:"log_attributes"`
	Spans              []Span            `yaml:"spans"`
	SpanEvents         []SpanEvent       `yaml:"span_events"`
	MetricAttributes   []MetricAttribute `yaml:"metric_attributes"`
	Metrics            []Metric          `yaml:"metrics"`
	SelfMetrics        []Metric          `yaml:"self_metrics"`
	SelfEvents         []SelfEvent       `yaml:"self_events"`
	SelfSpans          []SpanEvent       `yaml:"self_spans"`
}

// Status is the component's.
type Status struct {
	Class     string              `yaml:"class"`
	Stability map[string][]string `yaml:"stability"` // level to signals
}

// What an attribute's requirement can be.
const (
	Always         = "always"
	WhenKnown      = "when known"
	WhenFailed     = "when failed"
	AdoptedOnly    = "adopted only"
	ClientsOnly    = "clients only"
	OverflowOnly   = "overflow only"
	WhileSampled   = "while sampled"
	MeshDecisions  = "mesh decisions"
	WhenRefused    = "when refused"
	RefusedByLimit = "when refused by a limit"
)

// Attribute is one of a resource, a log record or a span.
type Attribute struct {
	Name        string   `yaml:"name"`
	Type        string   `yaml:"type"` // string, int, bool or double
	Requirement string   `yaml:"requirement"`
	Signals     []string `yaml:"signals"`
	Description string   `yaml:"description"`
	Enum        []string `yaml:"enum"` // every value there is, when they are fixed
}

// SelfEvent is a log record that the agent writes of itself.
type SelfEvent struct {
	Name        string      `yaml:"name"`
	Description string      `yaml:"description"`
	Attributes  []Attribute `yaml:"attributes"`
}

// LineField is what an access log line says before its attributes.
type LineField struct {
	Name        string `yaml:"name"`
	OTLP        string `yaml:"otlp"`
	Description string `yaml:"description"`
}

// Span is one sort of span.
type Span struct {
	Name        string   `yaml:"name"`
	Kind        string   `yaml:"kind"`
	Description string   `yaml:"description"`
	Events      []string `yaml:"events"`
}

// SpanEvent is one sort of event of a span.
type SpanEvent struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description"`
}

// MetricAttribute is an attribute of metrics, and a label of Prometheus unless Label is empty.
type MetricAttribute struct {
	Name        string   `yaml:"name"`
	Label       string   `yaml:"label"`
	Type        string   `yaml:"type"`
	Requirement string   `yaml:"requirement"`
	Description string   `yaml:"description"`
	Enum        []string `yaml:"enum"`
}

// The kinds of metrics.
const (
	Sum       = "sum"
	UpDown    = "updown"
	Gauge     = "gauge"
	Histogram = "histogram"
)

// Metric is a metric in OTLP and on /metrics.
type Metric struct {
	Name        string    `yaml:"name"`
	Prometheus  string    `yaml:"prometheus"`
	Kind        string    `yaml:"kind"`
	ValueType   string    `yaml:"value_type"` // int or double
	Monotonic   bool      `yaml:"monotonic"`
	Unit        string    `yaml:"unit"`
	Description string    `yaml:"description"`
	Attributes  []string  `yaml:"attributes"`
	Bounds      []float64 `yaml:"bounds"` // of a histogram
}

// Read reads and checks the table.
func Read(path string) (*Table, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read table of names: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	table := new(Table)
	if err := decoder.Decode(table); err != nil {
		return nil, fmt.Errorf("read table of names: %s: %w", path, err)
	}
	for i := range table.LogAttributes {
		if a := &table.LogAttributes[i]; a.Signals == nil {
			a.Signals = []string{"logs", "traces"}
		}
	}
	if err := table.check(); err != nil {
		return nil, fmt.Errorf("check table of names: %s: %w", path, err)
	}
	return table, nil
}

// check returns what a reader of the table could trip over.
func (t *Table) check() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	entries := func(section string) func(name, description string) {
		seen := make(map[string]bool)
		return func(name, description string) {
			if name == "" || description == "" {
				fault("%s: %q: name and description must not be empty", section, name)
			}
			if seen[name] {
				fault("%s: %q is there twice", section, name)
			}
			seen[name] = true
		}
	}
	attribute := func(section, name, kind, requirement string) {
		if !slices.Contains([]string{"string", "int", "bool", "double"}, kind) {
			fault("%s: %s: unknown type %q", section, name, kind)
		}
		if t.Requirements[requirement] == "" {
			fault("%s: %s: unknown requirement %q", section, name, requirement)
		}
	}
	for section, attributes := range map[string][]Attribute{"resource_attributes": t.ResourceAttributes, "log_attributes": t.LogAttributes} {
		entry := entries(section)
		for _, a := range attributes {
			entry(a.Name, a.Description)
			attribute(section, a.Name, a.Type, a.Requirement)
			for _, signal := range a.Signals {
				if !slices.Contains([]string{"metrics", "logs", "traces"}, signal) {
					fault("%s: %s: unknown signal %q", section, a.Name, signal)
				}
			}
		}
	}
	events := entries("self_events")
	for _, e := range t.SelfEvents {
		events(e.Name, e.Description)
		entry := entries(e.Name)
		for _, a := range e.Attributes {
			entry(a.Name, a.Description)
			attribute(e.Name, a.Name, a.Type, a.Requirement)
		}
	}
	own := entries("self_spans")
	for _, s := range t.SelfSpans {
		own(s.Name, s.Description)
	}
	entry := entries("log_line")
	for _, f := range t.LogLine {
		entry(f.Name, f.Description)
	}
	entry = entries("span_events")
	for _, e := range t.SpanEvents {
		entry(e.Name, e.Description)
	}
	entry = entries("spans")
	for _, s := range t.Spans {
		entry(s.Name, s.Description)
		for _, event := range s.Events {
			if !slices.ContainsFunc(t.SpanEvents, func(e SpanEvent) bool { return e.Name == event }) {
				fault("spans: %s: unknown event %q", s.Name, event)
			}
		}
	}
	entry = entries("metric_attributes")
	for _, a := range t.MetricAttributes {
		entry(a.Name, a.Description)
		attribute("metric_attributes", a.Name, a.Type, a.Requirement)
	}
	entry = entries("metrics")
	families := entries("prometheus names")
	for _, m := range t.Metrics {
		entry(m.Name, m.Description)
		families(m.Prometheus, m.Description)
		for _, name := range m.Attributes {
			if t.MetricAttribute(name) == nil {
				fault("metrics: %s: unknown attribute %q", m.Name, name)
			}
		}
		if !slices.Contains([]string{Sum, UpDown, Gauge, Histogram}, m.Kind) || (m.Kind == Histogram) != (len(m.Bounds) > 0) {
			fault("metrics: %s: kind %q with %d bounds", m.Name, m.Kind, len(m.Bounds))
		}
	}
	for _, m := range t.SelfMetrics {
		entry(m.Name, m.Description)
		families(m.Prometheus, m.Description)
		if !slices.Contains([]string{Sum, UpDown}, m.Kind) || m.Monotonic != (m.Kind == Sum) {
			fault("self_metrics: %s: kind %q, monotonic: %v", m.Name, m.Kind, m.Monotonic)
		}
	}
	return errors.Join(errs...)
}

// MetricAttribute returns a metric attribute by its name, nil when there is none.
func (t *Table) MetricAttribute(name string) *MetricAttribute {
	for i := range t.MetricAttributes {
		if t.MetricAttributes[i].Name == name {
			return &t.MetricAttributes[i]
		}
	}
	return nil
}

// Of returns the attributes that a signal has.
func Of(attributes []Attribute, signal string) []Attribute {
	var of []Attribute
	for _, a := range attributes {
		if slices.Contains(a.Signals, signal) {
			of = append(of, a)
		}
	}
	return of
}

// Labels returns a metric's labels on /metrics.
func (t *Table) Labels(m *Metric) []string {
	var labels []string
	for _, name := range m.Attributes {
		if label := t.MetricAttribute(name).Label; label != "" {
			labels = append(labels, label)
		}
	}
	return labels
}
