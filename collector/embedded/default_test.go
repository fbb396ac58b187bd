package embedded

import (
	"log/slog"
	"path/filepath"
	"testing"

	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/envprovider"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/confmap/provider/yamlprovider"

	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
)

// userConfig is what a user's file leads to.
func userConfig(t *testing.T, path string) config.Config {
	t.Helper()
	c := config.Default()
	if err := config.Load(path, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// quiet is a collector that logs nothing.
func quiet(uri string) *Collector {
	return New(Options{URI: uri, Version: "test", DiscardMetrics: true, Logger: slog.New(slog.DiscardHandler)})
}

func TestDefaultYAML(t *testing.T) {
	fixture.Cases(t, "sidelight.yaml", func(t *testing.T, dir string) {
		c := userConfig(t, filepath.Join(dir, "sidelight.yaml"))
		text, err := defaultYAML(c.OTLP.Exporters(), c.StateDirectory, c.ReportInterval)
		if err != nil {
			t.Fatal(err)
		}
		fixture.Golden(t, filepath.Join(dir, "expected.yaml"), text)
		if err := quiet("yaml:" + string(text)).Validate(t.Context()); err != nil {
			t.Errorf("the collector does not take it: %v", err)
		}
		uri, err := DefaultURI(c.OTLP.Exporters(), c.StateDirectory, c.ReportInterval)
		if err != nil || uri != "yaml:"+string(text) {
			t.Errorf("DefaultURI = %q, %v; want the same text", uri, err)
		}
	})
}

func TestDollarSignsArriveAsTheyAre(t *testing.T) {
	t.Setenv("HOME", "/expanded")
	c := userConfig(t, "testdata/dollars/sidelight.yaml")
	uri, err := DefaultURI(c.OTLP.Exporters(), c.StateDirectory, c.ReportInterval)
	if err != nil {
		t.Fatal(err)
	}
	resolver, err := confmap.NewResolver(confmap.ResolverSettings{
		URIs:              []string{uri},
		ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory(), envprovider.NewFactory(), yamlprovider.NewFactory()},
		DefaultScheme:     "env",
	})
	if err != nil {
		t.Fatal(err)
	}
	resolved, err := resolver.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := resolver.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	want := map[string]string{
		"extensions::file_storage::directory":             c.StateDirectory + "/queue",
		"extensions::file_storage::compaction::directory": c.StateDirectory + "/queue",
	}
	want["exporters::otlp_grpc/metrics::endpoint"] = c.OTLP.Endpoint
	want["exporters::otlp_http/logs::logs_endpoint"] = c.OTLP.Logs.Endpoint
	want["exporters::otlp_grpc/traces::endpoint"] = c.OTLP.Endpoint
	for _, name := range []string{"otlp_grpc/metrics", "otlp_http/logs", "otlp_grpc/traces"} {
		exporter := "exporters::" + name + "::"
		want[exporter+"tls::ca_file"] = c.OTLP.CAFile
		want[exporter+"tls::cert_file"] = c.OTLP.CertFile
		want[exporter+"tls::key_file"] = c.OTLP.KeyFile
		for header, value := range c.OTLP.Headers {
			want[exporter+"headers::"+header] = value
		}
	}
	for key, value := range want {
		if got := resolved.Get(key); got != value {
			t.Errorf("%s is %q, want %q", key, got, value)
		}
	}
}

func TestSignalsDoNotShareWhatTheyWereGiven(t *testing.T) {
	c := userConfig(t, "testdata/per_signal/sidelight.yaml")
	before := c.OTLP.Exporters()
	for range 2 { // the template is read anew each time
		if _, err := defaultYAML(c.OTLP.Exporters(), "/state", c.ReportInterval); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range c.OTLP.Exporters() {
		if e.Settings != before[i].Settings || len(e.Headers) != len(before[i].Headers) {
			t.Errorf("%s was changed: %+v, want %+v", e.Signal, e, before[i])
		}
	}
}

func TestHasMetricsTelemetry(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "service: {}": false, "service: {telemetry: {logs: {level: warn}}}": false, "service: [": false,
		"service: {telemetry: {metrics: {level: none}}}": true,
	} {
		if got := HasMetricsTelemetry([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
