// Package status serves what operators ask of a running agent over HTTP.
package status

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"time"
)

// Server answers /healthz, /readyz, /metrics, /audit and /debug/pprof.
type Server struct {
	address string
	server  *http.Server
	ready   atomic.Bool
	alive   atomic.Pointer[func(context.Context) bool]
	closed  chan struct{}
	closing sync.Once

	mu       sync.Mutex
	listener net.Listener // nil: not yet
}

// Listen takes the address, so that one in use shows before anything else is done. It serves nothing yet.
func Listen(address string) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w; choose another with --metrics-address HOST:PORT", err)
	}
	s := Later(address)
	s.listener = listener
	return s, nil
}

// Later returns a server whose address somebody else has. It takes it when it can, once it serves.
func Later(address string) *Server {
	return &Server{address: address, server: &http.Server{ReadHeaderTimeout: 10 * time.Second}, closed: make(chan struct{})}
}

// Address returns where the server listens, or is to listen. Safe for concurrent use.
func (s *Server) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return s.address
	}
	return s.listener.Addr().String()
}

// retryInterval is how often an address that somebody else has is tried.
const retryInterval = time.Second

// listen returns the listener, as soon as there can be one; nil after Shutdown.
func (s *Server) listen() net.Listener {
	for {
		s.mu.Lock()
		if s.listener == nil {
			s.listener, _ = net.Listen("tcp", s.address) // it was said why not
		}
		l := s.listener
		s.mu.Unlock()
		if l != nil {
			return l
		}
		select {
		case <-s.closed:
			return nil
		case <-time.After(retryInterval):
		}
	}
}

// SetReady decides what /readyz says. Safe for concurrent use.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// SetAlive gives /healthz something to ask while the server is ready: whether, within a context, the agent does its work. Safe for concurrent use.
func (s *Server) SetAlive(alive func(context.Context) bool) { s.alive.Store(&alive) }

// healthTime is how long the agent may take to show that it does its work.
const healthTime = 3 * time.Second

func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTime)
	defer cancel()
	if alive := s.alive.Load(); alive != nil && s.ready.Load() && !(*alive)(ctx) {
		http.Error(w, "the event reader does not get on", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// Serve answers until Shutdown.
func (s *Server) Serve(metrics, audit http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /audit", audit)
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not attached", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s.server.Handler = mux
	listener := s.listen()
	if listener == nil {
		return nil
	}
	if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// Shutdown lets requests under way end, for as long as the context allows. Safe twice, and without Serve.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.server.Close()) // who still asks, such as for a long profile, is cut
	}
	s.closing.Do(func() { close(s.closed) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		s.listener.Close() // for a server that never served; else it is closed already
	}
	return err
}
