package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.OTLP.Enabled() {
		t.Error("something is sent somewhere by default")
	}
}

func TestLevel(t *testing.T) {
	for text, want := range map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	} {
		if got, err := (&Config{LogLevel: text}).Level(); err != nil || got != want {
			t.Errorf("level %s is %v, error %v", text, got, err)
		}
	}
	// The library behind it takes these; our documentation does not.
	for _, text := range []string{"", "INFO", "info+2", "warning"} {
		want := fmt.Sprintf("log_level: unknown level %q; use debug, info, warn or error", text)
		if _, err := (&Config{LogLevel: text}).Level(); err == nil || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

// fault is a change of the default configuration and what Validate says of it; empty when it is right.
type fault struct {
	name   string
	change func(*Config)
	want   string
}

var ringFault = fmt.Sprintf("is not a power of two from %d to 1073741824", os.Getpagesize())

var faults = []fault{
	{"log level", func(c *Config) { c.LogLevel = "loud" }, `log_level: unknown level "loud"; use debug, info, warn or error`},
	{"no access log", func(c *Config) { c.AccessLog = "" }, "access_log: empty; use off, stdout, stderr or a file"},
	{
		"no address", func(c *Config) { c.MetricsAddress = "" },
		`metrics_address: "" is not HOST:PORT; use for example 127.0.0.1:9464`,
	},
	{
		"no cluster", func(c *Config) { c.Prometheus.IstioCluster = "" },
		`prometheus.istio_cluster: "" is no name of a cluster; use up to 256 bytes of UTF-8, such as Kubernetes`,
	},
	{
		"a cluster that is no text", func(c *Config) { c.Prometheus.IstioCluster = "\xff" },
		`prometheus.istio_cluster: "\xff" is no name of a cluster; use up to 256 bytes of UTF-8, such as Kubernetes`,
	},
	{"a long cluster", func(c *Config) { c.Prometheus.IstioCluster = strings.Repeat("c", 256) }, ""},
	{
		"address without port", func(c *Config) { c.MetricsAddress = "127.0.0.1" },
		`metrics_address: "127.0.0.1" is not HOST:PORT; use for example 127.0.0.1:9464`,
	},
	{
		"IPv6 without brackets", func(c *Config) { c.MetricsAddress = "::1:9464" },
		`metrics_address: "::1:9464" is not HOST:PORT; use for example 127.0.0.1:9464`,
	},
	{
		"empty port", func(c *Config) { c.MetricsAddress = "127.0.0.1:" },
		`metrics_address: "" is no port; use a number from 0 to 65535, 0 for any free one`,
	},
	{
		"port too big", func(c *Config) { c.MetricsAddress = "127.0.0.1:65536" },
		`metrics_address: "65536" is no port; use a number from 0 to 65535, 0 for any free one`,
	},
	{
		"port by name", func(c *Config) { c.MetricsAddress = "127.0.0.1:http" },
		`metrics_address: "http" is no port; use a number from 0 to 65535, 0 for any free one`,
	},
	{
		"address without host", func(c *Config) { c.MetricsAddress = ":9464" },
		`metrics_address: ":9464" has no host; name an address, or 0.0.0.0:9464 to listen on all of them on purpose`,
	},
	{"any port", func(c *Config) { c.MetricsAddress = "[::1]:0" }, ""},
	{"last port", func(c *Config) { c.MetricsAddress = "localhost:65535" }, ""},
	{
		"report too often", func(c *Config) { c.ReportInterval = 100*time.Millisecond - 1 },
		"report_interval: 99.999999ms is out of range; use 100ms to 1h0m0s",
	},
	{
		"report too seldom", func(c *Config) { c.ReportInterval = time.Hour + 1 },
		"report_interval: 1h0m0.000000001s is out of range; use 100ms to 1h0m0s",
	},
	{"report as often as it may", func(c *Config) { c.ReportInterval = 100 * time.Millisecond }, ""},
	{"report as seldom as it may", func(c *Config) { c.ReportInterval = time.Hour }, ""},
	{"no drain", func(c *Config) { c.DrainInterval = 0 }, "drain_interval: 0s is out of range; use 1ms to 10s"},
	{"drain too seldom", func(c *Config) { c.DrainInterval = 11 * time.Second }, "drain_interval: 11s is out of range; use 1ms to 10s"},
	{"drain as often as it may", func(c *Config) { c.DrainInterval = time.Millisecond }, ""},
	{"drain as seldom as it may", func(c *Config) { c.DrainInterval = 10 * time.Second }, ""},
	{"no ring", func(c *Config) { c.RingBytes = 0 }, "ring_bytes: 0 " + ringFault},
	{"ring below a page", func(c *Config) { c.RingBytes = 2048 }, "ring_bytes: 2048 " + ringFault},
	{"ring of no power of two", func(c *Config) { c.RingBytes = 4<<20 + 4096 }, "ring_bytes: 4198400 " + ringFault},
	{"ring too big", func(c *Config) { c.RingBytes = 1 << 31 }, "ring_bytes: 2147483648 " + ringFault},
	{"smallest ring", func(c *Config) { c.RingBytes = uint32(os.Getpagesize()) }, ""},
	{"biggest ring", func(c *Config) { c.RingBytes = 1 << 30 }, ""},
	{"no connections", func(c *Config) { c.MaxConnections = 0 }, "max_connections: 0; use at least 1"},
	{"fewer connections", func(c *Config) { c.MaxConnections = -5 }, "max_connections: -5; use at least 1"},
	{"unknown events", func(c *Config) { c.Events = "some" }, `events: "some" is none of all, closes and none`},
	{"only closes", func(c *Config) { c.Events = EventsCloses }, ""},
	{"no edges", func(c *Config) { c.MaxEdges = 0 }, "max_edges: 0; use at least 1"},
	{"one of each", func(c *Config) { c.MaxConnections, c.MaxEdges = 1, 1 }, ""},
	{"no state directory", func(c *Config) { c.StateDirectory = "" }, "state_directory: empty; name a directory"},
	{"no peer groups", func(c *Config) { c.PeerGroups = nil }, ""},
	{"peer group without name", func(c *Config) { c.PeerGroups[0].Name = "" }, "peer_groups[0].name: empty; give the group a name"},
	{
		"peer group without ranges", func(c *Config) { c.PeerGroups = append(c.PeerGroups, PeerGroup{Name: "web"}) },
		"peer_groups[1].cidrs: empty; give at least one, such as 10.0.0.0/8",
	},
	{
		"peer group with an empty range", func(c *Config) { c.PeerGroups[0].CIDRs[1] = netip.Prefix{} },
		"peer_groups[0].cidrs[1]: empty; give a range, such as 10.0.0.0/8",
	},
	{"unknown propagation", func(c *Config) { c.Traces.Propagate = "header" }, `traces.propagate: "header" is neither off nor tcp_option`},
	{
		"propagation to nobody", func(c *Config) { c.Traces.Propagate = PropagateTCPOption },
		"traces.peers: empty; give the ranges of addresses whose SYNs may carry the option, such as 10.0.0.0/8: on the way to others it may be taken for an attack",
	},
	{"peers of no propagation", func(c *Config) { c.Traces.Peers = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }, ""},
	{
		"propagation to an empty range", func(c *Config) { c.Traces = Traces{PropagateTCPOption, make([]netip.Prefix, 1)} },
		"traces.peers[0]: empty; give a range, such as 10.0.0.0/8",
	},
	{
		"propagation to IPv4 in IPv6", func(c *Config) {
			c.Traces = Traces{PropagateTCPOption, []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}
		},
		"traces.peers[0]: ::ffff:10.0.0.0/104 is IPv4 in IPv6; write it as IPv4, such as 10.0.0.0/8",
	},
	{
		"propagation to too many ranges", func(c *Config) {
			c.Traces = Traces{PropagateTCPOption, slices.Repeat([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, MostTracePeers+1)}
		},
		"traces.peers: 256 ranges; use at most 255, wider ones",
	},
	{
		"endpoint without scheme", func(c *Config) { c.OTLP.Endpoint = "127.0.0.1:4317" },
		`otlp.endpoint: "127.0.0.1:4317" is not a URL; use http://HOST:PORT or https://HOST:PORT`,
	},
	{
		"endpoint of a host's name without scheme", func(c *Config) { c.OTLP.Endpoint = "collector:4317" },
		`otlp.endpoint: "collector:4317" is not a URL; use http://HOST:PORT or https://HOST:PORT`,
	},
	{
		"endpoint of another scheme", func(c *Config) { c.OTLP.Metrics.Endpoint = "grpc://collector:4317" },
		`otlp.metrics.endpoint: "grpc://collector:4317" is not a URL; use http://HOST:PORT or https://HOST:PORT`,
	},
	{
		"endpoint without host", func(c *Config) { c.OTLP.Logs.Endpoint = "http:///v1/logs" },
		`otlp.logs.endpoint: "http:///v1/logs" is not a URL; use http://HOST:PORT or https://HOST:PORT`,
	},
	{"plain endpoint", func(c *Config) { c.OTLP.Endpoint = "http://127.0.0.1:4317" }, ""},
	{"TLS endpoint", func(c *Config) { c.OTLP.Endpoint = "https://[::1]:4318/otlp" }, ""},
	{
		"protocol", func(c *Config) { c.OTLP.Protocol = "http/json" },
		`otlp.protocol: unknown protocol "http/json"; use grpc or http/protobuf`,
	},
	{
		"protocol of one signal", func(c *Config) { c.OTLP.Traces.Protocol = "http" },
		`otlp.traces.protocol: unknown protocol "http"; use grpc or http/protobuf`,
	},
	{"both protocols", func(c *Config) { c.OTLP.Protocol, c.OTLP.Traces.Protocol = "grpc", "http/protobuf" }, ""},
	{
		"compression", func(c *Config) { c.OTLP.Logs.Compression = "brotli" },
		`otlp.logs.compression: unknown compression "brotli"; use gzip, zstd or none`,
	},
	{"every compression", func(c *Config) {
		c.OTLP.Compression, c.OTLP.Metrics.Compression, c.OTLP.Logs.Compression = "none", "gzip", "zstd"
	}, ""},
	{"timeout", func(c *Config) { c.OTLP.Metrics.Timeout = -time.Second }, "otlp.metrics.timeout: -1s is negative"},
	{"certificate without key", func(c *Config) { c.OTLP.CertFile = "cert.pem" }, "otlp: cert_file and key_file go together"},
	{"key without certificate", func(c *Config) { c.OTLP.Traces.KeyFile = "key.pem" }, "otlp.traces: cert_file and key_file go together"},
	{"budget off", func(c *Config) { c.Budget.CPU, c.Budget.Memory = 0, 0 }, ""},
	{"budget of more than there is", func(c *Config) { c.Budget.CPU = 1.5 }, "budget.cpu: 150% is out of range; use a percentage of the node up to 100%, or off"},
	{"budget that is too small", func(c *Config) { c.Budget.Memory = 1 << 20 }, "budget.memory: 1MiB does not hold the agent alone; use at least 32MiB, or off"},
	{"everything is slow", func(c *Config) { c.Budget.Slow = 0 }, "budget.slow: 0s; use a time such as 500ms"},
	{
		"profiles without scheme", func(c *Config) { c.Profiling.Pyroscope.URL = "localhost:4040" },
		`profiling.pyroscope.url: "localhost:4040" is not a URL; use http://HOST:PORT or https://HOST:PORT`,
	},
	{"profiles", func(c *Config) { c.Profiling.Pyroscope.URL = "http://127.0.0.1:4040" }, ""},
	{"profiles of nobody", func(c *Config) { c.Profiling.Pyroscope.Application = "" }, "profiling.pyroscope.application: empty; give the agent a name, such as sidelight"},
	{"user without password", func(c *Config) { c.Profiling.Pyroscope.User = "me" }, "profiling.pyroscope: user and password go together"},
	{"no room for workloads", func(c *Config) { c.Mesh.MaxWorkloads = 0 }, "mesh.max_workloads: 0 is out of range; use 1 to 67108864"},
	{"no room for addresses", func(c *Config) { c.Mesh.MaxAddresses = 0 }, "mesh.max_addresses: 0 is out of range; use 1 to 67108864"},
	{"no room for frontends", func(c *Config) { c.Mesh.MaxFrontends = 0 }, "mesh.max_frontends: 0 is out of range; use 1 to 67108864"},
	{"no room for pools", func(c *Config) { c.Mesh.MaxPools = 0 }, "mesh.max_pools: 0 is out of range; use 1 to 67108864"},
	{"no room for backends", func(c *Config) { c.Mesh.MaxBackends = 0 }, "mesh.max_backends: 0 is out of range; use 1 to 67108864"},
	{"too many slots", func(c *Config) { c.Mesh.MaxSlots = 1<<26 + 1 }, "mesh.max_slots: 67108865 is out of range; use 1 to 67108864"},
	{"no room for limits", func(c *Config) { c.Mesh.MaxLimits = 0 }, "mesh.max_limits: 0 is out of range; use 1 to 67108864"},
	{"no room for policy sets", func(c *Config) { c.Mesh.MaxPolicySets = 0 }, "mesh.max_policy_sets: 0 is out of range; use 1 to 67108864"},
	{"too many policy entries", func(c *Config) { c.Mesh.MaxPolicyEntries = 1 << 31 }, "mesh.max_policy_entries: 2147483648 is out of range; use 1 to 67108864"},
	{"smallest and largest mesh", func(c *Config) { c.Mesh.MaxWorkloads, c.Mesh.MaxSlots = 1, 1<<26 }, ""},
	{"certificate and key", func(c *Config) { c.OTLP.CertFile, c.OTLP.KeyFile = "cert.pem", "key.pem" }, ""},
}

func TestValidate(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			c := Default()
			f.change(&c)
			got := ""
			if err := c.Validate(); err != nil {
				got = err.Error()
			}
			if got != f.want {
				t.Errorf("\ngot  %s\nwant %s", got, f.want)
			}
		})
	}
}

