package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the hidden commands that the demo of a mesh starts itself as.
const (
	MeshServiceCommand = "demo-mesh-service"
	MeshClientCommand  = "demo-mesh-client"
)

// RunMeshService listens on all addresses until the context ends, tells its name to whoever connects, and waits for him to close.
func RunMeshService(ctx context.Context, name string, addresses []string, ready io.Writer) error {
	var serving sync.WaitGroup
	defer serving.Wait() // after the listeners are closed
	var config net.ListenConfig
	config.SetMultipathTCP(false) // a workload of a mesh gets none
	for _, address := range addresses {
		listener, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer listener.Close()
		serving.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return // it was closed
				}
				serving.Go(func() {
					defer conn.Close()
					if _, err := io.WriteString(conn, name+"\n"); err == nil {
						_, _ = io.Copy(io.Discard, conn)
					}
				})
			}
		})
	}
	fmt.Fprintln(ready, "ready")
	<-ctx.Done()
	return nil
}

// Order is what a client does with one service, again and again: one connection that ends when it was answered, or AtOnce connections that are
// held for a while.
type Order struct {
	Service string
	To      []netip.AddrPort // in turn
	Every   time.Duration    // from one begin to the next, if the one before is over
	AtOnce  int
	Held    time.Duration
}

// Tally is what came of an order, as the client saw it.
type Tally struct {
	Dialled int            `json:"dialled"`
	IPv6    int            `json:"dialled_ipv6"` // of these
	Answers map[string]int `json:"answers"`      // by the endpoint that answered
	Errors  map[string]int `json:"errors"`       // of connect(), by errno
	Cut     int            `json:"cut"`          // connected, and ended before an answer came
	// Of connections that were held at once. Each round ends before the next begins.
	Rounds     int `json:"rounds"`
	FewestHeld int `json:"fewest_held"`
	MostHeld   int `json:"most_held"`
}

// Answered is how many got an answer.
func (t *Tally) Answered() int { return sum(t.Answers) }

// Refused is how many connects failed.
func (t *Tally) Refused() int { return sum(t.Errors) }

func sum(counts map[string]int) int {
	n := 0
	for _, of := range counts {
		n += of
	}
	return n
}

// RunMeshClient carries out orders until the context ends, and then tells by JSON what came of them, by service. No connection is left then.
func RunMeshClient(ctx context.Context, orders string, out io.Writer) error {
	var decoded []Order
	if err := json.Unmarshal([]byte(orders), &decoded); err != nil {
		return fmt.Errorf("read orders: %w", err)
	}
	fmt.Fprintln(out, "ready")
	tallies := make(map[string]*Tally)
	var working sync.WaitGroup
	for i := range decoded {
		o := &decoded[i]
		t := &Tally{Answers: make(map[string]int), Errors: make(map[string]int)}
		tallies[o.Service] = t
		working.Go(func() { t.follow(ctx, o) })
	}
	working.Wait()
	return json.NewEncoder(out).Encode(tallies)
}

func (t *Tally) follow(ctx context.Context, o *Order) {
	ticker := time.NewTicker(o.Every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if o.AtOnce > 0 {
			t.round(ctx, o)
		} else {
			outcome := dial(o.To[t.Dialled%len(o.To)])
			t.add(&outcome)
			outcome.end()
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// round dials all at the same time, and lets none go before each has its outcome: what a limit lets pass is what is held.
func (t *Tally) round(ctx context.Context, o *Order) {
	outcomes := make([]outcome, o.AtOnce)
	var dialling sync.WaitGroup
	for i := range outcomes {
		dialling.Go(func() { outcomes[i] = dial(o.To[i%len(o.To)]) })
	}
	dialling.Wait()
	held := 0
	for i := range outcomes {
		if t.add(&outcomes[i]); outcomes[i].conn != nil {
			held++
		}
	}
	if t.Rounds == 0 || held < t.FewestHeld {
		t.FewestHeld = held
	}
	t.MostHeld = max(t.MostHeld, held)
	t.Rounds++
	select {
	case <-ctx.Done():
	case <-time.After(o.Held):
	}
	for i := range outcomes {
		outcomes[i].end()
	}
}

// outcome is what came of one connect.
type outcome struct {
	to   netip.AddrPort
	conn *net.TCPConn // nil: refused
	name string       // of who answered; empty: nobody did
	err  error
}

func dial(to netip.AddrPort) outcome {
	o := outcome{to: to}
	dialer := net.Dialer{Timeout: 4 * time.Second}
	dialer.SetMultipathTCP(false)
	// Not under the context: what was begun is ended in order.
	conn, err := dialer.Dial("tcp", to.String())
	if err != nil {
		o.err = err
		return o
	}
	o.conn = conn.(*net.TCPConn)
	name, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil {
		o.name = strings.TrimSpace(name)
	}
	return o
}

// end returns when the connection is over in the kernel too: what it held of a limit is free.
func (o *outcome) end() {
	if o.conn == nil {
		return
	}
	defer o.conn.Close()
	if err := o.conn.CloseWrite(); err == nil {
		_, _ = io.Copy(io.Discard, o.conn) // until the other side's FIN
	}
}

func (t *Tally) add(o *outcome) {
	t.Dialled++
	if o.to.Addr().Is6() {
		t.IPv6++
	}
	switch {
	// A SYN that is reset is ECONNREFUSED: with the other it was connected for a moment.
	case o.name == "" && (o.conn != nil || errors.Is(o.err, syscall.ECONNRESET)):
		t.Cut++
	case o.conn == nil:
		t.Errors[errnoOf(o.err)]++
	default:
		t.Answers[o.name]++
	}
}

func errnoOf(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}
