package embedded

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/agent/config"
	otelconfig "github.com/sidelight-mesh/sidelight/otel-config"
)

// DefaultURI returns the built-in configuration with exporters for the given signals, as an Options.URI.
func DefaultURI(exporters []config.Exporter, stateDirectory string, reportInterval time.Duration) (string, error) {
	text, err := defaultYAML(exporters, stateDirectory, reportInterval)
	if err != nil {
		return "", err
	}
	return "yaml:" + string(text), nil
}

type object = map[string]any

// defaultYAML fills the built-in configuration's one exporter in for each signal, and leaves out pipelines without one.
func defaultYAML(exporters []config.Exporter, stateDirectory string, reportInterval time.Duration) ([]byte, error) {
	var root object
	if err := yaml.Unmarshal(otelconfig.Default, &root); err != nil {
		return nil, fmt.Errorf("read default configuration: %w", err)
	}
	template := at(root, "exporters", "otlp_grpc")
	made, pipelines := object{}, object{}
	for _, e := range exporters {
		name, exporter := exporterOf(template, e)
		made[name] = exporter
		pipeline := at(root, "service", "pipelines", e.Signal)
		pipeline["exporters"] = []any{name}
		pipelines[e.Signal] = pipeline
	}
	root["exporters"] = made
	at(root, "service")["pipelines"] = pipelines
	at(root, "receivers", "mesh")["report_interval"] = reportInterval.String()
	queue := literal(filepath.Join(stateDirectory, "queue"))
	at(root, "extensions", "file_storage")["directory"] = queue
	at(root, "extensions", "file_storage", "compaction")["directory"] = queue
	return yaml.Marshal(root)
}

func exporterOf(template object, e config.Exporter) (string, object) {
	exporter := object{}
	for key, value := range template {
		exporter[key] = value
	}
	exporter["timeout"] = e.Timeout.String()
	exporter["compression"] = e.Compression
	if len(e.Headers) > 0 {
		headers := object{}
		for key, value := range e.Headers {
			headers[key] = literal(value)
		}
		exporter["headers"] = headers
	}
	tls := object{}
	for key, file := range map[string]string{"ca_file": e.CAFile, "cert_file": e.CertFile, "key_file": e.KeyFile} {
		if file != "" {
			tls[key] = literal(file)
		}
	}
	if strings.HasPrefix(e.Endpoint, "http://") {
		tls["insecure"] = true
	}
	exporter["tls"] = tls
	if e.Protocol == config.ProtocolGRPC {
		// gRPC has no path, but the URL that people write often has its slash.
		exporter["endpoint"] = literal(strings.TrimSuffix(e.Endpoint, "/"))
		return "otlp_grpc/" + e.Signal, exporter
	}
	delete(exporter, "endpoint")
	exporter[e.Signal+"_endpoint"] = literal(e.Endpoint)
	return "otlp_http/" + e.Signal, exporter
}

// at descends by keys that the built-in configuration has.
func at(root object, keys ...string) object {
	for _, key := range keys {
		root = root[key].(object)
	}
	return root
}

// literal keeps the collector from expanding a user's dollar sign.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// HasMetricsTelemetry says whether a collector configuration sets where the collector's own metrics go. Without it the collector would
// listen on port 8888.
func HasMetricsTelemetry(text []byte) bool {
	var c struct {
		Service struct {
			Telemetry struct {
				Metrics any `yaml:"metrics"`
			} `yaml:"telemetry"`
		} `yaml:"service"`
	}
	// A fault is for the collector to report, in its own words.
	return yaml.Unmarshal(text, &c) == nil && c.Service.Telemetry.Metrics != nil
}
