// Package config is what a user can set: one struct, its defaults, its checks, and its YAML form.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unicode/utf8"
)

// Config is everything that a user can set. Default gives a complete one.
type Config struct {
	// Cgroup is the directory to attach to; empty is the root of cgroup v2, wherever it is mounted.
	Cgroup string `yaml:"cgroup"`
	// AccessLog is off, stdout, stderr, or the path of a file to append to.
	AccessLog string `yaml:"access_log"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
	// MetricsAddress is HOST:PORT of the HTTP server: /metrics, /healthz, /readyz, /debug/pprof.
	MetricsAddress string `yaml:"metrics_address"`
	// Prometheus is what /metrics shows beside our own names.
	Prometheus Prometheus `yaml:"prometheus"`
	// OTelConfig is a collector's YAML file that takes the place of the built-in one.
	OTelConfig string `yaml:"otel_config"`
	// StateDirectory holds the queue of data that waits for an OTLP backend, the control socket, and what one agent leaves the next beside what is
	// pinned.
	StateDirectory string `yaml:"state_directory"`
	// ControlGroup is the group, by name or number, whose members may look at the agent through its control socket as root may; empty: nobody else.
	ControlGroup string `yaml:"control_group"`
	// PinDirectory is where in a bpffs programs and maps are pinned, so that they outlive the agent; off: they end with it.
	PinDirectory string `yaml:"pin_directory"`
	// OnExit is what becomes of what is pinned when the agent is told to stop: keep, remove, or auto, which keeps a mesh and removes what only
	// observes.
	OnExit string `yaml:"on_exit"`
	// UpgradeTimeout is how long an agent that takes over from another may take until it works; then the programs before it are put back.
	UpgradeTimeout time.Duration `yaml:"upgrade_timeout"`
	OTLP           OTLP          `yaml:"otlp"`

	// ReportInterval is how often metrics go to OTLP.
	ReportInterval time.Duration `yaml:"report_interval"`
	// DrainInterval is the age that an event reaches at most before it is read, unless many wait.
	DrainInterval time.Duration `yaml:"drain_interval"`
	// RingBytes is the size of the kernel's event ring, a power of two.
	RingBytes uint32 `yaml:"ring_bytes"`
	// Events are those that the kernel sends: all, closes (of connections that ended or failed), or none. Sums are exact with any; with none there
	// are no logs and spans, and histograms lack what ended between two sweeps.
	Events string `yaml:"events"`
	// FirstByteTimes asks the kernel for when the first bytes were sent and received, which costs some runs of a program a connection.
	FirstByteTimes bool `yaml:"first_byte_times"`
	// MaxConnections is how many open connections are followed at a time.
	MaxConnections int `yaml:"max_connections"`
	// MaxEdges is how many edges have metrics of their own.
	MaxEdges int `yaml:"max_edges"`
	// PeerGroups name peers by their address.
	PeerGroups []PeerGroup `yaml:"peer_groups"`
	// Traces is how the two ends of a connection come to one trace.
	Traces Traces `yaml:"traces"`
	// Budget is what the agent may take of the node.
	Budget Budget `yaml:"budget"`
	// Profiling is where profiles of the agent itself go.
	Profiling Profiling `yaml:"profiling"`
	// Mesh is what connections are steered and judged by.
	Mesh Mesh `yaml:"mesh"`
}

// Prometheus is about /metrics.
type Prometheus struct {
	// IstioAliases shows the connections and bytes of edges under Istio's names, too.
	IstioAliases bool `yaml:"istio_aliases"`
	// IstioCluster is the cluster of workloads for which the mesh names none, under Istio's names.
	IstioCluster string `yaml:"istio_cluster"`
}

// OTLP is where to send the three signals. Nothing is sent while no endpoint is set.
type OTLP struct {
	Endpoint    string            `yaml:"endpoint"` // URL
	Protocol    string            `yaml:"protocol"` // grpc or http/protobuf; empty: by the port, 4317 is grpc
	Headers     map[string]string `yaml:"headers"`
	Compression string            `yaml:"compression"` // gzip, zstd or none
	Timeout     time.Duration     `yaml:"timeout"`
	CAFile      string            `yaml:"ca_file"`
	CertFile    string            `yaml:"cert_file"`
	KeyFile     string            `yaml:"key_file"`
	// The same for one signal each; an empty field takes the value above. An http endpoint here is used as it is, without
	// adding /v1/SIGNAL, as the OpenTelemetry specification wants it.
	Metrics Signal `yaml:"metrics"`
	Logs    Signal `yaml:"logs"`
	Traces  Signal `yaml:"traces"`
}

// Signal is what can differ from one signal to the next.
type Signal struct {
	Endpoint    string            `yaml:"endpoint"`
	Protocol    string            `yaml:"protocol"`
	Headers     map[string]string `yaml:"headers"`
	Compression string            `yaml:"compression"`
	Timeout     time.Duration     `yaml:"timeout"`
	CAFile      string            `yaml:"ca_file"`
	CertFile    string            `yaml:"cert_file"`
	KeyFile     string            `yaml:"key_file"`
}

// Enabled says whether any signal has an endpoint.
func (o *OTLP) Enabled() bool {
	return o.Endpoint != "" || o.Metrics.Endpoint != "" || o.Logs.Endpoint != "" || o.Traces.Endpoint != ""
}

// PeerGroup names all peers in some address ranges.
type PeerGroup struct {
	Name      string         `yaml:"name"`
	Namespace string         `yaml:"namespace"`
	CIDRs     []netip.Prefix `yaml:"cidrs"`
}

// The protocols of OTLP, as in OTEL_EXPORTER_OTLP_PROTOCOL.
const (
	ProtocolGRPC = "grpc"
	ProtocolHTTP = "http/protobuf"
)

// What events there are to be.
const (
	EventsAll    = "all"
	EventsCloses = "closes"
	EventsNone   = "none"
)

// Off is a PinDirectory, an AccessLog and a Traces.Propagate.
const Off = "off"

// What OnExit can be.
const (
	OnExitAuto   = "auto"
	OnExitKeep   = "keep"
	OnExitRemove = "remove"
)

// Keep tells whether what is pinned stays when the agent is told to stop.
func (c *Config) Keep() bool {
	return c.PinDirectory != Off && (c.OnExit == OnExitKeep || c.OnExit == OnExitAuto && c.Mesh.Path != "")
}

// Default returns the configuration of someone who set nothing.
func Default() Config {
	return Config{
		AccessLog:      "off",
		LogLevel:       "info",
		MetricsAddress: "127.0.0.1:9464",
		Prometheus:     Prometheus{IstioCluster: "Kubernetes"}, // as Istio and Kiali call the only one
		StateDirectory: "/var/lib/sidelight",
		PinDirectory:   "/sys/fs/bpf/sidelight",
		OnExit:         OnExitAuto,
		UpgradeTimeout: 30 * time.Second,
		ReportInterval: 10 * time.Second,
		DrainInterval:  50 * time.Millisecond,
		RingBytes:      4 << 20,
		Events:         EventsAll,
		FirstByteTimes: true,
		MaxConnections: 1_000_000,
		MaxEdges:       10_000,
		Mesh:           defaultMesh(),
		Traces:         Traces{Propagate: Off, Peers: []netip.Prefix{}},
		Budget:         Budget{CPU: 0.01, Memory: 128 << 20, Slow: 500 * time.Millisecond},
		Profiling:      Profiling{Pyroscope: Pyroscope{Application: "sidelight"}},
		PeerGroups: []PeerGroup{{
			Name:  "localhost",
			CIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		}},
	}
}

// Level returns the log level.
func (c *Config) Level() (slog.Level, error) {
	var level slog.Level
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
		return level, level.UnmarshalText([]byte(c.LogLevel))
	}
	return level, fmt.Errorf("log_level: unknown level %q; use debug, info, warn or error", c.LogLevel)
}

// Validate returns every fault of the configuration, each with its key and the remedy.
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, err := c.Level(); err != nil {
		errs = append(errs, err)
	}
	if c.AccessLog == "" {
		fault("access_log: empty; use off, stdout, stderr or a file")
	}
	if host, port, err := net.SplitHostPort(c.MetricsAddress); err != nil {
		fault("metrics_address: %q is not HOST:PORT; use for example 127.0.0.1:9464", c.MetricsAddress)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		fault("metrics_address: %q is no port; use a number from 0 to 65535, 0 for any free one", port)
	} else if host == "" {
		fault("metrics_address: %q has no host; name an address, or 0.0.0.0:%d to listen on all of them on purpose", c.MetricsAddress, n)
	}
	if c.Prometheus.IstioCluster == "" || len(c.Prometheus.IstioCluster) > 256 || !utf8.ValidString(c.Prometheus.IstioCluster) {
		fault("prometheus.istio_cluster: %q is no name of a cluster; use up to 256 bytes of UTF-8, such as Kubernetes", c.Prometheus.IstioCluster)
	}
	within := func(key string, value, least, most time.Duration) {
		if value < least || value > most {
			fault("%s: %v is out of range; use %v to %v", key, value, least, most)
		}
	}
	within("report_interval", c.ReportInterval, 100*time.Millisecond, time.Hour)
	within("drain_interval", c.DrainInterval, time.Millisecond, 10*time.Second)
	within("upgrade_timeout", c.UpgradeTimeout, time.Second, time.Hour)
	switch c.OnExit {
	case OnExitAuto, OnExitKeep, OnExitRemove:
	default:
		fault("on_exit: %q is none of %s, %s and %s", c.OnExit, OnExitAuto, OnExitKeep, OnExitRemove)
	}
	switch {
	case c.PinDirectory == Off && c.OnExit == OnExitKeep:
		fault("on_exit: keep, and pin_directory is off: nothing can outlive the agent; name a pin_directory, or leave on_exit out")
	case c.PinDirectory != Off && !filepath.IsAbs(c.PinDirectory):
		fault("pin_directory: %q is no absolute path; name a directory in a bpffs, such as /sys/fs/bpf/sidelight, or off", c.PinDirectory)
	}
	if page := uint32(os.Getpagesize()); c.RingBytes < page || c.RingBytes&(c.RingBytes-1) != 0 || c.RingBytes > 1<<30 {
		fault("ring_bytes: %d is not a power of two from %d to %d", c.RingBytes, page, 1<<30)
	}
	switch c.Events {
	case EventsAll, EventsCloses, EventsNone:
	default:
		fault("events: %q is none of %s, %s and %s", c.Events, EventsAll, EventsCloses, EventsNone)
	}
	if c.MaxConnections < 1 {
		fault("max_connections: %d; use at least 1", c.MaxConnections)
	}
	if c.MaxEdges < 1 {
		fault("max_edges: %d; use at least 1", c.MaxEdges)
	}
	if c.StateDirectory == "" {
		fault("state_directory: empty; name a directory")
	}
	for i, group := range c.PeerGroups {
		if group.Name == "" {
			fault("peer_groups[%d].name: empty; give the group a name", i)
		}
		if len(group.CIDRs) == 0 {
			fault("peer_groups[%d].cidrs: empty; give at least one, such as 10.0.0.0/8", i)
		}
		for j, cidr := range group.CIDRs {
			if !cidr.IsValid() { // an empty text is read as one
				fault("peer_groups[%d].cidrs[%d]: empty; give a range, such as 10.0.0.0/8", i, j)
			}
		}
	}
	errs = append(errs, c.OTLP.validate()...)
	errs = append(errs, c.Traces.validate()...)
	errs = append(errs, c.Budget.validate()...)
	errs = append(errs, c.Profiling.Pyroscope.validate()...)
	errs = append(errs, c.Mesh.validate()...)
	return errors.Join(errs...)
}

func (o *OTLP) validate() []error {
	var errs []error
	check := func(key string, s Signal) {
		if s.Endpoint != "" {
			u, err := url.Parse(s.Endpoint)
			if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
				errs = append(errs, fmt.Errorf("%s.endpoint: %q is not a URL; use http://HOST:PORT or https://HOST:PORT", key, s.Endpoint))
			}
		}
		switch s.Protocol {
		case "", ProtocolGRPC, ProtocolHTTP:
		default:
			errs = append(errs, fmt.Errorf("%s.protocol: unknown protocol %q; use %s or %s", key, s.Protocol, ProtocolGRPC, ProtocolHTTP))
		}
		switch s.Compression {
		case "", "none", "gzip", "zstd":
		default:
			errs = append(errs, fmt.Errorf("%s.compression: unknown compression %q; use gzip, zstd or none", key, s.Compression))
		}
		if s.Timeout < 0 {
			errs = append(errs, fmt.Errorf("%s.timeout: %v is negative", key, s.Timeout))
		}
		if (s.CertFile == "") != (s.KeyFile == "") {
			errs = append(errs, fmt.Errorf("%s: cert_file and key_file go together", key))
		}
	}
	check("otlp", o.common())
	check("otlp.metrics", o.Metrics)
	check("otlp.logs", o.Logs)
	check("otlp.traces", o.Traces)
	return errs
}

func (o *OTLP) common() Signal {
	return Signal{
		Endpoint: o.Endpoint, Protocol: o.Protocol, Headers: o.Headers, Compression: o.Compression, Timeout: o.Timeout,
		CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile,
	}
}
