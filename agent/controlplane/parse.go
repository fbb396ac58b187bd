package controlplane

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// APIVersion is that of all documents.
const APIVersion = "sidelight.io/v1alpha1"

// Parse reads and checks a file, or all files *.yaml and *.yml of a directory but hidden ones; directories in it are left alone. Each file must have a
// document, because a file without any may be one that is just being written. The snapshot's Generation is 0 and its Node is empty; its lists are
// sorted by name, so that files with the same documents in another order make the same snapshot. The error is of all faults in the order of the
// files, each as "file:line: what; remedy".
func Parse(path string) (*model.Snapshot, error) {
	files, err := readFiles(path)
	if err != nil {
		return nil, err
	}
	return parse(files)
}

// reader makes a snapshot of documents.
type reader struct {
	mesh   model.Snapshot
	faults []fault
	// later are checks that need all documents.
	later []func()

	places    map[kindAndName]place
	services  map[model.Name]*model.Service
	workloads map[model.Name]*model.Workload
	frontends map[netip.AddrPort]claim
	addresses map[netip.Addr]claim
	cgroups   map[string]claim
}

type kindAndName struct {
	kind string
	name model.Name
}

// claim says who has something that only one may have.
type claim struct {
	name  model.Name
	place place
}

func parse(files []file) (*model.Snapshot, error) {
	r := &reader{
		places:    make(map[kindAndName]place),
		services:  make(map[model.Name]*model.Service),
		workloads: make(map[model.Name]*model.Workload),
		frontends: make(map[netip.AddrPort]claim),
		addresses: make(map[netip.Addr]claim),
		cgroups:   make(map[string]claim),
	}
	complete := true
	for _, f := range files {
		complete = r.file(f) && complete
	}
	if complete { // else much would be missed that is there
		for _, check := range r.later {
			check()
		}
	}
	if len(r.faults) > 0 {
		return nil, r.err()
	}
	sortByName(r.mesh.Workloads, func(w *model.Workload) model.Name { return w.Name })
	sortByName(r.mesh.Services, func(s *model.Service) model.Name { return s.Name })
	sortByName(r.mesh.Endpoints, func(e *model.Endpoint) model.Name { return e.Name })
	sortByName(r.mesh.Policies, func(p *model.AuthorizationPolicy) model.Name { return p.Name })
	sortByName(r.mesh.Bypasses, func(b *model.Bypass) model.Name { return b.Name })
	return &r.mesh, nil
}

func (r *reader) err() error {
	slices.SortStableFunc(r.faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.place.file, b.place.file), cmp.Compare(a.place.line, b.place.line))
	})
	errs := make([]error, len(r.faults))
	for i, f := range r.faults {
		errs[i] = fmt.Errorf("%v: %s", f.place, f.text)
	}
	return errors.Join(errs...)
}

func sortByName[T any](list []T, name func(*T) model.Name) {
	slices.SortFunc(list, func(a, b T) int {
		x, y := name(&a), name(&b)
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
}

// file reads the documents of one; it is false if it could not read to the end.
func (r *reader) file(f file) bool {
	decoder := yaml.NewDecoder(bytes.NewReader(f.text))
	documents := 0
	for {
		var document yaml.Node
		switch err := decoder.Decode(&document); {
		case errors.Is(err, io.EOF):
			if documents == 0 {
				r.faults = append(r.faults, fault{place{f.name, 1}, "no document; write one, or remove the file"})
			}
			return true
		case err != nil:
			r.faults = append(r.faults, syntaxFault(f, err))
			return false
		}
		if len(document.Content) == 0 {
			continue
		}
		root := document.Content[0]
		if root.Kind == yaml.ScalarNode && root.Value == "" && root.ShortTag() == "!!null" { // comments only
			continue
		}
		documents++
		r.document(value{reader: r, place: place{f.name, root.Line}, node: root})
	}
}

func (r *reader) document(v value) {
	doc, ok := v.object("apiVersion", "kind", "metadata", "spec")
	if !ok {
		return
	}
	switch version := doc.at("apiVersion"); {
	case !version.given():
		version.fault("missing; write %s", APIVersion)
	case version.is(textTag, APIVersion) && version.node.Value != APIVersion:
		version.fault("unknown version %q; use %s", version.node.Value, APIVersion)
	}
	kinds := []string{"Workload", "Service", "Endpoint", "AuthorizationPolicy", "Bypass"}
	kind := doc.at("kind")
	name, labels := r.metadata(doc.at("metadata"))
	switch {
	case !kind.given():
		kind.fault("missing; use one of %s", strings.Join(kinds, ", "))
		return
	case !kind.is(textTag, "one of "+strings.Join(kinds, ", ")):
		return
	case !slices.Contains(kinds, kind.node.Value):
		kind.fault("unknown kind %q; use one of %s", kind.node.Value, strings.Join(kinds, ", "))
		return
	}
	spec := doc.at("spec")
	if !spec.given() {
		spec.fault("missing; write it, with what a %s needs", kind.node.Value)
	}
	if name.Name != "" {
		key := kindAndName{kind.node.Value, name}
		if first, twice := r.places[key]; twice {
			v.fault("a second %s %v, the first is at %v; rename or remove one", key.kind, name, first)
			name = model.Name{} // its spec is checked, but nobody means it
		} else {
			r.places[key] = v.place
		}
	}
	switch kind.node.Value {
	case "Workload":
		r.workload(name, labels, spec)
	case "Service":
		r.service(name, spec)
	case "Endpoint":
		r.endpoint(name, spec)
	case "AuthorizationPolicy":
		r.policy(name, spec)
	case "Bypass":
		r.bypass(name, spec)
	}
}

// As in Kubernetes: of things, and of namespaces.
var (
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
)

// metadata returns a name without Name if there is none.
func (r *reader) metadata(v value) (model.Name, map[string]string) {
	o, ok := v.object("name", "namespace", "labels")
	if !ok {
		if !v.given() {
			v.fault("missing; write {name: NAME, namespace: NAMESPACE}")
		}
		return model.Name{}, nil
	}
	name := model.Name{Namespace: "default"}
	if v := o.at("namespace"); v.is(textTag, writeText) {
		if name.Namespace = v.node.Value; len(name.Namespace) > 63 || !label.MatchString(name.Namespace) {
			v.fault("%q is no DNS-1123 label; use at most 63 of a-z, 0-9 and -, and neither begin nor end with -", name.Namespace)
		}
	}
	switch v := o.at("name"); {
	case !v.given():
		v.fault("missing; write a name")
	case v.is(textTag, writeText):
		if name.Name = v.node.Value; len(name.Name) > 253 || !subdomain.MatchString(name.Name) {
			v.fault("%q is no DNS-1123 subdomain; use at most 253 of a-z, 0-9, - and ., and neither begin nor end a part with -", name.Name)
		}
	}
	return name, o.at("labels").labels()
}

// reference is NAME, which is one in the own namespace, or NAMESPACE/NAME.
func (v value) reference(own model.Name) model.Name {
	text := v.text()
	if namespace, name, ok := strings.Cut(text, "/"); ok {
		return model.Name{Namespace: namespace, Name: name}
	}
	return model.Name{Namespace: own.Namespace, Name: text}
}
