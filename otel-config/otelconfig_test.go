package otelconfig_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sidelight-mesh/sidelight/collector/embedded"
	otelconfig "github.com/sidelight-mesh/sidelight/otel-config"
)

// manifest is no configuration of a collector, but of the builder.
const manifest = "builder.yaml"

// examples returns the configurations of the agent's collector, and those of gateways.
func examples(t *testing.T) (agent, gateway []string) {
	t.Helper()
	for pattern, files := range map[string]*[]string{"*.yaml": &agent, filepath.Join("gateway", "*.yaml"): &gateway} {
		var err error
		if *files, err = filepath.Glob(pattern); err != nil {
			t.Fatal(err)
		}
	}
	agent = slices.DeleteFunc(agent, func(file string) bool { return file == manifest })
	if len(agent) == 0 || len(gateway) == 0 {
		t.Fatalf("%d configurations for agents and %d for gateways", len(agent), len(gateway))
	}
	return agent, gateway
}

// TestEveryFileIsTaken holds each configuration of an agent against the components that the agent has.
func TestEveryFileIsTaken(t *testing.T) {
	agent, _ := examples(t)
	for _, path := range agent {
		t.Run(path, func(t *testing.T) {
			c := embedded.New(embedded.Options{URI: "file:" + path, Version: "test", Logger: slog.New(slog.DiscardHandler)})
			if err := c.Validate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDefaultIsTheFile(t *testing.T) {
	text, err := os.ReadFile("default.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, otelconfig.Default) {
		t.Error("the embedded configuration is not default.yaml")
	}
}
