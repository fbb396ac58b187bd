package embedded

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exportertest"

	"github.com/sidelight-mesh/sidelight/agent/config"
	otelconfig "github.com/sidelight-mesh/sidelight/otel-config"
)

func TestValidateNamesTheFault(t *testing.T) {
	const service = "\nservice: {pipelines: {logs: {receivers: [mesh], exporters: [debug]}}}\n"
	for name, test := range map[string]struct {
		yaml string
		want []string // each is in the error
	}{
		"not YAML":           {"receivers: [mesh", []string{"yaml"}},
		"unknown receiver":   {"receivers: {mash: {}}\nexporters: {debug: {}}" + service, []string{"receivers", `"mash"`, "mesh"}},
		"unknown processor":  {"receivers: {mesh: {}}\nprocessors: {smoother: {}}\nexporters: {debug: {}}" + service, []string{"processors", `"smoother"`}},
		"unknown exporter":   {"receivers: {mesh: {}}\nexporters: {carrier_pigeon/north: {}}" + service, []string{"exporters", `"carrier_pigeon"`}},
		"unknown extension":  {"receivers: {mesh: {}}\nextensions: {zpages: {}}\nexporters: {debug: {}}" + service, []string{"extensions", `"zpages"`}},
		"unknown key":        {"receivers: {mesh: {report_intervall: 1s}}\nexporters: {debug: {}}" + service, []string{"receivers", "mesh", "report_intervall"}},
		"unknown section":    {"receivers: {mesh: {}}\nexportres: {}\nexporters: {debug: {}}" + service, []string{"exportres"}},
		"bad value":          {"receivers: {mesh: {report_interval: 1ms}}\nexporters: {debug: {}}" + service, []string{"receivers::mesh", "report_interval: must be at least 100ms"}},
		"not configured":     {"receivers: {mesh: {}}\nexporters: {debug: {}}\nservice: {pipelines: {logs: {receivers: [mesh], exporters: [otlp_grpc]}}}", []string{"pipelines::logs", `"otlp_grpc"`}},
		"no pipelines":       {"receivers: {mesh: {}}\nexporters: {debug: {}}", []string{"pipeline"}},
		"not an environment": {"receivers: {mesh: {}}\nexporters: {debug: {}}\nprocessors: ${http://example.org/}" + service, []string{"http"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := quiet("yaml:" + test.yaml).Validate(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestValidateNamesAFileThatIsNotThere(t *testing.T) {
	if err := quiet("file:/none/otel.yaml").Validate(t.Context()); err == nil || !strings.Contains(err.Error(), "/none/otel.yaml") {
		t.Errorf("error %v, want one that names the file", err)
	}
}

func TestEveryListedComponentCanBeNamed(t *testing.T) {
	const everything = `
receivers: {mesh: {}, otlp: {protocols: {grpc: {}, http: {}}}}
processors:
  batch: {}
  memory_limiter: {check_interval: 1s, limit_mib: 100}
  filter: {}
  transform: {}
  resource: {attributes: [{key: a, value: b, action: insert}]}
exporters:
  otlp_grpc: {endpoint: 127.0.0.1:4317}
  otlp_http: {endpoint: http://127.0.0.1:4318}
  debug: {}
  file: {path: /dev/null}
extensions: {file_storage: {directory: /tmp}, health_check: {}}
service:
  extensions: [file_storage, health_check]
  pipelines:
    logs:
      receivers: [mesh, otlp]
      processors: [memory_limiter, filter, transform, resource, batch]
      exporters: [otlp_grpc, otlp_http, debug, file]
`
	if err := quiet("yaml:" + everything).Validate(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestExportersCanBeNamedByTheirOlderNames(t *testing.T) {
	for _, exporter := range []string{"otlp: {endpoint: 127.0.0.1:4317}", "otlphttp: {endpoint: http://127.0.0.1:4318}"} {
		name, _, _ := strings.Cut(exporter, ":")
		text := "yaml:receivers: {mesh: {}}\nexporters: {" + exporter + "}\nservice: {pipelines: {logs: {receivers: [mesh], exporters: [" + name + "]}}}\n"
		if err := quiet(text).Validate(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFurtherExportersCanBeNamed(t *testing.T) {
	const text = "yaml:receivers: {mesh: {}}\nexporters: {nop: {}}\nservice: {pipelines: {logs: {receivers: [mesh], exporters: [nop]}}}\n"
	if err := quiet(text).Validate(t.Context()); err == nil {
		t.Error("an exporter that nobody gave is known")
	}
	c := quiet(text)
	c.options.Exporters = []exporter.Factory{exportertest.NewNopFactory()}
	if err := c.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	c.options.Exporters = []exporter.Factory{exportertest.NewNopFactory(), exportertest.NewNopFactory()}
	if err := c.Validate(t.Context()); err == nil || !strings.Contains(err.Error(), "list exporters") {
		t.Errorf("error %v for an exporter that is there twice", err)
	}
}

func TestDefaultCanBeValidatedTwice(t *testing.T) {
	c := quiet("yaml:" + string(otelconfig.Default))
	for range 2 {
		if err := c.Validate(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestValidateWarnsOfExportersThatMakeDuplicates(t *testing.T) {
	const exporters = `
exporters:
  otlp_grpc: {endpoint: 127.0.0.1:4317}
  otlp_grpc/direct: {endpoint: 127.0.0.1:4317, sending_queue: {enabled: false}}
  debug: {}
  file: {path: /dev/null}
`
	for pipeline, want := range map[string][]string{
		"[otlp_grpc]":                         nil,
		"[otlp_grpc/direct]":                  nil, // it refuses for itself alone
		"[otlp_grpc, debug]":                  nil,
		"[otlp_grpc, otlp_grpc/direct]":       {"otlp_grpc/direct"},
		"[otlp_grpc, otlp_grpc/direct, file]": {"otlp_grpc/direct", "file"},
	} {
		var log bytes.Buffer
		c := quiet("yaml:receivers: {mesh: {}}" + exporters + "service: {pipelines: {logs: {receivers: [mesh], exporters: " + pipeline + "}}}\n")
		c.options.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if err := c.Validate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "shares a pipeline"); n != len(want) {
			t.Errorf("%s: %d warnings, want %d: %s", pipeline, n, len(want), log.String())
		}
		for _, exporter := range want {
			if !strings.Contains(log.String(), "pipeline=logs exporter="+exporter+"\n") {
				t.Errorf("%s: no warning of %s: %s", pipeline, exporter, log.String())
			}
		}
	}
}

// TestDefaultHasAQueuePerExporter, on disk and sized in items: what the account and the retries of the receiver rely on.
func TestDefaultHasAQueuePerExporter(t *testing.T) {
	otlp := config.OTLP{Endpoint: "http://127.0.0.1:4317", Protocol: config.ProtocolGRPC, Traces: config.Signal{Protocol: config.ProtocolHTTP}}
	uri, err := DefaultURI(otlp.Exporters(), t.TempDir(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c := quiet(uri)
	if err := c.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.account.ledgers) != 3 {
		t.Errorf("%d exporters, want one for each signal", len(c.account.ledgers))
	}
	for key, l := range c.account.ledgers {
		if !l.hasQueue.Load() || !l.persistent.Load() || !l.items.Load() {
			t.Errorf("%v: queue %v, on disk %v, in items %v; want all", key, l.hasQueue.Load(), l.persistent.Load(), l.items.Load())
		}
	}
}
