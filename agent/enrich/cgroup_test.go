package enrich

import (
	"strings"
	"testing"
)

const (
	outerID = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
	innerID = "4d6e0a8b2c5f7193e8a1b0c9d2f3e4a54d6e0a8b2c5f7193e8a1b0c9d2f3e4a5"

	podUIDDashes = "8a7b6c5d-1234-4e5f-9a0b-0123456789ab"
	podUIDScores = "8a7b6c5d_1234_4e5f_9a0b_0123456789ab" // systemd takes a dash for a level of slices
)

func TestWorkloadOf(t *testing.T) {
	tests := []struct {
		name   string
		cgroup string
		want   Workload // without Cgroup, which is what was put in
	}{
		// systemd
		{
			"service", "/system.slice/nginx.service",
			Workload{Name: "nginx.service", SystemdUnit: "nginx.service"},
		},
		{
			"service of a template", "/system.slice/system-getty.slice/getty@tty1.service",
			Workload{Name: "getty@tty1.service", SystemdUnit: "getty@tty1.service"},
		},
		{
			"cgroup that a service made", "/system.slice/systemd-udevd.service/udev",
			Workload{Name: "systemd-udevd.service", SystemdUnit: "systemd-udevd.service"},
		},
		{
			"login session", "/user.slice/user-1000.slice/session-3.scope",
			Workload{Name: "session-3.scope", SystemdUnit: "session-3.scope"},
		},
		{
			"the user's own unit, innermost of two", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-4711.scope",
			Workload{Name: "user@1000.service/app-gnome-firefox-4711.scope", SystemdUnit: "user@1000.service/app-gnome-firefox-4711.scope"},
		},
		{"systemd itself", "/init.scope", Workload{Name: "init.scope", SystemdUnit: "init.scope"}},
		{"socket unit", "/system.slice/sshd.socket", Workload{Name: "sshd.socket", SystemdUnit: "sshd.socket"}},
		{"mount unit", "/system.slice/srv-data.mount", Workload{Name: "srv-data.mount", SystemdUnit: "srv-data.mount"}},
		{"swap unit", "/system.slice/dev-sda2.swap", Workload{Name: "dev-sda2.swap", SystemdUnit: "dev-sda2.swap"}},

		{
			"too long a name", "/" + strings.Repeat("a", 300),
			Workload{Name: "/" + strings.Repeat("a", 235) + "...d7a2578fdb471387"},
		},

		// containers without Kubernetes
		{
			"podman's monitor is no container", "/machine.slice/libpod-conmon-" + innerID + ".scope",
			Workload{Name: "libpod-conmon-" + innerID + ".scope", SystemdUnit: "libpod-conmon-" + innerID + ".scope"},
		},
		{
			"containerd without the systemd driver, static pod", "/system.slice/kubepods-pod0123456789abcdef0123456789abcdef.slice:cri-containerd:" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID},
		},
		{
			"static pod", "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: "0123456789abcdef0123456789abcdef"},
		},
		{
			"docker, systemd driver", "/system.slice/docker-" + innerID + ".scope",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID},
		},
		{
			"docker, cgroupfs driver", "/docker/" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID},
		},
		{
			"podman", "/machine.slice/libpod-" + innerID + ".scope/container",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID},
		},
		{
			"rootless podman, below the user's service", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + innerID + ".scope",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, SystemdUnit: "user@1000.service"},
		},
		{
			"unit inside a container", "/system.slice/docker-" + innerID + ".scope/system.slice/nginx.service",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, SystemdUnit: "nginx.service"},
		},
		{
			"container inside a container", "/docker/" + outerID + "/docker/" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID},
		},

		// Kubernetes, systemd driver
		{
			"guaranteed, containerd", "/kubepods.slice/kubepods-pod" + podUIDScores + ".slice/cri-containerd-" + innerID + ".scope",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},
		{
			"burstable, containerd",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + podUIDScores + ".slice/cri-containerd-" + innerID + ".scope",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},
		{
			"besteffort, cri-o",
			"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + podUIDScores + ".slice/crio-" + innerID + ".scope",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},
		{
			"kind: a node that is a container, its kubelet below a cgroup of its own",
			"/system.slice/docker-" + outerID + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/" +
				"kubelet-kubepods-burstable-pod" + podUIDScores + ".slice/cri-containerd-" + innerID + ".scope",
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},

		// Kubernetes, cgroupfs driver
		{
			"guaranteed, cgroupfs", "/kubepods/pod" + podUIDDashes + "/" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},
		{
			"burstable, cgroupfs", "/kubepods/burstable/pod" + podUIDDashes + "/" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},
		{
			"besteffort, cgroupfs", "/kubepods/besteffort/pod" + podUIDDashes + "/" + innerID,
			Workload{Name: "4d6e0a8b2c5f", ContainerID: innerID, PodUID: podUIDDashes},
		},

		// neither
		{"root", "/", Workload{Name: "/"}},
		{"plain path", "/lxc.payload.web/workers", Workload{Name: "/lxc.payload.web/workers"}},
		{"a slice holds no processes of its own", "/user.slice", Workload{Name: "/user.slice"}},
		{
			"a pod's own cgroup", "/kubepods/burstable/pod" + podUIDDashes,
			Workload{Name: "/kubepods/burstable/pod" + podUIDDashes, PodUID: podUIDDashes},
		},
		{"ending without a unit", "/jobs/.service", Workload{Name: "/jobs/.service"}},
		{"hexadecimal, too short", "/jobs/" + innerID[:63], Workload{Name: "/jobs/" + innerID[:63]}},
		{"hexadecimal, too long", "/jobs/" + innerID + "0", Workload{Name: "/jobs/" + innerID + "0"}},
		{"capitals", "/jobs/" + strings.ToUpper(innerID), Workload{Name: "/jobs/" + strings.ToUpper(innerID)}},
		{"podium is no pod", "/podium/web", Workload{Name: "/podium/web"}},
		{"unknown", "", Workload{Name: "unknown"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.want.Cgroup = test.cgroup
			if got := *workloadOf(test.cgroup); got != test.want {
				t.Errorf("\ngot  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestCgroupCache(t *testing.T) {
	c, err := newCgroups(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	// An id that is no cgroup's: nothing here is a cgroup file system.
	first := c.workload(1)
	if *first != (Workload{Name: "unknown"}) {
		t.Errorf("workload is %+v, want an unknown one", *first)
	}
	if c.workload(1) != first {
		t.Error("looked up again what is known")
	}
	if c.workload(0) == first {
		t.Error("two ids share an entry")
	}
	for id := uint64(2); id < cacheLimit; id++ {
		c.byID[id] = first
	}
	if len(c.byID) != cacheLimit {
		t.Fatalf("%d entries before the last", len(c.byID))
	}
	if c.workload(1) != first {
		t.Error("a full cache forgot what it holds")
	}
	c.workload(cacheLimit)
	if len(c.byID) != 1 || c.byID[cacheLimit] == nil {
		t.Errorf("%d entries after one too many, want it alone", len(c.byID))
	}
}

// A name that is no UTF-8 must not reach protobuf strings and labels: one workload's would spoil everybody's batch.
func TestNamesAreUTF8(t *testing.T) {
	if got, want := *workloadOf("/bad\xff"), (Workload{Name: "/bad\uFFFD", Cgroup: "/bad\uFFFD"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
