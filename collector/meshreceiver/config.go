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
	// BatchInterval is how long records of connections wait for more since the last went, unless there are many: a request costs a backend as
	// much as many records. 0 is not at all.
	BatchInterval time.Duration `mapstructure:"batch_interval"`

	// prevent unkeyed literal initialization
	_ struct{}
}

func createDefaultConfig() component.Config {
	return &Config{ReportInterval: 10 * time.Second, BatchInterval: 200 * time.Millisecond}
}

// Validate implements xconfmap.Validator.
func (c *Config) Validate() error {
	if c.ReportInterval < 100*time.Millisecond {
		return errors.New("report_interval: must be at least 100ms")
	}
	if c.BatchInterval < 0 || c.BatchInterval > time.Minute {
		return errors.New("batch_interval: must be from 0s to 1m")
	}
	return nil
}
