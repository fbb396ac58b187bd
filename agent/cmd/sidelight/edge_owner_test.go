package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// fork starts a process that has these file descriptors, and takes the calls until it is told to exit.
func (c *caller) fork(fds ...int) *caller {
	c.t.Helper()
	child := *c
	args := make([]any, len(fds))
	for i, fd := range fds {
		args[i] = fd
	}
	child.pid = c.call("fork", 0, args...)
	return &child
}

// exit ends a process that was forked. Its parent takes the calls again.
func (c *caller) exit(parent *caller) {
	c.t.Helper()
	c.say("exit", 0)
	if pid := parent.hear().N; pid != parent.pid {
		c.t.Fatalf("process %d is back, want %d", pid, parent.pid)
	}
}

// unixPair joins two processes by a unix socket, wherever their cgroups are.
func unixPair(t *testing.T, a, b *caller) (af, bf int) {
	t.Helper()
	l := a.call("socket", 0, unix.AF_UNIX, unix.SOCK_STREAM, 0)
	path := filepath.Join(t.TempDir(), "s")
	a.call("bind", l, path)
	a.call("listen", l, 1)
	bf = b.call("socket", 0, unix.AF_UNIX, unix.SOCK_STREAM, 0)
	b.call("connect", bf, path)
	return a.call("accept", l), bf
}

// moveTo puts a process into a cgroup of the case.
func (e *scene) moveTo(cgroup string, pid int) {
	e.t.Helper()
	file := filepath.Join(e.newCgroup(cgroup), "cgroup.procs")
	if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
		e.t.Fatal(err)
	}
}