// A user who has several faults is told of all of them in one go.
func TestValidateTellsEveryFault(t *testing.T) {
	c := Default()
	c.LogLevel, c.AccessLog, c.MetricsAddress, c.StateDirectory = "loud", "", "", ""
	c.ReportInterval, c.DrainInterval, c.RingBytes, c.MaxConnections, c.MaxEdges = 0, 0, 0, 0, 0
	c.Events = "some"
	c.PeerGroups = []PeerGroup{{}}
	c.OTLP = OTLP{Endpoint: "x", Protocol: "x", Compression: "x", Timeout: -1, CertFile: "x"}
	c.Mesh = Mesh{}
	c.Traces.Propagate = PropagateTCPOption
	var keys []string
	for line := range strings.Lines(c.Validate().Error()) {
		key, _, _ := strings.Cut(line, ":")
		keys = append(keys, key)
	}
	const want = "log_level access_log metrics_address report_interval drain_interval ring_bytes events max_connections max_edges " +
		"state_directory peer_groups[0].name peer_groups[0].cidrs " +
		"otlp.endpoint otlp.protocol otlp.compression otlp.timeout otlp traces.peers " +
		"mesh.max_workloads mesh.max_addresses mesh.max_frontends mesh.max_pools mesh.max_backends mesh.max_slots mesh.max_limits " +
		"mesh.max_policy_sets mesh.max_policy_entries"
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
}

func TestEnabled(t *testing.T) {
	for name, o := range map[string]OTLP{
		"common":  {Endpoint: "http://c:4317"},
		"metrics": {Metrics: Signal{Endpoint: "http://c:4317"}},
		"logs":    {Logs: Signal{Endpoint: "http://c:4317"}},
		"traces":  {Traces: Signal{Endpoint: "http://c:4317"}},
	} {
		if !o.Enabled() {
			t.Errorf("with an endpoint in %s nothing is sent", name)
		}
	}
	o := OTLP{Protocol: "grpc", Headers: map[string]string{"a": "b"}, Metrics: Signal{Protocol: "grpc"}}
	if o.Enabled() {
		t.Error("without an endpoint something is sent")
	}
}
