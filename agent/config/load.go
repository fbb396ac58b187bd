package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads a YAML file over c: what the file does not mention stays. A key that does not exist, a value of another type, a
// second document or a key given twice is an error that names file and line.
func Load(path string, c *Config) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return decode(path, text, c)
}

func decode(path string, text []byte, c *Config) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	switch err := decoder.Decode(c); {
	case errors.Is(err, io.EOF): // an empty file changes nothing
		return nil
	case err != nil:
		return located(path, err)
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s:%d: a second YAML document; keep one", path, max(second.Line, 1))
	}
	return nil
}

var (
	atLine   = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	notFound = regexp.MustCompile(`^field (.+) not found in type (\S+)$`)
)

// located turns the library's messages into "file:line: what; remedy", one a line.
func located(path string, err error) error {
	messages := []string{err.Error()}
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) {
		messages = typeError.Errors
	}
	var errs []error
	for _, message := range messages {
		place := path
		if m := atLine.FindStringSubmatch(message); m != nil {
			place, message = path+":"+m[1], m[2]
		}
		if m := notFound.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("unknown key %q; known here: %s", m[1], strings.Join(keysOf(m[2]), ", "))
		}
		errs = append(errs, fmt.Errorf("%s: %s", place, strings.TrimPrefix(message, "yaml: ")))
	}
	return errors.Join(errs...)
}

// keysOf lists the YAML keys of the struct that the library names in its message, such as "config.OTLP".
func keysOf(typeName string) []string {
	var keys []string
	for _, t := range []reflect.Type{
		reflect.TypeFor[Config](), reflect.TypeFor[Prometheus](), reflect.TypeFor[OTLP](), reflect.TypeFor[Signal](), reflect.TypeFor[PeerGroup](), reflect.TypeFor[Budget](),
		reflect.TypeFor[Profiling](), reflect.TypeFor[Pyroscope](), reflect.TypeFor[Mesh](), reflect.TypeFor[Traces](), reflect.TypeFor[Locality](),
	} {
		if t.String() != typeName {
			continue
		}
		for i := range t.NumField() {
			keys = append(keys, t.Field(i).Tag.Get("yaml"))
		}
	}
	slices.Sort(keys)
	return keys
}
