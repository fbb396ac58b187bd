package datapath

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseMount(t *testing.T) {
	tests := []struct {
		name string
		line string
		want Mount // empty for none
	}{
		{
			"no optional fields", "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
			Mount{Point: "/sys/fs/cgroup/unified", Root: "/", Type: "cgroup2"},
		},
		{
			"one optional field", "33 22 0:28 / /sys/fs/bpf rw,nosuid shared:11 - bpf bpf rw,mode=700",
			Mount{Point: "/sys/fs/bpf", Root: "/", Type: "bpf"},
		},
		{
			"three optional fields", "33 22 0:28 /sub /mnt rw shared:1 master:2 propagate_from:3 - ext4 /dev/vda rw",
			Mount{Point: "/mnt", Root: "/sub", Type: "ext4"},
		},
		{
			"escapes", `33 22 0:28 /a\134040b /mnt/sp\040ace\011tab\012line rw - ext4 /dev/vda rw`,
			Mount{Point: "/mnt/sp ace\ttab\nline", Root: `/a\040b`, Type: "ext4"},
		},
		{"empty source", "33 22 0:28 / /mnt rw - tmpfs  rw", Mount{Point: "/mnt", Root: "/", Type: "tmpfs"}},
		{"no separator", "33 22 0:28 / /mnt rw shared:1 ext4 /dev/vda rw", Mount{}},
		{"nothing after it", "33 22 0:28 / /mnt rw - ", Mount{}},
		{"too few fields", "33 22 0:28 / /mnt - ext4 /dev/vda rw", Mount{}},
		{"empty", "", Mount{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := parseMount(test.line)
			if got != test.want || ok != (test.want != Mount{}) {
				t.Errorf("got %+v, %v; want %+v", got, ok, test.want)
			}
		})
	}
}

// mountsOf reads a table of testdata.
func mountsOf(t *testing.T, name string) []Mount {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata/mountinfo", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mounts, err := readMounts(f)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func TestFindCgroup2(t *testing.T) {
	tests := []struct {
		name  string // of a file in testdata/mountinfo
		want  string
		error string
	}{
		{"unified", "/sys/fs/cgroup", ""},
		{"hybrid", "/sys/fs/cgroup/unified", ""},
		// A part is better than nothing: it is all that this container has.
		{"container_without_namespace", "/sys/fs/cgroup", ""},
		// But the whole is better, wherever it stands in the table.
		{"container_with_the_host_s_root", "/host/my cgroups", ""},
		{"two_parts", "/mnt/first", ""},
		{"version_1_only", "", "find cgroup2: it is not mounted; mount it with: mount -t cgroup2 none /sys/fs/cgroup/unified"},
	}
	var names []string
	for _, test := range tests {
		names = append(names, test.name)
		t.Run(test.name, func(t *testing.T) {
			got, err := FindCgroup2(mountsOf(t, test.name))
			message := ""
			if err != nil {
				message = err.Error()
			}
			if got != test.want || message != test.error {
				t.Errorf("found %q, error %q; want %q, error %q", got, message, test.want, test.error)
			}
		})
	}
	files, err := os.ReadDir("testdata/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !slices.Contains(names, file.Name()) {
			t.Errorf("no test reads %s", file.Name())
		}
	}
}

