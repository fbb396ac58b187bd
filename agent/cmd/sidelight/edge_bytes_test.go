package main

import "testing"

// TestLongStream moves more over one connection than 32 bits count.
func TestLongStream(t *testing.T) {
	const request, response = 4<<30 + 12345, 1 << 20
	runEdges(t, edgeCase{"4 GiB and more", func(e *scene) {
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
