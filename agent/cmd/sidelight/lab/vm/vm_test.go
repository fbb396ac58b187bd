package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestResult(t *testing.T) {
	c := console{file: io.Discard}
	text := "[    1.2] veth: loading\r\nverifier: mesh_sockops 1695\r\n=== RUN   TestA\r\n--- PASS: TestA (75.08s)\r\n    --- PASS: TestA/v4 (7.71s)\r\n" +
		"--- FAIL: TestB (0.20s)\r\n    --- FAIL: TestB/x (0.1s)\r\n--- SKIP: TestC (0.00s)\r\n--- PASS: TestDeep (1.00s)\nFAIL\r\n"
	for _, part := range []string{text[:50], text[50:]} {
		if _, err := io.WriteString(&c, part); err != nil {
			t.Fatal(err)
		}
	}
	r := c.result()
	if want := []string{"TestA (75.08s)", "TestDeep (1.00s)"}; !slices.Equal(r.passed, want) {
		t.Errorf("passed %q, want %q", r.passed, want)
	}
	if len(r.counts) != 1 || r.counts["mesh_sockops"] != 1695 {
		t.Errorf("counts %v", r.counts)
	}
	// TestD did not run: TestDeep is another.
	faults := r.missing([]step{{tests: []string{"TestA", "TestB"}}, {tests: []string{"TestC", "TestD"}}})
	if want := []string{"TestB (0.20s)", "TestC was skipped", "TestD has no result"}; !slices.Equal(faults, want) {
		t.Errorf("faults %q, want %q", faults, want)
	}
}

func TestCompare(t *testing.T) {
	file := allCounts{"6.1": {"a": 100, "b": 1000}}
	for _, c := range []struct {
		name, series string
		got          counts
		want         []string // one in each fault
	}{
		{"the same", "6.1", counts{"a": 100, "b": 1000}, nil},
		{"5 % more", "6.1", counts{"a": 105, "b": 1050}, nil},
		{"over 5 % more", "6.1", counts{"a": 106, "b": 1051}, []string{"106 instructions of a", "1051 instructions of b"}},
		{"less", "6.1", counts{"a": 1, "b": 1}, nil},
		{"a new program", "6.1", counts{"a": 100, "b": 1000, "c": 1}, []string{"no figure for c"}},
		{"a program that did not load", "6.1", counts{"a": 100}, []string{"count of b is missing"}},
		{"a new kernel", "6.12", counts{"a": 1}, []string{"no figure for a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := file.compare(c.series, c.got)
			if len(got) != len(c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			for i, want := range c.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("got %q, want %q", got[i], want)
				}
			}
		})
	}
}

// The file is what UPDATE=1 would write, so that a change of it is a change of a figure.
func TestVerifierFile(t *testing.T) {
	file := filepath.Join("../../../../..", verifierFile)
	all, err := readCounts(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range debian {
		if len(all[k.name]) == 0 {
			t.Errorf("no figures for %s", k.name)
		}
	}
	again := filepath.Join(t.TempDir(), "verifier.yaml")
	if err := all.write(again); err != nil {
		t.Fatal(err)
	}
	if want, got := readFile(t, again), readFile(t, file); got != want {
		t.Errorf("%s is\n%s\nwant\n%s", verifierFile, got, want)
	}
}

func TestArchive(t *testing.T) {
	var out bytes.Buffer
	a := archive{out: &out}
	a.device("dev/console", 5, 1)
	a.entry("a", modeRegular|0o755, 0, []byte("hello"))
	if a.err != nil {
		t.Fatal(a.err)
	}
	zeros := strings.Repeat("0", 8)
	want := "070701" + "00000001" + "00002180" + zeros + zeros + "00000001" + zeros + zeros + zeros + zeros + "00000005" + "00000001" + "0000000C" + zeros +
		"dev/console\x00\x00\x00" +
		"070701" + "00000002" + "000081ED" + zeros + zeros + "00000001" + zeros + "00000005" + zeros + zeros + zeros + zeros + "00000002" + zeros +
		"a\x00" + "hello\x00\x00\x00"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func TestSeries(t *testing.T) {
	for release, want := range map[string]string{"6.1.0-56-cloud-amd64": "6.1", "6.12.95+deb12-cloud-amd64": "6.12", "6.18.44-fc-v657": "6.18", "odd": "odd"} {
		if got := series(release); got != want {
			t.Errorf("%s: got %s, want %s", release, got, want)
		}
	}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEmulatorThreads(t *testing.T) {
	for version, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)":         "single",
		"QEMU emulator version 8.0.4":                                            "single",
		"QEMU emulator version 8.1.0":                                            "multi",
		"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nC": "multi",
		"something else": "single",
	} {
		if got := threadsOf(version); got != want {
			t.Errorf("%q: %s, want %s", version, got, want)
		}
	}
}
