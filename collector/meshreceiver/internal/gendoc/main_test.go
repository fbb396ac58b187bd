package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

const dir = "../.."

func TestDocumentationIsMadeOfTheTable(t *testing.T) {
	table, err := metadata.Read(filepath.Join(dir, "metadata.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := render(table)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "documentation.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("documentation.md is not what metadata.yaml makes: run go generate ./collector/meshreceiver")
	}
	source, err := descriptions(table)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "descriptions.go")); err != nil || !bytes.Equal(got, source) {
		t.Errorf("descriptions.go is not what metadata.yaml makes (%v): run go generate ./collector/meshreceiver", err)
	}
	for range 10 {
		if again, err := render(table); err != nil || !bytes.Equal(again, want) {
			t.Fatalf("the same table makes different pages: %v", err)
		}
	}
}

func TestRunWritesThePage(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(dir, "metadata.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "metadata.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(other); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(other, "documentation.md"))
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := os.ReadFile(filepath.Join(dir, "documentation.md")); !bytes.Equal(got, want) {
		t.Error("run writes another page than the committed one")
	}
	if err := run(filepath.Join(other, "none")); err == nil {
		t.Error("run without metadata.yaml: no error")
	}
}
