package event

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Package connection imports nothing of ours, so it repeats the kernel's enums. Each value must be there, by number and by name.
func TestEnums(t *testing.T) {
	tests := []struct {
		enum  string
		name  func(uint8) string
		count uint8 // of Go values, from least on
		least uint8
	}{
		{"mesh_kind", func(v uint8) string { return connection.Kind(v).String() }, uint8(connection.Sweep), 1},
		{"mesh_role", func(v uint8) string { return connection.Role(v).String() }, 2, 1},
		{"mesh_reason", func(v uint8) string { return connection.Reason(v).String() }, uint8(connection.ReasonCount), 0},
	}
	for _, test := range tests {
		t.Run(test.enum, func(t *testing.T) {
			want := kernelEnum(t, test.enum)
			if len(want) != int(test.count) {
				t.Errorf("%d values in Go, %d in the kernel: %v", test.count, len(want), want)
			}
			for v := test.least; v < test.least+test.count; v++ {
				if got := test.name(v); got != want[v] {
					t.Errorf("%d is %q, in the kernel %q", v, got, want[v])
				}
			}
		})
	}
}

// kernelEnum reads the names of an enum's values off the compiled object, without MESH_ and without the NONE and COUNT at its ends.
func kernelEnum(t *testing.T, name string) map[uint8]string {
	t.Helper()
	spec, err := bpf.Spec()
	if err != nil {
		t.Fatal(err)
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName(name, &enum); err != nil {
		t.Fatal(err)
	}
	names := make(map[uint8]string)
	for _, v := range enum.Values {
		short := strings.ToLower(strings.TrimPrefix(v.Name, "MESH_"))
		if !strings.HasSuffix(short, "_none") && !strings.HasSuffix(short, "_count") {
			names[uint8(v.Value)] = short
		}
	}
	return names
}

func TestConstants(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want any
	}{
		{"pre_connect", uint8(connection.PreConnect), bpf.PreConnect},
		{"established", uint8(connection.Established), bpf.Established},
		{"close", uint8(connection.Close), bpf.Close},
		{"sweep", uint8(connection.Sweep), bpf.Sweep},
		{"the last kind", uint8(connection.Sweep), bpf.KindCount - 1},
		{"client", uint8(connection.Client), bpf.Client},
		{"server", uint8(connection.Server), bpf.Server},
		{"told of the attempt", uint32(connection.ToldAttempt), bpf.ToldAttempt},
		{"told of the handshake", uint32(connection.ToldEstablished), bpf.ToldEstablished},
		{"told of the end", uint32(connection.ToldEnd), bpf.ToldEnd},
		{"adopted", uint32(connection.Adopted), bpf.Adopted},
		{"adopted open", uint32(connection.AdoptedOpen), bpf.AdoptedOpen},
		{"stateless", uint32(connection.Stateless), bpf.Stateless},
		{"decided", uint32(connection.Decided), bpf.Decided},
		{"revoked", uint32(connection.Revoked), bpf.Revoked},
		{"refused here", uint32(connection.RefusedHere), bpf.RefusedHere},
		{"no verdict", uint8(connection.VerdictNone), bpf.VerdictNone},
		{"allow", uint8(connection.VerdictAllow), bpf.VerdictAllow},
		{"deny", uint8(connection.VerdictDeny), bpf.VerdictDeny},
		{"unattended", uint8(connection.VerdictUnattended), bpf.VerdictUnattended},
		{"no rule", uint16(connection.NoRule), bpf.NoRule},
		{"the number of reasons", uint8(connection.ReasonCount), bpf.ReasonCount},
		// Stats counts by kind, so it needs room for each.
		{"room in Stats", uint8(len(new(Stats).Decoded)), bpf.KindCount},
	} {
		if fmt.Sprintf("%T %v", test.got, test.got) != fmt.Sprintf("%T %v", test.want, test.want) {
			t.Errorf("%s is %v, want %v", test.name, test.got, test.want)
		}
	}
}
