package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// commonPrefix is what the variables that hold for all signals begin with.
const commonPrefix = "OTEL_EXPORTER_OTLP_"

// ApplyEnvironment sets what the OTEL_EXPORTER_OTLP_* variables of the OpenTelemetry specification say, over what is there. An
// empty variable is one that is not set, as the specification wants. The caller passes os.LookupEnv: nothing below main reads
// the environment.
func (o *OTLP) ApplyEnvironment(lookup func(string) (string, bool)) error {
	common := o.common()
	if err := common.applyEnvironment(commonPrefix, lookup); err != nil {
		return err
	}
	o.Endpoint, o.Protocol, o.Headers, o.Compression = common.Endpoint, common.Protocol, common.Headers, common.Compression
	o.Timeout, o.CAFile, o.CertFile, o.KeyFile = common.Timeout, common.CAFile, common.CertFile, common.KeyFile
	for prefix, signal := range map[string]*Signal{
		commonPrefix + "METRICS_": &o.Metrics, commonPrefix + "LOGS_": &o.Logs, commonPrefix + "TRACES_": &o.Traces,
	} {
		if err := signal.applyEnvironment(prefix, lookup); err != nil {
			return err
		}
	}
	return nil
}

func (s *Signal) applyEnvironment(prefix string, lookup func(string) (string, bool)) error {
	for name, field := range map[string]*string{
		"ENDPOINT": &s.Endpoint, "PROTOCOL": &s.Protocol, "COMPRESSION": &s.Compression,
		"CERTIFICATE": &s.CAFile, "CLIENT_CERTIFICATE": &s.CertFile, "CLIENT_KEY": &s.KeyFile,
	} {
		if value, _ := lookup(prefix + name); value != "" {
			*field = value
		}
	}
	if value, _ := lookup(prefix + "TIMEOUT"); value != "" {
		ms, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return fmt.Errorf("%sTIMEOUT: %q is not a number of milliseconds", prefix, value)
		}
		s.Timeout = time.Duration(ms) * time.Millisecond
	}
	// Without a scheme, as gRPC exporters take it, INSECURE decides. What a file says stays as it is, for Validate to see.
	if endpoint, _ := lookup(prefix + "ENDPOINT"); endpoint != "" && !strings.Contains(endpoint, "://") {
		insecure, _ := lookup(prefix + "INSECURE")
		if insecure == "" {
			insecure, _ = lookup(commonPrefix + "INSECURE")
		}
		scheme := "https://"
		if strings.EqualFold(insecure, "true") {
			scheme = "http://"
		}
		s.Endpoint = scheme + endpoint
	}
	if value, _ := lookup(prefix + "HEADERS"); value != "" {
		headers, err := parseHeaders(value)
		if err != nil {
			return fmt.Errorf("%sHEADERS: %w", prefix, err)
		}
		s.Headers = headers
	}
	return nil
}

// parseHeaders reads key=value pairs with commas between them, values percent-encoded as in W3C baggage.
func parseHeaders(text string) (map[string]string, error) {
	headers := make(map[string]string)
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not key=value", pair)
		}
		decoded, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return nil, fmt.Errorf("value of %s: %w", key, err)
		}
		headers[key] = decoded
	}
	return headers, nil
}

// Exporter is everything that one signal's exporter needs.
type Exporter struct {
	Signal string // "metrics", "logs" or "traces"
	Settings
	Headers map[string]string
}

// Settings are the comparable part: signals with equal ones can share an exporter.
type Settings struct {
	Endpoint    string
	Protocol    string
	Compression string
	Timeout     time.Duration
	CAFile      string
	CertFile    string
	KeyFile     string
}

// Exporters resolves the settings of each signal that has an endpoint, in a fixed order.
func (o *OTLP) Exporters() []Exporter {
	var exporters []Exporter
	for _, s := range []struct {
		name string
		own  Signal
	}{{"metrics", o.Metrics}, {"logs", o.Logs}, {"traces", o.Traces}} {
		e := Exporter{Signal: s.name, Settings: Settings{
			Endpoint: first(s.own.Endpoint, o.Endpoint), Protocol: first(s.own.Protocol, o.Protocol),
			Compression: first(s.own.Compression, o.Compression), Timeout: s.own.Timeout,
			CAFile: first(s.own.CAFile, o.CAFile), CertFile: first(s.own.CertFile, o.CertFile), KeyFile: first(s.own.KeyFile, o.KeyFile),
		}, Headers: o.Headers}
		if e.Endpoint == "" {
			continue
		}
		if e.Timeout == 0 {
			e.Timeout = o.Timeout
		}
		if e.Timeout == 0 {
			e.Timeout = 10 * time.Second // the specification's default
		}
		if s.own.Headers != nil {
			e.Headers = s.own.Headers
		}
		u, _ := url.Parse(e.Endpoint) // Validate has seen it
		if e.Compression == "" {
			e.Compression = "gzip"
			if thisHost(u.Hostname()) {
				e.Compression = "none" // there is no network to spare, and gzip costs more than all else of exporting
			}
		}
		if e.Protocol == "" {
			e.Protocol = ProtocolHTTP
			if u.Port() == "4317" {
				e.Protocol = ProtocolGRPC
			}
		}
		if e.Protocol == ProtocolHTTP && s.own.Endpoint == "" {
			e.Endpoint = strings.TrimSuffix(e.Endpoint, "/") + "/v1/" + s.name
		}
		exporters = append(exporters, e)
	}
	return exporters
}

// thisHost says whether a host of a URL is this one for certain.
func thisHost(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
