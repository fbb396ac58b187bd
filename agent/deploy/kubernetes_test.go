package deploy

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/agent/config"
)

const (
	manifest  = "kubernetes/daemonset.yaml"
	uninstall = "kubernetes/uninstall.yaml"
)

// What follows is of the Kubernetes API what the manifests use. A field that is not here is an error: kubectl drops one that it does not know, or only
// warns.
type (
	metadata struct {
		Name      string            `yaml:"name"`
		Namespace string            `yaml:"namespace"`
		Labels    map[string]string `yaml:"labels"`
	}
	object struct {
		APIVersion string   `yaml:"apiVersion"`
		Kind       string   `yaml:"kind"`
		Metadata   metadata `yaml:"metadata"`

		AutomountServiceAccountToken *bool             `yaml:"automountServiceAccountToken"` // of a ServiceAccount
		Data                         map[string]string `yaml:"data"`                         // of a ConfigMap
		Spec                         *daemonSetSpec    `yaml:"spec"`
	}
	daemonSetSpec struct {
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"selector"`
		UpdateStrategy struct {
			Type          string `yaml:"type"`
			RollingUpdate struct {
				MaxUnavailable string `yaml:"maxUnavailable"`
				MaxSurge       string `yaml:"maxSurge"`
			} `yaml:"rollingUpdate"`
		} `yaml:"updateStrategy"`
		MinReadySeconds int `yaml:"minReadySeconds"`
		Template        struct {
			Metadata metadata `yaml:"metadata"`
			Spec     podSpec  `yaml:"spec"`
		} `yaml:"template"`
	}
	podSpec struct {
		ServiceAccountName            string       `yaml:"serviceAccountName"`
		AutomountServiceAccountToken  *bool        `yaml:"automountServiceAccountToken"`
		EnableServiceLinks            *bool        `yaml:"enableServiceLinks"`
		PriorityClassName             string       `yaml:"priorityClassName"`
		HostPID                       bool         `yaml:"hostPID"`
		HostNetwork                   bool         `yaml:"hostNetwork"`
		DNSPolicy                     string       `yaml:"dnsPolicy"`
		TerminationGracePeriodSeconds int          `yaml:"terminationGracePeriodSeconds"`
		Tolerations                   []toleration `yaml:"tolerations"`
		InitContainers                []container  `yaml:"initContainers"`
		Containers                    []container  `yaml:"containers"`
		Volumes                       []volume     `yaml:"volumes"`
	}
	toleration struct {
		Operator string `yaml:"operator"`
	}
	container struct {
		Name            string          `yaml:"name"`
		Image           string          `yaml:"image"`
		Args            []string        `yaml:"args"`
		SecurityContext securityContext `yaml:"securityContext"`
		Resources       struct {
			Requests resources `yaml:"requests"`
			Limits   resources `yaml:"limits"`
		} `yaml:"resources"`
		StartupProbe   *probe        `yaml:"startupProbe"`
		ReadinessProbe *probe        `yaml:"readinessProbe"`
		LivenessProbe  *probe        `yaml:"livenessProbe"`
		VolumeMounts   []volumeMount `yaml:"volumeMounts"`
	}
	securityContext struct {
		RunAsUser                int   `yaml:"runAsUser"`
		RunAsGroup               int   `yaml:"runAsGroup"`
		Privileged               *bool `yaml:"privileged"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
			Add  []string `yaml:"add"`
		} `yaml:"capabilities"`
		SeccompProfile  typed `yaml:"seccompProfile"`
		AppArmorProfile typed `yaml:"appArmorProfile"`
		SELinuxOptions  typed `yaml:"seLinuxOptions"`
	}
	typed struct {
		Type string `yaml:"type"`
	}
	resources struct {
		CPU    string `yaml:"cpu"`
		Memory string `yaml:"memory"`
	}
	probe struct {
		HTTPGet struct {
			Host string `yaml:"host"`
			Port int    `yaml:"port"`
			Path string `yaml:"path"`
		} `yaml:"httpGet"`
		PeriodSeconds    int `yaml:"periodSeconds"`
		TimeoutSeconds   int `yaml:"timeoutSeconds"`
		FailureThreshold int `yaml:"failureThreshold"`
	}
	volumeMount struct {
		Name             string `yaml:"name"`
		MountPath        string `yaml:"mountPath"`
		ReadOnly         bool   `yaml:"readOnly"`
		MountPropagation string `yaml:"mountPropagation"`
	}
	volume struct {
		Name      string `yaml:"name"`
		ConfigMap *struct {
			Name string `yaml:"name"`
		} `yaml:"configMap"`
		HostPath *struct {
			Path string `yaml:"path"`
			Type string `yaml:"type"`
		} `yaml:"hostPath"`
	}
)

