package config

import (
	"reflect"
	"testing"
	"time"
)

func lookupIn(environment map[string]string) func(string) (string, bool) {
	return func(key string) (string, bool) {
		value, ok := environment[key]
		return value, ok
	}
}

func TestApplyEnvironment(t *testing.T) {
	tests := []struct {
		name        string
		before      OTLP
		environment map[string]string
		want        OTLP
	}{
		{
			"nothing set",
			OTLP{Endpoint: "http://file:4317", Timeout: time.Second},
			nil,
			OTLP{Endpoint: "http://file:4317", Timeout: time.Second},
		},
		{
			"everything for all signals",
			OTLP{
				Endpoint: "http://file:1", Protocol: "grpc", Headers: map[string]string{"from": "file"}, Compression: "gzip",
				Timeout: time.Second, CAFile: "file-ca", CertFile: "file-cert", KeyFile: "file-key",
			},
			map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "https://env:2", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
				"OTEL_EXPORTER_OTLP_HEADERS": "from=env", "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
				"OTEL_EXPORTER_OTLP_TIMEOUT": "2500", "OTEL_EXPORTER_OTLP_CERTIFICATE": "env-ca",
				"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "env-cert", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "env-key",
			},
			OTLP{
				Endpoint: "https://env:2", Protocol: "http/protobuf", Headers: map[string]string{"from": "env"}, Compression: "zstd",
				Timeout: 2500 * time.Millisecond, CAFile: "env-ca", CertFile: "env-cert", KeyFile: "env-key",
			},
		},
		{
			"everything for one signal",
			OTLP{},
			map[string]string{
				"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://env:2/v1/logs", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
				"OTEL_EXPORTER_OTLP_LOGS_HEADERS": "from=env", "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "zstd",
				"OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "2500", "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": "env-ca",
				"OTEL_EXPORTER_OTLP_LOGS_CLIENT_CERTIFICATE": "env-cert", "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY": "env-key",
			},
			OTLP{Logs: Signal{
				Endpoint: "https://env:2/v1/logs", Protocol: "http/protobuf", Headers: map[string]string{"from": "env"}, Compression: "zstd",
				Timeout: 2500 * time.Millisecond, CAFile: "env-ca", CertFile: "env-cert", KeyFile: "env-key",
			}},
		},
		{
			"one for each signal",
			OTLP{},
			map[string]string{
				"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:1", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://l:2",
				"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:3",
			},
			OTLP{Metrics: Signal{Endpoint: "http://m:1"}, Logs: Signal{Endpoint: "http://l:2"}, Traces: Signal{Endpoint: "http://t:3"}},
		},
		{
			"empty is not set",
			OTLP{Endpoint: "http://file:1", Protocol: "grpc", Headers: map[string]string{"from": "file"}, Timeout: time.Second},
			map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_PROTOCOL": "", "OTEL_EXPORTER_OTLP_HEADERS": "", "OTEL_EXPORTER_OTLP_TIMEOUT": "",
			},
			OTLP{Endpoint: "http://file:1", Protocol: "grpc", Headers: map[string]string{"from": "file"}, Timeout: time.Second},
		},
		{
			"without scheme it is secure",
			OTLP{},
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "env:4317"},
			OTLP{Endpoint: "https://env:4317"},
		},
		{
			"without scheme and insecure",
			OTLP{},
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "env:4317", "OTEL_EXPORTER_OTLP_INSECURE": "True"},
			OTLP{Endpoint: "http://env:4317"},
		},
		{
			"any other word is not true",
			OTLP{},
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "env:4317", "OTEL_EXPORTER_OTLP_INSECURE": "1"},
			OTLP{Endpoint: "https://env:4317"},
		},
		{
			"a scheme says more than insecure",
			OTLP{},
			map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "https://env:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
			OTLP{Endpoint: "https://env:4317"},
		},
		{
			"insecure for all signals",
			OTLP{},
			map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "env:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"},
			OTLP{Metrics: Signal{Endpoint: "http://env:4317"}},
		},
		{
			"a signal knows better",
			OTLP{},
			map[string]string{
				"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "env:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true",
				"OTEL_EXPORTER_OTLP_METRICS_INSECURE": "false",
			},
			OTLP{Metrics: Signal{Endpoint: "https://env:4317"}},
		},
		{
			// Validate shall say what is wrong with it, rather than this guess.
			"what the file has without scheme stays",
			OTLP{Endpoint: "file:4317"},
			map[string]string{"OTEL_EXPORTER_OTLP_INSECURE": "true"},
			OTLP{Endpoint: "file:4317"},
		},
		{
			"headers",
			OTLP{},
			map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20YTpi==, tenant = a%2Cb%3Dc ,plus=a+b,empty="},
			OTLP{Headers: map[string]string{"authorization": "Basic YTpi==", "tenant": "a,b=c", "plus": "a+b", "empty": ""}},
		},
		{
			"headers take the place of those of the file",
			OTLP{Headers: map[string]string{"from": "file"}},
			map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "tenant=7"},
			OTLP{Headers: map[string]string{"tenant": "7"}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := test.before
			if err := got.ApplyEnvironment(lookupIn(test.environment)); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("\ngot  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestApplyEnvironmentErrors(t *testing.T) {
	tests := []struct {
		key, value string
		want       string
	}{
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", `OTEL_EXPORTER_OTLP_TIMEOUT: "10s" is not a number of milliseconds`},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "-1", `OTEL_EXPORTER_OTLP_TIMEOUT: "-1" is not a number of milliseconds`},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "2147483648", `OTEL_EXPORTER_OTLP_TIMEOUT: "2147483648" is not a number of milliseconds`},
		{"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1.5", `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: "1.5" is not a number of milliseconds`},
		{"OTEL_EXPORTER_OTLP_HEADERS", "tenant", `OTEL_EXPORTER_OTLP_HEADERS: "tenant" is not key=value`},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a=b, =c", `OTEL_EXPORTER_OTLP_HEADERS: " =c" is not key=value`},
		{"OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=100%", `OTEL_EXPORTER_OTLP_METRICS_HEADERS: value of a: invalid URL escape "%"`},
		{"OTEL_EXPORTER_OTLP_LOGS_HEADERS", "a=%zz", `OTEL_EXPORTER_OTLP_LOGS_HEADERS: value of a: invalid URL escape "%zz"`},
	}
	for _, test := range tests {
		t.Run(test.key+"="+test.value, func(t *testing.T) {
			var o OTLP
			if err := o.ApplyEnvironment(lookupIn(map[string]string{test.key: test.value})); err == nil || err.Error() != test.want {
				t.Errorf("error is %v, want %s", err, test.want)
			}
		})
	}
}