func TestCgroup2Holding(t *testing.T) {
	mounts := []Mount{
		{Point: "/", Root: "/", Type: "ext4"},
		{Point: "/sys/fs/cgroup", Root: "/", Type: "cgroup2"},
		{Point: "/sys/fs/cgroup/system.slice/inner", Root: "/system.slice", Type: "cgroup2"},
		{Point: "/sys/fs/cgroup/memory", Root: "/", Type: "cgroup"},
		{Point: "/mnt/cg", Root: "/", Type: "cgroup2"},
	}
	for dir, want := range map[string]string{
		"/sys/fs/cgroup":                            "/sys/fs/cgroup",
		"/sys/fs/cgroup/user.slice":                 "/sys/fs/cgroup",
		"/sys/fs/cgroup/..odd":                      "/sys/fs/cgroup",
		"/sys/fs/cgroup/memory/a":                   "/sys/fs/cgroup",
		"/sys/fs/cgroup/system.slice":               "/sys/fs/cgroup",
		"/sys/fs/cgroup/system.slice/inner":         "/sys/fs/cgroup/system.slice/inner",
		"/sys/fs/cgroup/system.slice/inner/a.slice": "/sys/fs/cgroup/system.slice/inner",
		"/sys/fs/cgroup/system.slice/inner2":        "/sys/fs/cgroup",
		"/mnt/cg/a":                                 "/mnt/cg",
		"/sys/fs":                                   "",
		"/sys/fs/cgroup2/a":                         "",
		"/tmp":                                      "",
		"/":                                         "",
	} {
		// The order of mounts has no say.
		for range 2 {
			if got := cgroup2Holding(mounts, dir); got != want {
				t.Errorf("%s lies below %q, want %q", dir, got, want)
			}
			slices.Reverse(mounts)
		}
	}
	if got, want := cgroup2Holding([]Mount{{Point: "/", Type: "cgroup2"}}, "/a"), "/"; got != want {
		t.Errorf("/a lies below %q, want %q", got, want)
	}
}

// A table that was read in part would make a mounted cgroup2 look missing.
func TestReadMountsLongLines(t *testing.T) {
	const after = "\n41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	overlay := "33 22 0:28 / /merged rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 20_000)
	mounts, err := readMounts(strings.NewReader(overlay + after))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{{Point: "/merged", Root: "/", Type: "overlay"}, {Point: "/sys/fs/cgroup", Root: "/", Type: "cgroup2"}}
	if !slices.Equal(mounts, want) {
		t.Errorf("mounts are %+v, want %+v", mounts, want)
	}
	mounts, err = readMounts(strings.NewReader(strings.Repeat("x", maxMountLine) + after))
	if mounts != nil || !errors.Is(err, bufio.ErrTooLong) {
		t.Fatalf("mounts are %+v, error %v; want none of a line that is too long", mounts, err)
	}
	if want := "read mount table: bufio.Scanner: token too long"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
}

// Every process has a root and a proc to read this from.
func TestMountsOfThisProcess(t *testing.T) {
	mounts, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range []string{"/", "/proc"} {
		if !slices.ContainsFunc(mounts, func(m Mount) bool { return m.Point == point }) {
			t.Errorf("%s is not in %+v", point, mounts)
		}
	}
}

func TestOpenCgroupErrors(t *testing.T) {
	mounts, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	hint := "no cgroup2 is mounted on this machine"
	if root, err := FindCgroup2(mounts); err == nil {
		hint = "name a directory below " + root
	}
	dir := t.TempDir()
	file, missing := filepath.Join(dir, "file"), filepath.Join(dir, "missing")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{
		dir:     "open cgroup " + dir + ": not in a cgroup2 file system; " + hint,
		file:    "open cgroup " + file + ": not a directory; name a cgroup2 directory",
		missing: "open cgroup " + missing + ": lstat " + missing + ": no such file or directory; name an existing cgroup2 directory",
	} {
		got, err := OpenCgroup(given)
		if got != (Cgroup{}) || err == nil || err.Error() != want {
			t.Errorf("got %+v and error %v, want error %s", got, err, want)
		}
	}
}

// What OpenCgroup takes when nothing is named depends on the machine, but it is what FindCgroup2 finds.
func TestOpenCgroupDefault(t *testing.T) {
	mounts, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	root, rootErr := FindCgroup2(mounts)
	got, err := OpenCgroup("")
	if rootErr != nil {
		if err == nil || err.Error() != rootErr.Error() {
			t.Errorf("error is %v, want %v", err, rootErr)
		}
		return
	}
	if want := (Cgroup{Dir: root, Mount: root}); err != nil || got != want {
		t.Errorf("got %+v and error %v, want %+v", got, err, want)
	}
}
