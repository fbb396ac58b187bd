package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/controlplane"
	"github.com/sidelight-mesh/sidelight/agent/model"
)

// TestMeshMemory remembers a mesh with everything in it, and recalls it the same.
func TestMeshMemory(t *testing.T) {
	m := meshMemory{filepath.Join(t.TempDir(), "state", "mesh")}
	if all, err := m.recall(); err != nil || len(all) > 0 {
		t.Fatalf("%v and %v where nothing is", all, err)
	}
	var saved []*model.Snapshot
	for i, path := range []string{"../../../examples/mesh.yaml", "demo/mesh.yaml", "../../../examples/mesh.yaml"} {
		s, err := controlplane.Parse(path)
		if err != nil {
			t.Fatal(err)
		}
		s.Generation = uint64(9 + i) // "10" sorts before "9"
		if err := m.begin(s); err != nil {
			t.Fatal(err)
		}
		saved = append([]*model.Snapshot{s}, saved...)
	}
	all, err := m.recall()
	if err != nil || !reflect.DeepEqual(all, saved) {
		t.Fatalf("recalled %+v, %v\nwant %+v", all, err, saved)
	}
	for name, text := range map[string]string{"12.json": "{", "13.json.new": "{"} {
		if err := os.WriteFile(filepath.Join(m.directory, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err = m.recall()
	if !reflect.DeepEqual(all, saved) || err == nil || !strings.Contains(err.Error(), "12.json") || strings.Contains(err.Error(), "13.json") {
		t.Errorf("%d recalled, %v", len(all), err)
	}
	if err := m.done(10); err != nil {
		t.Fatal(err)
	}
	if all, err = m.recall(); err != nil || !reflect.DeepEqual(all, saved[1:2]) {
		t.Errorf("recalled %+v, %v", all, err)
	}
}
