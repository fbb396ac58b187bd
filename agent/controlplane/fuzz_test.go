package controlplane

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

var located = regexp.MustCompile(`^mesh\.yaml:[1-9][0-9]*: .*; `)

// Whatever the text is, the same comes of it each time: a snapshot that keeps what others rely on, or faults that say where they are.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/parse/*/mesh.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("%d seeds, error %v", len(seeds), err)
	}
	for _, seed := range seeds {
		text, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		files := []file{{"mesh.yaml", text}}
		snapshot, err := parse(files)
		again, errAgain := parse(files)
		if !reflect.DeepEqual(snapshot, again) || !reflect.DeepEqual(err, errAgain) {
			t.Fatalf("%+v, %v\nand then %+v, %v", snapshot, err, again, errAgain)
		}
		if err == nil {
			check(t, snapshot)
			return
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !located.MatchString(line) {
				t.Errorf("a fault without place or remedy: %q", line)
			}
		}
	})
}

func check(t *testing.T, s *model.Snapshot) {
	t.Helper()
	services, workloads := make(map[model.Name]bool), make(map[model.Name]*model.Workload)
	for _, service := range s.Services {
		services[service.Name] = true
		if len(service.Addresses) == 0 || len(service.Ports) == 0 {
			t.Errorf("service %v has no frontend", service.Name)
		}
		if (service.LocalityMode == model.LocalityStrict) != (service.LocalityScope != 0) {
			t.Errorf("service %v has mode %d with scope %d", service.Name, service.LocalityMode, service.LocalityScope)
		}
	}
	for _, workload := range s.Workloads {
		workloads[workload.Name] = &workload
		if workload.Cgroup == "/" || (workload.Cgroup != "" && workload.Cgroup != filepath.Clean("/"+workload.Cgroup)) {
			t.Errorf("workload %v is in %q", workload.Name, workload.Cgroup)
		}
	}
	for _, e := range s.Endpoints {
		w := workloads[e.Workload]
		if !services[e.Service] || (w == nil) != (e.Workload == model.Name{}) || (len(e.Addresses) == 0 && (w == nil || len(w.Addresses) == 0)) {
			t.Errorf("endpoint %+v leads nowhere", e)
		}
	}
	for _, b := range s.Bypasses {
		if b.Cgroup == "" && len(b.Selector) == 0 {
			t.Errorf("bypass %v is of everything or nothing", b.Name)
		}
	}
}
