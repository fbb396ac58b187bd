package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"
)

// stream serves a tail.Stream, and returns where it can be asked for.
func stream(t *testing.T, within time.Duration, serve func(*controlStream)) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		serve(&controlStream{w: w, controller: http.NewResponseController(w), within: within})
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestStreamOfWhoDoesNotRead is cut after its time, and at once when the agent stops.
func TestStreamOfWhoDoesNotRead(t *testing.T) {
	for name, c := range map[string]struct {
		within time.Duration
		abort  bool
	}{"in time": {100 * time.Millisecond, false}, "at the end": {time.Hour, true}} {
		failed := make(chan error, 1)
		address := stream(t, c.within, func(s *controlStream) {
			if c.abort {
				time.AfterFunc(100*time.Millisecond, s.Abort)
			}
			for {
				_, err := s.Write(make([]byte, 64<<10))
				if err == nil {
					err = s.Flush()
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
		client, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: agent\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-failed:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it goes on for who does not read", name)
		}
	}
}

// TestStreamOfWhoReads goes on for longer than a write may take, also when there is nothing for long, and has an end.
func TestStreamOfWhoReads(t *testing.T) {
	const within = 500 * time.Millisecond
	address := stream(t, within, func(s *controlStream) {
		for range 2 {
			if _, err := s.Write([]byte("line\n")); err != nil {
				t.Error(err)
			}
			if err := s.Flush(); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * within)
		}
		s.move()
	})
	response, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if text, err := io.ReadAll(response.Body); err != nil || string(text) != "line\nline\n" {
		t.Errorf("got %q, %v", text, err)
	}
}
