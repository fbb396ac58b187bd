package restart

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// proxy is HAProxy with the same service under the same load. It is reloaded as its manual recommends: a master hands the sockets that listen to a new
// worker, and the old one ends when its connections have.
type proxy struct {
	*place
	*driver
	cmd *exec.Cmd
	log *bytes.Buffer
}

const proxyConfig = `global
	stats socket %s mode 600 level admin expose-fd listeners
	maxconn 4096
defaults
	mode tcp
	balance roundrobin
	timeout connect 5s
	timeout client 60s
	timeout server 60s
listen service
	bind %s
`

func startProxy(ctx context.Context) (p *proxy, err error) {
	p = &proxy{log: new(bytes.Buffer)}
	if p.place, err = newPlace(); err != nil {
		return p, err
	}
	if p.driver, err = p.startLoad(); err != nil {
		return p, err
	}
	config := fmt.Sprintf(proxyConfig, filepath.Join(p.directory, "haproxy.sock"), service)
	for i, address := range endpoints {
		config += fmt.Sprintf("\tserver endpoint-%d %s:%d\n", i+1, address, endpointPort)
	}
	file, err := p.file("haproxy.cfg", config)
	if err != nil {
		return p, err
	}
	p.cmd = exec.Command("haproxy", "-W", "-db", "-q", "-f", file)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.start("proxy", p.cmd); err != nil {
		return p, err
	}
	return p, poll(ctx, "haproxy to listen", func() bool {
		return lab.In(p.ns, func() error {
			c, err := net.DialTimeout("tcp4", service, timeout)
			if err == nil {
				c.Close()
			}
			return err
		}) == nil
	})
}

// workers are the processes that the master has.
func (p *proxy) workers() []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", p.cmd.Process.Pid))
	return strings.Fields(string(text))
}

// reload returns when there is a new worker and the old one has ended.
func (p *proxy) reload(ctx context.Context) error {
	before := p.workers()
	if err := p.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		return err
	}
	err := poll(ctx, "haproxy to be reloaded", func() bool {
		now := p.workers()
		return len(now) == 1 && !slices.Contains(before, now[0])
	})
	if err != nil {
		return fmt.Errorf("%w; workers %v, before %v; it says:\n%s", err, p.workers(), before, p.log)
	}
	return nil
}
