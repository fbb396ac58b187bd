package otelconfig_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sidelight-mesh/sidelight/collector/embedded"
	otelconfig "github.com/sidelight-mesh/sidelight/otel-config"
)

// TestEveryFileIsTaken holds each configuration of this directory against the components that the agent has.
func TestEveryFileIsTaken(t *testing.T) {
	paths, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatal("no *.yaml")
	}
	for _, path := range paths {
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
