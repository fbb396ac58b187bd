package enrich

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// statOf is /proc/PID/stat of a process with a name and a start time.
func statOf(pid uint32, comm string, ticks uint64) string {
	return fmt.Sprintf("%d (%s) S 1 4242 4242 0 -1 4194560 1500 2600 10 0 35 12 0 0 20 0 7 0 %d 1250000000 9000 18446744073709551615 1 1 0\n",
		pid, comm, ticks)
}

func TestStartTicks(t *testing.T) {
	tests := []struct {
		name string
		stat string
		want uint64
	}{
		{"plain", statOf(4242, "nginx", 987654), 987654},
		{"name with spaces", statOf(4242, "tmux: server", 987654), 987654},
		{"name with parentheses", statOf(4242, "(sd-pam)", 987654), 987654},
		{"name that looks like the fields after it", statOf(4242, "a) S 1 1 (b", 987654), 987654},
		{"starttime is the last field", "1 (a) S 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22", 22},
		{"one field short", "1 (a) S 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21", 0},
		{"no name", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25", 0},
		{"no number", "1 (a) S 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 x", 0},
		{"empty", "", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := startTicks([]byte(test.stat)); got != test.want {
				t.Errorf("start time is %d, want %d", got, test.want)
			}
		})
	}
}

func TestExecutable(t *testing.T) {
	const pid, ticks = 4242, 987654
	const started = ticks*nsPerTick + 7_654_321 // the kernel's time is finer than a tick
	tests := []struct {
		name  string
		exe   string // target of /proc/PID/exe, empty for none
		stat  string // empty for none
		comm  string
		start uint64
		want  string
	}{
		{"executable", "/usr/sbin/nginx", statOf(pid, "nginx", ticks), "nginx: worker", started, "nginx"},
		{"replaced by an upgrade", "/usr/sbin/nginx (deleted)", statOf(pid, "nginx", ticks), "nginx: worker", started, "nginx"},
		{"longer than the kernel keeps", "/opt/a-name-of-more-than-15-characters", statOf(pid, "a", ticks), "a-name-of-more-", started, "a-name-of-more-than-15-characters"},
		{"odd name", "/usr/bin/tmux", statOf(pid, "tmux: (server) x", ticks), "tmux: (server)", started, "tmux"},
		{"the pid was taken over later", "/usr/bin/other", statOf(pid, "other", ticks+1), "curl", started, "curl"},
		{"the pid was taken over from an older one", "/usr/bin/other", statOf(pid, "other", ticks-1), "curl", started, "curl"},
		{"the first instant of the tick", "/usr/bin/curl", statOf(pid, "curl", ticks), "c", ticks * nsPerTick, "curl"},
		{"the last instant of the tick", "/usr/bin/curl", statOf(pid, "curl", ticks), "c", (ticks+1)*nsPerTick - 1, "curl"},
		{"the instant after", "/usr/bin/curl", statOf(pid, "curl", ticks), "c", (ticks + 1) * nsPerTick, "c"},
		{"gone", "", "", "curl", started, "curl"},
		{"gone between the two readings", "/usr/bin/curl", "", "c", started, "c"},
		{"kernel thread", "", statOf(pid, "kworker/0:1", ticks), "kworker/0:1", started, "kworker/0:1"},
		{"comm that fills its field", "", "", "0123456789abcdef", started, "0123456789abcdef"},
		{"what is after the NUL is not its", "", "", "curl\x00leftover", started, "curl"},
		{"comm that is no UTF-8", "", "", "caf\xe9\xff-bar", started, "caf\uFFFD-bar"},
		{"comm cut inside a character", "", "", "0123456789abcd\xe2\x82", started, "0123456789abcd\uFFFD"},
		{"nothing known", "", "", "", started, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			proc := t.TempDir()
			dir := filepath.Join(proc, strconv.Itoa(pid))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if test.exe != "" {
				if err := os.Symlink(test.exe, filepath.Join(dir, "exe")); err != nil {
					t.Fatal(err)
				}
			}
			if test.stat != "" {
				if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(test.stat), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			owner := connection.Owner{PID: pid, StartBoottimeNS: test.start}
			copy(owner.Comm[:], test.comm)
			got := newProcesses(proc).process(owner)
			if want := (Process{PID: pid, Executable: test.want}); *got != want {
				t.Errorf("process is %+v, want %+v", *got, want)
			}
		})
	}
}

// The files of the running kernel, not of a directory that we wrote.
func TestExecutableOfThisProcess(t *testing.T) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := connection.Owner{PID: uint32(os.Getpid()), StartBoottimeNS: startTicks(stat) * nsPerTick, Comm: [16]byte{'x'}}
	if got, want := newProcesses("/proc").executable(owner), filepath.Base(exe); got != want {
		t.Errorf("executable is %q, want %q", got, want)
	}
}

func TestProcessCache(t *testing.T) {
	p := newProcesses(t.TempDir())
	if got := p.process(connection.Owner{StartBoottimeNS: 5, Comm: [16]byte{'x'}}); got != nil || len(p.byKey) != 0 {
		t.Errorf("an owner without a pid is %+v, with %d entries", got, len(p.byKey))
	}
	first := p.process(connection.Owner{PID: 1, StartBoottimeNS: 5, Comm: [16]byte{'a'}})
	// exec changes the name and nothing else: what it runs now is asked for anew.
	if again := p.process(connection.Owner{PID: 1, StartBoottimeNS: 5, Comm: [16]byte{'b'}}); again == first || again.Executable != "b" {
		t.Errorf("after exec the process is %+v", *again)
	}
	if later := p.process(connection.Owner{PID: 1, StartBoottimeNS: 6, Comm: [16]byte{'b'}}); *later != (Process{1, "b"}) {
		t.Errorf("the next process of the pid is %+v", *later)
	}
	for i := len(p.byKey); i < cacheLimit; i++ {
		p.byKey[processKey{pid: 2, start: uint64(i)}] = first
	}
	if again := p.process(connection.Owner{PID: 1, StartBoottimeNS: 5, Comm: [16]byte{'a'}}); again != first {
		t.Error("a full cache forgot what it holds")
	}
	p.process(connection.Owner{PID: 3})
	if len(p.byKey) != 1 || p.byKey[processKey{pid: 3}] == nil {
		t.Errorf("%d entries after one too many, want it alone", len(p.byKey))
	}
}