// objects returns those of a manifest, in its order.
func objects(t *testing.T, file string) []object {
	t.Helper()
	decoder := yaml.NewDecoder(strings.NewReader(read(t, file)))
	decoder.KnownFields(true)
	var all []object
	for {
		var o object
		switch err := decoder.Decode(&o); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, o)
	}
}

// one returns the only object of a kind.
func one(t *testing.T, file, kind string) object {
	t.Helper()
	var found []object
	for _, o := range objects(t, file) {
		if o.Kind == kind {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d of %s, want 1", file, len(found), kind)
	}
	return found[0]
}

// daemonSet returns the pods of the one in a manifest.
func daemonSet(t *testing.T, file string) podSpec {
	t.Helper()
	o := one(t, file, "DaemonSet")
	if o.Spec == nil {
		t.Fatalf("%s: the DaemonSet has no spec", file)
	}
	return o.Spec.Template.Spec
}

// mapped is the configuration in the ConfigMap, as the program loads it.
func mapped(t *testing.T) config.Config {
	t.Helper()
	data := one(t, manifest, "ConfigMap").Data
	text, ok := data["sidelight.yaml"]
	if !ok || len(data) != 1 {
		t.Fatalf("the ConfigMap has %d files, want sidelight.yaml", len(data))
	}
	file := filepath.Join(t.TempDir(), "sidelight.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return loaded(t, file)
}

// agentContainer returns the pod of the agent, and its one container.
func agentContainer(t *testing.T) (podSpec, container) {
	t.Helper()
	pod := daemonSet(t, manifest)
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		t.Fatalf("%d containers and %d before them, want one", len(pod.Containers), len(pod.InitContainers))
	}
	return pod, pod.Containers[0]
}

func TestManifestObjects(t *testing.T) {
	tests := []struct {
		file string
		want []string // API version and kind
	}{
		{manifest, []string{"v1 Namespace", "v1 ServiceAccount", "v1 ConfigMap", "apps/v1 DaemonSet"}},
		{uninstall, []string{"apps/v1 DaemonSet"}},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			var got []string
			for _, o := range objects(t, test.file) {
				got = append(got, o.APIVersion+" "+o.Kind)
				if o.Kind != "Namespace" && o.Metadata.Namespace != "sidelight" {
					t.Errorf("%s %s is in the namespace %q, want sidelight", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("objects are %q, want %q", got, test.want)
			}
			set := one(t, test.file, "DaemonSet")
			for key, value := range set.Spec.Selector.MatchLabels {
				if set.Spec.Template.Metadata.Labels[key] != value {
					t.Errorf("the selector wants %s=%s, the pods have %q", key, value, set.Spec.Template.Metadata.Labels)
				}
			}
			pod := set.Spec.Template.Spec
			if pod.ServiceAccountName != "sidelight" || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
				t.Error("pods are to have the service account, and no token")
			}
			if !slices.Equal(pod.Tolerations, []toleration{{Operator: "Exists"}}) {
				t.Errorf("tolerations are %v, want that of all", pod.Tolerations)
			}
		})
	}
	account := one(t, manifest, "ServiceAccount")
	if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
		t.Error("the service account is to have no token")
	}
}

