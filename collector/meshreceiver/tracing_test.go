package meshreceiver

import (
	"testing"

	"go.opentelemetry.io/collector/component/componenttest"
)

// TestTracingCostsNothingWhenItIsOff: neither without a provider, nor with that of a configuration that sends spans nowhere.
func TestTracingCostsNothingWhenItIsOff(t *testing.T) {
	off := new(Tracing)
	off.use(componenttest.NewNopTelemetrySettings().TracerProvider)
	for name, tracing := range map[string]*Tracing{"nil": nil, "no provider": new(Tracing), "no processors": off} {
		if n := testing.AllocsPerRun(100, func() { tracing.build("logs", 1).End() }); n > 1 { // the API's own provider of nothing makes a context
			t.Errorf("%s: %v allocations", name, n)
		}
		if tracing.build("logs", 1).IsRecording() {
			t.Errorf("%s: it records", name)
		}
	}
}
