package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves on a free port until the test ends.
func start(t *testing.T, metrics http.Handler) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(metrics, http.NotFoundHandler()) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// ask returns status, body and headers of an answer. Its connection is not kept, so that none outlives the test.
func ask(t *testing.T, s *Server, method, path string) (int, string, http.Header) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Address()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body), response.Header
}

func TestAnswers(t *testing.T) {
	s := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "sidelight_up 1\n") }))
	tests := []struct {
		method, path string
		ready        bool
		wantStatus   int
		wantBody     string
	}{
		{"GET", "/healthz", false, 200, "ok\n"},
		{"GET", "/healthz", true, 200, "ok\n"},
		{"GET", "/readyz", false, 503, "not attached\n"},
		{"GET", "/readyz", true, 200, "ok\n"},
		// The agent detaches before it stops to answer.
		{"GET", "/readyz", false, 503, "not attached\n"},
		{"GET", "/metrics", false, 200, "sidelight_up 1\n"},
		{"HEAD", "/metrics", false, 200, ""},
		{"HEAD", "/readyz", false, 503, ""},
		{"POST", "/metrics", false, 405, "Method Not Allowed\n"},
		{"GET", "/", false, 404, "404 page not found\n"},
		{"GET", "/metrics/more", false, 404, "404 page not found\n"},
		{"GET", "/debug/pprof/none", false, 404, "Unknown profile\n"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s %s ready %v", test.method, test.path, test.ready), func(t *testing.T) {
			s.SetReady(test.ready)
			status, body, _ := ask(t, s, test.method, test.path)
			if status != test.wantStatus || body != test.wantBody {
				t.Errorf("answer is %d %q, want %d %q", status, body, test.wantStatus, test.wantBody)
			}
		})
	}
}

func TestProfiles(t *testing.T) {
	s := start(t, http.NotFoundHandler())
	tests := []struct {
		path     string
		wantType string
		wantPart string
	}{
		{"/debug/pprof/", "text/html; charset=utf-8", "goroutine?debug=1"},
		{"/debug/pprof/goroutine?debug=1", "text/plain; charset=utf-8", "goroutine profile: total "},
		{"/debug/pprof/cmdline", "text/plain; charset=utf-8", os.Args[0]},
		{"/debug/pprof/symbol", "text/plain; charset=utf-8", "num_symbols: 1"},
		// One that takes no time: the shortest CPU profile is a second.
		{"/debug/pprof/heap", "application/octet-stream", "\x1f\x8b"},
	}
	for _, test := range tests {
		t.Run(test.path, func(t *testing.T) {
			status, body, header := ask(t, s, "GET", test.path)
			if status != 200 || header.Get("Content-Type") != test.wantType {
				t.Errorf("answer is %d of type %s, want 200 of type %s", status, header.Get("Content-Type"), test.wantType)
			}
			if !strings.Contains(body, test.wantPart) {
				t.Errorf("%q is not in\n%s", test.wantPart, body)
			}
		})
	}
}

// Whoever takes over the port must find it free, even when the agent failed before it served.
func TestShutdown(t *testing.T) {
	for _, serve := range []bool{false, true} {
		t.Run(fmt.Sprintf("serving %v", serve), func(t *testing.T) {
			s, err := Listen("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			if serve {
				go func() { served <- s.Serve(http.NotFoundHandler(), http.NotFoundHandler()) }()
				// The first answer shows that Serve is under way.
				ask(t, s, "GET", "/healthz")
			}
			for i := range 2 {
				if err := s.Shutdown(t.Context()); err != nil {
					t.Errorf("shutdown %d: %v", i+1, err)
				}
			}
			again, err := Listen(s.Address())
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if !serve { // it comes late, and is no error
				served <- s.Serve(http.NotFoundHandler(), http.NotFoundHandler())
			}
			if err := <-served; err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
}

// A scrape under way that takes too long is cut, and Shutdown says so: whoever asks for an endless profile must not hold up the end.
func TestShutdownDuringScrape(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		fmt.Fprint(w, "late")
	}))
	answered := make(chan error, 1)
	go func() {
		response, err := http.Get("http://" + s.Address() + "/metrics")
		if err == nil {
			response.Body.Close()
		}
		answered <- err
	}()
	select {
	case <-entered:
	case <-answered:
		t.Fatal("answered without asking for metrics")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown with a scrape under way and no time left: %v, want %v", err, context.Canceled)
	}
	if <-answered == nil {
		t.Error("it was answered")
	}
	close(leave)
}

func TestListenErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const remedy = "; choose another with --metrics-address HOST:PORT"
	address := taken.Addr().String()
	s, err := Listen(address)
	if s != nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v and error %v, want one of an address in use", s, err)
	}
	if want := "listen for metrics: listen tcp " + address + ": bind: address already in use" + remedy; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	_, err = Listen("127.0.0.1:65536")
	if want := "listen for metrics: listen tcp: address 65536: invalid port" + remedy; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %q", err, want)
	}
}

func TestServeError(t *testing.T) {
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.listener.Close() // nobody asked for an end
	err = s.Serve(http.NotFoundHandler(), http.NotFoundHandler())
	if !errors.Is(err, net.ErrClosed) {
		t.Fatalf("error is %v, want one of a closed listener", err)
	}
	if want := "serve metrics: accept tcp " + s.Address() + ": use of closed network connection"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
}

// TestLater has a server wait for an address that somebody else has.
func TestLater(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Later(taken.Addr().String())
	s.SetReady(true)
	served := make(chan error, 1)
	go func() { served <- s.Serve(http.NotFoundHandler(), http.NotFoundHandler()) }()
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		response, err := http.Get("http://" + s.Address() + "/readyz")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not serve: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	never := Later("127.0.0.1:1") // nobody gets it, or it is taken: either way it ends
	go func() { served <- never.Serve(http.NotFoundHandler(), http.NotFoundHandler()) }()
	if err := never.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestHealth asks an agent that is dead, at first before it is to be alive.
func TestHealth(t *testing.T) {
	s := start(t, http.NotFoundHandler())
	alive := false
	s.SetAlive(func(context.Context) bool { return alive })
	for _, test := range []struct {
		ready, alive bool
		status       int
		body         string
	}{
		{false, false, 200, "ok\n"},
		{true, false, 503, "the event reader does not get on\n"},
		{true, true, 200, "ok\n"},
	} {
		alive = test.alive
		s.SetReady(test.ready)
		if status, body, _ := ask(t, s, "GET", "/healthz"); status != test.status || body != test.body {
			t.Errorf("ready %v, alive %v: %d %q, want %d %q", test.ready, test.alive, status, body, test.status, test.body)
		}
	}
}