func TestManifestPrivileges(t *testing.T) {
	pod, agent := agentContainer(t)
	if !pod.HostPID || !pod.HostNetwork {
		t.Error("pods are to be in the node's PID and network namespaces")
	}
	capabilities := make([]string, 0, len(agent.SecurityContext.Capabilities.Add))
	for _, name := range agent.SecurityContext.Capabilities.Add {
		capabilities = append(capabilities, "CAP_"+name)
	}
	slices.Sort(capabilities)
	if want := documented(t); !slices.Equal(capabilities, want) {
		t.Errorf("capabilities are %v, want what the agent documents: %v", capabilities, want)
	}
	for _, file := range []string{manifest, uninstall} {
		set := daemonSet(t, file)
		for _, c := range slices.Concat(set.InitContainers, set.Containers) {
			s := c.SecurityContext
			if s.Privileged == nil || *s.Privileged || !s.ReadOnlyRootFilesystem || s.SeccompProfile.Type != "RuntimeDefault" || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
				t.Errorf("%s: container %s has more than it needs: %+v", file, c.Name, s)
			}
			if c.Name != agent.Name && (len(s.Capabilities.Add) > 0 || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation) {
				t.Errorf("%s: container %s has capabilities, or can get some", file, c.Name)
			}
		}
	}
}

// TestManifestUpdate: one agent a node, so a node is without for a moment, and one that is not ready stops the rest. TimeoutStopSec of the unit is as
// long as the grace period.
func TestManifestUpdate(t *testing.T) {
	spec := one(t, manifest, "DaemonSet").Spec
	if u := spec.UpdateStrategy; u.Type != "RollingUpdate" || u.RollingUpdate.MaxSurge != "0" || u.RollingUpdate.MaxUnavailable != "1" {
		t.Errorf("updateStrategy is %+v, want one node after the other, and no surge", u)
	}
	if spec.MinReadySeconds == 0 {
		t.Error("minReadySeconds is 0")
	}
	pod, agent := agentContainer(t)
	if slices.Contains(agent.Args, "--takeover") {
		t.Error("an agent with --takeover would take the node back from the one that replaces it")
	}
	if want := parseUnit(t, service)["Service.TimeoutStopSec"]; strconv.Itoa(pod.TerminationGracePeriodSeconds)+"s" != want {
		t.Errorf("terminationGracePeriodSeconds is %d, want %s as in the unit", pod.TerminationGracePeriodSeconds, want)
	}
}

func TestManifestProbes(t *testing.T) {
	_, agent := agentContainer(t)
	host, port, err := net.SplitHostPort(mapped(t).MetricsAddress)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]struct {
		probe *probe
		path  string
	}{
		"startup": {agent.StartupProbe, "/healthz"}, "readiness": {agent.ReadinessProbe, "/readyz"}, "liveness": {agent.LivenessProbe, "/healthz"},
	} {
		if p.probe == nil {
			t.Errorf("there is no %s probe", name)
			continue
		}
		if got := p.probe.HTTPGet; got.Host != host || strconv.Itoa(got.Port) != port || got.Path != p.path {
			t.Errorf("the %s probe asks %+v, want %s of metrics_address %s:%s", name, got, p.path, host, port)
		}
	}
}

