package config

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Budget is what the agent may take of the node. Over it, it tells less; the sums stay exact.
type Budget struct {
	// CPU is of all CPUs together, the agent's own and its programs'; 0 is off.
	CPU Share `yaml:"cpu"`
	// Memory is resident memory; 0 is off.
	Memory Bytes `yaml:"memory"`
	// Slow is how long a handshake or the answer to the first byte takes that is worth a log line whatever the sampling.
	Slow time.Duration `yaml:"slow"`
}

// Enabled says whether there is any.
func (b *Budget) Enabled() bool { return b.CPU > 0 || b.Memory > 0 }

// off is the text of no limit.
const off = "off"

// Share is a part of a whole, 1 for all of it; 0 is off.
type Share float64

// UnmarshalYAML reads a percentage, or off.
func (s *Share) UnmarshalYAML(node *yaml.Node) error {
	if node.Value == off {
		*s = 0
		return nil
	}
	digits, isPercent := strings.CutSuffix(node.Value, "%")
	percent, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if !isPercent || err != nil || !(percent > 0 && percent <= 100) {
		return mistyped(node, "%q is no share of the node; use a percentage such as 1%%, or off", node.Value)
	}
	*s = Share(percent / 100)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (s Share) MarshalYAML() (any, error) { return s.String(), nil }

func (s Share) String() string {
	if s == 0 {
		return off
	}
	return strconv.FormatFloat(float64(s)*100, 'g', 6, 64) + "%"
}

// Bytes is a size; 0 is off.
type Bytes uint64

var byteUnits = []struct {
	name string
	size uint64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// UnmarshalYAML reads a whole number with its unit, or off.
func (b *Bytes) UnmarshalYAML(node *yaml.Node) error {
	if node.Value == off {
		*b = 0
		return nil
	}
	for _, unit := range byteUnits {
		digits, found := strings.CutSuffix(node.Value, unit.name)
		if !found {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 32); err == nil && n > 0 {
			*b = Bytes(n * unit.size)
			return nil
		}
	}
	return mistyped(node, "%q is no size; use a whole number of KiB, MiB or GiB such as 128MiB, or off", node.Value)
}

// MarshalYAML writes what UnmarshalYAML reads.
func (b Bytes) MarshalYAML() (any, error) { return b.String(), nil }

func (b Bytes) String() string {
	if b == 0 {
		return off
	}
	for _, unit := range byteUnits {
		if uint64(b)%unit.size == 0 {
			return strconv.FormatUint(uint64(b)/unit.size, 10) + unit.name
		}
	}
	return strconv.FormatUint(uint64(b), 10) + "B" // no text that can be read makes one
}

// mistyped is of the sort that located puts a place to.
func mistyped(node *yaml.Node, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: ", node.Line) + fmt.Sprintf(format, args...)}}
}

// leastMemory is below what the program and the collector in it need to start.
const leastMemory = 32 << 20

func (b *Budget) validate() []error {
	var errs []error
	if b.CPU < 0 || b.CPU > 1 {
		errs = append(errs, fmt.Errorf("budget.cpu: %v is out of range; use a percentage of the node up to 100%%, or off", b.CPU))
	}
	if b.Memory > 0 && b.Memory < leastMemory {
		errs = append(errs, fmt.Errorf("budget.memory: %v does not hold the agent alone; use at least %v, or off", b.Memory, Bytes(leastMemory)))
	}
	if b.Slow <= 0 {
		errs = append(errs, fmt.Errorf("budget.slow: %v; use a time such as 500ms", b.Slow))
	}
	return errs
}

// Profiling is where profiles of the agent itself go. Nothing is sent while no URL is set.
type Profiling struct {
	Pyroscope Pyroscope `yaml:"pyroscope"`
}

// Pyroscope is a server that profiles are pushed to.
type Pyroscope struct {
	URL         string            `yaml:"url"`
	Application string            `yaml:"application"`
	Tags        map[string]string `yaml:"tags"` // beside the host's name
	Tenant      string            `yaml:"tenant"`
	User        string            `yaml:"user"` // of basic authentication
	Password    string            `yaml:"password"`
}

func (p *Pyroscope) validate() []error {
	var errs []error
	if p.URL != "" {
		if u, err := url.Parse(p.URL); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			errs = append(errs, fmt.Errorf("profiling.pyroscope.url: %q is not a URL; use http://HOST:PORT or https://HOST:PORT", p.URL))
		}
	}
	if p.Application == "" {
		errs = append(errs, fmt.Errorf("profiling.pyroscope.application: empty; give the agent a name, such as sidelight"))
	}
	if (p.User == "") != (p.Password == "") {
		errs = append(errs, fmt.Errorf("profiling.pyroscope: user and password go together"))
	}
	return errs
}
