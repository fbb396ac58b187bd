package connection

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// These names are in access logs, metrics and spans: whoever changes one breaks a query somewhere. That the numbers are the
// kernel's is tested in agent/event, which may import package bpf.
func TestNames(t *testing.T) {
	t.Run("kind", func(t *testing.T) {
		testNames(t, map[Kind]string{PreConnect: "pre_connect", Established: "established", Close: "close", Sweep: "sweep"})
	})
	t.Run("role", func(t *testing.T) {
		testNames(t, map[Role]string{Client: "client", Server: "server"})
	})
	t.Run("reason", func(t *testing.T) {
		testNames(t, map[Reason]string{
			OK:           "ok",
			Refused:      "refused",
			ResetByPeer:  "reset_by_peer",
			ResetByLocal: "reset_by_local",
			Timeout:      "timeout",
			Unreachable:  "unreachable",
			Denied:       "denied",
			CircuitOpen:  "circuit_open",
			RateLimited:  "rate_limited",
			NoEndpoint:   "no_endpoint",
			Other:        "other",
			UnknownLost:  "unknown_lost",
			Aborted:      "aborted",
		})
	})
}

// testNames wants exactly these names, and "unknown" for every other value there is.
func testNames[T interface {
	~uint8
	fmt.Stringer
}](t *testing.T, want map[T]string) {
	t.Helper()
	for i := range 256 {
		name, ok := want[T(i)]
		if !ok {
			name = "unknown"
		}
		if got := T(i).String(); got != name {
			t.Errorf("%d is %q, want %q", i, got, name)
		}
	}
}

func TestKinds(t *testing.T) {
	if got, want := Kinds(), []Kind{PreConnect, Established, Close}; !slices.Equal(got, want) {
		t.Errorf("kinds are %v, want %v, in the order of a connection's life", got, want)
	}
}

func TestClock(t *testing.T) {
	tests := []struct {
		name        string
		offsetNS    int64
		monotonicNS uint64
		want        string
	}{
		{"epoch", 0, 0, "1970-01-01T00:00:00Z"},
		{"nanoseconds stay", 1_790_000_000_000_000_000, 1_234_567_891, "2026-09-21T14:13:21.234567891Z"},
		// A machine whose wall clock was set to less than it has been up.
		{"negative offset", -1_000_000_001, 3_000_000_000, "1970-01-01T00:00:01.999999999Z"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			clock := Clock{OffsetNS: test.offsetNS}
			wall := clock.Wall(test.monotonicNS)
			if got := wall.Format(time.RFC3339Nano); got != test.want {
				t.Errorf("wall time is %s, want %s", got, test.want)
			}
			if got := clock.WallNS(test.monotonicNS); got != wall.UnixNano() {
				t.Errorf("wall time is %d ns, want the %d ns of Wall", got, wall.UnixNano())
			}
		})
	}
}
