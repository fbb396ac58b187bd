package dashboards

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/agenttest"
)

func TestMain(m *testing.M) { agenttest.Main(m) }

// send has "sidelight replay" send a recording to where a collector's configuration says. Everything was taken there when it returns.
func send(t *testing.T, name, config string) {
	t.Helper()
	program := agenttest.Program(t)
	file := filepath.Join(t.TempDir(), "otel.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "replay", recordings+name+".rec", "--access-log", "off", "--otel-config", file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("replay %s: %v\n%s", name, err, out)
	}
}

// recordings is where the golden recordings are, with the access log that each comes to.
const recordings = "../agent/cmd/sidelight/testdata/recordings/"

// lacks leaves a test out for want of something, but in CI.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("SIDELIGHT_REQUIRE_TOOLS") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// builtBackend returns what the Makefile builds of backends/directory: the name of its target and of the program, and how the Makefile calls its
// version, which is that of the module's requirement.
func builtBackend(t *testing.T, directory, target, variable, module string) string {
	t.Helper()
	read := func(file, pattern string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(pattern).FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s does not name a version of %s", file, module)
		}
		return string(m[1])
	}
	version := read(filepath.Join("backends", directory, "go.mod"), `(?m)\b`+regexp.QuoteMeta(module)+` (v\S+)`)
	if built := read("../Makefile", `(?m)^`+variable+` := (\S+)$`); built != version {
		t.Fatalf("the Makefile builds %s %s, its module has %s", target, built, version)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		lacks(t, err.Error())
	}
	program := filepath.Join(cache, "sidelight-tools", target+"-"+version)
	if _, err := os.Stat(program); err != nil {
		lacks(t, "no "+filepath.Base(program)+": make "+target+" builds it")
	}
	return program
}

// backendPatience is how long a backend may take to start, on a machine that has other things to do.
const backendPatience = 30 * time.Second

// startBackend starts one, and returns its process id once it answers at a URL. It is killed with the test, and with the process of the test whatever ends
// that. What it said is shown if the test fails.
func startBackend(t *testing.T, ready, program string, args ...string) int {
	t.Helper()
	name := filepath.Base(program)
	said, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close() // the process has its own
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // nothing of it is to be kept
		<-ended
		if t.Failed() {
			text, _ := os.ReadFile(said.Name())
			t.Logf("%s (%v) said:\n%s", name, cmd.ProcessState, text)
		}
	})
	for deadline := time.Now().Add(backendPatience); ; time.Sleep(20 * time.Millisecond) {
		if response, err := http.Get(ready); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return cmd.Process.Pid
			}
		}
		select {
		case <-ended:
			t.Fatalf("%s does not start", name)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer at %s after %s", name, ready, backendPatience)
		}
	}
}