// copySelf makes the test binary again, by another name.
func copySelf(t *testing.T, name string) string {
	t.Helper()
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(t.TempDir(), name)
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// exec has the process run another program. A file that was just written can be busy for a moment: a process that another case starts
// then has it open until its own exec.
func (c *caller) exec(path string) {
	c.t.Helper()
	eventually(c.t, "exec", func() error {
		a := c.try("exec", 0, path)
		if a.Errno == "" && a.N != c.pid {
			c.t.Fatalf("process %d after exec, want %d", a.N, c.pid)
		}
		if a.Errno != "" {
			return errors.New(a.Errno)
		}
		return nil
	})
}

// TestOwner passes sockets around. A client is the process that called connect, a server the one that called listen; and both stay in
// the cgroup in which their socket was made.
func TestOwner(t *testing.T) {
	const request = 100
	const few = 10
	// finish moves a request from one end to the other and closes, the client first.
	finish := func(c *caller, cf int, s *caller, sf int) {
		c.send(cf, request)
		c.close(cf)
		s.recv(sf, request)
		s.eof(sf)
		s.close(sf)
	}
	runEdges(t, edgeCase{"made by the parent, connected by a child", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		want := make(map[end]int)
		for range few {
			cf := c.tcp(addr)
			child := c.fork(cf)
			// It moves away, which takes no socket along.
			e.moveTo("other", child.pid)
			child.call("connect", cf, addr)
			child.exit(c)
			finish(c, cf, s, s.call("accept", l))
			want[clientEnd(child, "ok", request, 0)]++
		}
		want[serverEnd(s, "ok", 0, request)] = few
		e.check(few, want)
	}}, edgeCase{"made by a child that moved, connected by it", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		want := make(map[end]int)
		for range few {
			child := c.fork()
			e.moveTo("other", child.pid)
			finish(child, child.connect(addr), s, s.call("accept", l))
			child.exit(c)
			one := clientEnd(child, "ok", request, 0)
			one.Cgroup = "other"
			want[one]++
		}
		want[serverEnd(s, "ok", 0, request)] = few
		e.check(few, want)
	}}, edgeCase{"listener of the parent, accepted by a child", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback6, many)
		child := s.fork(l)
		e.moveTo("other", child.pid)
		for range many {
			cf := c.connect(addr)
			finish(c, cf, child, child.call("accept", l))
		}
		child.exit(s)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
	}}, edgeCase{"listener of a parent that is gone", func(e *scene) {
		// The process that called listen is named although it is gone, by what the kernel kept of it.
		c, s := e.pair()
		child := s.fork()
		l, addr := child.listen(loopback4, many)
		af, bf := unixPair(e.t, c, child)
		child.call("sendfd", bf, l)
		child.close(l)
		child.exit(s)
		l = c.call("recvfd", af)
		for range many {
			cf := c.connect(addr)
			finish(c, cf, c, c.call("accept", l))
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0):     many,
			serverEnd(child, "ok", 0, request): many,
		})
	}}, edgeCase{"exec between listen and accept", func(e *scene) {
		// The process is the same and so is its number. Its name is that of the program that it runs when the agent first hears of it.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		s.call("keep", l)
		s.exec(copySelf(e.t, "served"))
		for range many {
			cf := c.connect(addr)
			finish(c, cf, s, s.call("accept", l))
		}
		served := serverEnd(s, "ok", 0, request)
		served.Executable = "served"
		e.check(many, map[end]int{clientEnd(c, "ok", request, 0): many, served: many})
	}}, edgeCase{"exec between socket and connect", func(e *scene) {
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		var clients []int
		for range many {
			cf := c.tcp(addr)
			c.call("keep", cf)
			clients = append(clients, cf)
		}
		finish(c, c.connect(addr), s, s.call("accept", l))
		e.waitLines(2) // the agent knows the process by its old name
		c.exec(copySelf(e.t, "a-client-with-a-long-name"))
		for _, cf := range clients {
			c.call("connect", cf, addr)
			finish(c, cf, s, s.call("accept", l))
		}
		renamed := clientEnd(c, "ok", request, 0)
		renamed.Executable = "a-client-with-a-long-name"
		e.check(many+1, map[end]int{
			clientEnd(c, "ok", request, 0): 1, renamed: many,
			serverEnd(s, "ok", 0, request): many + 1,
		})
	}}, edgeCase{"passed on over a unix socket", func(e *scene) {
		// Connected here, used and closed in another cgroup, after the process that connected is gone.
		ns := e.space()
		c, s, other := e.caller(ns, "client"), e.caller(ns, "server"), e.caller(ns, "other")
		l, addr := s.listen(loopback4, many)
		cu, ou := unixPair(e.t, c, other)
		su, ou2 := unixPair(e.t, s, other)
		for range many {
			c.call("sendfd", cu, c.connect(addr))
			s.call("sendfd", su, s.call("accept", l))
		}
		c.kill()
		s.kill()
		for range many {
			cf := other.call("recvfd", ou)
			finish(other, cf, other, other.call("recvfd", ou2))
		}
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
	}}, edgeCase{"passed on before connect and listen", func(e *scene) {
		// The sockets are of one cgroup, the processes that connect and listen of another.
		ns := e.space()
		c, s, other := e.caller(ns, "client"), e.caller(ns, "server"), e.caller(ns, "other")
		ou, cu := unixPair(e.t, other, c)
		ou2, su := unixPair(e.t, other, s)
		pass := func(through int) {
			fd := other.tcp(loopback4)
			other.call("sendfd", through, fd)
			other.close(fd)
		}
		pass(ou2)
		l := s.call("recvfd", su)
		s.call("bind", l, loopback4)
		s.call("listen", l, many)
		addr := s.name(l, loopback4)
		for range many {
			pass(ou)
			cf := c.call("recvfd", cu)
			c.call("connect", cf, addr)
			finish(c, cf, s, s.call("accept", l))
		}
		client, server := clientEnd(c, "ok", request, 0), serverEnd(s, "ok", 0, request)
		client.Cgroup, server.Cgroup = "other", "other"
		e.check(many, map[end]int{client: many, server: many})
	}}, edgeCase{"gone before its connection", func(e *scene) {
		// The client is killed while most of what it sent waits in its socket, which goes on by itself.
		const lot = 1 << 20
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		want := make(map[end]int)
		for range few {
			child := c.fork()
			cf := child.tcp(addr)
			child.call("setsockopt", cf, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*lot)
			child.call("connect", cf, addr)
			sf := s.call("accept", l)
			child.send(cf, lot)
			if n := s.call("queued", sf); n >= lot {
				e.t.Fatalf("all %d bytes have arrived: nothing waits", n)
			}
			child.exit(c)
			s.recv(sf, lot)
			s.eof(sf)
			s.close(sf)
			want[clientEnd(child, "ok", lot, 0)]++
		}
		want[serverEnd(s, "ok", 0, lot)] = few
		e.check(few, want)
	}}, edgeCase{"in a namespace that its process has left", func(e *scene) {
		// The sockets hold the namespace; the processes live in another, and the test has let go of it.
		c, s := e.pair()
		l, addr := s.listen(loopback4, many)
		var clients, servers []int
		for range many {
			clients = append(clients, c.connect(addr))
			servers = append(servers, s.call("accept", l))
		}
		away := newNamespace(e.t)
		path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(away))
		c.call("setns", 0, path)
		s.call("setns", 0, path)
		for i := range clients {
			finish(c, clients[i], s, servers[i])
		}
		s.close(l)
		e.check(many, map[end]int{
			clientEnd(c, "ok", request, 0): many,
			serverEnd(s, "ok", 0, request): many,
		})
	}}, edgeCase{"namespace and processes gone", func(e *scene) {
		// What is unread makes the kernel reset a connection when its process ends.
		ns, err := newBareNamespace()
		if err != nil {
			e.t.Fatal(err)
		}
		c, s := e.caller(ns, "client"), e.caller(ns, "server")
		l, addr := s.listen(loopback4, many)
		for range many {
			cf := c.connect(addr)
			s.call("accept", l)
			c.send(cf, request)
		}
		if err := ns.Close(); err != nil {
			e.t.Fatal(err)
		}
		s.kill()
		c.kill()
		e.check(many, map[end]int{
			clientEnd(c, "reset_by_peer", request, 0):  many,
			serverEnd(s, "reset_by_local", 0, request): many,
		})
	}})
}
