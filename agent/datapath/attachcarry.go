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
//   - all that is there is carried before the new connect programs count what is open against limits
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
	all := append(d.hooks()[:1:1], d.meshHooks()...)
	before := c.before[connectionsMap].Map
	put := func(hooks []hook) error {
		for _, h := range hooks {
			if carrier := c.carriers.of(h.name); carrier != nil && exists(c.pins.linkPath(h.name)) {
				h.program = carrier
			}
			if err := d.attachCgroup(h); err != nil {
				return err
			}
			step()
		}
		return nil
	}
	if err := put(all); err != nil {
		return err
	}
	if err := grace(); err != nil {
		return err
	}
	if err := c.carriers.walk(before); err != nil {
		return err
	}
	step()
	if err := put(d.hooks()[1:]); err != nil {
		return err
	}
	if err := grace(); err != nil { // from here on no program writes to the old map
		return err
	}
	if err := c.carriers.walk(before); err != nil {
		return err
	}
	step()
	programs := append(d.hooks(), d.meshHooks()...)
	for _, l := range d.links {
		i := slices.IndexFunc(programs, func(h hook) bool { return h.name == l.name })
		if c.carriers.of(l.name) == nil || !l.taken {
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
	_, err = d.GuardNamespaces()
	return err
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
	if err := c.settle(&d.objects); err != nil {
		return err
	}
	step()
	if err := c.leave(); err != nil {
		return err
	}
	c.close()
	d.carry = nil
	d.keep = false
	return d.losses.resume(&d.objects)
}

// takeOffStrays takes off programs at hooks that this process has none for: there was a mesh, and there is none any more.
func (d *Datapath) takeOffStrays() error {
	if d.mesh.on {
		return nil
	}
	_, links, err := d.pins.content(filepath.Base(d.pins.set))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range linkOrder(links) {
		ours := slices.ContainsFunc(d.hooks(), func(h hook) bool { return h.name == name })
		if !ours && !strings.HasPrefix(name, "state") {
			errs = append(errs, d.pins.removeLink(name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return grace()
}
