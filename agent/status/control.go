package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Control answers on a socket of the file system what is not for everybody who can connect to a port: only its owner may, and a group if it is given
// one. Safe for concurrent use.
type Control struct {
	listener net.Listener
	server   *http.Server
}

// NoGroup is for a socket that only its owner may connect to.
const NoGroup = -1

// InUseError says that another agent listens on a control socket.
type InUseError struct{ Path string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("listen on %s: another agent does; stop it, or give this one a state_directory of its own", e.Path)
}

// ListenControl makes the socket, and its directory if that is missing. One that was left by an agent which is gone is replaced; one that somebody
// listens on is an InUseError. Members of a group may connect too, unless it is NoGroup: they may go through the directory, and see nothing else in it.
func ListenControl(path string, group int) (*Control, error) {
	if err := makeDirectory(filepath.Dir(path), group); err != nil {
		return nil, fmt.Errorf("make directory of the control socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, &InUseError{path}
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
	mode := os.FileMode(0o600)
	if group != NoGroup {
		mode, err = 0o660, os.Chown(temporary, -1, group) // root's own until then
	}
	if err == nil {
		err = os.Chmod(temporary, mode)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("protect the control socket: %w", err), listener.Close(), os.Remove(temporary))
	}
	places := newPlaces(mostConnections, mostGuestConnections, mostConnectionsOfGuest)
	return &Control{
		listener: &unlinking{Listener: &bounded{listener, places}, path: path},
		server:   &http.Server{ReadHeaderTimeout: idleTime, IdleTimeout: idleTime, WriteTimeout: writeTime, MaxHeaderBytes: mostHeader, ConnContext: withCaller},
	}, nil
}

// groupMay is what a group is given of the directory: to go through it.
const groupMay = 0o010

func makeDirectory(dir string, group int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	mode := info.Mode().Perm() &^ 0o070
	if group == NoGroup {
		if info.Mode().Perm()&0o070 != groupMay {
			return nil // it is not what we gave
		}
		if err := os.Chmod(dir, mode); err != nil && !errors.Is(err, fs.ErrPermission) { // then we did not give it
			return err
		}
		return nil
	}
	if err := os.Chown(dir, -1, group); err != nil {
		return err
	}
	return os.Chmod(dir, mode|groupMay)
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

// Serve answers until Shutdown. An answer that is made in memory is for Answers, and one that goes on sets deadlines of its own.
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
	if err != nil {
		err = errors.Join(err, c.server.Close()) // who still reads is cut
	}
	_ = c.listener.Close() // for one that never served; else it is closed already
	return err
}

// mostAnswer bounds what AskControl reads.
const mostAnswer = 256 << 20

// AskControl makes a GET request to an agent's control socket and returns the answer's text. An answer other than 200 is an error with its text.
func AskControl(ctx context.Context, path, what string) ([]byte, error) {
	body, err := FollowControl(ctx, path, what)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, mostAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	return text, nil
}

// FollowControl does the same with an answer that goes on until the context ends. The caller closes it.
func FollowControl(ctx context.Context, path, what string) (io.ReadCloser, error) {
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
		return nil, fmt.Errorf("ask the agent: %w; %s", err, remedy(err))
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
		return nil, fmt.Errorf("ask the agent: %s: %s", response.Status, bytes.TrimSpace(text))
	}
	return response.Body, nil
}

func remedy(err error) string {
	var dial *net.OpError
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "only root may, or the members of its control_group"
	case !errors.As(err, &dial) || dial.Op != "dial":
		return "it hung up or does not answer: it stops, or has as many connections as it takes; ask again"
	}
	return "name its state directory with --state-directory"
}
