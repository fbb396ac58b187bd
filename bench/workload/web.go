package workload

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// The web workload is what a service does at least for a connection of its own: one HTTP request by Go's net/http at both ends, which parse, route,
// allocate and collect. The other workloads have system calls only.

// serveWeb answers HTTP requests, a connection each.
func serveWeb(out io.Writer) error {
	listener, err := net.Listen("tcp4", "0.0.0.0:0") // in a network namespace of the benchmark's own
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, listener.Addr().(*net.TCPAddr).Port); err != nil {
		return err
	}
	body := make([]byte, exchangeBytes)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(body) // the client sees what is missing
	})
	return (&http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}).Serve(listener)
}

var webClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}

// web makes connections one after the other, of one request each.
func (c *client) web(command Command) (int, error) {
	url := fmt.Sprintf("http://%v/items/1", command.To)
	for i := range command.Units {
		if err := c.timed(func() error { return get(url, c.chunk) }); err != nil {
			return i, err
		}
	}
	return command.Units, nil
}

func get(url string, buffer []byte) error {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := webClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if n, err := io.ReadFull(answer.Body, buffer[:exchangeBytes]); err != nil {
		return fmt.Errorf("%d bytes of the answer: %w", n, err)
	}
	if _, err := answer.Body.Read(buffer); err != io.EOF {
		return fmt.Errorf("after the answer: %w", err)
	}
	return nil
}
