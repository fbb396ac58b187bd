package datapath

import (
	"fmt"
	"strings"
)

// FeatureError says which feature the running kernel lacks.
type FeatureError struct {
	Feature string // as "sidelight check" names it
	Remedy  string
}

func (e *FeatureError) Error() string {
	return fmt.Sprintf("this kernel lacks %s: %s", e.Feature, e.Remedy)
}

// PrivilegeError says which capabilities the process lacks.
type PrivilegeError struct {
	Missing []string
}

func (e *PrivilegeError) Error() string {
	return fmt.Sprintf("not enough privileges, missing %s: run as root, or grant them (systemd: AmbientCapabilities=, container: capabilities.add)",
		strings.Join(e.Missing, ", "))
}
