package meshreceiver

import (
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
)

func TestConfig(t *testing.T) {
	for name, test := range map[string]struct {
		yaml map[string]any
		want time.Duration
		err  string // a part of it; empty for none
	}{
		"default":        {map[string]any{}, 10 * time.Second, ""},
		"set":            {map[string]any{"report_interval": "90s"}, 90 * time.Second, ""},
		"least":          {map[string]any{"report_interval": "100ms"}, 100 * time.Millisecond, ""},
		"too short":      {map[string]any{"report_interval": "99ms"}, 0, "report_interval: must be at least 100ms"},
		"zero":           {map[string]any{"report_interval": "0s"}, 0, "report_interval: must be at least 100ms"},
		"unknown key":    {map[string]any{"report_intervall": "1s"}, 0, "report_intervall"},
		"batch below 0":  {map[string]any{"batch_interval": "-1s"}, 0, "batch_interval: must be from 0s to 1m"},
		"batch too long": {map[string]any{"batch_interval": "61s"}, 0, "batch_interval: must be from 0s to 1m"},
		"no duration":    {map[string]any{"report_interval": "often"}, 0, "report_interval"},
	} {
		t.Run(name, func(t *testing.T) {
			config := NewFactory().CreateDefaultConfig()
			err := confmap.NewFromStringMap(test.yaml).Unmarshal(config)
			if err == nil {
				err = confmap.Validate(config)
			}
			switch {
			case test.err == "" && err != nil:
				t.Error(err)
			case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("error %v, want one that says %q", err, test.err)
			case test.err == "" && config.(*Config).ReportInterval != test.want:
				t.Errorf("report_interval %v, want %v", config.(*Config).ReportInterval, test.want)
			}
		})
	}
}

func TestConfigStructIsWhatTheCollectorWants(t *testing.T) {
	if err := componenttest.CheckConfigStruct(NewFactory().CreateDefaultConfig()); err != nil {
		t.Error(err)
	}
}
