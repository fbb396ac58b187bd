package outlier

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Dial connects to an address and ends the connection. It gives up when the context ends. Errors keep the errno of the system.
type Dial func(ctx context.Context, to netip.AddrPort) error

// dialer makes plain connections: MPTCP would be another protocol than most clients speak, and keep-alives are of no use to what is closed at once.
var dialer = func() *net.Dialer {
	d := &net.Dialer{KeepAlive: -1}
	d.SetMultipathTCP(false)
	return d
}()

// Connect is the Dial of the system. It closes with a FIN. A reset (SO_LINGER 0) would spare us a socket in TIME_WAIT for a minute, but to the
// endpoint it is an error, which servers log, and which our own records of its side would have as a failure, at each check. The FIN costs little:
// ports are taken per destination, at one check a second 60 of some 28,000. A server that speaks first gets a reset all the same, as from any
// client that closes without reading.
func Connect(ctx context.Context, to netip.AddrPort) error {
	conn, err := dialer.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	_ = conn.Close() // it did answer
	return nil
}

// verdict is what one check says.
type verdict uint8

const (
	answered verdict = iota
	silent           // refused, reset, or nothing in time
	noWay            // this node has no way to the address: of a family that it does not have
	unknown          // not made, for a reason of our own
)

func verdictOf(err error) verdict {
	switch {
	case err == nil:
		return answered
	case isAny(err, syscall.ENETUNREACH, syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT):
		return noWay
	case isAny(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN, syscall.EPERM, syscall.EACCES):
		return unknown
	default:
		return silent
	}
}

func isAny(err error, of ...syscall.Errno) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	for _, e := range of {
		if errno == e {
			return true
		}
	}
	return false
}

// check connects to all addresses of a place, one after the other, and says what that means. All must answer: clients of either family are sent
// there. But an address that this node has no way to says nothing of the endpoint as long as there is another, or a node without IPv6 would have
// no dual-stack endpoint. The error is nil only with answered.
func check(ctx context.Context, dial Dial, at place, timeout time.Duration) (verdict, error) {
	var lost error
	reached := false
	for _, to := range []netip.AddrPort{at.v4, at.v6} {
		if !to.IsValid() {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, timeout)
		err := dial(limited, to)
		cancel()
		switch v := verdictOf(err); v {
		case answered:
			reached = true
		case noWay:
			lost = err
		default:
			return v, err
		}
	}
	if reached {
		return answered, nil
	}
	return silent, lost
}
