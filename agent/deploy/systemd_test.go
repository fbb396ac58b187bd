package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/sidelight-mesh/sidelight/agent/config"
)

const (
	service       = "systemd/sidelight.service"
	dropIn        = "systemd/mesh.conf"
	configuration = "systemd/sidelight.yaml"

	installed = "/usr/local/bin/sidelight" // the program
)

// directives are those that may be there, with how often one is. What is not here was not thought about: systemd only warns of a directive that it
// does not know, and of those that hide processes, namespaces or mounts none belongs into the unit.
var directives = map[string]map[string]int{
	"Unit": {
		"Description": 1, "Documentation": 1, "AssertPathIsMountPoint": 1, "StartLimitIntervalSec": 1, "Before": 1,
	},
	"Service": {
		"Type": 1, "NotifyAccess": 1, "ExecStart": 1, "WatchdogSec": 1, "Restart": 1, "RestartSec": 1, "TimeoutStartSec": 1, "TimeoutStopSec": 1,
		"KillMode": 1, "OOMScoreAdjust": 1, "LimitMEMLOCK": 1, "CapabilityBoundingSet": 1, "NoNewPrivileges": 1, "ProtectSystem": 1,
		"StateDirectory": 1, "StateDirectoryMode": 1, "LogsDirectory": 1, "LogsDirectoryMode": 1, "UMask": 1, "ProtectKernelTunables": 1,
		"ReadWritePaths": 1, "ProtectControlGroups": 1, "ProtectHome": 1, "PrivateTmp": 1, "PrivateDevices": 1, "ProtectClock": 1,
		"ProtectKernelLogs": 1, "ProtectKernelModules": 1, "RestrictNamespaces": 1, "RestrictAddressFamilies": 1, "RestrictRealtime": 1,
		"RestrictSUIDSGID": 1, "LockPersonality": 1, "MemoryDenyWriteExecute": 1, "SystemCallArchitectures": 1, "SystemCallFilter": 1,
		"SystemCallErrorNumber": 1,
	},
	"Install": {"WantedBy": 1},
}

