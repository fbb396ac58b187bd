package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Names of the hidden commands that the demo starts itself as.
const (
	ServiceCommand = "demo-service"
	ClientCommand  = "demo-client"
)

const (
	requestBytes  = 64
	responseBytes = 1024
	slowness      = 150 * time.Millisecond
)

// RunService listens and answers until the context ends.
func RunService(ctx context.Context, kind, address string, ready io.Writer) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	fmt.Fprintln(ready, "ready")
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		serving.Go(func() { serve(kind, conn.(*net.TCPConn)) })
	}
}

// serve answers one request. Errors are the client's to see: some of them are what the demo is for.
func serve(kind string, conn *net.TCPConn) {
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, requestBytes)); err != nil {
		return
	}
	switch kind {
	case "slow":
		time.Sleep(slowness)
	case "reset":
		_ = conn.SetLinger(0)
		return
	}
	_, _ = conn.Write(make([]byte, responseBytes))
}

// RunClient connects to every service at its pace until the context ends, and returns when no connection is left.
func RunClient(ctx context.Context, ready io.Writer) error {
	fmt.Fprintln(ready, "ready")
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, service := range Services() {
		asking.Go(func() {
			ticker := time.NewTicker(service.Every)
			defer ticker.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
					asking.Go(func() { ask(ctx, service) })
				}
			}
		})
	}
	return nil
}

func ask(ctx context.Context, service Service) {
	if service.Kind != "" {
		// What was begun is ended in order; only a connect that would hang for seconds is given up.
		ctx = context.WithoutCancel(ctx)
	}
	dialer := net.Dialer{Timeout: 4 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", service.Address.String())
	if err != nil {
		return // observed, not reported
	}
	defer conn.Close()
	_, _ = conn.Write(make([]byte, requestBytes))
	_, _ = io.Copy(io.Discard, conn)
}
