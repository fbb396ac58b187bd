// Package otlptest has the backend that tests send OTLP to.
package otlptest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"
)

// Backend takes OTLP as any backend does, with the collector's own receiver.
type Backend struct {
	Address string // once it was started
	Metrics consumertest.MetricsSink
	Logs    consumertest.LogsSink
	Traces  consumertest.TracesSink
}

// FreeAddress returns an address of this host that nobody listens on, and that no client gets before a server does.
func FreeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// Start starts one on an address of its own, until the test ends. The protocol is grpc or http.
func Start(t *testing.T, protocol string) *Backend {
	t.Helper()
	var err error
	// Somebody else may take the address between our finding it and our using it.
	for range 10 {
		b := new(Backend)
		if err = b.Start(t, protocol, FreeAddress(t)); err == nil {
			return b
		}
	}
	t.Fatal(err)
	return nil
}

// StartAt starts one on a given address, until the test ends.
func StartAt(t *testing.T, protocol, address string) *Backend {
	t.Helper()
	b := new(Backend)
	if err := b.Start(t, protocol, address); err != nil {
		t.Fatal(err)
	}
	return b
}

// Start listens on an address until the test ends, or says why it cannot.
func (b *Backend) Start(t *testing.T, protocol, address string) error {
	t.Helper()
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	if err := confmap.NewFromStringMap(map[string]any{
		"protocols": map[string]any{protocol: map[string]any{"endpoint": address, "include_metadata": true}},
	}).Unmarshal(config); err != nil {
		t.Fatal(err)
	}
	settings := receivertest.NewNopSettings(factory.Type())
	metrics, err := factory.CreateMetrics(t.Context(), settings, config, &b.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := factory.CreateLogs(t.Context(), settings, config, &b.Logs)
	if err != nil {
		t.Fatal(err)
	}
	traces, err := factory.CreateTraces(t.Context(), settings, config, &b.Traces)
	if err != nil {
		t.Fatal(err)
	}
	signals := []component.Component{metrics, logs, traces}
	stop := func() {
		for _, c := range signals {
			if err := c.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range signals {
		if err := c.Start(t.Context(), componenttest.NewNopHost()); err != nil {
			stop()
			return err
		}
	}
	t.Cleanup(stop)
	b.Address = address
	return nil
}
