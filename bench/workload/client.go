package workload

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/sidelight-mesh/sidelight/bench/stat"
)

// bulkBytes is what one write of a stream takes.
const bulkBytes = 256 << 10

// burst is how many requests of a fanout follow one another without a pause.
const burst = 10

// client does slices of work. It is used by one goroutine.
type client struct {
	kind  Kind
	burn  time.Duration
	took  []int64 // of each unit of the slice
	open  []int   // connections that stay from slice to slice
	next  int     // of them the next to use, of a fanout
	chunk []byte
}

func (c *client) do(command Command) (Answer, error) {
	work := map[Kind]func(Command) (int, error){Churn: c.churn, Web: c.web, Keepalive: c.keepalive, Bulk: c.bulk, Fanout: c.fanout}[c.kind]
	if work == nil {
		return Answer{}, fmt.Errorf("no client of kind %q", c.kind)
	}
	if c.chunk == nil {
		c.chunk = make([]byte, bulkBytes)
	}
	c.took = slices.Grow(c.took[:0], command.Units)
	if err := c.adjust(command); err != nil {
		return Answer{}, err
	}
	if command.Units == 0 {
		return Answer{}, nil
	}
	begin := time.Now()
	connections, err := work(command)
	a := Answer{Wall: int64(time.Since(begin)), Connections: connections}
	if err != nil {
		return a, fmt.Errorf("%s to %v: %w", c.kind, command.To, err)
	}
	if len(c.took) > 0 {
		slices.Sort(c.took)
		a.P50, a.P99 = stat.Quantile(c.took, 0.50), stat.Quantile(c.took, 0.99)
	}
	return a, nil
}

// timed runs one unit of work.
func (c *client) timed(unit func() error) error {
	begin := time.Now()
	if err := unit(); err != nil {
		return err
	}
	if c.burn > 0 {
		for lit := time.Now(); time.Since(lit) < c.burn; {
		}
	}
	c.took = append(c.took, int64(time.Since(begin)))
	return nil
}

func (c *client) churn(command Command) (int, error) {
	address := sockaddr(command.To)
	buffer := c.chunk[:exchangeBytes]
	for i := range command.Units {
		err := c.timed(func() error {
			fd, err := connect(&address)
			if err != nil {
				return err
			}
			if err := writeAll(fd, buffer); err != nil {
				return err
			}
			if err := readAll(fd, buffer); err != nil {
				return err
			}
			return closeSocket(fd)
		})
		if err != nil {
			return i, err
		}
	}
	return command.Units, nil
}

// keepalive sends HTTP requests over its one connection.
func (c *client) keepalive(command Command) (int, error) {
	buffer := c.chunk[:len(response)]
	for range command.Units {
		err := c.timed(func() error {
			if err := writeAll(c.open[0], request); err != nil {
				return err
			}
			return readAll(c.open[0], buffer)
		})
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// bulk sends a length and as many bytes over its one connection, and waits until they have arrived.
func (c *client) bulk(command Command) (int, error) {
	var length [lengthBytes]byte
	binary.BigEndian.PutUint64(length[:], uint64(command.Units)<<20)
	if err := writeAll(c.open[0], length[:]); err != nil {
		return 0, err
	}
	for range command.Units << 20 / bulkBytes {
		if err := writeAll(c.open[0], c.chunk); err != nil {
			return 0, err
		}
	}
	return 0, readAll(c.open[0], c.chunk[:1])
}

// adjust opens connections that are missing, and closes those that are too many.
func (c *client) adjust(command Command) error {
	address := sockaddr(command.To)
	for len(c.open) < command.Open {
		fd, err := connect(&address)
		if err != nil {
			return fmt.Errorf("connection %d of %d: %w", len(c.open)+1, command.Open, err)
		}
		c.open = append(c.open, fd)
		if c.kind != Fanout {
			continue
		}
		// Its answer shows that the server has accepted it.
		if err := c.ask(fd); err != nil {
			return fmt.Errorf("connection %d of %d: %w", len(c.open), command.Open, err)
		}
	}
	for len(c.open) > command.Open {
		last := len(c.open) - 1
		if err := closeSocket(c.open[last]); err != nil {
			return err
		}
		c.open = c.open[:last]
		if last%100 == 0 { // so that the ends of thousands of connections are no test of the ring's size
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

func (c *client) ask(fd int) error {
	buffer := c.chunk[:exchangeBytes]
	if err := writeAll(fd, buffer); err != nil {
		return err
	}
	return readAll(fd, buffer)
}

// fanout sends requests over one connection after the other, in bursts.
func (c *client) fanout(command Command) (int, error) {
	due := time.Now()
	for i := range command.Units {
		if i%burst == 0 {
			time.Sleep(time.Until(due))
			due = due.Add(command.Pace)
		}
		c.next = (c.next + 1) % len(c.open)
		if err := c.timed(func() error { return c.ask(c.open[c.next]) }); err != nil {
			return 0, err
		}
	}
	return 0, nil
}
