package meshreceiver

import (
	"errors"
	"time"

	"go.opentelemetry.io/collector/component"
)

// Config is what a user sets in the collector's YAML.
type Config struct {
	// ReportInterval is how often metrics are sent.
	ReportInterval time.Duration `mapstructure:"report_interval"`

	// prevent unkeyed literal initialization
	_ struct{}
}

func createDefaultConfig() component.Config {
	return &Config{ReportInterval: 10 * time.Second}
}

// Validate implements xconfmap.Validator.
func (c *Config) Validate() error {
	if c.ReportInterval < 100*time.Millisecond {
		return errors.New("report_interval: must be at least 100ms")
	}
	return nil
}
