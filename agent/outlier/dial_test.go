package outlier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestCheck gives the addresses of an endpoint errors, and reads the verdict.
func TestCheck(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")
	wrapped := func(e syscall.Errno) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", e)} }
	refused, unreachable, full := wrapped(syscall.ECONNREFUSED), wrapped(syscall.ENETUNREACH), wrapped(syscall.EMFILE)
	both := place{v4, v6}
	tests := []struct {
		name   string
		at     place
		v4, v6 error
		want   verdict
		err    error
		dialed []netip.AddrPort
	}{
		{"IPv4 answers", place{v4: v4}, nil, nil, answered, nil, []netip.AddrPort{v4}},
		{"IPv6 answers", place{v6: v6}, nil, nil, answered, nil, []netip.AddrPort{v6}},
		{"both answer", both, nil, nil, answered, nil, []netip.AddrPort{v4, v6}},
		{"IPv4 does not", both, refused, nil, silent, refused, []netip.AddrPort{v4}},
		{"IPv6 does not", both, nil, refused, silent, refused, []netip.AddrPort{v4, v6}},
		{"too late", place{v4: v4}, context.DeadlineExceeded, nil, silent, context.DeadlineExceeded, []netip.AddrPort{v4}},
		{"no IPv6 here", both, nil, unreachable, answered, nil, []netip.AddrPort{v4, v6}},
		{"no IPv4 here", both, wrapped(syscall.EADDRNOTAVAIL), nil, answered, nil, []netip.AddrPort{v4, v6}},
		{"no IPv4 here, IPv6 does not answer", both, unreachable, refused, silent, refused, []netip.AddrPort{v4, v6}},
		{"no way at all", both, unreachable, unreachable, silent, unreachable, []netip.AddrPort{v4, v6}},
		{"no descriptors", place{v4: v4}, full, nil, unknown, full, []netip.AddrPort{v4}},
		{"not permitted", both, nil, wrapped(syscall.EPERM), unknown, wrapped(syscall.EPERM), []netip.AddrPort{v4, v6}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var dialed []netip.AddrPort
			got, err := check(t.Context(), func(ctx context.Context, to netip.AddrPort) error {
				if by, limited := ctx.Deadline(); !limited || time.Until(by) > time.Minute {
					t.Errorf("the deadline is %v, %t", by, limited)
				}
				dialed = append(dialed, to)
				if to == v4 {
					return test.v4
				}
				return test.v6
			}, test.at, time.Minute)
			if got != test.want || fmt.Sprint(err) != fmt.Sprint(test.err) || !slices.Equal(dialed, test.dialed) {
				t.Errorf("%v, %v, dialed %v; want %v, %v, %v", got, err, dialed, test.want, test.err, test.dialed)
			}
		})
	}
}

// TestConnect ends with a FIN, or fails with the system's errno.
func TestConnect(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			l := listen(t, address)
			to := l.Addr().(*net.TCPAddr).AddrPort()
			if err := Connect(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || err.Error() != "EOF" {
				t.Errorf("read %d, %v: want the end", n, err)
			}
			l.Close()
			if err := Connect(t.Context(), to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("without a listener: %v", err)
			}
			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			if err := Connect(cancelled, to); err == nil {
				t.Error("connected after the end")
			}
		})
	}
}

// listen returns a listener that takes connections into its backlog; the test is skipped where the machine has not the address.
func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
