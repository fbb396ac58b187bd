package datapath

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The numbers are the kernel's (include/uapi/linux/capability.h).
var capabilities = []struct {
	name     string
	bit      uint
	required bool
	byAdmin  bool // CAP_SYS_ADMIN is enough
}{
	{"CAP_BPF", 39, true, true},
	{"CAP_NET_ADMIN", 12, true, false},
	{"CAP_PERFMON", 38, true, true},
	{"CAP_DAC_READ_SEARCH", 2, false, false},
	{"CAP_SYS_PTRACE", 19, false, false},
	{"CAP_SYS_ADMIN", sysAdmin, false, false},
}

const sysAdmin = 21

func TestPrivileges(t *testing.T) {
	tests := []struct {
		name string
		keep uint64 // of the capabilities that the test has: without root none are left to take away, and the answer is no to all
	}{
		{"none", 0},
		{"all", ^uint64(0)},
		{"the required ones", 1<<39 | 1<<38 | 1<<12},
		{"admin stands in for two", 1<<sysAdmin | 1<<12},
		{"admin alone", 1 << sysAdmin},
		{"all but network administration", ^uint64(1 << 12)},
		{"only what is not required", 1<<2 | 1<<19},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			done := make(chan error)
			go func() {
				// Capabilities are the thread's. It ends with the goroutine, since nothing unlocks it.
				runtime.LockOSThread()
				done <- checkPrivileges(test.keep)
			}()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func checkPrivileges(keep uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective = data[0].Permitted & uint32(keep)
	data[1].Effective = data[1].Permitted & uint32(keep>>32)
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	effective, err := effectiveCapabilities()
	if err != nil {
		return err
	}
	holds := func(bit uint) bool { return effective&(1<<bit) != 0 }
	got, err := Capabilities()
	if err != nil {
		return err
	}
	if len(got) != len(capabilities) {
		return fmt.Errorf("%d capabilities, want %d", len(got), len(capabilities))
	}
	var missing []string
	for i, want := range capabilities {
		held := holds(want.bit) || want.byAdmin && holds(sysAdmin)
		if c := got[i]; c.Name != want.name || c.Required != want.required || c.Held != held {
			return fmt.Errorf("with capabilities %#x: got %+v, want %s required %v held %v", effective, c, want.name, want.required, held)
		}
		if want.required && !held {
			missing = append(missing, want.name)
		}
	}
	err = CheckPrivileges()
	if missing == nil {
		return err
	}
	var lacks *PrivilegeError
	if !errors.As(err, &lacks) || !slices.Equal(lacks.Missing, missing) {
		return fmt.Errorf("with capabilities %#x: error %w, want one that %v are missing", effective, err, missing)
	}
	return nil
}

// effectiveCapabilities asks the kernel in another way than the code under test.
func effectiveCapabilities() (uint64, error) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in /proc/thread-self/status")
}

// The table of "sidelight check" says of each capability what it is for, and what is lost without those that one can do without.
func TestCapabilitiesAreExplained(t *testing.T) {
	got, err := Capabilities()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range got {
		if c.Use == "" || (c.Without == "") != c.Required {
			t.Errorf("%s is for %q and without it %q", c.Name, c.Use, c.Without)
		}
	}
}
