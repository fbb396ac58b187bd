package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Control answers on a socket of the file system what is not for everybody who can connect to a port: only its owner may. Safe for concurrent use.
type Control struct {
	listener net.Listener
	server   *http.Server
}

// ListenControl makes the socket, and its directory if that is missing. One that was left by an agent which is gone is replaced; one that somebody
// listens on is an error.
func ListenControl(path string) (*Control, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the control socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on %s: another agent does; stop it, or give this one a state_directory of its own", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an old control socket: %w", err)
	}
	// With its mode from the first moment: nobody can connect before chmod.
	temporary := path + ".new"
	_ = os.Remove(temporary) // of an agent that was killed in between
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	err = os.Chmod(temporary, 0o600)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("protect the control socket: %w", err), listener.Close(), os.Remove(temporary))
	}
	return &Control{listener: &unlinking{Listener: listener, path: path}, server: &http.Server{ReadHeaderTimeout: 10 * time.Second}}, nil
}

// unlinking removes the socket's file when it is closed.
type unlinking struct {
	net.Listener
	path string
	once sync.Once
}

func (u *unlinking) Close() error {
	err := net.ErrClosed
	// Once: the path may be another agent's by the second time.
	u.once.Do(func() {
		err = u.Listener.Close()
		if removed := os.Remove(u.path); !errors.Is(removed, os.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	})
	return err
}

// Serve answers until Shutdown.
func (c *Control) Serve(handler http.Handler) error {
	c.server.Handler = handler
	if err := c.server.Serve(c.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the control socket: %w", err)
	}
	return nil
}

// Shutdown lets requests under way end, for as long as the context allows. Safe twice, and without Serve.
func (c *Control) Shutdown(ctx context.Context) error {
	err := c.server.Shutdown(ctx)
	_ = c.listener.Close() // for one that never served; else it is closed already
	return err
}

// mostAnswer bounds what AskControl reads.
const mostAnswer = 256 << 20

// AskControl makes a GET request to an agent's control socket and returns the answer's text. An answer other than 200 is an error with its text.
func AskControl(ctx context.Context, path, what string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+what, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w; name its state directory with --state-directory", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, mostAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent: %s: %s", response.Status, text)
	}
	return text, nil
}
