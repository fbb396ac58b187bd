package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// kernel is one that Debian 12 offers.
type kernel struct {
	name  string // its series
	suite string // of the archive
}

// debian are the kernels that are tested. The package for clouds is the same source with fewer modules, which is less to download.
var debian = []kernel{
	{name: "6.1", suite: "bookworm-security"},
	{name: "6.12", suite: "bookworm-backports"},
}

func debianKernel(name string) (kernel, bool) {
	for _, k := range debian {
		if k.name == name {
			return k, true
		}
	}
	return kernel{}, false
}

const kernelPackage = "linux-image-cloud-amd64"

// aptSources are apt's in the cache, so that the machine's own stay as they are.
const aptSources = `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security bookworm-security main
`

// image is an unpacked kernel.
type image struct {
	release, vmlinuz, moduleDir string
}

func cacheDirectory() (string, error) {
	base, err := os.UserCacheDir() // XDG_CACHE_HOME, else .cache at home
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "sidelight-kernels")
	return dir, os.MkdirAll(dir, 0o755)
}

// fetch downloads and unpacks the newest kernel of the row. Where the archive cannot be reached it takes the one of the last time.
func (k kernel) fetch(ctx context.Context, cache string) (image, error) {
	dir := filepath.Join(cache, k.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return image{}, err
	}
	name, err := k.newest(ctx, cache)
	if err != nil {
		if i, cached := unpacked(dir); cached {
			fmt.Printf("%s: %v: taking %s, which is here\n", k.name, err, i.release)
			return i, nil
		}
		return image{}, err
	}
	dir = filepath.Join(dir, name)
	if i, ok := unpacked(filepath.Dir(dir)); ok && strings.HasPrefix(i.vmlinuz, dir+"/") {
		return i, nil
	}
	fmt.Printf("%s: downloading %s\n", k.name, name)
	return download(ctx, cache, dir, name)
}

func download(ctx context.Context, cache, dir, name string) (image, error) {
	// Older kernels of the row go; a directory by this name is a complete one.
	if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
		return image{}, err
	}
	work := dir + ".new"
	if err := os.MkdirAll(work, 0o755); err != nil {
		return image{}, err
	}
	if _, err := apt(ctx, cache, work, "apt-get", "download", name); err != nil {
		return image{}, err
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return image{}, fmt.Errorf("download %s: got %v", name, debs)
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], work).CombinedOutput(); err != nil {
		return image{}, fmt.Errorf("unpack %s: %w: %s", debs[0], err, out)
	}
	if err := errors.Join(os.Remove(debs[0]), os.Rename(work, dir)); err != nil {
		return image{}, err
	}
	i, ok := unpacked(filepath.Dir(dir))
	if !ok {
		return image{}, fmt.Errorf("%s has no kernel in it", name)
	}
	return i, nil
}

// unpacked finds the kernel in a row's directory.
func unpacked(dir string) (image, bool) {
	found, _ := filepath.Glob(filepath.Join(dir, "linux-image-*amd64", "boot", "vmlinuz-*"))
	if len(found) != 1 {
		return image{}, false
	}
	release := strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	return image{release: release, vmlinuz: found[0], moduleDir: filepath.Join(filepath.Dir(found[0]), "../lib/modules", release)}, true
}

var dependsOnKernel = regexp.MustCompile(`(?m)^Depends: (linux-image-[^ ,]+)`)

// newest asks the archive which package the row's meta package stands for.
func (k kernel) newest(ctx context.Context, cache string) (string, error) {
	if err := updateLists(ctx, cache); err != nil {
		return "", err
	}
	out, err := apt(ctx, cache, cache, "apt-cache", "show", "--no-all-versions", kernelPackage+"/"+k.suite)
	if err != nil {
		return "", err
	}
	found := dependsOnKernel.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("find %s in %s: apt says %q", kernelPackage, k.suite, out)
	}
	return string(found[1]), nil
}

// listsAge is how old what is known of the archive may become.
const listsAge = 24 * time.Hour

func updateLists(ctx context.Context, cache string) error {
	dir := filepath.Join(cache, "apt")
	for _, d := range []string{filepath.Join(dir, "lists/partial"), filepath.Join(dir, "archives/partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	stamp := filepath.Join(dir, "updated")
	if s, err := os.Stat(stamp); err == nil && time.Since(s.ModTime()) < listsAge {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(aptSources), 0o644); err != nil {
		return err
	}
	if _, err := apt(ctx, cache, cache, "apt-get", "update", "-o", "APT::Update::Error-Mode=any"); err != nil {
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// apt runs one of apt's programs with sources and lists in the cache. Proxies and the like stay the machine's.
func apt(ctx context.Context, cache, dir, program string, args ...string) ([]byte, error) {
	own := filepath.Join(cache, "apt")
	cmd := exec.CommandContext(ctx, program, append([]string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(own, "sources.list"), "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::lists=" + filepath.Join(own, "lists"), "-o", "Dir::Cache=" + own,
		// The user that apt downloads as cannot write to a cache at home.
		"-o", "APT::Sandbox::User=root", "-o", "APT::Architecture=amd64",
	}, args...)...)
	cmd.Dir = dir
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, args[0], err, strings.TrimSpace(complaint.String()))
	}
	return out, nil
}
