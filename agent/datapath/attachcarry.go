package datapath

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// attachCarrying puts the programs in the place of those whose maps have another layout. The order is such that nothing is missed or seen twice, and that
// nothing is held twice or forgotten:
//
//   - tracing programs first, because they tell of the ends of sockets that no other hook sees
//   - then those that judge inbound connections: the new ones know the identities of both meshes, the old ones do not know those that only the new one has
//   - sockops before connect: an old connect program leaves state in the old map, which is carried when its SYN leaves; the other way round an old sockops program
//     would find none
//   - release and getpeername in between: they look at what connect left, wherever
//   - no more than that in between: what an old connect program takes of a limit is given back in the new maps
//   - then what no hook came by is carried, when no old program runs any more. Until that is done the new limits lack it: so there may be up to twice of what a limit allows
//     for that time
//
// It is part of Attach, so nobody else looks at the links yet: the control socket does not serve.
func (d *Datapath) attachCarrying() error {
	c := d.carry
	if err := c.arrive(d.mesh.maps); err != nil {
		return err
	}
	// Whatever goes wrong from here on, what is attached stays: it is somebody's policies.
	d.keep, d.took = true, true
	err := d.putAll()
	if err != nil {
		return fmt.Errorf("change to maps of another layout: %w; start this version again", err)
	}
	return nil
}

func (d *Datapath) putAll() error {
	c := d.carry
	if d.mesh.on {
		if err := d.exempt(); err != nil {
			return err
		}
	}
	if err := c.carriers.ready(d); err != nil {
		return err
	}
	step()
	if err := c.carriers.attachTrace(c.pins); err != nil {
		return err
	}
	step()
	if d.mesh.on {
		d.mesh.attached()
		if err := d.guardAgain(); err != nil {
			return err
		}
	}
	programs := slices.Concat(d.hooks()[:1], d.meshHooks(), d.hooks()[1:])
	for _, h := range programs {
		if carrier := c.carriers.of(h.name); carrier != nil {
			h.program = carrier
		}
		if err := d.attachCgroup(h); err != nil {
			return err
		}
		step()
	}
	if err := grace(); err != nil { // from here on no program writes to the old map
		return err
	}
	if err := c.carriers.walk(c.before[connectionsMap].Map); err != nil {
		return err
	}
	step()
	for _, l := range d.links {
		i := slices.IndexFunc(programs, func(h hook) bool { return h.name == l.name })
		if c.carriers.of(l.name) == nil {
			continue
		}
		if err := l.Update(programs[i].program); err != nil {
			return fmt.Errorf("replace the program of link %s: %w", l.name, err)
		}
		step()
	}
	if c.carriers != nil {
		if err := c.carriers.objects.CarryFailed.Get(&c.failed); err != nil {
			return fmt.Errorf("read how many states were not carried over: %w", err)
		}
	}
	return nil
}

// guardAgain replaces the programs of network namespaces, if there are any. Where there are none the clients' side has not announced anybody yet.
func (d *Datapath) guardAgain() error {
	_, links, err := d.pins.content(filepath.Base(d.pins.set))
	if err != nil || !slices.ContainsFunc(links, func(name string) bool { return strings.HasPrefix(name, lookupLink) }) {
		return err
	}
	if _, err = d.GuardNamespaces(); err == nil {
		return nil
	}
	if left := d.Unguarded(); left != nil {
		return errors.Join(err, left)
	}
	return nil // it is about others, and said again when it is looked around
}

// Unguarded is an error if programs of before are in a network namespace that this process has not put its own into.
func (d *Datapath) Unguarded() error {
	_, links, err := d.pins.content(filepath.Base(d.pins.set))
	if err != nil {
		return err
	}
	d.mesh.mu.Lock()
	defer d.mesh.mu.Unlock()
	replaced := make(map[string]bool, len(d.mesh.lookups))
	for _, l := range d.mesh.lookups {
		replaced[l.name] = true
	}
	var errs []error
	for _, name := range links {
		if !strings.HasPrefix(name, lookupLink) || replaced[name] {
			continue
		}
		l, err := d.pins.link(name)
		if err != nil || l == nil {
			errs = append(errs, err)
			continue
		}
		info, err := l.Info()
		if err == nil && info.NetNs() != nil && info.NetNs().NetnsInode != 0 {
			err = fmt.Errorf("the program before is still in the network namespace with inode %d", info.NetNs().NetnsInode)
		}
		errs = append(errs, err, l.Close())
	}
	return errors.Join(errs...)
}

// Carries says that maps take the place of others of another layout: before Attach, and until Settle.
func (d *Datapath) Carries() bool { return d.carry != nil }

// CarryFailed is how many sockets lost their state in that: for want of room in their own memory.
func (d *Datapath) CarryFailed() uint64 {
	if d.carry == nil {
		return 0
	}
	return d.carry.failed
}

// settleCarry adds up what the maps before have, when no program works with them any more, and lets go of them.
func (d *Datapath) settleCarry() error {
	c := d.carry
	if c == nil {
		return nil
	}
	if err := d.takeOffStrays(); err != nil {
		return err
	}
	step()
	if len(c.carriers.attached()) > 0 && !d.Tracing() && exists(c.pins.linkPath(traceName)) {
		return fmt.Errorf("nothing has taken the place of program carry_%s", traceName)
	}
	if err := c.settle(&d.objects); err != nil {
		return err
	}
	step()
	if err := c.leave(); err != nil {
		return err
	}
	d.endCarry()
	d.keep = false
	return d.losses.resume(&d.objects)
}

// endCarry lets go of the maps before. Safe twice.
func (d *Datapath) endCarry() {
	d.carrying.Lock()
	defer d.carrying.Unlock()
	d.carry.close()
	d.carry = nil
}

// takeOffStrays takes off programs at hooks that this process has none for: there was a mesh and there is none any more, or only another version has such a hook.
func (d *Datapath) takeOffStrays() error {
	_, links, err := d.pins.content(filepath.Base(d.pins.set))
	if err != nil {
		return err
	}
	var strays []string
	for _, name := range linkOrder(links) {
		ours := slices.ContainsFunc(append(d.hooks(), d.meshHooks()...), func(h hook) bool { return h.name == name })
		if !ours && !strings.HasPrefix(name, "state") && (!d.mesh.on || !strings.HasPrefix(name, lookupLink)) {
			strays = append(strays, name)
		}
	}
	if len(strays) == 0 {
		return nil
	}
	var errs []error
	for _, name := range strays {
		errs = append(errs, d.pins.removeLink(name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return grace()
}
