package config

import (
	"reflect"
	"testing"
	"time"
)

func TestExporters(t *testing.T) {
	// exporter fills in what is the same wherever nothing is said.
	exporter := func(signal, endpoint, protocol string, change ...func(*Exporter)) Exporter {
		e := Exporter{Signal: signal, Settings: Settings{Endpoint: endpoint, Protocol: protocol, Compression: "gzip", Timeout: 10 * time.Second}}
		for _, c := range change {
			c(&e)
		}
		return e
	}
	headers := func(h map[string]string) func(*Exporter) { return func(e *Exporter) { e.Headers = h } }
	plain := func(e *Exporter) { e.Compression = "none" }
	tests := []struct {
		name string
		otlp OTLP
		want []Exporter
	}{
		{"no endpoint", OTLP{Protocol: "grpc", Metrics: Signal{Timeout: 1}}, nil},
		{
			"port 4317 is grpc, and an endpoint of all signals is the same for each",
			OTLP{Endpoint: "http://c:4317"},
			[]Exporter{
				exporter("metrics", "http://c:4317", "grpc"),
				exporter("logs", "http://c:4317", "grpc"),
				exporter("traces", "http://c:4317", "grpc"),
			},
		},
		{
			"any other port is http, and each signal has its path",
			OTLP{Endpoint: "http://c:4318"},
			[]Exporter{
				exporter("metrics", "http://c:4318/v1/metrics", "http/protobuf"),
				exporter("logs", "http://c:4318/v1/logs", "http/protobuf"),
				exporter("traces", "http://c:4318/v1/traces", "http/protobuf"),
			},
		},
		{
			"the paths go below the endpoint's own",
			OTLP{Endpoint: "https://c/otlp/"},
			[]Exporter{
				exporter("metrics", "https://c/otlp/v1/metrics", "http/protobuf"),
				exporter("logs", "https://c/otlp/v1/logs", "http/protobuf"),
				exporter("traces", "https://c/otlp/v1/traces", "http/protobuf"),
			},
		},
		{
			"nothing is compressed for this host, unless it is said",
			OTLP{Endpoint: "http://127.0.0.1:4318", Metrics: Signal{Endpoint: "http://[::1]:1"}, Logs: Signal{Compression: "gzip"}, Traces: Signal{Endpoint: "http://localhost:1"}},
			[]Exporter{
				exporter("metrics", "http://[::1]:1", "http/protobuf", plain),
				exporter("logs", "http://127.0.0.1:4318/v1/logs", "http/protobuf"),
				exporter("traces", "http://localhost:1", "http/protobuf", plain),
			},
		},
		{
			"4317 in a host's name is no port",
			OTLP{Logs: Signal{Endpoint: "http://host4317:1"}},
			[]Exporter{exporter("logs", "http://host4317:1", "http/protobuf")},
		},
		{
			"a protocol says more than the port",
			OTLP{
				Protocol: "grpc", Metrics: Signal{Endpoint: "http://c:4318"}, Traces: Signal{Endpoint: "http://c:4317", Protocol: "http/protobuf"},
			},
			[]Exporter{exporter("metrics", "http://c:4318", "grpc"), exporter("traces", "http://c:4317", "http/protobuf")},
		},
		{
			"a signal's own endpoint is taken as it is",
			OTLP{
				Endpoint: "http://c:4318", Metrics: Signal{Endpoint: "http://m:4318/"}, Logs: Signal{Endpoint: "http://l:4317"},
			},
			[]Exporter{
				exporter("metrics", "http://m:4318/", "http/protobuf"),
				exporter("logs", "http://l:4317", "grpc"),
				exporter("traces", "http://c:4318/v1/traces", "http/protobuf"),
			},
		},
		{
			"only the signals that have an endpoint",
			OTLP{Traces: Signal{Endpoint: "http://t:4317"}},
			[]Exporter{exporter("traces", "http://t:4317", "grpc")},
		},
		{
			"everything of all signals",
			OTLP{
				Endpoint: "https://c:4317", Headers: map[string]string{"a": "b"}, Compression: "none", Timeout: time.Second,
				CAFile: "ca", CertFile: "cert", KeyFile: "key", Metrics: Signal{},
			},
			[]Exporter{
				{"metrics", Settings{"https://c:4317", "grpc", "none", time.Second, "ca", "cert", "key"}, map[string]string{"a": "b"}},
				{"logs", Settings{"https://c:4317", "grpc", "none", time.Second, "ca", "cert", "key"}, map[string]string{"a": "b"}},
				{"traces", Settings{"https://c:4317", "grpc", "none", time.Second, "ca", "cert", "key"}, map[string]string{"a": "b"}},
			},
		},
		{
			"everything of one signal",
			OTLP{
				Endpoint: "https://c:4317", Protocol: "grpc", Headers: map[string]string{"a": "b"}, Compression: "none", Timeout: time.Second,
				CAFile: "ca", CertFile: "cert", KeyFile: "key",
				Logs: Signal{
					Endpoint: "http://l:1/x", Protocol: "http/protobuf", Headers: map[string]string{"c": "d"}, Compression: "zstd",
					Timeout: time.Minute, CAFile: "l-ca", CertFile: "l-cert", KeyFile: "l-key",
				},
			},
			[]Exporter{
				{"metrics", Settings{"https://c:4317", "grpc", "none", time.Second, "ca", "cert", "key"}, map[string]string{"a": "b"}},
				{"logs", Settings{"http://l:1/x", "http/protobuf", "zstd", time.Minute, "l-ca", "l-cert", "l-key"}, map[string]string{"c": "d"}},
				{"traces", Settings{"https://c:4317", "grpc", "none", time.Second, "ca", "cert", "key"}, map[string]string{"a": "b"}},
			},
		},
		{
			"a signal without headers where the others have some",
			OTLP{
				Headers: map[string]string{"a": "b"}, Metrics: Signal{Endpoint: "http://m:4317", Headers: map[string]string{}},
				Logs: Signal{Endpoint: "http://l:4317"},
			},
			[]Exporter{
				exporter("metrics", "http://m:4317", "grpc", headers(map[string]string{})),
				exporter("logs", "http://l:4317", "grpc", headers(map[string]string{"a": "b"})),
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.otlp.Exporters(); !reflect.DeepEqual(got, test.want) {
				t.Errorf("\ngot  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// The environment goes over the file, key by key, and what is said for one signal goes over what is said for all, wherever it was
// said. Flags go over both: that is in the command.
func TestPrecedence(t *testing.T) {
	const path = "testdata/precedence.yaml"
	c := Default()
	if err := Load(path, &c); err != nil {
		t.Fatal(err)
	}
	if err := c.OTLP.ApplyEnvironment(lookupIn(map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT":        "http://env:4318",
		"OTEL_EXPORTER_OTLP_TIMEOUT":         "7000",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS":  "from=env",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
	})); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	fromFile := map[string]string{"from": "file"}
	want := []Exporter{
		{"metrics", Settings{Endpoint: "http://env:4318/v1/metrics", Protocol: "http/protobuf", Compression: "zstd", Timeout: 7 * time.Second}, fromFile},
		{"logs", Settings{Endpoint: "http://file-logs:4317", Protocol: "grpc", Compression: "none", Timeout: 2 * time.Second}, map[string]string{}},
		{"traces", Settings{Endpoint: "http://env:4318", Protocol: "grpc", Compression: "zstd", Timeout: 7 * time.Second}, map[string]string{"from": "env"}},
	}
	if got := c.OTLP.Exporters(); !reflect.DeepEqual(got, want) {
		t.Errorf("\ngot  %+v\nwant %+v", got, want)
	}
}
