package datapath

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Capability is one that Sidelight uses.
type Capability struct {
	Name     string
	bit      uint
	Required bool
	Use      string // what for
	Without  string // what happens without it, when it is not required
	Held     bool
}

// Capabilities returns what Sidelight uses and whether this process holds it. CAP_SYS_ADMIN stands in for CAP_BPF and
// CAP_PERFMON, as it does in the kernel.
func Capabilities() ([]Capability, error) {
	caps := []Capability{
		{Name: "CAP_BPF", bit: unix.CAP_BPF, Required: true, Use: "load programs and maps"},
		{Name: "CAP_NET_ADMIN", bit: unix.CAP_NET_ADMIN, Required: true, Use: "load and attach cgroup and sockops programs"},
		{Name: "CAP_PERFMON", bit: unix.CAP_PERFMON, Required: true, Use: "read kernel structs: process, cgroup, TCP totals"},
		{
			Name: "CAP_DAC_READ_SEARCH", bit: unix.CAP_DAC_READ_SEARCH, Use: "turn cgroup ids into paths",
			Without: "workloads have no name: local_workload is unknown, no cgroup, container or unit in the access log",
		},
		{
			Name: "CAP_SYS_PTRACE", bit: unix.CAP_SYS_PTRACE, Use: "read /proc/PID/exe of other users' processes",
			Without: "process.executable.name is the kernel's 15 characters of the process name",
		},
		{
			Name: "CAP_SYS_ADMIN", bit: unix.CAP_SYS_ADMIN, Use: "adopt connections in other network namespaces; mount bpffs when it is not mounted",
			Without: "open connections of other network namespaces are not adopted; bpffs has to be mounted beforehand (most distributions do)",
		},
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	held := func(bit uint) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }
	for i := range caps {
		c := &caps[i]
		c.Held = held(c.bit) || held(unix.CAP_SYS_ADMIN) && (c.bit == unix.CAP_BPF || c.bit == unix.CAP_PERFMON)
	}
	return caps, nil
}

// CheckPrivileges returns a *PrivilegeError when a required capability is missing.
func CheckPrivileges() error {
	caps, err := Capabilities()
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range caps {
		if c.Required && !c.Held {
			missing = append(missing, c.Name)
		}
	}
	if len(missing) > 0 {
		return &PrivilegeError{Missing: missing}
	}
	return nil
}