// parseUnit returns the values of a file by "Section.Directive", and refuses what is not among directives.
func parseUnit(t *testing.T, file string) map[string]string {
	t.Helper()
	options, err := unit.DeserializeOptions(strings.NewReader(read(t, file)))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	counts, values := make(map[string]int), make(map[string]string)
	for _, o := range options {
		key := o.Section + "." + o.Name
		values[key] = o.Value
		if counts[key]++; counts[key] > directives[o.Section][o.Name] {
			t.Errorf("%s: %s is there %d times, and may be %d", file, key, counts[key], directives[o.Section][o.Name])
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s: nothing is in it", file)
	}
	return values
}

// commandLine is that of the unit, without the program.
func commandLine(t *testing.T) []string {
	t.Helper()
	words := strings.Fields(parseUnit(t, service)["Service.ExecStart"])
	if len(words) == 0 || words[0] != installed {
		t.Fatalf("%s starts %q, want %s", service, words, installed)
	}
	return words[1:]
}

func TestUnit(t *testing.T) {
	values := parseUnit(t, service)
	for key, want := range map[string]string{
		"Service.Type": "notify", "Service.NotifyAccess": "main", "Service.Restart": "always", "Unit.StartLimitIntervalSec": "0",
		"Service.NoNewPrivileges": "yes", "Service.ProtectSystem": "strict", "Service.RestrictNamespaces": "net", "Service.SystemCallErrorNumber": "EPERM",
	} {
		if values[key] != want {
			t.Errorf("%s is %q, want %q", key, values[key], want)
		}
	}
	capabilities := strings.Fields(values["Service.CapabilityBoundingSet"])
	slices.Sort(capabilities)
	if want := documented(t); !slices.Equal(capabilities, want) {
		t.Errorf("CapabilityBoundingSet is %v, want what the agent documents: %v", capabilities, want)
	}
	denied := strings.Fields(strings.TrimPrefix(values["Service.SystemCallFilter"], "~"))
	if !strings.HasPrefix(values["Service.SystemCallFilter"], "~") || !slices.Contains(denied, "@mount") || slices.Contains(denied, "@debug") || slices.Contains(denied, "@privileged") {
		t.Errorf("SystemCallFilter is %q, want it to deny @mount, and neither @debug (perf_event_open) nor @privileged (bpf)", values["Service.SystemCallFilter"])
	}
}

// TestUnitPaths wants what the configuration names to be what the unit lets the agent write.
func TestUnitPaths(t *testing.T) {
	values, c, args := parseUnit(t, service), loaded(t, configuration), commandLine(t)
	if got := flag(t, args, "--config"); got != "/etc/sidelight/"+filepath.Base(configuration) {
		t.Errorf("the configuration is %s, want %s in /etc/sidelight", got, configuration)
	}
	if got := flag(t, args, "--on-exit"); got != config.OnExitKeep {
		t.Errorf("--on-exit is %s, want %s", got, config.OnExitKeep)
	}
	if want := "/var/lib/" + values["Service.StateDirectory"]; c.StateDirectory != want {
		t.Errorf("state_directory is %s, want that of the unit, %s", c.StateDirectory, want)
	}
	for _, key := range []string{"Unit.AssertPathIsMountPoint", "Service.ReadWritePaths"} {
		if !within(c.PinDirectory, values[key]) {
			t.Errorf("pin_directory is %s, want it in %s=%s", c.PinDirectory, key, values[key])
		}
	}
	logs := "/var/log/" + values["Service.LogsDirectory"]
	if text := read(t, configuration); !strings.Contains(text, "\n# access_log: "+logs+"/access.log\n") {
		t.Errorf("%s shows no access_log in %s", configuration, logs)
	}
}

// handoverTime is how long an agent that another takes over from may take.
func handoverTime(t *testing.T) time.Duration {
	t.Helper()
	m := regexp.MustCompile(`(?m)^const handoverTime = (\d+) \* time\.Second$`).FindStringSubmatch(read(t, "../cmd/sidelight/takeover.go"))
	if m == nil {
		t.Fatal("takeover.go has no handoverTime")
	}
	seconds, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

func TestUnitTimes(t *testing.T) {
	handover := handoverTime(t)
	values, c := parseUnit(t, service), loaded(t, configuration)
	mesh := parseUnit(t, dropIn)
	// systemd's "2min" is Go's 2m.
	duration := func(text string) time.Duration {
		d, err := time.ParseDuration(strings.Replace(text, "min", "m", 1))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for name, text := range map[string]string{service: values["Service.TimeoutStartSec"], dropIn: mesh["Service.TimeoutStartSec"]} {
		if got, least := duration(text), handover+c.UpgradeTimeout; got <= least {
			t.Errorf("%s: TimeoutStartSec is %v, want above %v", name, got, least)
		}
	}
	if got := duration(values["Service.TimeoutStopSec"]); got <= handover {
		t.Errorf("TimeoutStopSec is %v, want above %v", got, handover)
	}
	if got := duration(values["Service.WatchdogSec"]); got < 10*time.Second {
		t.Errorf("WatchdogSec is %v, want at least 10s: a busy machine is no dead agent", got)
	}
}

// verifyUnit asks systemd itself, with a program that is there.
func verifyUnit(t *testing.T, program string) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, filepath.Base(service))
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(file, strings.ReplaceAll(read(t, service), installed, program))
	write(filepath.Join(file+".d", filepath.Base(dropIn)), read(t, dropIn))
	verify := exec.Command("systemd-analyze", "verify", "--man=no", file)
	// The drop-in is found where units are.
	verify.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := verify.CombinedOutput()
	// It warns of what it does not know, and ends with success. It looks at other units too.
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte(dir)) || bytes.Contains(line, []byte("sidelight")) {
			t.Errorf("%s", line)
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