func TestManifestPaths(t *testing.T) {
	c := mapped(t)
	_, agent := agentContainer(t)
	if c.OnExit != config.OnExitKeep {
		t.Errorf("on_exit is %s, want %s", c.OnExit, config.OnExitKeep)
	}
	// By where a path of the container is on the node.
	for path, want := range map[string]string{
		c.PinDirectory: "/sys/fs/bpf/sidelight", c.StateDirectory: config.Default().StateDirectory, c.Cgroup: "/sys/fs/cgroup",
	} {
		if got, _ := onNode(t, manifest, agent, path); got != want {
			t.Errorf("%s is %s on the node, want %s", path, got, want)
		}
	}
	for path, want := range map[string]bool{c.PinDirectory: true, c.StateDirectory: true, c.Cgroup: false} {
		if _, writable := onNode(t, manifest, agent, path); writable != want {
			t.Errorf("%s is writable: %v, want %v", path, writable, want)
		}
	}
	if within(c.PinDirectory, "/sys/fs/bpf") {
		t.Errorf("pin_directory is %s, where an agent without a bpffs mounts one in its container", c.PinDirectory)
	}
	file := flag(t, agent.Args, "--config")
	mounted := slices.ContainsFunc(agent.VolumeMounts, func(m volumeMount) bool {
		return m.Name == "config" && filepath.Join(m.MountPath, "sidelight.yaml") == file
	})
	if !mounted {
		t.Errorf("--config is %s, want sidelight.yaml where the ConfigMap is mounted: %+v", file, agent.VolumeMounts)
	}
	// It takes off what the agent leaves.
	remover := daemonSet(t, uninstall).InitContainers[0]
	dir := flag(t, remover.Args, "--pin-directory")
	if got, _ := onNode(t, uninstall, remover, dir); got != "/sys/fs/bpf/sidelight" {
		t.Errorf("%s takes off %s of the node, want what the agent pins", uninstall, got)
	}
}

// onNode returns where a path of a container is on the node, "" if it is the container's own.
func onNode(t *testing.T, file string, c container, path string) (onNode string, writable bool) {
	t.Helper()
	for _, m := range c.VolumeMounts {
		if path != m.MountPath && !within(path, m.MountPath) {
			continue
		}
		for _, v := range daemonSet(t, file).Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				return v.HostPath.Path + strings.TrimPrefix(path, m.MountPath), !m.ReadOnly
			}
		}
	}
	return "", false
}

// TestManifestVolumes wants each volume mounted, and each mount to have a volume.
func TestManifestVolumes(t *testing.T) {
	for _, file := range []string{manifest, uninstall} {
		pod := daemonSet(t, file)
		var volumes, mounts []string
		for _, v := range pod.Volumes {
			volumes = append(volumes, v.Name)
			if (v.HostPath == nil) == (v.ConfigMap == nil) {
				t.Errorf("%s: volume %s has no source, or two", file, v.Name)
			}
			if v.ConfigMap != nil && v.ConfigMap.Name != one(t, file, "ConfigMap").Metadata.Name {
				t.Errorf("%s: volume %s is of the ConfigMap %s, which is not there", file, v.Name, v.ConfigMap.Name)
			}
		}
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			for _, m := range c.VolumeMounts {
				mounts = append(mounts, m.Name)
				if m.MountPropagation == "Bidirectional" {
					t.Errorf("%s: %s is mounted with the propagation of privileged containers", file, m.Name)
				}
			}
		}
		slices.Sort(volumes)
		slices.Sort(mounts)
		if !slices.Equal(volumes, mounts) {
			t.Errorf("%s: volumes are %q, mounts %q", file, volumes, mounts)
		}
	}
}

// TestManifestResources wants what the agent keeps to by itself, and room for what the kernel keeps for it.
func TestManifestResources(t *testing.T) {
	_, agent := agentContainer(t)
	mebibytes := func(text string) uint64 {
		t.Helper()
		n, err := strconv.ParseUint(strings.TrimSuffix(text, "Mi"), 10, 32)
		if err != nil || !strings.HasSuffix(text, "Mi") {
			t.Fatalf("memory is %q, want some Mi", text)
		}
		return n << 20
	}
	budget := uint64(mapped(t).Budget.Memory)
	if got := mebibytes(agent.Resources.Requests.Memory); got != budget {
		t.Errorf("%d bytes of memory are asked for, the budget is %d", got, budget)
	}
	if got := mebibytes(agent.Resources.Limits.Memory); got < 2*budget {
		t.Errorf("the limit of memory is %d bytes, want room for the kernel's beside the budget of %d", got, budget)
	}
	if agent.Resources.Requests.CPU == "" || agent.Resources.Limits.CPU != "" {
		t.Errorf("resources are %+v, want CPU time asked for and not limited", agent.Resources)
	}
}
