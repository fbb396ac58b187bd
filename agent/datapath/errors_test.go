package datapath

import "testing"

// A user reads these as the last line before the agent exits: each has to say what to do.
func TestErrorTexts(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{
			"feature", &FeatureError{Feature: "ring buffer maps", Remedy: "use kernel 5.8 or newer"},
			"this kernel lacks ring buffer maps: use kernel 5.8 or newer",
		},
		{
			"one privilege", &PrivilegeError{Missing: []string{"CAP_BPF"}},
			"not enough privileges, missing CAP_BPF: run as root, or grant them (systemd: AmbientCapabilities=, container: capabilities.add)",
		},
		{
			"several privileges", &PrivilegeError{Missing: []string{"CAP_BPF", "CAP_NET_ADMIN"}},
			"not enough privileges, missing CAP_BPF, CAP_NET_ADMIN: run as root, or grant them (systemd: AmbientCapabilities=, container: capabilities.add)",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.err.Error(); got != test.want {
				t.Errorf("\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}
