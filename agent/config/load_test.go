package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Each folder of testdata/load holds an input.yaml and either the error.txt that it comes to or, as config.yaml, the whole
// configuration that Load makes of it and the defaults.
func TestLoad(t *testing.T) {
	inputs, err := filepath.Glob("testdata/load/*/input.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("%d cases, error %v", len(inputs), err)
	}
	for _, input := range inputs {
		dir := filepath.Dir(input)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			wantError, wantConfig := expected(t, filepath.Join(dir, "error.txt")), expected(t, filepath.Join(dir, "config.yaml"))
			if (wantError == "") == (wantConfig == "") {
				t.Fatal("a case expects an error or a configuration")
			}
			t.Chdir(dir) // an error names the file as the user did
			c := Default()
			err := Load("input.yaml", &c)
			if wantError != "" {
				if err == nil || err.Error()+"\n" != wantError {
					t.Errorf("\ngot  %v\nwant %s", err, wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := yaml.Marshal(&c)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != wantConfig {
				t.Errorf("\ngot\n%s\nwant\n%s", got, wantConfig)
			}
		})
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

func TestLoadNoFile(t *testing.T) {
	t.Chdir(t.TempDir())
	c := Default()
	err := Load("missing.yaml", &c)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error is %v, want one of no file", err)
	}
	if want := "read configuration: open missing.yaml: no such file or directory"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
}

// The good file is to show every key: one that is added to Config without being added there fails here.
func TestGoodFileIsComplete(t *testing.T) {
	text, err := os.ReadFile("testdata/load/good/input.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, typeName := range []string{
		"config.Config", "config.Prometheus", "config.OTLP", "config.Signal", "config.PeerGroup", "config.Budget", "config.Profiling", "config.Pyroscope", "config.Mesh", "config.Locality",
	} {
		keys := keysOf(typeName)
		if len(keys) == 0 {
			t.Errorf("%s has no keys", typeName)
		}
		for _, key := range keys {
			if !strings.Contains(string(text), key+":") {
				t.Errorf("%s of %s is not in the file", key, typeName)
			}
		}
	}
	if keys := keysOf("config.Other"); keys != nil {
		t.Errorf("a type that is none of ours has keys %v", keys)
	}
}
