package controlplane

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write what cases come to, to be read before it is committed")

// Each folder of testdata/parse holds a mesh.yaml or a directory mesh, and either the error.txt that it comes to or, as snapshot.yaml, the whole
// snapshot that Parse makes of it.
func TestParse(t *testing.T) {
	cases, err := filepath.Glob("testdata/parse/*")
	if err != nil || len(cases) == 0 {
		t.Fatalf("%d cases, error %v", len(cases), err)
	}
	for _, dir := range cases {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Chdir(dir) // an error names the file as the user did
			path := "mesh.yaml"
			if isDirectory("mesh") {
				path = "mesh"
			}
			snapshot, err := Parse(path)
			if *update {
				write(t, snapshot, err)
			}
			wantError, wantSnapshot := expected(t, "error.txt"), expected(t, "snapshot.yaml")
			if (wantError == "") == (wantSnapshot == "") {
				t.Fatal("a case expects an error or a snapshot")
			}
			if wantError != "" {
				if err == nil || err.Error()+"\n" != wantError {
					t.Errorf("\ngot  %v\nwant %s", err, wantError)
				}
				if snapshot != nil {
					t.Error("a faulty mesh has a snapshot")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := yaml.Marshal(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != wantSnapshot {
				t.Errorf("\ngot\n%s\nwant\n%s", got, wantSnapshot)
			}
		})
	}
}

func write(t *testing.T, snapshot any, failure error) {
	t.Helper()
	name, text := "snapshot.yaml", []byte(nil)
	var err error
	if failure != nil {
		name, text = "error.txt", []byte(failure.Error()+"\n")
	} else if text, err = yaml.Marshal(snapshot); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// expected is empty when there is no such file.
func expected(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

// The good file is to show every field, each set: one that is added to the model without being read fails here.
func TestGoodFileIsComplete(t *testing.T) {
	snapshot, err := Parse("testdata/parse/good/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Of Snapshot what File sets, of others what is refused.
	absent := map[string]bool{"Snapshot.Generation": true, "Snapshot.Node": true, "Workload.Waypoint": true, "Service.Waypoint": true}
	var look func(name string, v reflect.Value)
	look = func(name string, v reflect.Value) {
		if !absent[name] && v.IsZero() {
			t.Errorf("%s is not set", name)
		}
		switch {
		case absent[name]:
		case v.Kind() == reflect.Struct && v.Type().PkgPath() == "github.com/sidelight-mesh/sidelight/agent/model":
			for i := range v.NumField() {
				look(v.Type().Name()+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case v.Kind() == reflect.Slice && v.Len() > 0: // the first is the complete one
			look(name+"[0]", v.Index(0))
		}
	}
	look("", reflect.ValueOf(snapshot).Elem())
}
