package main

import (
	"testing"
	"time"
)

// TestLongStream moves more over one connection than 32 bits count. An emulated machine would take minutes, and moves less.
func TestLongStream(t *testing.T) {
	const response = 1 << 20
	request := 4<<30 + 12345
	if patiently(t, time.Second) > time.Second {
		request = 64<<20 + 12345
	}
	runEdges(t, edgeCase{"one way, then a little back", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, 1)
		cf := c.connect(addr)
		sf := s.call("accept", l)
		if err := c.in.Encode(call{Name: "sendfile", FD: cf, Args: []int{request}}); err != nil {
			e.t.Fatal(err)
		}
		s.recv(sf, request)
		if a := c.hear(); a.N != request {
			e.t.Fatalf("sendfile: %+v", a)
		}
		s.send(sf, response)
		c.recv(cf, response)
		c.close(cf)
		s.eof(sf)
		s.close(sf)
		e.check(1, map[end]int{
			clientEnd(c, "ok", request, response): 1,
			serverEnd(s, "ok", response, request): 1,
		})
	}})
}
